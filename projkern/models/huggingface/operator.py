"""The projection operator of a transformers decoder: an ordinary small model of its class for each task.

    W_s = P(t) W_1 Q(t),   b_s = P(t) b_1 + b                                      (paper, Eq. 1 and Sec. 2.2)

The small weights of all tasks of a batch come from one fused call; each task's sequences then run through the model's
own code, with these weights in place of its parameters.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.profiler import record_function

from ...kernels.arguments import require_tensor
from ...kernels.projection import project_layers
from ...utils.device import autocast_dtype, without_autocast
from ...utils.errors import InputError
from ..generators.base import MLPGenerator
from ..gpt import check_task
from ..operator import ProjectionOperator, check_distinct, check_normalisation, distinct_tasks, own_dtype
from ..used import Used
from .grouping import Grouping, Stack

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Parameters = dict[str, Tensor]
"""Parameters of a small model by name."""


class TransformersOperator(ProjectionOperator):
    """Generates a small model of the source's class for any task identifier; see ``ProjectionOperator``.

    Embeddings, head, norms and the additive biases b are the small model's own; they start as the source's on the
    subspace that its width is projected to.

    Args:
        source: a dense causal language model of transformers.
        scale: s = 1/g; g divides the hidden and the intermediate size.
        task_dim: length of t.
        rank: inner width r of the MLPs of t.
        shrink_heads: see ``Grouping.of``.
        vectors_of_t: the small model's own vectors, which are its norms and biases, depend on t too, by an MLP of inner
            width r for each. Beyond the paper; the generated model is as plain as before.
        t_mean: the generator sees (t - t_mean) / t_std; finite.
        t_std: finite and above 0.

    Raises:
        InputError: a scale or an architecture that cannot be done.
    """

    kind = "diagonal"
    generator: MLPGenerator

    def __init__(
        self,
        source: PreTrainedModel,
        scale: float | Fraction,
        task_dim: int,
        rank: int = 8,
        *,
        shrink_heads: bool = False,
        vectors_of_t: bool = False,
        t_mean: float = 0.0,
        t_std: float = 1.0,
    ) -> None:
        nn.Module.__init__(self)
        _require_language_model(source)
        check_normalisation(task_dim, rank, t_mean, t_std)
        self.task_dim, self.t_mean, self.t_std = task_dim, t_mean, t_std
        self.grouping = Grouping.of(source.config, scale, shrink_heads=shrink_heads)
        self.group = self.grouping.group
        small = type(source)(self.grouping.config).eval()  # type: ignore[arg-type]
        small.generation_config = copy.deepcopy(source.generation_config)
        self._source, self._small = Used(source), (small,)
        self.own_names = list(self.grouping.own)
        self.own = nn.ParameterList(nn.Parameter(w) for w in project_own(source, small, self.grouping).values())
        stacks = self.grouping.stacks
        self.generator = MLPGenerator([(len(s.names), sum(s.shape)) for s in stacks], task_dim, rank)
        with torch.no_grad():
            for stack, bias in zip(stacks, self.generator.outer_bias):
                p, q = _start(stack)
                bias[:, : stack.shape[0]] = p
                bias[:, stack.shape[0] :] = q
        self.vectors = None
        if vectors_of_t:
            self._vector_names = [n for n, w in zip(self.own_names, self.own) if w.dim() == 1]
            sizes = [(1, small.get_parameter(name).numel()) for name in self._vector_names]
            self.vectors = MLPGenerator(sizes, task_dim, rank)
        self.to(own_dtype(source))

    @property
    def source(self) -> PreTrainedModel:  # type: ignore[override]
        source: PreTrainedModel = self._source.get()
        return source

    @property
    def small(self) -> PreTrainedModel:
        """A model of the generated ones' shape, whose code runs them; its own parameters mean nothing.

        It is on the operator's device.
        """
        (small,) = self._small
        if small.device != self.own[0].device:
            nn.Module.to(small, self.own[0].device)
        return small

    def train(self, mode: bool = True) -> TransformersOperator:
        """As of any module; the generated models then have the dropout of their class."""
        super().train(mode)
        self.small.train(mode)
        return self

    def parameters_of_t(self) -> list[nn.Parameter]:
        functions = (self.generator, self.vectors)
        return [p for module in functions if module is not None for p in module.parameters()]

    def parameters_of_its_own(self) -> list[nn.Parameter]:
        """The parameters that do not depend on t."""
        return list(self.own)

    def forward(self, tokens: Tensor, t: Tensor, *, distinct: bool = False) -> Tensor:
        """Predict every token, each example with the model generated for its own t.

        Args:
            tokens: (B, T) int64.
            t: (B, task_dim). Each distinct row is generated once.
            distinct: t is (U, task_dim) instead; see ``ProjectionOperator.forward``.

        Returns:
            (B, T, vocab_size) logits; those at position i predict token i. The start token comes first (``predict``).
        """
        return self.run_tasks(tokens, t, distinct=distinct)[0]

    def run_tasks(
        self, tokens: Tensor, t: Tensor, *, distinct: bool = False, with_states: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        """As ``forward``; and, where they are asked for, the hidden states (B, T, d_s) after each layer."""
        if distinct:
            check_distinct(t, tokens.shape[0], self.task_dim)
            parts, tasks, order = in_blocks(tokens, t.shape[0]), t, None
        else:
            check_task(t, len(tokens), self.task_dim)
            parts, tasks, order = by_task(tokens, t)
        models = zip(parts, self.weights(tasks))
        outputs = [run(self.small, part, weights, with_states=with_states) for part, weights in models]
        logits, *states = (torch.cat(rows) for rows in zip(*((logits, *states) for logits, states in outputs)))
        return in_batch_order(logits, order), [in_batch_order(state, order) for state in states]

    def weights(self, t: Tensor) -> list[Parameters]:
        """The parameters of the small models of U tasks, t (U, task_dim)."""
        dtype = autocast_dtype(t.device) or self.dtype
        with without_autocast(t.device):
            with record_function("generation"):
                factors = self._factors(self.normalised(t))
                own = self._own(self.normalised(t))
            with record_function("projection"):
                return self._project(factors, own, dtype)

    @torch.no_grad()
    def generate(self, t: Tensor) -> PreTrainedModel:  # type: ignore[override]
        """Generate the small model of one task.

        Args:
            t: (task_dim,).

        Returns:
            A model of the source's class that shares nothing with it or the operator, in evaluation mode.
        """
        require_tensor("t", t)
        if t.shape != (self.task_dim,):
            raise InputError(f"t must be ({self.task_dim},), one task identifier; it was {tuple(t.shape)}")
        (weights,) = self.weights(t[None])
        model: PreTrainedModel = copy.deepcopy(self.small)
        for name, parameter in model.named_parameters():
            parameter.data = weights[name].clone()
        return model.eval()

    @torch.no_grad()
    def each_parameter(
        self, t: Tensor, source: Mapping[str, Tensor] | None = None, own: Mapping[str, Tensor] | None = None
    ) -> Iterator[tuple[str, list[Tensor]]]:
        """Generate the small models of U tasks, one parameter after another, each of all tasks in one call.

        The numbers are those of ``generate``, bit for bit. Memory holds one parameter of the source, and what is made
        of it.

        Args:
            t: (U, task_dim).
            source: where the source's parameters are read by name; the source's own unless given.
            own: the same for the small models' own parameters.

        Returns:
            The name of each parameter, once, and its values for each task.
        """
        source = dict(self.source.named_parameters()) if source is None else source
        own = dict(zip(self.own_names, self.own)) if own is None else own
        rows = [self.normalised(row)[None] for row in t]  # apart, as in ``generate``: the last bits depend on it
        factors = [self._factors(row) for row in rows]
        changes = [self._changes(row) for row in rows]

        def own_values(name: str) -> list[Tensor]:
            value = own[name].to(t.device)
            return [(value + change[name][0]).to(self.dtype) if name in change else value for change in changes]

        for name in self.own_names:
            if name not in self.grouping.added:
                yield name, own_values(name)
        for number, stack in enumerate(self.grouping.stacks):
            for layer, name in enumerate(stack.names):
                p, q = (torch.cat([of_task[number][side][layer] for of_task in factors]) for side in (0, 1))
                matrix = source[name].to(t.device)
                yield name, list(project_layers([matrix], p, q, [stack.groups], dtype=self.dtype)[0].unbind(0))
                if stack.biases:
                    bias = stack.biases[layer]
                    projected = _project_bias(stack, (p, q)[stack.output_axis], source[bias].to(t.device))
                    yield bias, [(b + value).to(self.dtype) for b, value in zip(projected, own_values(bias))]

    def decoder(self, t: Tensor, *, form: str = "auto") -> Any:
        """Not of this class: a generated model has transformers' own ``generate``."""
        raise InputError("decoder must be asked of an operator on a GPT; use generate(t).generate(...) here")

    def _factors(self, t: Tensor) -> list[tuple[Tensor, Tensor]]:
        """p (L, U, N) and q (L, U, M) of each stack."""
        pairs = zip(self.grouping.stacks, self.generator.evaluate(t))
        return [(both[:, :, : stack.shape[0]], both[:, :, stack.shape[0] :]) for stack, both in pairs]

    def _own(self, t: Tensor) -> list[Parameters]:
        """The small models' own parameters, for each of U tasks."""
        shared = dict(zip(self.own_names, self.own))
        if self.vectors is None:
            return [shared] * len(t)
        changes = self._changes(t).items()
        vectors = {name: (shared[name] + change).to(self.dtype).unbind(0) for name, change in changes}
        return [shared | {name: rows[u] for name, rows in vectors.items()} for u in range(len(t))]

    def _changes(self, t: Tensor) -> Parameters:
        """What t adds to the small models' vectors: (U, n) by name."""
        if self.vectors is None:
            return {}
        return {name: change[0] for name, change in zip(self._vector_names, self.vectors.evaluate(t))}

    def _project(
        self, factors: list[tuple[Tensor, Tensor]], own: list[Parameters], dtype: torch.dtype
    ) -> list[Parameters]:
        stacks = self.grouping.stacks
        names = [name for stack in stacks for name in stack.names]
        p, q = (torch.cat([side.transpose(0, 1).flatten(1) for side in sides], 1) for sides in zip(*factors))
        matrices = [self.source.get_parameter(name) for name in names]
        weights = project_layers(matrices, p, q, [s.groups for s in stacks for _ in s.names], dtype=dtype)
        generated = {name: w.unbind(0) for name, w in zip(names, weights)}
        for stack, sides in zip(stacks, factors):
            for name, factor in zip(stack.biases, sides[stack.output_axis]):
                projected = _project_bias(stack, factor, self.source.get_parameter(name))
                generated[name] = tuple((b + parameters[name]).to(self.dtype) for b, parameters in zip(projected, own))
        return [parameters | {name: rows[u] for name, rows in generated.items()} for u, parameters in enumerate(own)]


ProjectionOperator.of_transformers = TransformersOperator


def _project_bias(stack: Stack, factor: Tensor, bias: Tensor) -> Tensor:
    """P(t) b_1 of U tasks: factor (U, n), bias (n,)."""
    return (factor * bias).unflatten(1, (-1, stack.groups[stack.output_axis])).sum(2)


def _require_language_model(source: PreTrainedModel) -> None:
    head = getattr(source, "get_output_embeddings", lambda: None)()
    if head is None:
        raise InputError(
            f"source must be a GPT or a causal language model of transformers; it was {type(source).__name__}"
        )


def by_task(rows: Tensor, t: Tensor) -> tuple[list[Tensor], Tensor, Tensor | None]:
    """The examples of each task of a batch.

    Args:
        rows: (B, ...), of each example.
        t: (B, task_dim).

    Returns:
        (k_u, ...) of each of U tasks; their t (U, task_dim); and the order (B,) in which the parts, end to end, hold
        the examples, None where that is the batch's own.
    """
    distinct, which = distinct_tasks(t)
    if which is None:
        return in_blocks(rows, len(distinct)), distinct, None
    order = which.argsort(stable=True)
    return list(rows[order].split(which.bincount().tolist())), distinct, order


def in_blocks(rows: Tensor, count: int) -> list[Tensor]:
    """(B, ...) as ``count`` parts (B / count, ...)."""
    return list(rows.unflatten(0, (count, -1)).unbind(0))


def in_batch_order(rows: Tensor, order: Tensor | None) -> Tensor:
    """What lies as ``by_task`` has it, in the batch's own order."""
    return rows if order is None else rows[order.argsort()]


def predict(model: PreTrainedModel, tokens: Tensor, weights: Parameters | None = None) -> Tensor:
    """The logits of every token from those before it, the first from the start token.

    Args:
        model: of a causal language model.
        tokens: (B, T) int64.
        weights: in place of the model's parameters.

    Returns:
        (B, T, vocab_size).
    """
    return run(model, tokens, weights)[0]


def run(
    model: PreTrainedModel, tokens: Tensor, weights: Parameters | None = None, *, with_states: bool = False
) -> tuple[Tensor, list[Tensor]]:
    """As ``predict``; and, where they are asked for, the hidden states (B, T, d) after each layer."""
    inputs = {"input_ids": with_start(tokens, start_token(model)), "use_cache": False}
    inputs |= {"output_hidden_states": True} if with_states else {}
    output: Any = model(**inputs) if weights is None else functional_call(model, weights, (), inputs)
    return output.logits, list(output.hidden_states[1:]) if with_states else []


def with_start(tokens: Tensor, start: int) -> Tensor:
    """The tokens (B, T) that are read to predict ``tokens``: the start token, then all but the last."""
    return torch.cat([tokens.new_full((len(tokens), 1), start), tokens[:, :-1]], 1)


def start_token(model: PreTrainedModel) -> int:
    """The token before the first one: the model's beginning of text, or what else its configuration has for it."""
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        token = getattr(model.config, name, None)
        token = token[0] if isinstance(token, list) and token else token
        if isinstance(token, int):
            return token
    return 0


def positions_of(model: PreTrainedModel) -> int:
    """The longest sequence that a model was made for."""
    positions: int = getattr(model.config, "max_position_embeddings", None) or 1 << 30
    return positions


@torch.no_grad()
def project_own(source: PreTrainedModel, small: PreTrainedModel, grouping: Grouping) -> Parameters:
    """The small model's own parameters to start from: the source's, on the subspace that its width is projected to.

    With z = R x for the residual stream x, R_ij = g^-1/2 [j // g == i] (orthonormal rows): embeddings, head and the
    norms' biases are multiplied by R^T, and the norms' weights averaged over each group. Additive biases are zero.
    """
    own = {}
    for name, groups in grouping.own.items():
        values = source.get_parameter(name).detach()
        if name in grouping.added:
            values = torch.zeros_like(small.get_parameter(name), device=values.device)
        for axis, size in enumerate(groups if name not in grouping.added else ()):
            if size > 1:
                parts = values.unflatten(axis, (-1, size))
                values = parts.mean(axis + 1) if name in grouping.norms else parts.sum(axis + 1) * size**-0.5
        own[name] = values.float() if values.dtype != torch.float64 else values
    return {name: w.clone() for name, w in own.items()}


def _start(stack: Stack) -> tuple[float, float]:
    """Initial p and q, which keep the variance of outputs: fan-in shrinks by the group of the inputs."""
    outputs, inputs = (stack.groups[stack.output_axis], stack.groups[1 - stack.output_axis])
    if outputs > 1 and inputs > 1:
        of_outputs = of_inputs = outputs**-0.25
    else:
        of_outputs, of_inputs = outputs**-0.5, 1.0
    return (of_outputs, of_inputs) if stack.output_axis == 0 else (of_inputs, of_outputs)
