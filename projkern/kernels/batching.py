"""How ``torch.func.vmap`` runs the operators: its axis becomes part of the tasks, or the calls are made one by one."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor


def fold(tensor: Tensor, axis: int | None, size: int) -> Tensor:
    """(B, ...) for each of ``size`` samples, along an axis or the same for all, as (size · B, ...)."""
    batched = tensor.expand(size, *tensor.shape) if axis is None else tensor.movedim(axis, 0)
    return batched.flatten(0, 1)


def one_by_one(call: Callable[..., Any], axes: Sequence[Any], arguments: Sequence[Any], size: int) -> list[Any]:
    """The results of each sample's own call; ``axes`` are as ``torch.library.register_vmap`` gives them."""

    def sample(argument: Any, axis: Any, k: int) -> Any:
        if isinstance(axis, (list, tuple)):
            return [sample(part, part_axis, k) for part, part_axis in zip(argument, axis)]
        return argument if axis is None else argument.select(axis, k)

    return [call(*(sample(argument, axis, k) for argument, axis in zip(arguments, axes))) for k in range(size)]


def is_batched(axes: Any) -> bool:
    """Whether any tensor of a list has an axis of samples."""
    return any(axis is not None for axis in (axes if isinstance(axes, (list, tuple)) else [axes]))
