"""What is compared on tasks of text: arms, each a model with its settings, at so many steps of its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from projkern.language.presets import LANGUAGES
from projkern.models.names import Kind, ModelName

SCALE = Fraction(1, 4)
SEEDS = (0, 1, 2)
TASKS, TUNED = 21, 150
"""Languages, and the steps of fine-tuning a model for one of them."""
UNTUNED_RATE = 2.0**-7
"""Of the model that is fine-tuned then."""
SOURCE_STEPS, STEPS = LANGUAGES.schedule.source_steps, LANGUAGES.schedule.steps
TOTAL = SOURCE_STEPS + STEPS
SAME_SECONDS = 18_000
"""Steps of M~ that take no longer than all of P's, those of its source among them (seconds.py)."""
BASE: dict[str, Any] = {"eval_windows": 32}
"""Settings of all arms."""


@dataclass(frozen=True)
class Tuning:
    """Fine-tuning of a copy for each task.

    Args:
        steps: of each.
        adapter_rank: of LoRA; None to tune all parameters.
    """

    steps: int
    adapter_rank: int | None = None


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
        is_compressed: it is the source, compressed without t.
        tuning: then a copy is fine-tuned for each task; the sweep is of its learning rate.
        is_swept: whether the learning rate is swept; else ``exponent`` is the only one.
    """

    name: str
    kind: Kind
    steps: int
    exponent: int
    settings: dict[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = SEEDS
    tuning: Tuning | None = None
    is_compressed: bool = False
    is_swept: bool = True

    @property
    def model(self) -> ModelName:
        return ModelName(self.kind, SCALE)

    @property
    def rate(self) -> str:
        """The setting that holds its learning rate."""
        return "operator_lr" if self.kind is Kind.PROJECTED else "small_lr"

    @property
    def needs_source(self) -> bool:
        """Whether it starts from the source."""
        return self.kind is Kind.PROJECTED or self.is_compressed

    @property
    def total(self) -> int:
        """Steps in all: those of its source, and of fine-tuning all tasks, among them."""
        tuning = TASKS * self.tuning.steps if self.tuning is not None else 0
        return self.steps + tuning + (SOURCE_STEPS if self.needs_source else 0)


PLAIN = {"distill": 0.0, "match": 0.0, "vectors_of_t": False}
FIRST, EVERY, NORMS = ({"conditioning": form} for form in ("first", "every", "norms"))
ARMS = (
    Arm("P_1/4", Kind.PROJECTED, STEPS, -7, is_swept=False),
    Arm("P_1/4, the paper's plain recipe", Kind.PROJECTED, STEPS, -7, PLAIN, SEEDS[:1], is_swept=False),
    Arm("M~_1/4, every", Kind.CONDITIONAL, STEPS, -6, EVERY),
    Arm("M~_1/4, every", Kind.CONDITIONAL, TOTAL, -6, EVERY),
    Arm("M~_1/4, every", Kind.CONDITIONAL, SAME_SECONDS, -7, EVERY, SEEDS[:1], is_swept=False),
    Arm("M~_1/4, norms", Kind.CONDITIONAL, STEPS, -7, NORMS),
    Arm("M~_1/4, norms", Kind.CONDITIONAL, TOTAL, -7, NORMS),
    Arm("M~_1/4, first", Kind.CONDITIONAL, TOTAL, -7, FIRST, SEEDS[:1]),
    Arm("M_1/4", Kind.UNCONDITIONAL, TOTAL, -7, {}, SEEDS[:1]),
    Arm(
        "the source compressed, without t",
        Kind.UNCONDITIONAL,
        STEPS,
        -7,
        {},
        SEEDS[:1],
        is_compressed=True,
        is_swept=False,
    ),
    Arm("M_1/4, fine-tuned for each task", Kind.UNCONDITIONAL, STEPS, -9, {}, SEEDS[:1], Tuning(TUNED)),
    Arm(
        "M_1/4, with LoRA for each task", Kind.UNCONDITIONAL, STEPS, -7, {}, SEEDS[:1], Tuning(TUNED, 8), is_swept=False
    ),
)
