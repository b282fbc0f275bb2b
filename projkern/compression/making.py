"""The blocks of a plan, made one at a time: a parameter of the source is read when its block is made."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..models.huggingface.axes import shapes_of, small_shape
from ..models.huggingface.stored import parameters_of
from ..utils.errors import InputError
from .blocks import Block, Stack
from .config import METHODS
from .importance import Inputs, input_axis
from .plan import Plan
from .projections import Projection, compensated, selection, shape_of
from .shares import stacks_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class BlockMaker:
    """Makes the blocks of a projected model; the arguments are those of ``ProjectedModel``.

    Args:
        source: loaded, or stored (``models.huggingface.stored``).
    """

    def __init__(
        self, source: PreTrainedModel, plan: Plan, method: str, block: int | None, inputs: Inputs | None
    ) -> None:
        if method not in METHODS:
            raise InputError(f"method must be one of {', '.join(METHODS)}; it was {method}")
        if block is not None and (method != "project" or block < 1):
            raise InputError(f"block must be at least 1, and left out with another method than project; it was {block}")
        self.source, self.plan, self.method, self.inputs = source, plan, method, inputs
        self.dtype = torch.promote_types(source.dtype, torch.float32)
        self._parameters = parameters_of(source)
        self._compensated: dict[tuple[int, int], Projection] = {}  # q, k and v, or gate and up, have one input
        self._block = 1 if method == "group" else block

    def names(self) -> list[list[str]]:
        """The parameters of each stack."""
        return stacks_of(shapes_of(self.source), self.plan.axes)

    def make(self, names: list[str]) -> Block:
        """The block of some parameters, at its start."""
        axes = self.plan.axes[names[0]]
        weights = {name: self._parameters[name].detach() for name in names}
        shape = small_shape(tuple(weights[names[0]].shape), axes, self.plan.sizes)
        if len(axes) != 2 or axes == (None, None):
            values = torch.stack([self._select(name, w) for name, w in weights.items()])
            return Block(names, shape, values, [], [], [], False)
        copies = 1 if axes[0] is None else axes[0].copies
        parts = [(name, w) for name, whole in weights.items() for w in whole.view(copies, -1, whole.shape[1])]
        sides: list[list[Projection]] = [[], []]
        for i, axis in enumerate(axes):
            if axis is not None:
                sides[i] = [self._projection(name, i, w.shape[i]) for name, w in parts]
        start = torch.zeros(len(parts), shape[0] // copies, shape[1], dtype=self.dtype, device=self.source.device)
        frozen = [w for _, w in parts]
        block = Block(names, shape, start, frozen, sides[0], sides[1], self.method == "group")
        if self.method != "prune":
            return block
        block.materialise()
        return Block(names, shape, block.stack.value, [], [], [], False)

    def empty(self, names: list[str]) -> Stack:
        """The stack of some parameters whose block another process makes."""
        shape = small_shape(shapes_of(self.source)[names[0]], self.plan.axes[names[0]], self.plan.sizes)
        return Stack(names, shape, torch.empty(len(names), *shape, dtype=self.dtype, device=self.source.device))

    def select(self, name: str) -> Tensor:
        """What the block of a parameter begins with where P selects: its kept coordinates."""
        return self._select(name, self._parameters[name].detach())

    def count(self, names: list[str]) -> int:
        """Trained parameters of a block: those of its P and A."""
        axes, shape = self.plan.axes[names[0]], self.source.get_parameter(names[0]).shape
        numbers = torch.Size(small_shape(tuple(shape), axes, self.plan.sizes)).numel()
        if self.method == "prune" or len(axes) != 2:
            return len(names) * numbers
        copies = 1 if axes[0] is None else axes[0].copies
        for size, axis in zip((shape[0] // copies, shape[1]), axes):
            if axis is not None:
                kept = len(self.plan.kept(names[0], axis))
                numbers += copies * torch.Size(shape_of(size, kept, self._block)).numel()
        return len(names) * numbers

    def _projection(self, name: str, index: int, size: int) -> Projection:
        axis = self.plan.axes[name][index]
        assert axis is not None
        kept = self.plan.kept(name, axis)
        projection = selection(size, kept, self._block)
        if self.inputs is None or name not in self.inputs.moments or index != input_axis(self.source, name):
            return projection
        moments = self.inputs.moments[name]
        key = id(moments), id(kept)
        if key not in self._compensated:
            self._compensated[key] = compensated(projection, kept, moments.cpu())
        return self._compensated[key]

    def _select(self, name: str, weight: Tensor) -> Tensor:
        """The kept coordinates of a parameter whose axes are not projected."""
        for i, axis in enumerate(self.plan.axes[name]):
            if axis is not None:
                size = weight.shape[i] // axis.copies
                kept = self.plan.kept(name, axis)
                index = torch.cat([kept + copy * size for copy in range(axis.copies)])
                weight = weight.index_select(i, index.to(weight.device))
        return weight.to(self.dtype)
