"""A language model as a folder of Hugging Face's format, filled a parameter at a time.

Each parameter is read back at once and must be what was written, bit for bit. Then the logits of the whole, as
transformers reads it, must be those of the training-time forward.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..models.huggingface.causal import PretrainedFolder
from ..models.huggingface.stored import open_stored
from ..utils.tensor_file import TensorFile
from ..utils.tensors import same_bits
from .checked import TOLERANCE, WrongModel, compare_logits, read_back

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MOST_BYTES = 256 << 20
"""Of a model whose check holds it whole."""
_WEIGHTS = "model.safetensors"


class WeightsWriter:
    """Writes the weights of a model; a context manager.

    Args:
        folder: of the model.
        model: of its shape, on any device.
        dtype: of its parameters.
    """

    def __init__(self, folder: Path, model: PreTrainedModel, dtype: torch.dtype) -> None:
        layout = {name: (dtype, tuple(p.shape)) for name, p in model.named_parameters()}
        self._file = TensorFile(folder / _WEIGHTS, layout)

    def write(self, name: str, value: Tensor) -> None:
        """Write one parameter and read it back; raises WrongModel where it is another, or not finite."""
        if not value.sum(dtype=torch.promote_types(value.dtype, torch.float32)).isfinite():
            raise WrongModel(f"a model must be of finite numbers; its {name} is not")
        self._file.write(name, value)
        if not same_bits(self._file.read(name), value.cpu()):
            raise WrongModel(f"{name}, read back, must be what was generated; it is not")

    def __enter__(self) -> WeightsWriter:
        self._file.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._file.__exit__(*error)


def write_settings(folder: Path, model: PreTrainedModel, dtype: torch.dtype, **more: Any) -> None:
    """Write the configuration, with ``more`` in it, and the settings of generation of a model of this shape."""
    config: Any = copy.deepcopy(model.config)
    config.dtype, config.architectures = dtype, [type(model).__name__]
    for name, value in more.items():
        setattr(config, name, value)
    config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)


@torch.no_grad()
def check_logits(folder: Path, model: PreTrainedModel, tokens: Tensor) -> None:
    """Compare the logits of what transformers reads from a folder with those of a model and the folder's weights.

    A model of more than ``MOST_BYTES`` runs a parameter at a time too.

    Args:
        folder: it.
        model: whose configuration the folder's model must have; its parameters are not used.
        tokens: (B, T).

    Raises:
        WrongModel: other logits, or some that are not finite; tensors that are missing or too many.
    """
    from transformers import AutoModelForCausalLM

    tokens = tokens.cpu()
    stored = PretrainedFolder.open(folder)
    loaded = read_back(AutoModelForCausalLM, folder)  # memory-mapped: what is not used takes no memory
    if sum(p.nbytes for p in loaded.parameters()) > MOST_BYTES:
        loaded = open_stored(stored, tokens.device, stored.dtype)
    expected = open_stored(replace(stored, config=copy.deepcopy(model.config)), tokens.device, stored.dtype)
    assert loaded is not None and expected is not None, "the file has the names of the parameters"
    logits, own = (m(tokens, use_cache=False).logits.float() for m in (loaded, expected))
    if not own.isfinite().all():
        raise WrongModel("a model must have finite logits; it has not")
    compare_logits("transformers", folder, logits, own, TOLERANCE)
