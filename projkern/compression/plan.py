"""The plan of a compression: the small model's configuration, and which coordinates of each axis it keeps."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..models.huggingface.axes import Axes, Axis, Sizes, find_axes, layer_of, resized, sizes_of
from ..utils.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Scores:
    """How much each coordinate matters; only their order counts.

    Args:
        hidden: (d,) of the residual stream.
        intermediate: by layer ("model.layers.3"), (f,) of its feed-forward.
    """

    hidden: Tensor
    intermediate: dict[str, Tensor]


@dataclass(frozen=True)
class Plan:
    """What shrinks, and what is kept.

    Args:
        config: of the small model.
        sizes: of the small model.
        axes: of every parameter.
        hidden: (d',) kept coordinates of the residual stream, ascending.
        intermediate: by layer, (f',) kept ones of its feed-forward, ascending.
    """

    config: PreTrainedConfig
    sizes: Sizes
    axes: Axes
    hidden: Tensor
    intermediate: dict[str, Tensor]

    @classmethod
    def of(cls, model: PreTrainedModel, sizes: Sizes, scores: Scores | None = None) -> Plan:
        """The plan that keeps the coordinates of the highest scores; without scores, the first ones.

        Args:
            model: the source, of as many layers as ``sizes`` has.

        Raises:
            InputError: an architecture that cannot be compressed so, or scores of other shapes.
        """
        source = sizes_of(model.config)
        if sizes.layers != source.layers:
            raise InputError(f"sizes must have the model's {source.layers} layers; they have {sizes.layers}")
        axes = find_axes(model.config, sizes)
        scores = index_order(axes, source) if scores is None else scores
        for name, values, size in (
            ("hidden", scores.hidden, source.hidden),
            *((layer, values, source.intermediate) for layer, values in scores.intermediate.items()),
        ):
            if values.shape != (size,):
                raise InputError(f"scores of {name} must be ({size},); they were {tuple(values.shape)}")
        return cls(
            resized(model.config, sizes),
            sizes,
            axes,
            _highest(scores.hidden, sizes.hidden),
            {layer: _highest(values, sizes.intermediate) for layer, values in scores.intermediate.items()},
        )

    def keeping(self, hidden: Tensor, intermediate: dict[str, Tensor]) -> Plan:
        """The same plan with other coordinates."""
        return dataclasses.replace(self, hidden=hidden, intermediate=intermediate)

    def kept(self, name: str, axis: Axis) -> Tensor:
        """The kept coordinates of an axis of a parameter; of fused matrices, those of each."""
        return self.hidden if axis.is_residual else self.intermediate[layer_of(name)]


def _highest(scores: Tensor, count: int) -> Tensor:
    return scores.argsort(descending=True, stable=True)[:count].sort().values.cpu()


def index_order(axes: Axes, source: Sizes) -> Scores:
    """Scores by which the first coordinates are kept: a control."""
    return Scores(
        -torch.arange(source.hidden, dtype=torch.float64),
        {layer: -torch.arange(source.intermediate, dtype=torch.float64) for layer in feed_forwards(axes)},
    )


def feed_forwards(axes: Axes) -> list[str]:
    """The layers whose feed-forward shrinks."""
    return list(
        dict.fromkeys(layer_of(n) for n, both in axes.items() for axis in both if axis and not axis.is_residual)
    )
