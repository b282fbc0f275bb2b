"""How a decoder shrinks by g: the small model of its class, and what each of its parameters is made of.

The small model's shapes are compared with the source's: an axis that is g times shorter is divided in groups of g
neighbours. No architecture is known by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from torch import nn

from ...utils.errors import InputError
from ..generators.base import group_of_scale
from .axes import Sizes, build_empty, head_width, kind_of, layer_of, require_dense, resized, shapes_of, sizes_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Stack:
    """Matrices that are projected for each t, alike in every layer.

    Args:
        names: of the parameters (N, M), a layer each.
        shape: N, M.
        groups: of the rows, of the columns; 1 for an axis that stays.
        output_axis: the axis of the outputs: 0, or 1 where a matrix is stored with its inputs first, as GPT-2's are.
        biases: of the parameters that are added to the outputs; empty where there are none.
    """

    names: list[str]
    shape: tuple[int, int]
    groups: tuple[int, int]
    output_axis: int
    biases: list[str]


@dataclass(frozen=True)
class Grouping:
    """What a source becomes at scale 1/g.

    Args:
        group: g.
        config: of the small model.
        stacks: the matrices of the layers, which are projected for each t.
        own: of each other parameter, the group of each of its axes. The small model has these of its own.
        norms: those of ``own`` that multiply the coordinates of the stream, or of a head, one by one.
    """

    group: int
    config: PreTrainedConfig
    stacks: list[Stack]
    own: dict[str, tuple[int, ...]]
    norms: set[str]

    @property
    def added(self) -> set[str]:
        """The parameters that are added to the outputs of projected matrices: b of b_s = P b_1 + b."""
        return {name for stack in self.stacks for name in stack.biases}

    @classmethod
    def of(cls, config: PreTrainedConfig, scale: float | Fraction, *, shrink_heads: bool = False) -> Grouping:
        """Divide a decoder.

        Args:
            config: of the source.
            scale: 1/g. The hidden and the intermediate size shrink by g.
            shrink_heads: the width of each head shrinks by g too, as in the paper and as it must where a class ties it
                to the hidden size, as GPT-2 does. Rotary pairs stay pairs where the class rotates the two halves of a
                head, as most do.

        Raises:
            InputError: a scale that is not 1/g, sizes that g does not divide, or an architecture that cannot be divided
                so; the parameter that is in the way is named.
        """
        group = group_of_scale(scale)
        require_dense(config)
        source = build_empty(config)
        small = _small_config(config, group, shrink_heads)
        shapes = shapes_of(source)
        groups = _groups(config.model_type, shapes, shapes_of(build_empty(small)), group)
        matrices = _matrices(source)
        stacks: dict[tuple[object, ...], Stack] = {}
        for name, (module, output_axis) in matrices.items():
            shape, (rows, cols) = shapes[name], groups[name]
            key = kind_of(name), shape, rows, cols
            stack = stacks.setdefault(key, Stack([], (shape[0], shape[1]), (rows, cols), output_axis, []))
            stack.names.append(name)
            if getattr(module, "bias", None) is not None:
                stack.biases.append(name.removesuffix("weight") + "bias")
        own = {name: group for name, group in groups.items() if name not in matrices}
        added = {name for stack in stacks.values() for name in stack.biases}
        norms = {n for n, axes in own.items() if len(axes) == 1 and n.endswith("weight") and n not in added}
        return cls(group, small, list(stacks.values()), own, norms)


def _small_config(config: PreTrainedConfig, group: int, shrink_heads: bool) -> PreTrainedConfig:
    sizes, width = sizes_of(config), head_width(config)
    for name, size in (("hidden_size", sizes.hidden), ("intermediate_size", sizes.intermediate)):
        if size % group:
            raise InputError(f"scale must divide the source's {name}, {size}; it was 1/{group}")
    if shrink_heads and width % group:
        raise InputError(f"scale must divide the width of a head, {width}; it was 1/{group}")
    width = width // group if shrink_heads else width
    small = resized(config, Sizes(sizes.hidden // group, sizes.intermediate // group, sizes.layers), width)
    if head_width(small) != head_width(config):
        _require_whole_pairs(config, group)
    return small


def _require_whole_pairs(config: PreTrainedConfig, group: int) -> None:
    """Raises InputError where narrower heads would break their rotary pairs, or have lists of factors for each."""
    parameters = getattr(config, "rope_parameters", None) or {}
    for rope in [parameters] if "rope_type" in parameters else [p for p in parameters.values() if isinstance(p, dict)]:
        if any(isinstance(value, (list, tuple)) for value in rope.values()):
            raise InputError(
                f"shrink_heads must be left out for {config.model_type}: it has a rotary factor for each pair"
            )
        share = rope.get("partial_rotary_factor") or getattr(config, "partial_rotary_factor", None) or 1.0
        width = int(head_width(config) * share)
        if width % (2 * group):
            raise InputError(
                f"scale must leave whole pairs of the {width} coordinates of a head that rotate; it was 1/{group}"
            )


def _groups(
    kind: str, source: dict[str, tuple[int, ...]], small: dict[str, tuple[int, ...]], group: int
) -> dict[str, tuple[int, ...]]:
    """The group of each axis of each parameter."""
    if others := source.keys() ^ small.keys():
        raise InputError(f"source must have its parameters at every size; {kind} has not: {min(others)}")
    groups = {}
    for name, shape in source.items():
        if len(shape) > 2:
            raise InputError(f"source must be a dense decoder; {name} of {kind} is {shape}, as experts are")
        axes = tuple(1 if size == now else group for size, now in zip(shape, small[name]))
        if tuple(now * g for now, g in zip(small[name], axes)) != shape:
            raise InputError(
                f"source must shrink by whole groups of {group}; {name} of {kind} is {shape} and would be {small[name]}"
            )
        groups[name] = axes
    return groups


def _matrices(source: PreTrainedModel) -> dict[str, tuple[nn.Module, int]]:
    """The matrices of the layers by name: each with its module, and its axis of outputs."""
    from transformers.pytorch_utils import Conv1D

    matrices = {}
    for name, module in source.named_modules():
        weight = getattr(module, "weight", None)
        is_matrix = isinstance(weight, nn.Parameter) and weight.dim() == 2 and not isinstance(module, nn.Embedding)
        if is_matrix and layer_of(name):
            matrices[f"{name}.weight"] = module, 1 if isinstance(module, Conv1D) else 0
    return matrices
