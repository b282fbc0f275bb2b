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

from ..models.huggingface.axes import shapes_of
from ..training.distributed import ALONE, Ranks
from .blocks import Block, Stack
from .importance import Inputs
from .making import BlockMaker
from .plan import Plan
from .shares import owners

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
        self.plan, self.method, self._ranks = plan, method, ranks
        self.blocks = nn.ModuleDict()
        self._stacks: list[tuple[int, Stack]] = []
        """Of all, in the same order in each process, with their owners."""
        maker = BlockMaker(source, plan, method, block, inputs)
        self.dtype, stacks = maker.dtype, maker.names()
        for number, (names, owner) in enumerate(zip(stacks, owners(stacks, shapes_of(source), ranks.size))):
            if owner == ranks.rank:
                own = maker.make(names)
                self.blocks[str(number)] = own
                self._stacks.append((owner, own.stack))
            else:
                self._stacks.append((owner, maker.empty(names)))
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


def _tables(model: PreTrainedModel) -> set[str]:
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    tables = {id(p) for end in ends if end is not None for p in end.parameters()}
    return {name for name, p in model.named_parameters() if id(p) in tables}
