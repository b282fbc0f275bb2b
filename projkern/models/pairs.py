"""A source and models generated from it, run by layer pairs: a layer of the source, and that layer of the models.

While a layer of the source is there it runs for M_1, is projected, and the projected layer runs: nothing else needs it,
so that where layers lie in shards (``projkern/training/sharded.py``) no more than one must be whole at a time. The
results are those of ``GPT`` and ``project_and_run``, which project all layers in one call.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..utils.device import autocast_dtype, without_autocast
from .blocks import Affine, assemble, block
from .generators import DiagonalGenerator, project_factors
from .gpt import GPT, check_task, check_tokens
from .layout import LINEARS, GPTConfig
from .operator import ProjectionOperator, distinct_tasks

Norms = tuple[Affine, Affine]


class Projected(NamedTuple):
    """What a layer of U generated models consists of beside the source's layer."""

    generator: DiagonalGenerator
    factors: tuple[Tensor, Tensor]  # p (U, sum of rows), q (U, sum of cols)
    biases: list[Tensor]  # b of b_s = P b_1 + b of each linear operator, (n,) or (U, n)
    norms: Norms


class LayerPair(nn.Module):
    """The linear operators of one layer of a source, and that layer's part of all forward passes.

    Args:
        config: of the source.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = replace(config, n_layer=1)
        shapes = config.linear_shapes()
        self.weights = nn.ParameterDict({name: nn.Parameter(torch.empty(shape)) for name, shape in shapes.items()})
        self.biases = nn.ParameterDict({name: nn.Parameter(torch.empty(rows)) for name, (rows, _) in shapes.items()})

    def forward(
        self,
        x: Tensor | None,
        norms: Norms | None,
        small_x: list[Tensor],
        projected: list[Projected],
        which: Tensor | None,
        positions: int,
        dropout: float,
    ) -> tuple[Tensor | None, list[Tensor]]:
        """Run the layer of the source, and that of the models of each operator.

        Args:
            x: (1, B·T, d), the source's residual stream; None where the source itself does not run. If it needs no
                gradient, neither does what the source makes of it.
            norms: the source's; None where x is.
            small_x: (U, B / U · T, d / g) of each operator.
            projected: of each operator.
            which: as ``TaskWeights.of_examples`` takes it.
            positions: T.
            dropout: rate, 0 when not training.
        """

        def run(x: Tensor, norms: Norms, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
            (layer,) = assemble([norms], [[Affine(w, b)] for w, b in zip(weights, biases)])
            return block(x, layer, x.shape[0] * x.shape[1] // positions, self.config.n_head, dropout)

        if x is not None and norms is not None:
            with nullcontext() if x.requires_grad else torch.no_grad():
                x = run(x, norms, [self.weights[name] for name in LINEARS], [self.biases[name] for name in LINEARS])
        if not projected:
            return x, []
        device = projected[0].factors[0].device
        dtype = autocast_dtype(device) or projected[0].biases[0].dtype
        with without_autocast(device):
            generated = project_factors(self, [p.generator for p in projected], [p.factors for p in projected], dtype)
            biases = [[b + own for b, own in zip(g.biases, p.biases)] for g, p in zip(generated, projected)]
        tasks = [g._replace(biases=b).of_examples(which) for g, b in zip(generated, biases)]
        return x, [run(s, p.norms, *weights) for s, p, weights in zip(small_x, projected, tasks)]


class LayerPairs(nn.Module):
    """A source by layers, and operators of diagonal generators on it.

    It takes over the source's tables and the operators; its layers are not filled. ``named_parts`` says which tensor of
    a whole source each of its parameters is.

    Args:
        source: M_1.
        operators: on it, each of another scale.
    """

    def __init__(self, source: GPT, operators: Sequence[ProjectionOperator] = ()) -> None:
        super().__init__()
        self.config = source.config
        self.tables = source.tables
        self.layers = nn.ModuleList(LayerPair(source.config) for _ in range(source.config.n_layer))
        self.operators = nn.ModuleList(operators)

    def source_parameters(self) -> list[nn.Parameter]:
        """The parameters of the source."""
        return [*self.tables.parameters(), *self.layers.parameters()]

    def forward(
        self, tokens: Tensor, t: Tensor, source_rows: int, is_teacher: bool = False
    ) -> tuple[Tensor | None, list[Tensor]]:
        """Predict every token, by the source and by the models of each operator.

        Args:
            tokens: (B, T) int64.
            t: (B, task_dim).
            source_rows: how many of the examples the source sees.
            is_teacher: the source's own predictions need no gradient.

        Returns:
            Logits (source_rows, T, vocab_size) of the source, None without rows; and (B, T, vocab_size) of each
            operator's models.
        """
        check_tokens(tokens, self.config)
        dropout, positions = self.config.dropout if self.training else 0.0, tokens.shape[1]
        operators = [operator for operator in self.operators if isinstance(operator, ProjectionOperator)]
        distinct, which = distinct_tasks(t) if operators else (t, None)
        projected = [_by_layer(operator, distinct) for operator in operators]
        # An input of a layer that gets no gradient would be given one of zeros by FSDP: neither x nor norms are such.
        with torch.no_grad() if is_teacher else nullcontext():
            x = self.tables.embed(tokens[:source_rows], dropout=dropout) if source_rows else None
            norms = self.tables.norms() if source_rows else [None] * len(self.layers)
        tasks = len(distinct) if which is None else len(t)
        small_x = [operator.tables.embed(tokens, tasks=tasks, dropout=dropout) for operator in operators]
        for k, layer in enumerate(self.layers):
            x, small_x = layer(x, norms[k], small_x, [layers[k] for layers in projected], which, positions, dropout)
        logits = None if x is None else self.tables.logits(x.view(source_rows, positions, -1))
        return logits, [o.tables.logits(s.view(*tokens.shape, -1)) for o, s in zip(operators, small_x)]


def _by_layer(operator: ProjectionOperator, t: Tensor) -> list[Projected]:
    """What each layer of an operator's models, for t (U, task_dim), consists of beside the source's layer."""
    check_task(t, len(t), operator.task_dim)
    generator, layers = operator.generator, operator.config.n_layer
    assert isinstance(generator, DiagonalGenerator)
    with without_autocast(t.device):
        factors = generator.factors_by_layer(operator.normalised(t))
        biases = operator.with_biases_of_t([t.new_zeros(())] * (layers * len(LINEARS)), t)
        biases = operator.with_own_biases(biases)  # by operator, then layer
    norms = operator.tables.norms()
    return [Projected(generator, factors[k], biases[k::layers], norms[k]) for k in range(layers)]


def named_parts(source: GPT, operators: Sequence[ProjectionOperator] = ()) -> dict[str, Tensor]:
    """The tensors of a whole source and its operators, by the names that ``LayerPairs`` has for them.

    Those of a layer are views of the source's stacks: what is copied into them is copied into the source.
    """
    parts: dict[str, Tensor] = {}
    for name, tensor in source.state_dict().items():
        if name.startswith("tables."):
            parts[name] = tensor
        else:
            parts |= {f"layers.{k}.{name}": part for k, part in enumerate(tensor.unbind(0))}
    for i, operator in enumerate(operators):
        parts |= {f"operators.{i}.{name}": tensor for name, tensor in operator.state_dict().items()}
    return parts
