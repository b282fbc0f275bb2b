"""How much each coordinate of the residual stream and of the feed-forwards matters.

By activation: the sum of |x| over the inputs x of the linear layers that read the axis. For the residual stream these
are the outputs of the norms, over all layers (the head left out, as in the authors' code); for a feed-forward the
input of its last matrix. By magnitude: the mean norm of the rows or columns of all matrices that have the axis.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..models.huggingface.axes import Axes, Axis, layer_of, sizes_of
from ..models.huggingface.causal import evaluating
from ..models.huggingface.stored import parameters_of
from .plan import Scores, feed_forwards, index_order

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_AT_ONCE = 1 << 23  # numbers


@dataclass
class Inputs:
    """What is gathered of the inputs of the linear layers that read an axis which shrinks.

    Args:
        sums: by parameter, sum of |x| over positions, (size,) float64. Layers with one input share it.
        moments: by parameter, sum of x x^T, (size, size) float32; empty unless asked for.
    """

    sums: dict[str, Tensor] = field(default_factory=dict)
    moments: dict[str, Tensor] = field(default_factory=dict)


def input_axis(model: nn.Module, name: str) -> int | None:
    """The axis of a matrix that its linear layer's input meets; None where it is no linear layer's matrix."""
    from transformers.pytorch_utils import Conv1D

    module_name, _, kind = name.rpartition(".")
    module = model.get_submodule(module_name)
    if kind != "weight" or not isinstance(module, (nn.Linear, Conv1D)):
        return None
    return 0 if isinstance(module, Conv1D) else 1


def readers(model: PreTrainedModel, axes: Axes) -> dict[str, Axis]:
    """The matrices of linear layers whose input's axis shrinks, with that axis."""
    matrices = {}
    for name, both in axes.items():
        index = input_axis(model, name) if len(both) == 2 else None
        if index is not None and (axis := both[index]) is not None:
            matrices[name] = axis
    return matrices


@torch.no_grad()
def gather_inputs(
    model: PreTrainedModel, axes: Axes, batches: Iterable[Tensor], *, moments: Container[str] = ()
) -> Inputs:
    """Run the model over token batches (B, T) and gather what ``Inputs`` holds.

    Args:
        moments: the parameters whose moments are gathered.
    """
    with gathering(model, axes, moments=moments) as inputs, evaluating(model):
        for tokens in tqdm(batches, desc="importance", unit=" batches", leave=False):
            model(tokens.to(model.device), use_cache=False)
    return inputs


@contextmanager
def gathering(model: PreTrainedModel, axes: Axes, *, moments: Container[str] = ()) -> Iterator[Inputs]:
    """Gather what ``Inputs`` holds of all that runs through the model's layers."""
    inputs = Inputs()
    last: list[Any] = [None, "", ""]  # the input seen last, and the parameters that its sum and moments are entered for

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def enter(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            x = arguments[0]
            rows = x.detach().flatten(0, -2).float()
            if x is not last[0]:
                last[:] = [x, name, ""]
                _add(inputs.sums, name, rows.abs().sum(0, dtype=torch.float64))
            else:  # q, k and v, or gate and up, read one input
                inputs.sums[name] = inputs.sums[last[1]]
            if name in moments and last[2]:
                inputs.moments[name] = inputs.moments[last[2]]
            elif name in moments:
                last[2] = name
                _add(inputs.moments, name, rows.mT @ rows)

        return enter

    handles = []
    try:
        for name in readers(model, axes):
            module = model.get_submodule(name.rpartition(".")[0])
            handles.append(module.register_forward_pre_hook(hook(name)))
        yield inputs
    finally:
        for handle in handles:
            handle.remove()


def _add(sums: dict[str, Tensor], name: str, value: Tensor) -> None:
    if name in sums:
        sums[name] += value
    else:
        sums[name] = value


def scores_of(importance: str, model: PreTrainedModel, axes: Axes, inputs: Inputs) -> Scores:
    """Scores of one of ``IMPORTANCES`` (``config.py``).

    Args:
        inputs: of ``gather_inputs``, used by "activation" alone.
    """
    sizes = sizes_of(model.config)
    scores = index_order(axes, sizes)
    if importance == "index":
        return scores
    hidden = torch.zeros(sizes.hidden, dtype=torch.float64)
    intermediate = {layer: torch.zeros(sizes.intermediate, dtype=torch.float64) for layer in feed_forwards(axes)}
    if importance == "activation":
        _add_activations(model, axes, inputs, hidden, intermediate)
    else:
        _add_magnitudes(model, axes, hidden, intermediate)
    return Scores(hidden, intermediate)


def _add_activations(
    model: PreTrainedModel, axes: Axes, inputs: Inputs, hidden: Tensor, intermediate: dict[str, Tensor]
) -> None:
    counted: set[int] = set()
    head = model.get_output_embeddings()
    for name, axis in readers(model, axes).items():
        total = inputs.sums[name]
        if id(total) in counted or model.get_submodule(name.rpartition(".")[0]) is head:
            continue
        counted.add(id(total))
        target = hidden if axis.is_residual else intermediate[layer_of(name)]
        target += total.cpu()


def _add_magnitudes(model: PreTrainedModel, axes: Axes, hidden: Tensor, intermediate: dict[str, Tensor]) -> None:
    parameters = parameters_of(model)
    for name, both in axes.items():
        if len(both) != 2 or both == (None, None):
            continue
        weight = parameters[name]
        for i, axis in enumerate(both):
            if axis is None:
                continue
            norms = _norms(weight.detach(), i).cpu().view(axis.copies, -1).mean(0)
            target = hidden if axis.is_residual else intermediate[layer_of(name)]
            target += norms / norms.mean().clamp(min=torch.finfo(norms.dtype).tiny)


def _norms(weight: Tensor, axis: int) -> Tensor:
    """The norm of each row (axis 0) or column (axis 1), float64; few at a time are in that type."""
    at_once = max(1, _AT_ONCE // weight.shape[1 - axis])
    return torch.cat([part.double().norm(dim=1 - axis) for part in weight.split(at_once, axis)])
