"""The conditional baseline M~_s of a transformers decoder: one small model that takes t as an input.

t stands in place of the start token's embedding (paper, Sec. 3.3.1); in the stronger forms it is added at every
position and changes every norm and bias too, as ``GPTConfig.conditioning`` has it for a GPT.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ...kernels.arguments import require_tensor
from ...utils.errors import InputError
from ..generators.base import MLPGenerator
from ..gpt import CONDITIONING_WIDTH, check_task
from ..layout import CONDITIONINGS
from .operator import by_task, in_batch_order, start_token, with_start

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class ConditionalModel(nn.Module):
    """A causal language model of transformers that takes t.

    Args:
        model: it; a parameter of this module.
        task_dim: length of t.
        conditioning: where it takes t. "first": in place of the start token alone. "every": an offset of t is added to
            the embedding of every position too. "norms": and every vector of the model, its norms and biases, depends
            on t by an MLP. All but the first change nothing at the start.
        t_mean: t enters as (t - t_mean) / t_std.
        t_std: see ``t_mean``.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        task_dim: int,
        conditioning: str = "first",
        *,
        t_mean: float = 0.0,
        t_std: float = 1.0,
    ) -> None:
        super().__init__()
        if conditioning not in CONDITIONINGS:
            raise InputError(f"conditioning must be one of {', '.join(CONDITIONINGS)}; it was {conditioning!r}")
        self.model, self.task_dim, self.t_mean, self.t_std = model, task_dim, t_mean, t_std
        width = model.config.hidden_size
        self.start = nn.Linear(task_dim, width)
        self.offset = self.vectors = None
        self._names = [name for name, p in model.named_parameters() if p.dim() == 1]
        if conditioning != "first":
            self.offset = MLPGenerator([(1, width)], task_dim, CONDITIONING_WIDTH)
        if conditioning == "norms":
            sizes = [(1, model.get_parameter(name).numel()) for name in self._names]
            self.vectors = MLPGenerator(sizes, task_dim, CONDITIONING_WIDTH, shared_inner=True)

    def forward(self, tokens: Tensor, t: Tensor) -> Tensor:
        """Predict every token.

        Args:
            tokens: (B, T) int64.
            t: (B, task_dim).

        Returns:
            (B, T, vocab_size) logits; those at position i predict token i.
        """
        check_task(t, len(tokens), self.task_dim)
        t = self._normalised(t)
        inputs = with_start(tokens, start_token(self.model))
        embedded = self._embedded(inputs, self.model.get_input_embeddings()(inputs), t)
        if self.vectors is None:
            return self._logits(embedded, {})
        parts, distinct, order = by_task(embedded, t)
        changes = self._vectors(distinct)
        logits = [self._logits(part, {n: rows[u] for n, rows in changes.items()}) for u, part in enumerate(parts)]
        return in_batch_order(torch.cat(logits), order)

    @torch.no_grad()
    def specialised(self, t: Tensor) -> PreTrainedModel:
        """The model with one task's t (task_dim,) put in, for transformers' ``generate``.

        It is a copy whose embeddings are those of t while the process lives; saved, they would not be.
        """
        require_tensor("t", t)
        if t.shape != (self.task_dim,):
            raise InputError(f"t must be ({self.task_dim},), one task identifier; it was {tuple(t.shape)}")
        model: PreTrainedModel = copy.deepcopy(self.model).eval()
        own_t = self._normalised(t[None])
        for name, rows in self._vectors(own_t).items():
            model.get_parameter(name).copy_(rows[0])

        def put_in(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
            return self._embedded(inputs[0], output, own_t.expand(len(output), -1))

        model.get_input_embeddings().register_forward_hook(put_in)
        return model

    def _normalised(self, t: Tensor) -> Tensor:
        return (t.to(self.start.weight.dtype) - self.t_mean) / self.t_std

    def _embedded(self, inputs: Tensor, embedded: Tensor, t: Tensor) -> Tensor:
        """Embeddings (B, T, d) with t (B, task_dim) put in: in place of each start token, and added to all."""
        is_start = (inputs == start_token(self.model))[..., None]
        embedded = torch.where(is_start, self.start(t)[:, None].to(embedded.dtype), embedded)
        return embedded if self.offset is None else embedded + self.offset.evaluate(t)[0][0][:, None].to(embedded.dtype)

    def _vectors(self, t: Tensor) -> dict[str, Tensor]:
        """The model's vectors for t (U, task_dim), each (U, n); none where they do not depend on it."""
        if self.vectors is None:
            return {}
        changes = self.vectors.evaluate(t)
        own = [self.model.get_parameter(name) for name in self._names]
        return {name: (p + change[0]).to(p.dtype) for name, p, change in zip(self._names, own, changes)}

    def _logits(self, embedded: Tensor, vectors: dict[str, Tensor]) -> Tensor:
        inputs = {"inputs_embeds": embedded, "use_cache": False}
        output: Any = functional_call(self.model, vectors, (), inputs) if vectors else self.model(**inputs)
        logits: Tensor = output.logits
        return logits
