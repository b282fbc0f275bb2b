"""Which axes of which parameters shrink, found by building the model's own class with other sizes.

The class is built on the meta device, where tensors have shapes and no content: as it is, with another hidden size and
with another intermediate size. An axis that has moved with the first belongs to the residual stream, one that has moved
with the second to the feed-forward. No architecture is known by name.
"""

from __future__ import annotations

import contextlib
import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from ...utils.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_INTERMEDIATE = ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size")
"""Names that configurations have for the width of the feed-forward."""
_LAYERS = "num_hidden_layers"


@dataclass(frozen=True)
class Sizes:
    """Sizes of a decoder: of the residual stream, of the feed-forward, and how many layers."""

    hidden: int
    intermediate: int
    layers: int

    def __str__(self) -> str:
        return f"hidden size {self.hidden}, intermediate size {self.intermediate}, {self.layers} layers"


@dataclass(frozen=True)
class Axis:
    """An axis that shrinks.

    Args:
        is_residual: whether it is the residual stream's; else it is the feed-forward's.
        copies: intermediate sizes that lie end to end on it: 2 where gate and up are one matrix.
    """

    is_residual: bool
    copies: int = 1


Axes = dict[str, tuple[Axis | None, ...]]
"""For each parameter, in the order of ``named_parameters``, what each of its axes is; None for one that stays."""


def sizes_of(config: PreTrainedConfig) -> Sizes:
    """The sizes that a configuration names; raises InputError where it is none of a dense decoder."""
    for name in ("hidden_size", "num_attention_heads", _LAYERS):
        if not isinstance(getattr(config, name, None), int):
            raise InputError(f"model must be a decoder whose config has {name}; {config.model_type} has none")
    intermediate = getattr(config, _intermediate_name(config), None)
    intermediate = 4 * config.hidden_size if intermediate is None else intermediate
    if not isinstance(intermediate, int):
        raise InputError(f"model must have one intermediate size; {config.model_type} has {intermediate}")
    return Sizes(config.hidden_size, intermediate, config.num_hidden_layers)


def head_width(config: PreTrainedConfig) -> int:
    """The width of a head."""
    width: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return width


def resized(config: PreTrainedConfig, sizes: Sizes, head_dim: int | None = None) -> PreTrainedConfig:
    """A configuration with other sizes, the width of a head explicit: the same unless given."""
    new = copy.deepcopy(config)
    head_dim = head_dim or head_width(config)
    with contextlib.suppress(AttributeError):  # a property, where the width of a head follows the hidden size
        new.head_dim = head_dim
    if hasattr(new, "auto_map"):  # code of the source's own, which is not used
        del new.auto_map
    new.hidden_size = sizes.hidden
    setattr(new, _intermediate_name(config), sizes.intermediate)
    return new


def _intermediate_name(config: PreTrainedConfig) -> str:
    return next((name for name in _INTERMEDIATE if hasattr(config, name)), _INTERMEDIATE[0])


def build_empty(config: PreTrainedConfig) -> PreTrainedModel:
    """The model of a configuration on the meta device.

    Raises:
        InputError: transformers has no causal language model for it, or the configuration is not valid.
    """
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
            return model
    except ValueError as error:
        raise InputError(f"model must be a causal language model that transformers builds in; {error}") from error


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of a model's parameters; those that are tied appear once."""
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


def find_axes(config: PreTrainedConfig, target: Sizes) -> Axes:
    """The axes of every parameter that shrink on the way to ``target``.

    Raises:
        InputError: an architecture that cannot be compressed so; the parameter that is in the way is named.
    """
    require_dense(config)
    sizes = sizes_of(config)
    base = shapes_of(build_empty(config))
    growth: dict[str, list[Axis | None]] = {name: [None] * len(shape) for name, shape in base.items()}
    if target.hidden != sizes.hidden:
        step = 2 * config.num_attention_heads  # some classes take multiples of the heads only
        moved = _growth(config, Sizes(sizes.hidden + step, sizes.intermediate, sizes.layers), base, step)
        _require_free_heads(config, moved)
        _enter(growth, moved, is_residual=True)
    if target.intermediate != sizes.intermediate:
        moved = _growth(config, Sizes(sizes.hidden, sizes.intermediate + 8, sizes.layers), base, 8)
        if not moved:
            raise InputError(f"intermediate_size must be left alone: no parameter of {config.model_type} follows it")
        _enter(growth, moved, is_residual=False)
    axes = {name: tuple(kinds) for name, kinds in growth.items()}
    _require_shapes(config, target, base, axes)
    return axes


def require_dense(config: PreTrainedConfig) -> None:
    """Raises InputError where a configuration is not that of one plain decoder."""
    kind = config.model_type
    if getattr(config, "quantization_config", None) is not None:
        raise InputError(f"model must hold plain weights; this {kind} is quantised: dequantise and save it first")
    if getattr(config, "is_encoder_decoder", False):
        raise InputError(f"model must be a decoder; {kind} has an encoder too")
    parts = [name for name in getattr(config, "sub_configs", {}) if getattr(config, name, None) is not None]
    if parts:
        raise InputError(f"model must be one language model; {kind} is made of {', '.join(parts)}: save its decoder")


def _growth(
    config: PreTrainedConfig, sizes: Sizes, base: dict[str, tuple[int, ...]], step: int
) -> dict[str, tuple[float, ...]]:
    """By how many steps each axis of the parameters that move grows."""
    moved = {}
    resized_shapes = shapes_of(build_empty(resized(config, sizes)))
    if others := resized_shapes.keys() ^ base.keys():
        raise InputError(f"model must have its parameters at every size; {config.model_type} has not: {min(others)}")
    for name, shape in resized_shapes.items():
        steps = tuple((now - before) / step for before, now in zip(base[name], shape))
        if any(steps):
            if len(shape) > 2:
                raise InputError(
                    f"model must be a dense decoder; {name} of {config.model_type} is {shape}, as experts and "
                    "convolutions are"
                )
            moved[name] = steps
    return moved


def _require_free_heads(config: PreTrainedConfig, moved: dict[str, tuple[float, ...]]) -> None:
    """Attention must not follow the hidden size: which of its axes is which cannot be told from shapes."""
    for name, steps in moved.items():
        if (len(steps) == 2 and all(steps)) or any(step not in (0, 1) for step in steps):
            raise InputError(
                f"hidden_size must stay {config.hidden_size}: in {config.model_type} the width of the heads follows it "
                f"({name}). Give intermediate_size or layers alone"
            )


def _enter(growth: dict[str, list[Axis | None]], moved: dict[str, tuple[float, ...]], *, is_residual: bool) -> None:
    for name, steps in moved.items():
        for i, step in enumerate(steps):
            if not step:
                continue
            if growth[name][i] is not None or step != int(step) or (i > 0 and step != 1):
                raise InputError(f"model must be a plain decoder; axis {i} of {name} cannot be told apart")
            growth[name][i] = Axis(is_residual, int(step))


def small_shape(shape: tuple[int, ...], axes: tuple[Axis | None, ...], target: Sizes) -> tuple[int, ...]:
    """The shape of a parameter in the small model."""
    return tuple(
        size if axis is None else axis.copies * (target.hidden if axis.is_residual else target.intermediate)
        for size, axis in zip(shape, axes)
    )


def _require_shapes(config: PreTrainedConfig, target: Sizes, base: dict[str, tuple[int, ...]], axes: Axes) -> None:
    """The small model that transformers builds must be the one that the axes say."""
    built = shapes_of(build_empty(resized(config, target)))
    for name, shape in base.items():
        expected = small_shape(shape, axes[name], target)
        if built.get(name) != expected:
            raise InputError(
                f"model must be a plain decoder; {name} of {config.model_type} would have to be {expected}, "
                f"and transformers makes it {built.get(name)}"
            )


def count_parameters(shapes: dict[str, tuple[int, ...]]) -> int:
    """Numbers in parameters of these shapes."""
    return sum(math.prod(shape) for shape in shapes.values())


def layer_of(name: str) -> str:
    """The layer that a parameter belongs to: "model.layers.3" of "model.layers.3.mlp.up_proj.weight"."""
    parts = name.split(".")
    number = next((i for i, part in enumerate(parts) if part.isdecimal()), None)
    return "" if number is None else ".".join(parts[: number + 1])


def kind_of(name: str) -> str:
    """The name without the number of its layer, which is the same in every layer."""
    return ".".join("*" if part.isdecimal() else part for part in name.split("."))
