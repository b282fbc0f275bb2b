"""The projection operator rho_s: from a source and a task identifier to a small model, one for each example.

    W_s = P(t) W_1 Q(t),   b_s = P(t) b_1 + b                                      (paper, Eq. 1 and Sec. 2.2)

or as another generator computes them. The small model's embeddings, norms, head and the additive biases b are its own,
and do not depend on t.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.profiler import record_function

from ..kernels.arguments import require_tensor
from ..utils.device import autocast_dtype, free_memory, without_autocast
from ..utils.errors import InputError
from ..utils.numbers import require_real, require_whole
from .blocks import Affine, Factored, Layer, assemble, transformer
from .decode import Decoder
from .generators import DiagonalGenerator, TaskWeights, group_of, make_generator, project_factors
from .generators.base import Generator, MLPGenerator, unstack
from .gpt import GPT, check_task, check_tokens
from .layout import LINEARS, NORMS, GPTConfig
from .tables import Tables
from .used import Used


class ProjectionOperator(nn.Module):
    """Generates a model of width s·d from a source of width d, for any task identifier.

    Of a GPT, as below; of a dense causal language model of transformers see ``TransformersOperator``, which this
    constructor makes then.

    The source is used, not owned: it is no submodule, so ``parameters()`` and ``state_dict()`` are the operator's
    alone, several operators may share one source, and ``copy.deepcopy`` of an operator shares it. Of
    ``nn.ModuleList([source, operator])`` both are copied, and averaged by ``torch.optim.swa_utils.AveragedModel``
    (docs/method.md).

    Args:
        source: the large model M_1, unconditional.
        scale: s = 1/g with an integer g that divides the source's width; every head stays.
        task_dim: length of t.
        rank: inner width r of the generator's MLPs.
        generator: its kind, one of ``projkern.models.generators.GENERATORS`` (docs/generators.md).
        t_mean: the generator sees (t - t_mean) / t_std; finite.
        t_std: finite and above 0.
        bias_of_t: b of b_s = P(t) b_1 + b depends on t too, by an MLP of inner width r for each linear operator. Beyond
            the paper; the generated model is as plain as before.
        options: of the kind. diagonal: ``start``, ``shared_inner``, ``tied``; low-rank: ``delta_rank``.

    Raises:
        InputError: a scale that is not one over an integer, or does not divide the width of each head; a conditional
            source; an unknown generator, or an option that is not its own; a source too large for the general one.
    """

    of_transformers: type[ProjectionOperator] | None = None
    """The class for a transformers model; ``models/huggingface/operator.py`` puts it in."""

    def __new__(cls, source: object = None, *arguments: object, **options: object) -> ProjectionOperator:
        """Of a GPT this class, of a transformers model that of ``models/huggingface/operator.py``."""
        is_ours = source is None or isinstance(source, GPT) or cls is not ProjectionOperator
        return super().__new__(cls if is_ours or cls.of_transformers is None else cls.of_transformers)

    def __init__(
        self,
        source: GPT,
        scale: float | Fraction,
        task_dim: int,
        rank: int = 8,
        generator: str = "diagonal",
        *,
        t_mean: float = 0.0,
        t_std: float = 1.0,
        bias_of_t: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        if not isinstance(source, GPT):
            raise InputError(f"source must be a GPT or a causal language model of transformers; it was {source!r}")
        check_normalisation(task_dim, rank, t_mean, t_std)
        if source.config.task_dim is not None:
            raise InputError(f"source must be unconditional; it took a t of {source.config.task_dim} numbers")
        self._source = Used(source)
        self.group = group_of(scale, source.config.n_embd, source.config.n_head)
        self.task_dim, self.t_mean, self.t_std = task_dim, t_mean, t_std
        self.config = replace(source.config, n_embd=source.config.n_embd // self.group, task_dim=None)
        self.kind = generator
        self.generator = make_generator(generator, source, self.group, task_dim, rank, **options)
        self.tables = project_tables(source.tables, self.config, self.group, self.generator.kept_coordinates)
        own_shapes = self.config.linear_shapes()
        self.biases = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(self.config.n_layer, own_shapes[name][0])) for name in LINEARS}
        )
        self.bias_of_t = None
        if bias_of_t:
            heads = [(self.config.n_layer, own_shapes[name][0]) for name in LINEARS]
            self.bias_of_t = MLPGenerator(heads, task_dim, rank)
        self.to(own_dtype(source))

    @property
    def source(self) -> GPT:
        source: GPT = self._source.get()
        return source

    @property
    def dtype(self) -> torch.dtype:
        """Of the operator's parameters, and of the models that it generates."""
        return next(self.parameters()).dtype

    def parameters_of_t(self) -> list[nn.Parameter]:
        """The parameters of the functions of t."""
        functions = (self.generator, self.bias_of_t)
        return [p for module in functions if module is not None for p in module.parameters()]

    def parameters_of_its_own(self) -> list[nn.Parameter]:
        """The parameters that do not depend on t: the tables and the biases."""
        return [*self.tables.parameters(), *self.biases.parameters()]

    def normalised(self, t: Tensor) -> Tensor:
        """t as the generator sees it, in float32, or float64 where its parameters and the source's are.

        Raises:
            TypeError: only one of the two is in float64.
            InputError: t is on another device.
        """
        if t.device != (device := self.parameters_of_t()[0].device):
            raise InputError(f"t must be on the device of the operator, {device}; it was on {t.device}")
        source_dtype = next(self.source.parameters()).dtype
        if (self.dtype == torch.float64) != (source_dtype == torch.float64):
            raise TypeError(
                f"operator and source must both be in float64 or neither; they were {self.dtype} and {source_dtype}: "
                "cast one of them with .to(dtype)"
            )
        t = t.to(torch.promote_types(self.dtype, torch.float32))
        return t if (self.t_mean, self.t_std) == (0, 1) else (t - self.t_mean) / self.t_std

    def with_biases_of_t(self, biases: list[Tensor], t: Tensor) -> list[Tensor]:
        """Biases (U, n) of each linear operator, plus the part of b that depends on t (U, task_dim), if any."""
        if self.bias_of_t is None:
            return biases
        changes = unstack(self.bias_of_t.evaluate(self.normalised(t)))
        return [b + change for b, change in zip(biases, changes)]

    def forward(self, tokens: Tensor, t: Tensor, *, distinct: bool = False) -> Tensor:
        """Predict every token, each example with the model generated for its own t.

        Args:
            tokens: (B, T) int64.
            t: (B, task_dim). Each distinct row is generated once.
            distinct: t is (U, task_dim) instead, already without repetition: row u is of the u-th B / U examples. The
                values of t then decide no shape, as ``torch.export``, ``torch.func.vmap`` and ``torch.compile`` with
                ``fullgraph=True`` need it.

        Returns:
            (B, T, vocab_size) logits; those at position i predict token i.
        """
        return project_and_run([self], tokens, t, distinct=distinct)[0]

    def run(self, tokens: Tensor, task_weights: TaskWeights) -> Tensor:
        """Predict with weights already generated: examples sorted by task, B/U for each of the U tasks."""
        layers = self._layers(list(map(Affine, task_weights.weights, self.with_own_biases(task_weights.biases))))
        dropout = self.config.dropout if self.training else 0.0
        x = self.tables.embed(tokens, tasks=task_weights.weights[0].shape[0], dropout=dropout)
        x = transformer(x, layers, tokens.shape[0], self.config.n_head, dropout)
        return self.tables.logits(x).view(*tokens.shape, -1)

    def with_own_biases(self, biases: list[Tensor]) -> list[Tensor]:
        """b_s = P b_1 + b of each linear operator, from the first of the two."""
        own = torch.cat([self.biases[name] for name in LINEARS], dim=1)  # [L, sum n]
        own_parts = own.split([self.biases[name].shape[1] for name in LINEARS], dim=1)
        return [(b + o).to(self.dtype) for b, o in zip(biases, [row for part in own_parts for row in part.unbind(0)])]

    def _layers(self, linears: Sequence[Affine | Factored]) -> list[Layer]:
        """From linear operators sorted by operator, then layer."""
        count = self.config.n_layer
        return assemble(self.tables.norms(), [linears[k * count : (k + 1) * count] for k in range(len(LINEARS))])

    @torch.no_grad()
    def decoder(self, t: Tensor, *, form: str = "auto") -> Decoder:
        """Predict sequences token by token, each with the model generated for its own t, without dropout.

        Args:
            t: (B, task_dim). Where rows that repeat lie in blocks of equal length, they share their weights.
            form: "materialised" generates all models now. "factored" never does, and reads the whole source in each
                step instead (see ``project_linear``), which pays only for more than g² models. "auto" takes, for so
                many, the one whose step is measured to be faster; the forms round differently, so name one where
                draws must be the same on any machine. Models of generators other than the diagonal one are always
                materialised.

        Raises:
            InputError: t of another shape, or a form that is unknown or that this generator does not have.
        """
        require_tensor("t", t)
        check_task(t, len(t) if t.dim() else 0, self.task_dim)
        if not len(t):
            raise InputError("t must hold at least one task identifier; it was empty")
        if form not in ("auto", "materialised", "factored"):
            raise InputError(f"form must be auto, materialised or factored; it was {form!r}")
        if form == "factored" and not isinstance(self.generator, DiagonalGenerator):
            raise InputError(f"form must be auto or materialised for a generator {self.kind!r}; it was 'factored'")
        distinct, which = distinct_tasks(t)
        tasks = distinct if which is None else t
        layers_of = {"materialised": self._materialised, "factored": self._factored}
        forms = [layers_of[name](tasks) for name in (self._candidates(len(tasks)) if form == "auto" else [form])]
        start = self.tables.start.expand(len(t), -1)
        decoder = Decoder(self.tables, forms[0], self.config.n_head, start, len(tasks))
        if len(forms) > 1:
            decoder.use_fastest(forms)
        return decoder

    def _candidates(self, tasks: int) -> list[str]:
        """The forms that may be the fastest: up to g² models, once written, move no more bytes than the source."""
        source = list(self.source.weights.values())
        if tasks <= self.group**2 or not isinstance(self.generator, DiagonalGenerator):
            return ["materialised"]
        if tasks * sum(w.nbytes for w in source) // self.group**2 > free_memory(source[0].device):
            return ["factored"]
        return ["materialised", "factored"]

    def _materialised(self, t: Tensor) -> list[Layer]:
        """The layers of U models, or of one that all examples share."""
        (generated,) = generate_weights([self], t)
        affines = map(Affine, generated.weights, self.with_own_biases(generated.biases))
        return self._layers([Affine(w[0], b[0]) for w, b in affines] if len(t) == 1 else list(affines))

    def _factored(self, t: Tensor) -> list[Layer]:
        """The layers of U models that are not written out."""
        assert isinstance(self.generator, DiagonalGenerator)
        with without_autocast(t.device):
            p, q = self.generator.factors(self.normalised(t))  # as generate_weights does
            biases = self.with_biases_of_t(self.generator.biases(self.source, p), t)
        weights = [w for name in LINEARS for w in self.source.weights[name].unbind(0)]
        rows, cols = ([w.shape[axis] for w in weights] for axis in (0, 1))
        biases = self.with_own_biases(biases)
        return self._layers(list(map(Factored, weights, p.split(rows, 1), q.split(cols, 1), biases)))

    @torch.no_grad()
    def generate(self, t: Tensor) -> GPT:
        """Generate the small model of one task.

        Args:
            t: (task_dim,).

        Returns:
            A GPT of width s·d that shares nothing with the source or the operator, in evaluation mode and of the
            operator's dtype.
        """
        require_tensor("t", t)
        if t.shape != (self.task_dim,):
            raise InputError(f"t must be ({self.task_dim},), one task identifier; it was {tuple(t.shape)}")
        (generated,) = generate_weights([self], t[None])
        with torch.device("meta"):
            small = GPT(self.config)
        small.to(self.dtype).to_empty(device=t.device)
        small.tables.load_state_dict(self.tables.state_dict())
        biases = self.with_own_biases(generated.biases)
        layers = self.config.n_layer
        for k, name in enumerate(LINEARS):
            rows = slice(k * layers, (k + 1) * layers)
            small.weights[name].copy_(torch.cat(generated.weights[rows]))
            small.biases[name].copy_(torch.cat(biases[rows]))
        return small.eval()


def check_normalisation(task_dim: int, rank: int, t_mean: float, t_std: float) -> None:
    """Raises InputError where an operator's numbers are out of their range."""
    for name, number in (("task_dim", task_dim), ("rank", rank)):
        require_whole(name, number)
    for name, value in (("t_mean", t_mean), ("t_std", t_std)):
        require_real(name, value)
    if not t_std > 0:
        raise InputError(f"t_std must be finite and above 0; it was {t_std}")


def own_dtype(source: nn.Module) -> torch.dtype:
    """Of a new operator's parameters: that of the source, float32 at the least."""
    return torch.promote_types(next(source.parameters()).dtype, torch.float32)


@torch.no_grad()
def project_tables(source: Tables, config: GPTConfig, group: int, kept_coordinates: slice | None = None) -> Tables:
    """Tables of a small model, to start from: the source's, on the subspace that its width is projected to.

    With z = R x for the residual stream x, R_ij = g^-1/2 [j // g == i] (orthonormal rows): embeddings, start vector,
    head and the norms' biases are multiplied by R^T, and the norms' weights averaged over each group. Where some
    coordinates of the stream are kept, R selects them, and all tables are the source's at these.
    """
    tables = Tables(config)
    norm_weights = [norm.weight for norm in NORMS]
    for name, values in source.named_parameters():
        if kept_coordinates is not None:
            getattr(tables, name).copy_(values[..., kept_coordinates])
            continue
        groups = values.unflatten(-1, (-1, group))
        getattr(tables, name).copy_(groups.mean(-1) if name in norm_weights else groups.sum(-1) * group**-0.5)
    return tables


def generate_weights(operators: list[ProjectionOperator], t: Tensor) -> list[TaskWeights]:
    """Generate the linear operators of several scales at once, for diagonal generators from one read of the source.

    Args:
        operators: each of another scale or kind, on one source.
        t: (U, task_dim), one row for each model to generate.

    Returns:
        For each operator the weights of its U models; the own biases b are not yet added.
    """
    source = operators[0].source
    dtype = autocast_dtype(t.device) or operators[0].dtype
    with without_autocast(t.device):
        inputs = [(operator.generator, operator.normalised(t)) for operator in operators]
        diagonal = [(generator, own_t) for generator, own_t in inputs if isinstance(generator, DiagonalGenerator)]
        fused = iter(_fused(source, diagonal, dtype) if diagonal else [])
        generated = [
            next(fused) if isinstance(generator, DiagonalGenerator) else _generated(generator, source, own_t, dtype)
            for generator, own_t in inputs
        ]
        return [TaskWeights(w, operator.with_biases_of_t(b, t)) for operator, (w, b) in zip(operators, generated)]


def _fused(source: GPT, generators: list[tuple[DiagonalGenerator, Tensor]], dtype: torch.dtype) -> list[TaskWeights]:
    """The weights of each generator for its own t, in one call."""
    with record_function("generation"):
        factors = [generator.factors(t) for generator, t in generators]
    with record_function("projection"):
        return project_factors(source, [generator for generator, _ in generators], factors, dtype)


def _generated(generator: Generator, source: GPT, t: Tensor, dtype: torch.dtype) -> TaskWeights:
    """The weights in ``dtype``, computed in t's type, which may be wider than the parameters'."""
    parameters = {name: p.to(t.dtype) for name, p in generator.named_parameters() if p.dtype != t.dtype}
    generated = functional_call(generator, parameters, (source, t)) if parameters else generator(source, t)
    return TaskWeights([w.to(dtype) for w in generated.weights], generated.biases)


def distinct_tasks(t: Tensor) -> tuple[Tensor, Tensor | None]:
    """The distinct rows of t (B, task_dim).

    Returns:
        Where equal rows lie in blocks of equal length: one row for each block, and None. Elsewhere the distinct rows
        and, for each row of t, the index of its own.
    """
    distinct, which = torch.unique(t, dim=0, return_inverse=True)
    each = len(t) // len(distinct)
    if torch.equal(which, which[::each].repeat_interleave(each)):
        return t[::each], None
    return distinct, which


def check_distinct(t: Tensor, batch: int, task_dim: int) -> None:
    """Raises InputError where t is not one row for each block of examples."""
    require_tensor("t", t)
    # Not len(t), an int, which would fix U in an exported graph.
    if t.dim() != 2 or t.shape[1] != task_dim or t.shape[0] == 0 or batch % t.shape[0]:
        raise InputError(
            f"t must be (U, {task_dim}) with a U that divides the {batch} examples, as distinct=True says; it was "
            f"{tuple(t.shape)}"
        )


def project_and_run(
    operators: list[ProjectionOperator], tokens: Tensor, t: Tensor, *, distinct: bool = False
) -> list[Tensor]:
    """The logits (B, T, vocab_size) of each operator's models on the same examples, each with its own t.

    Every distinct t of the batch is generated once, at all scales in one call. ``distinct`` is as of the operator.
    """
    check_tokens(tokens, operators[0].config)
    if distinct:
        check_distinct(t, tokens.shape[0], operators[0].task_dim)
        tasks, which = t, None
    else:
        check_task(t, len(tokens), operators[0].task_dim)
        tasks, which = distinct_tasks(t)
    generated = generate_weights(operators, tasks)
    return [operator.run(tokens, weights.of_examples(which)) for operator, weights in zip(operators, generated)]
