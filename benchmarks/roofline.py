"""What one cell of a table projects, and the least that doing it takes on any machine.

|W| source weights of w bytes, projected for B tasks into weights of o bytes each, with groups of g:

    bytes          forward  |W| w + B |W| / g² o      backward  |W| w + B |W| / g² o + |W| w     (dW is stored as W is)
    multiply-adds  forward  B |W| (1 + 1/g)           backward  B |W| (3 + 2/g)

Forward: |W| multiply-adds a task for the rows, 1/g of it for the columns. Backward: |W| a task each for dW, dp and
the recomputed T; 1/g of it each for U and dq. p, q and their gradients are thousands of times smaller than W.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

PARTS = ("forward", "backward")
BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Cell:
    """One cell: the linear operators of a GPT, (3d, d), (d, d), (4d, d) and (d, 4d) in every layer.

    Args:
        layers, width: of the source; the width is d.
        batch: B tasks.
        group: g.
        weights, outputs: dtypes of W and W_s, "float32" or "bfloat16".
    """

    layers: int
    width: int
    batch: int
    group: int
    weights: str = "float32"
    outputs: str = "float32"

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Cell:
        """The cell that a stored measurement is of; one of a CPU need not name its dtypes."""
        return cls(**{f.name: stored[f.name] for f in fields(cls) if f.name in stored})

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def shapes(self) -> list[tuple[int, int]]:
        """(N, M) of each linear operator of a layer."""
        d = self.width
        return [(3 * d, d), (d, d), (4 * d, d), (d, 4 * d)]

    @property
    def size(self) -> int:
        """|W|."""
        return 12 * self.width**2 * self.layers

    @property
    def result_bytes(self) -> float:
        """Of all W_s; those of G are as many."""
        return self.batch * self.size / self.group**2 * BYTES[self.outputs]

    @property
    def weight_bytes(self) -> int:
        """Of W; those of dW are as many."""
        return self.size * BYTES[self.weights]

    @property
    def kept_bytes(self) -> float:
        """Of all results of a forward and a backward: W_s, dW, dp and dq (in float32)."""
        factors = self.layers * sum(n + m for n, m in self.shapes())
        return self.result_bytes + self.weight_bytes + 4 * self.batch * factors

    def bytes(self, part: str) -> float:
        """The least traffic of a part."""
        return self.weight_bytes * (1 if part == "forward" else 2) + self.result_bytes

    def multiply_adds(self, part: str) -> float:
        row_share, col_share = (1, 1) if part == "forward" else (3, 2)
        return self.batch * self.size * (row_share + col_share / self.group)

    def least_seconds(self, part: str, bytes_per_second: float, flops_per_second: float) -> tuple[float, str]:
        """The least time of a part where copies and float32 arithmetic run this fast, and which of the two sets it."""
        memory = self.bytes(part) / bytes_per_second
        arithmetic = 2 * self.multiply_adds(part) / flops_per_second
        return max((memory, "memory"), (arithmetic, "arithmetic"))


def standard(device: str) -> list[Cell]:
    """The cells of the documented tables, the most telling first: what is cut short is cut at its end.

    On a card the result is in bfloat16, and W in float32 (the main table) or bfloat16 (the second one).
    """
    groups = (2, 4, 8)
    if device == "cpu":
        return [Cell(6, 512, batch, g) for batch in (1, 8, 32) for g in groups]
    main = [Cell(24, 512, batch, g, "float32", "bfloat16") for batch in (32, 8, 1, 128) for g in groups]
    wide = [Cell(32, 4096, batch, g, "float32", "bfloat16") for batch in (8, 32, 1, 128) for g in groups]
    second = [Cell(24, 512, batch, g, "bfloat16", "bfloat16") for batch in (32, 8, 1, 128) for g in groups]
    wide_second = [Cell(32, 4096, batch, g, "bfloat16", "bfloat16") for batch in (8, 32, 1, 128) for g in groups]
    # Of the wide model one batch comes before the second table, and the rest after it.
    return main + wide[:3] + second + wide[3:] + wide_second
