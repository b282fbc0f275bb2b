"""What is compared on tasks of text: arms, each a model with its settings, at so many steps of its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from projkern.models.names import Kind, ModelName

SCALE = Fraction(1, 4)
SEEDS = (0, 1, 2)
SOURCE_STEPS, STEPS = 1000, 3000
TOTAL = SOURCE_STEPS + STEPS
BASE: dict[str, Any] = {"source_steps": SOURCE_STEPS, "eval_windows": 32, "unconditional": True}
"""Settings of all arms."""


@dataclass(frozen=True)
class Arm:
    """One way to have a small model for each task.

    Args:
        name: in the tables and in the stored results.
        kind: of the model.
        steps: of its own, beside those of a source.
        exponent: of the learning rate 2^exponent that the sweep begins with.
        settings: of ``LanguageConfig``.
        seeds: the first sweeps the learning rate; the others run at the best.
    """

    name: str
    kind: Kind
    steps: int
    exponent: int
    settings: dict[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = SEEDS

    @property
    def model(self) -> ModelName:
        return ModelName(self.kind, SCALE)

    @property
    def rate(self) -> str:
        """The setting that holds its learning rate."""
        return "operator_lr" if self.kind is Kind.PROJECTED else "small_lr"

    @property
    def total(self) -> int:
        """Steps in all, those of its source among them."""
        return self.steps + (SOURCE_STEPS if self.kind is Kind.PROJECTED else 0)


PLAIN = {"distill": 0.0, "match": 0.0, "vectors_of_t": False}
ARMS = (
    Arm("P_1/4", Kind.PROJECTED, STEPS, -7),
    Arm("P_1/4, the paper's plain recipe", Kind.PROJECTED, STEPS, -7, PLAIN, SEEDS[:1]),
    Arm("M~_1/4, norms", Kind.CONDITIONAL, STEPS, -7, {"conditioning": "norms"}),
    Arm("M~_1/4, norms", Kind.CONDITIONAL, TOTAL, -7, {"conditioning": "norms"}),
    Arm("M~_1/4, every", Kind.CONDITIONAL, TOTAL, -7, {"conditioning": "every"}, SEEDS[:1]),
    Arm("M~_1/4, first", Kind.CONDITIONAL, TOTAL, -7, {"conditioning": "first"}, SEEDS[:1]),
    Arm("M_1/4", Kind.UNCONDITIONAL, TOTAL, -7, {}, SEEDS[:1]),
)
