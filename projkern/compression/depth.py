"""Fewer layers: those that change the residual stream least are left out before anything is projected."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from ..models.huggingface.causal import evaluating
from ..models.huggingface.stored import is_stored, with_names
from ..utils.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def layers_of(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The list of the decoder's layers and its name; raises InputError where it cannot be told."""
    count = model.config.num_hidden_layers
    for name, module in model.named_modules():  # from the outermost inwards
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return name, module
    raise InputError(f"layers must be left out: {model.config.model_type} has no list of {count} layers")


@torch.no_grad()
def influence(model: PreTrainedModel, batches: Iterable[Tensor]) -> Tensor:
    """How much each layer changes the residual stream: the mean of 1 - cos(input, output), (layers,) float64."""
    _, layers = layers_of(model)
    totals, positions = torch.zeros(len(layers), dtype=torch.float64), 0

    def enter(number: int, arguments: tuple[Any, ...], options: dict[str, Any], output: Any) -> None:
        before = arguments[0] if arguments else options["hidden_states"]
        after = output[0] if isinstance(output, tuple) else output
        totals[number] += (1 - F.cosine_similarity(before.float(), after.float(), dim=-1)).sum().item()

    handles = [
        layer.register_forward_hook(
            lambda module, arguments, options, output, number=number: enter(number, arguments, options, output),
            with_kwargs=True,
        )
        for number, layer in enumerate(layers)
    ]
    try:
        with evaluating(model):
            for tokens in tqdm(batches, desc="influence", unit=" batches", leave=False):
                model(tokens.to(model.device), use_cache=False)
                positions += tokens.numel()
    finally:
        for handle in handles:
            handle.remove()
    return totals / max(1, positions)


def with_layers(model: PreTrainedModel, kept: Sequence[int]) -> PreTrainedModel:
    """The model with some of its layers only; the parameters are the model's own, not copies.

    Args:
        kept: numbers of the layers that stay, ascending.
    """
    name, layers = layers_of(model)
    config = copy.deepcopy(model.config)
    for key, value in model.config.to_dict().items():
        if isinstance(value, list) and len(value) == len(layers):  # such as layer_types
            setattr(config, key, [value[i] for i in kept])
    config.num_hidden_layers = len(kept)
    numbers = {str(old): str(new) for new, old in enumerate(kept)}

    def new_name(key: str) -> str | None:
        number, _, rest = key.removeprefix(f"{name}.").partition(".")
        if not key.startswith(f"{name}."):
            return key
        return f"{name}.{numbers[number]}.{rest}" if number in numbers else None

    if is_stored(model):
        names = [key for key, _ in model.named_parameters()]
        return with_names(model, config, {new: key for key in names if (new := new_name(key)) is not None})
    shallow: PreTrainedModel = type(model)(config).to(model.device)  # type: ignore[arg-type]
    state = {new: w for key, w in model.state_dict().items() if (new := new_name(key)) is not None}
    shallow.load_state_dict(state, assign=True)
    shallow.tie_weights()
    return shallow.eval().requires_grad_(False)
