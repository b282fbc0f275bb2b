"""The projected model: an ordinary small transformers model whose parameters are made of projections of a source's.

W_C = P_out W P_in + A is made once for each optimizer step and written into the small model, on which all micro-batches
of the step run; then, block by block, one vector-Jacobian product takes its gradients to P and A. A training step so
costs what one of the small model costs, and a merge.

Several processes share the work: each owns some of the stacks (``shares.py``) and runs the small model on its rows of a
batch. Only values and gradients of the small model travel.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..models.huggingface.axes import shapes_of, small_shape
from ..training.distributed import ALONE, Ranks
from ..utils.errors import InputError
from .blocks import Block, Stack
from .config import METHODS
from .importance import Inputs, input_axis
from .plan import Plan
from .projections import Projection, compensated, selection
from .shares import owners, stacks_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class ProjectedModel(nn.Module):
    """A module whose parameters are P and A of every matrix, and the norms and biases themselves.

    ``small`` is the model that they make; it holds the values of the last ``materialise``, and its gradients go to P
    and A by ``backward``. All stays on the source's device and in float32, or float64 where the source is in that.
    ``tables`` names the parameters that are embeddings or the head. A step::

        projected.materialise()
        projected.small(tokens, labels=tokens).loss.backward()
        projected.backward()
        optimizer.step()

    Of several processes each calls ``materialise``, runs its rows, and calls ``average_gradients`` before ``backward``.

    Args:
        source: the frozen source. P and A read its parameters, which must not change.
        plan: what shrinks and what is kept.
        method: "project" (P_out W P_in + A), "prune" (the selected values are trained by themselves), or "group"
            (as "project", with grouped diagonals).
        block: of "project": kept coordinates that a block of a block-diagonal P has; None for dense ones.
        inputs: moments of the source's inputs, for the compensated start; without them the start is the selection.
        ranks: the processes that share the stacks.

    Raises:
        InputError: an unknown method, or a block with another method than "project".
    """

    def __init__(
        self,
        source: PreTrainedModel,
        plan: Plan,
        method: str = "project",
        block: int | None = None,
        inputs: Inputs | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        super().__init__()
        if method not in METHODS:
            raise InputError(f"method must be one of {', '.join(METHODS)}; it was {method}")
        if block is not None and (method != "project" or block < 1):
            raise InputError(f"block must be at least 1, and left out with another method than project; it was {block}")
        self.plan, self.method, self._ranks = plan, method, ranks
        self.dtype = torch.promote_types(source.dtype, torch.float32)
        self._compensated: dict[tuple[int, int], Projection] = {}  # q, k and v, or gate and up, have one input
        self._block = 1 if method == "group" else block
        self.blocks = nn.ModuleDict()
        self._stacks: list[tuple[int, Stack]] = []
        """Of all, in the same order in each process, with their owners."""
        self._make_stacks(source, inputs)
        self._compensated.clear()
        small: PreTrainedModel = type(source)(plan.config)
        small.to(device=source.device, dtype=self.dtype)  # type: ignore[call-arg]
        small.generation_config = copy.deepcopy(source.generation_config)
        self.__dict__["small"] = small  # not a child: its parameters are views of the blocks' values
        self.tables = _tables(source)
        parameters = dict(small.named_parameters())
        for _, stack in self._stacks:
            for name, value in stack.by_name(stack.value).items():
                parameters[name].data = value
        self.materialise()

    small: PreTrainedModel

    def all_blocks(self) -> Iterable[Block]:
        """Those of this process."""
        for block in self.blocks.values():
            assert isinstance(block, Block)
            yield block

    def materialise(self) -> None:
        """Make W_C of the present P and A, in the small model's parameters, whose gradients become zero."""
        parameters = dict(self.small.named_parameters())
        for block in self.all_blocks():
            block.materialise()
        for owner, stack in self._stacks:
            self._ranks.broadcast([stack.value], owner)
            stack.gradient.zero_()
            for name, gradient in stack.by_name(stack.gradient).items():
                parameters[name].grad = gradient

    def average_gradients(self) -> None:
        """Give each owner the small model's gradients of its stacks, averaged over the processes."""
        for owner, stack in self._stacks:
            self._ranks.reduce(stack.gradient, owner)

    def clip_gradients(self, most: float) -> Tensor:
        """Scale the small model's gradients so that their norm is at most ``most``; returns the norm before."""
        owned = {name for block in self.all_blocks() for name in block.stack.names}
        parameters = [p for name, p in self.small.named_parameters() if name in owned]
        own = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        norm = self._ranks.norm(own.to(self.small.device))
        nn.utils.clip_grads_with_norm_(parameters, most, norm)
        return norm

    def backward(self, after: Callable[[Block], None] | None = None) -> None:
        """Take the small model's gradients to P and A, block by block.

        Args:
            after: called with each block once its gradients are there, to step its optimizer; they are freed then.
                Without it all are kept, for an optimizer over all parameters.
        """
        for block in self.all_blocks():
            block.backward()
            if after is not None:
                after(block)
                block.zero_grad(set_to_none=True)

    def forward(self, *arguments: Any, **options: Any) -> Any:
        """The small model's forward by plain autograd through the merge: slower, and with no ``backward`` to call."""
        weights = {name: w for block in self.all_blocks() for name, w in block.stack.by_name(block.merged()).items()}
        return functional_call(self.small, weights, arguments, options)

    @torch.no_grad()
    def merge(self, dtype: torch.dtype | None = None) -> PreTrainedModel:
        """A standalone small model, which no longer needs the source.

        Args:
            dtype: of its parameters; that of the source's configuration unless given.
        """
        self.materialise()
        dtype = dtype or getattr(self.plan.config, "dtype", None) or torch.float32
        model: PreTrainedModel = type(self.small)(self.plan.config).to(self.small.device)  # type: ignore[arg-type]
        for parameter in model.parameters():  # buffers, such as rotary frequencies, keep their type
            parameter.data = parameter.data.to(dtype)
        model.load_state_dict(self.small.state_dict())
        model.generation_config = copy.deepcopy(self.small.generation_config)
        return model.eval()

    def _make_stacks(self, source: PreTrainedModel, inputs: Inputs | None) -> None:
        shapes, axes = shapes_of(source), self.plan.axes
        stacks = stacks_of(shapes, axes)
        for number, (names, owner) in enumerate(zip(stacks, owners(stacks, shapes, self._ranks.size))):
            if owner == self._ranks.rank:
                block = self._make_block(source, names, inputs)
                self.blocks[str(number)] = block
                stack = block.stack
            else:
                shape = small_shape(shapes[names[0]], axes[names[0]], self.plan.sizes)
                value = torch.empty(len(names), *shape, dtype=self.dtype, device=source.device)
                stack = Stack(names, shape, value)
            self._stacks.append((owner, stack))

    def _make_block(self, source: PreTrainedModel, names: list[str], inputs: Inputs | None) -> Block:
        axes = self.plan.axes[names[0]]
        weights = {name: source.get_parameter(name).detach() for name in names}
        shape = small_shape(tuple(weights[names[0]].shape), axes, self.plan.sizes)
        if len(axes) != 2 or axes == (None, None):
            values = torch.stack([self._select(name, w) for name, w in weights.items()])
            return Block(names, shape, values, [], [], [], False)
        copies = 1 if axes[0] is None else axes[0].copies
        parts = [(name, w) for name, whole in weights.items() for w in whole.view(copies, -1, whole.shape[1])]
        sides: list[list[Projection]] = [[], []]
        for i, axis in enumerate(axes):
            if axis is not None:
                sides[i] = [self._projection(source, name, i, w.shape[i], inputs) for name, w in parts]
        start = torch.zeros(len(parts), shape[0] // copies, shape[1], dtype=self.dtype, device=source.device)
        frozen = [w for _, w in parts]
        block = Block(names, shape, start, frozen, sides[0], sides[1], self.method == "group")
        if self.method != "prune":
            return block
        block.materialise()
        return Block(names, shape, block.stack.value, [], [], [], False)

    def _projection(
        self, source: PreTrainedModel, name: str, index: int, size: int, inputs: Inputs | None
    ) -> Projection:
        axis = self.plan.axes[name][index]
        assert axis is not None
        kept = self.plan.kept(name, axis)
        projection = selection(size, kept, self._block)
        if inputs is None or name not in inputs.moments or index != input_axis(source, name):
            return projection
        key = id(inputs.moments[name]), id(kept)
        if key not in self._compensated:
            self._compensated[key] = compensated(projection, kept, inputs.moments[name].cpu())
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


def _tables(model: PreTrainedModel) -> set[str]:
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    tables = {id(p) for end in ends if end is not None for p in end.parameters()}
    return {name for name, p in model.named_parameters() if id(p) in tables}
