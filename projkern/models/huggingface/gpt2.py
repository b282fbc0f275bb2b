"""Hugging Face's GPT-2 format, both ways: a folder of config.json, model.safetensors and generation settings.

That format has no start slot, so on the way out the start vector becomes one more token, the last: its id is
``vocab_size``, its embedding the start vector, and ``bos_token_id`` names it. GPT-2's head has a row for every token,
so that one gets a row of zeros, which was never trained and is to be ignored. ``config.json`` records this under
"projkern", with the model's origin; by it reading drops that row and gives the same bits again.

A linear operator's weights lie the other way round there: (inputs, outputs).
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as serialise
from torch import Tensor

from ...data import Palette
from ...utils.errors import InputError
from ...utils.files import is_nonempty, new_folder, read_object
from ...utils.tensors import read_weights
from ..gpt import GPT
from ..layout import LINEARS, NORMS, GPTConfig, Norm
from ..tables import Tables
from . import imagegpt
from .card import model_card

FORMAT = 1
"""Version of what config.json holds under "projkern"."""

_PREFIX = "transformer."
_NAMES = {
    **{"attn_qkv": "attn.c_attn", "attn_out": "attn.c_proj", "mlp_in": "mlp.c_fc", "mlp_out": "mlp.c_proj"},
    **{"norm_1": "ln_1", "norm_2": "ln_2", "final_norm": "ln_f"},
}
"""The format's names of what ``models.layout`` lists."""
_SETTINGS = (
    *("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner", "resid_pdrop", "embd_pdrop", "attn_pdrop"),
    *("activation_function", "layer_norm_epsilon", "scale_attn_weights", "scale_attn_by_inverse_layer_idx"),
    *("add_cross_attention", "tie_word_embeddings", "bos_token_id"),
)
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass(frozen=True)
class Pretrained:
    """A model read from a folder.

    Args:
        model: the model, in evaluation mode, on the CPU, of the type that is stored.
        palette: the colours of its tokens, None where the folder has none.
        provenance: the origin that a folder written by projkern records, None for any other.
        notes: what was lost in reading, a sentence each.
    """

    model: GPT
    palette: Palette | None
    provenance: dict[str, Any] | None
    notes: list[str]


def linear_names(n_layer: int) -> list[str]:
    """The format's names of the linear operators, by operator and then layer, without ".weight" and ".bias"."""
    return [layer_name for name in LINEARS for layer_name in _in_layers(name, n_layer)]


def norm_names(norm: Norm, n_layer: int) -> list[str]:
    """The format's names of a norm, of each layer or the one that stands once, without ".weight" and ".bias"."""
    return _in_layers(norm.name, n_layer) if norm.is_in_layers else [f"{_PREFIX}{_NAMES[norm.name]}"]


def _in_layers(name: str, n_layer: int) -> list[str]:
    return [f"{_PREFIX}h.{i}.{_NAMES[name]}" for i in range(n_layer)]


@torch.no_grad()
def table_tensors(tables: Tables) -> dict[str, Tensor]:
    """A model's embeddings, norms and head under the format's names; those with one row more are copies."""
    start = tables.start[None]
    state = {
        "transformer.wte.weight": torch.cat([tables.token_embedding, start]),
        "transformer.wpe.weight": tables.position_embedding.detach(),
        "lm_head.weight": torch.cat([tables.head, torch.zeros_like(start)]),
    }
    for norm in NORMS:
        names = norm_names(norm, len(tables.norm_1_weight))
        for kind, values in (("weight", getattr(tables, norm.weight)), ("bias", getattr(tables, norm.bias))):
            rows = values.view(len(names), -1).unbind(0)
            state |= {f"{name}.{kind}": row for name, row in zip(names, rows)}
    return state


@torch.no_grad()
def tensors(model: GPT) -> dict[str, Tensor]:
    """All of a model's tensors under the format's names."""
    state = table_tensors(model.tables)
    weights = [w for name in LINEARS for w in model.weights[name].mT.contiguous().unbind(0)]
    biases = [b for name in LINEARS for b in model.biases[name].unbind(0)]
    for name, weight, bias in zip(linear_names(model.config.n_layer), weights, biases):
        state |= {f"{name}.weight": weight, f"{name}.bias": bias}
    return state


class Writer:
    """Writes models of one shape into folders that transformers reads.

    Args:
        config: the models' shape, without ``task_dim``: the format has no place for Linear(t).
        palette: the colours of the tokens; they go into the folder as ImageGPT's image processor stores them.

    Raises:
        InputError: a conditional model, or a palette that does not fit the shape.
    """

    def __init__(self, config: GPTConfig, palette: Palette | None = None) -> None:
        from transformers import GenerationConfig, GPT2Config

        if config.task_dim is not None:
            raise InputError(
                f"model must be unconditional: GPT-2's format has no place for a start slot computed from t; "
                f"it took a t of {config.task_dim} numbers"
            )
        self._config = config
        self._settings = GPT2Config(
            vocab_size=config.vocab_size + 1,
            n_positions=config.n_positions,
            n_embd=config.n_embd,
            n_layer=config.n_layer,
            n_head=config.n_head,
            resid_pdrop=config.dropout,
            embd_pdrop=config.dropout,
            attn_pdrop=config.dropout,
            bos_token_id=config.vocab_size,
            eos_token_id=None,
            tie_word_embeddings=False,
            architectures=["GPT2LMHeadModel"],
        ).to_diff_dict()
        self._generation = GenerationConfig(
            bos_token_id=config.vocab_size,
            do_sample=True,
            top_k=0,  # transformers' own default draws from the likeliest 50 only
            max_length=config.n_positions + 1,  # the start slot, then every position's token
            suppress_tokens=[config.vocab_size],
        ).to_json_string(use_diff=True)
        self._processor = _processor(palette, config) if palette is not None else None

    def write(self, folder: Path, state: dict[str, Tensor], provenance: dict[str, Any]) -> None:
        """Fill an existing folder with one model.

        Args:
            folder: the folder.
            state: all tensors under the format's names (see ``tensors``).
            provenance: the model's origin, for config.json and the card.

        Raises:
            InputError: tensors of more than one type, which a folder cannot declare.
            OSError: it cannot be written.
        """
        dtypes = {tensor.dtype for tensor in state.values()}
        if len(dtypes) > 1:
            raise InputError(f"model must be of one type; it was of {', '.join(sorted(map(str, dtypes)))}")
        settings = self._settings | {
            "dtype": str(dtypes.pop()).removeprefix("torch."),
            "projkern": {"format": FORMAT} | provenance,
        }
        d = self._config.n_embd
        parameters = sum(tensor.numel() for tensor in state.values()) - d  # less the head's row of zeros
        (folder / "model.safetensors").write_bytes(serialise(state, metadata={"format": "pt"}))
        (folder / "config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", "utf-8")
        (folder / "generation_config.json").write_text(self._generation, "utf-8")
        card = model_card(self._config, parameters, provenance, images=self._processor is not None)
        (folder / "README.md").write_text(card, "utf-8", "backslashreplace")
        if self._processor is not None:
            (folder / "preprocessor_config.json").write_text(self._processor, "utf-8")


def save(model: GPT, folder: Path, palette: Palette | None = None) -> None:
    """Write a model into a new folder, in one step: it is there whole or not at all.

    Args:
        model: an unconditional model, all of one type.
        folder: a new or an empty one.
        palette: as in ``Writer``.

    Raises:
        FileExistsError: the folder holds something already.
        InputError: a model that the format cannot represent.
        OSError: it cannot be written.
    """
    writer = Writer(model.config, palette)
    if is_nonempty(folder):
        raise FileExistsError(f"folder must be new or empty; {folder} is not")
    with new_folder(folder.resolve()) as partial:
        writer.write(partial, {name: tensor.cpu() for name, tensor in tensors(model).items()}, {})


def load(folder: Path) -> Pretrained:
    """Read a GPT-2 folder, of projkern or another program, or an ImageGPT one.

    In models of other programs the start slot becomes the embedding of ``bos_token_id``, and a tied head a copy of the
    embedding.

    Raises:
        InputError: no such folder, another kind of model, pickled weights, or one that a ``GPT`` cannot represent.
    """
    values = read_object(folder / "config.json", "a checkpoint of GPT-2 or ImageGPT")
    kind, provenance = values.get("model_type"), values.get("projkern")
    if kind not in ("gpt2", "imagegpt"):
        raise InputError(f"{folder} must hold a model of type gpt2 or imagegpt; it was {kind}")
    if provenance is not None and (not isinstance(provenance, dict) or provenance.get("format") != FORMAT):
        raise InputError(f"{folder} must be of format {FORMAT}, which this projkern reads; it says {provenance}")
    if provenance is not None and not _is_task(provenance.get("t", [])):
        raise InputError(f"t of {folder}/config.json must be a list of finite numbers; it was {provenance['t']}")
    state = read_weights(folder)
    notes: list[str] = []
    if kind == "imagegpt":
        values, state, notes = imagegpt.as_gpt2(values, state)
    settings = _parse(values, folder)
    extra_start = provenance is not None or kind == "imagegpt"  # its last token is the start slot and nothing else
    notes += _check(settings, folder)
    model = _model(settings, state, extra_start, folder)
    if not extra_start:
        notes.append(f"The start slot is the embedding of the token {settings.bos_token_id}, bos_token_id.")
    palette = _palette(folder, model.config.vocab_size)
    return Pretrained(model.eval(), palette, provenance, notes)


def _is_task(t: Any) -> bool:
    return isinstance(t, list) and all(type(x) in (int, float) and abs(x) < 1e38 for x in t)  # float32 holds them


def _parse(values: dict[str, Any], folder: Path) -> Any:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import GPT2Config

    try:
        # Nothing else is passed on: settings of no use here could be of a form that transformers does not expect.
        return GPT2Config.from_dict({name: values[name] for name in _SETTINGS if name in values})
    except (StrictDataclassError, TypeError, ValueError) as error:
        raise InputError(f"{folder}/config.json must describe a GPT-2; it does not: {error}") from error


def _check(settings: Any, folder: Path) -> list[str]:
    """A sentence for each setting of a GPT-2 that is lost; raises InputError where a ``GPT`` cannot represent it."""
    representable: dict[str, tuple[Any, ...]] = {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "layer_norm_epsilon": (1e-5,),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "n_inner": (None, LINEARS["mlp_in"].rows * settings.n_embd),
        "add_cross_attention": (False,),
    }
    for name, allowed in representable.items():
        if getattr(settings, name) not in allowed:
            raise InputError(
                f"{name} of {folder}/config.json must be {' or '.join(map(str, allowed))}; "
                f"it was {getattr(settings, name)}"
            )
    rates = {settings.resid_pdrop, settings.embd_pdrop, settings.attn_pdrop}
    if len(rates) == 1:
        return []
    return [f"Of three dropout rates only that of the residual branches, {settings.resid_pdrop}, is used."]


def _model(settings: Any, state: dict[str, Tensor], extra_start: bool, folder: Path) -> GPT:
    """The model of a checkpoint; raises InputError where a tensor is missing, left over or of another shape."""
    left = {name.removeprefix(_PREFIX): tensor for name, tensor in state.items()}
    tokens, d = settings.vocab_size, settings.n_embd

    def take(name: str, *shape: int) -> Tensor:
        name = name.removeprefix(_PREFIX)
        if name not in left:
            raise InputError(f"{folder} must hold a tensor {name}; it does not")
        tensor = left.pop(name)
        if tensor.shape != shape or tensor.dtype not in _DTYPES:
            raise InputError(
                f"{name} of {folder} must be floating-point {shape}, of 16 to 64 bits; "
                f"it was {tensor.dtype} {tuple(tensor.shape)}"
            )
        return tensor.clone()  # so that no slice keeps the whole alive, and a tied head is one of its own

    start = tokens - 1 if extra_start else settings.bos_token_id
    if not isinstance(start, int) or not 0 <= start < tokens:
        raise InputError(
            f"bos_token_id of {folder}/config.json must be a token, for the start slot to begin with; it was {start}"
        )
    if settings.tie_word_embeddings and "lm_head.weight" not in left:  # one that is stored counts, as in transformers
        left["lm_head.weight"] = left.get("wte.weight", torch.empty(0))
    embedding, head = take("wte.weight", tokens, d), take("lm_head.weight", tokens, d)
    vocab_size, layers = tokens - extra_start, settings.n_layer
    config = GPTConfig(
        vocab_size=vocab_size,
        n_positions=settings.n_positions,
        n_embd=d,
        n_layer=layers,
        n_head=settings.n_head,
        dropout=settings.resid_pdrop,
    )
    parameters = {
        "tables.token_embedding": embedding[:vocab_size].clone(),
        "tables.start": embedding[start].clone(),
        "tables.head": head[:vocab_size].clone(),
        "tables.position_embedding": take("wpe.weight", config.n_positions, d),
    }
    for norm in NORMS:
        names = norm_names(norm, layers)
        for parameter, kind in ((norm.weight, "weight"), (norm.bias, "bias")):
            values = torch.stack([take(f"{name}.{kind}", d) for name in names])
            parameters[f"tables.{parameter}"] = values if norm.is_in_layers else values[0]
    for linear, (rows, cols) in config.linear_shapes().items():
        names = _in_layers(linear, layers)
        weights = torch.stack([take(f"{name}.weight", cols, rows) for name in names])
        parameters[f"weights.{linear}"] = weights.mT.contiguous()
        parameters[f"biases.{linear}"] = torch.stack([take(f"{name}.bias", rows) for name in names])
    unknown = [name for name in left if not name.endswith((".attn.bias", ".attn.masked_bias"))]  # the causal mask
    if unknown:
        raise InputError(f"{folder} must hold the tensors of one GPT-2; {sorted(unknown)[0]} is none of them")
    if len(dtypes := {str(tensor.dtype) for tensor in parameters.values()}) > 1:
        raise InputError(f"tensors of {folder} must be of one type; they were of {', '.join(sorted(dtypes))}")
    with torch.device("meta"):
        model = GPT(config)
    model.load_state_dict(parameters, assign=True)
    return model


def _processor(palette: Palette, config: GPTConfig) -> str:
    size = math.isqrt(config.n_positions)
    if len(palette) != config.vocab_size or size**2 != config.n_positions:
        raise InputError(
            f"palette must have a colour for each of the model's {config.vocab_size} tokens, and its "
            f"{config.n_positions} positions be a square; it had {len(palette)} colours"
        )
    return json.dumps(
        {
            "image_processor_type": "ImageGPTImageProcessor",
            "clusters": palette.colors.tolist(),
            "do_color_quantize": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
            "resample": 2,
            "rescale_factor": 1 / 255,
            "size": {"height": size, "width": size},
        },
        indent=2,
    )


def _palette(folder: Path, colors: int) -> Palette | None:
    path = folder / "preprocessor_config.json"
    if not path.exists():
        return None
    clusters = read_object(path, "an image processor's settings").get("clusters")
    if clusters is None:
        return None
    try:
        palette = Palette(torch.tensor(clusters, dtype=torch.float32))
    except (ValueError, TypeError) as error:
        raise InputError(f"clusters of {path} must be a palette, (K, 3) in [-1, 1]: {error}") from error
    if len(palette) != colors:
        raise InputError(f"clusters of {path} must be one for each of {colors} tokens; there were {len(palette)}")
    return palette
