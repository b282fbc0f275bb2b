"""From a share of the parameters, or from sizes, to the sizes of the small model."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..models.huggingface.axes import (
    Axes,
    Sizes,
    build_empty,
    count_parameters,
    find_axes,
    layer_of,
    resized,
    shapes_of,
    sizes_of,
    small_shape,
)
from ..utils.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

WIDEST_HIDDEN, WIDEST_INTERMEDIATE = 64, 128
"""Multiples that quantisation groups and tensor parallelism like; narrower models get smaller powers of two."""


def choose_sizes(
    config: PreTrainedConfig,
    keep: float | None = None,
    hidden: int | None = None,
    intermediate: int | None = None,
    layers: int | None = None,
) -> Sizes:
    """The sizes of the small model.

    Args:
        config: of the source.
        keep: share of its parameters, where neither ``hidden`` nor ``intermediate`` is given.
        hidden, intermediate, layers: exact sizes; those that are not given stay.

    Raises:
        InputError: sizes that are not smaller than the source's, or that its class does not take.
    """
    source = sizes_of(config)
    depth = source.layers if layers is None else layers
    if not 1 <= depth <= source.layers:
        raise InputError(f"layers must be from 1 to the source's {source.layers}; it was {depth}")
    if hidden is None and intermediate is None:
        if keep is None:
            return Sizes(source.hidden, source.intermediate, depth)
        return _solve(config, keep, depth)
    if keep is not None:
        raise InputError(f"keep must be left out where hidden_size or intermediate_size is given; it was {keep}")
    sizes = Sizes(
        source.hidden if hidden is None else hidden,
        source.intermediate if intermediate is None else intermediate,
        depth,
    )
    for name, size, most in (
        ("hidden_size", sizes.hidden, source.hidden),
        ("intermediate_size", sizes.intermediate, source.intermediate),
    ):
        if not 1 <= size <= most:
            raise InputError(f"{name} must be from 1 to the source's {most}; it was {size}")
    check_config(config, sizes)
    return sizes


def check_config(config: PreTrainedConfig, sizes: Sizes) -> None:
    """Raises InputError where the source's class would not load a configuration of these sizes."""
    small = resized(config, sizes)
    try:
        type(config)(**small.to_dict())
    except Exception as error:  # each class validates in its own way
        heads = config.num_attention_heads
        if sizes.hidden % heads:
            near = sizes.hidden // heads * heads
            hint = f"such as {near or heads} or {near + heads}, a multiple of its {heads} heads"
        else:
            hint = str(error).replace("\n", " ")
        raise InputError(
            f"hidden_size must be one that {type(config).__name__} takes, {hint}; it was {sizes.hidden}"
        ) from error


def _solve(config: PreTrainedConfig, keep: float, layers: int) -> Sizes:
    """Sizes in about the source's proportions with about that share of its parameters."""
    if not 0 < keep <= 1:
        raise InputError(f"keep must be above 0 and at most 1; it was {keep}")
    source = sizes_of(config)
    if keep == 1 and layers == source.layers:
        return source
    shapes = shapes_of(build_empty(config))
    target = keep * count_parameters(shapes)
    shallow = shapes_with_layers(shapes, layers)
    probe = Sizes(source.hidden - config.num_attention_heads, source.intermediate - 1, source.layers)
    axes = find_axes(config, probe)
    hidden_step = _multiple(source.hidden, config.num_attention_heads, WIDEST_HIDDEN)
    step = _multiple(source.intermediate, 1, WIDEST_INTERMEDIATE)
    candidates = [
        Sizes(hidden, intermediate, layers)
        for hidden in range(hidden_step, source.hidden + 1, hidden_step)
        for intermediate in range(step, source.intermediate + 1, step)
    ]

    def distance(sizes: Sizes) -> float:
        """From the share that was asked for, and, with less weight, from the source's proportions."""
        share = abs(math.log(parameters(shallow, axes, sizes) / target))
        return share + 0.2 * abs(math.log(sizes.intermediate / source.intermediate * source.hidden / sizes.hidden))

    best = min(candidates, key=distance, default=None)
    if best is None or abs(math.log(parameters(shallow, axes, best) / target)) > 0.4:
        raise InputError(
            f"keep must be a share that sizes in multiples of {hidden_step} and {step} come near to; it was {keep}: "
            "give hidden_size and intermediate_size"
        )
    return best


def _multiple(size: int, of: int, widest: int) -> int:
    """The largest power of two up to ``widest``, made a multiple of ``of``, that leaves at least four steps."""
    power = widest
    while power > 1 and math.lcm(power, of) * 4 > size:
        power //= 2
    return math.lcm(power, of)


def shapes_with_layers(shapes: dict[str, tuple[int, ...]], layers: int) -> dict[str, tuple[int, ...]]:
    """The shapes of a model of fewer layers."""
    numbers = {name: layer_of(name).rpartition(".")[2] for name in shapes}
    return {name: shape for name, shape in shapes.items() if not numbers[name] or int(numbers[name]) < layers}


def parameters(shapes: dict[str, tuple[int, ...]], axes: Axes, sizes: Sizes) -> int:
    """Parameters of the small model of these sizes."""
    return count_parameters({name: small_shape(shape, axes[name], sizes) for name, shape in shapes.items()})
