"""Which matrices a model has, and how each touches the residual stream: the one list that all rooms read.

A block reads the stream of width d through norm_1 and attn_qkv, and through norm_2 and mlp_in; attn_out and mlp_out
write to it. The order of the records is that of every stacked or concatenated quantity.
"""

from __future__ import annotations

from dataclasses import dataclass


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
