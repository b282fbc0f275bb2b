"""The layout of a model: its shape, its matrices, and how each touches the residual stream.

A block reads the stream of width d through norm_1 and attn_qkv, and through norm_2 and mlp_in; attn_out and mlp_out
write to it. The order of the records is that of every stacked or concatenated quantity.
"""

from dataclasses import dataclass

from ..utils.errors import InputError
from ..utils.numbers import require_real, require_whole


@dataclass(frozen=True)
class Linear:
    """A linear operator that every layer has.

    Args:
        name: its name in ``GPT.weights`` and ``GPT.biases``.
        rows: outputs, in units of d.
        cols: inputs, in units of d.
        writes_stream: its rows are the residual stream; those of the others are not, but their columns are.
        row_blocks: equal parts of the rows, each with a meaning of its own.
    """

    name: str
    rows: int
    cols: int
    writes_stream: bool
    row_blocks: int = 1

    def shape(self, width: int) -> tuple[int, int]:
        """(outputs, inputs) at a width d."""
        return self.rows * width, self.cols * width


@dataclass(frozen=True)
class Norm:
    """A layer norm of the residual stream, in ``Tables``.

    Args:
        name: its parameters are called name_weight and name_bias.
        is_in_layers: each layer has one; otherwise it stands once, after the last layer.
    """

    name: str
    is_in_layers: bool

    @property
    def weight(self) -> str:
        return f"{self.name}_weight"

    @property
    def bias(self) -> str:
        return f"{self.name}_bias"


LINEARS = {
    linear.name: linear
    for linear in (
        Linear("attn_qkv", rows=3, cols=1, writes_stream=False, row_blocks=3),  # queries, keys, values
        Linear("attn_out", rows=1, cols=1, writes_stream=True),
        Linear("mlp_in", rows=4, cols=1, writes_stream=False),
        Linear("mlp_out", rows=1, cols=4, writes_stream=True),
    )
}
"""The linear operators of a layer by name."""

NORMS = (Norm("norm_1", is_in_layers=True), Norm("norm_2", is_in_layers=True), Norm("final_norm", is_in_layers=False))
"""Their weights scale the coordinates of the stream; all other parameters of ``Tables`` are vectors in it."""

CONDITIONINGS = ("first", "every", "norms")
"""Where a conditional model takes t; each form has all of those before it."""


@dataclass(frozen=True)
class GPTConfig:
    """Shape of a GPT.

    Args:
        vocab_size: number of tokens.
        n_positions: longest sequence.
        n_embd: width d.
        n_layer: number of blocks.
        n_head: attention heads, each n_embd / n_head wide.
        dropout: rate on embeddings, attention and residual branches while training.
        task_dim: None, or the length of t: then the start slot holds Linear(t), and the model is conditional.
        conditioning: where a conditional model takes t. "first": in the start slot alone, as the paper's. "every":
            an MLP of t is added to the embedding of every position too. "norms": and another gives the weight and
            bias of every norm as (1 + a(t)) · weight and bias + b(t). Both MLPs give zero at the start.
        t_mean: t enters a conditional model as (t - t_mean) / t_std.
        t_std: see ``t_mean``; above 0.

    Raises:
        InputError: a value out of its range, or "every" or "norms" without a ``task_dim``.
    """

    vocab_size: int
    n_positions: int
    n_embd: int
    n_layer: int
    n_head: int
    dropout: float = 0.0
    task_dim: int | None = None
    conditioning: str = "first"
    t_mean: float = 0.0
    t_std: float = 1.0

    def __post_init__(self) -> None:
        for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head"):
            require_whole(name, getattr(self, name))
        if self.task_dim is not None:
            require_whole("task_dim", self.task_dim)
        for name in ("dropout", "t_mean"):
            require_real(name, getattr(self, name))
        if self.n_embd % self.n_head:
            raise InputError(f"n_embd must be a multiple of n_head = {self.n_head}; it was {self.n_embd}")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout must lie in [0, 1); it was {self.dropout}")
        if self.conditioning not in CONDITIONINGS:
            raise InputError(f"conditioning must be first, every or norms; it was {self.conditioning!r}")
        if self.conditioning != "first" and self.task_dim is None:
            raise InputError(f"conditioning must be 'first' without a task_dim; it was {self.conditioning!r}")
        require_real("t_std", self.t_std)
        if not self.t_std > 0:
            raise InputError(f"t_std must be finite and above 0; it was {self.t_std}")

    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """(outputs, inputs) of each linear operator of a layer."""
        return {name: linear.shape(self.n_embd) for name, linear in LINEARS.items()}
