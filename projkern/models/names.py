"""The names of models, as the paper's tables have them: M_1/4, M~_1/4, P_1/4, P~_1/4, source after co-training.

Files and tables hold the text of a name; whoever needs a kind or a scale parses it here.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from fractions import Fraction

from ..utils.errors import InputError


class Kind(Enum):
    """What a model is; the value begins its name."""

    UNCONDITIONAL = "M"
    CONDITIONAL = "M~"  # takes t as an input
    PROJECTED = "P"  # generated from the source for each t
    JOINT = "P~"  # the same, its source shared with all other scales
    TUNED_SOURCE = "source after co-training"


@dataclass(frozen=True)
class ModelName:
    """The name of a model, or of the training that makes it.

    Args:
        kind: what it is.
        scale: s, its width over the source's. None for a tuned source, and for the training of all joint models.
        partner: of a tuned source, the training that tuned it, where the run has several.
    """

    kind: Kind
    scale: Fraction | None = None
    partner: ModelName | None = None

    @classmethod
    def parse(cls, text: str) -> ModelName:
        """The name of that text; raises InputError where it is none."""
        if text.startswith(Kind.TUNED_SOURCE.value):
            _, _, partner = text.partition(" with ")
            return cls(Kind.TUNED_SOURCE, partner=cls.parse(partner) if partner else None)
        kind, underscore, scale = text.partition("_")
        try:
            return cls(Kind(kind), Fraction(scale) if underscore else None)
        except (ValueError, ZeroDivisionError):
            raise InputError(f"name must be that of a model, such as M_1, M~_1/4 or P_1/4; it was {text}") from None

    def __str__(self) -> str:
        if self.kind is Kind.TUNED_SOURCE:
            return self.kind.value + (f" with {self.partner}" if self.partner else "")
        return self.kind.value if self.scale is None else f"{self.kind.value}_{self.scale}"

    @property
    def title(self) -> str:
        """The name for a reader, with the paper's tilde above the letter."""
        return with_tildes(str(self))

    @property
    def folder(self) -> str:
        """The name as part of a path: P_1-4."""
        return str(self).replace("/", "-")

    @property
    def is_projected(self) -> bool:
        return self.kind in (Kind.PROJECTED, Kind.JOINT)

    @property
    def is_conditional(self) -> bool:
        return self.kind is Kind.CONDITIONAL

    @property
    def is_tuned_source(self) -> bool:
        return self.kind is Kind.TUNED_SOURCE

    @property
    def counterpart(self) -> ModelName | None:
        """What a model is compared to: P_s with the conditional M~_s, a tuned source with M_1; None for baselines."""
        if self.is_projected:
            return ModelName(Kind.CONDITIONAL, self.scale)
        return SOURCE if self.is_tuned_source else None


SOURCE = ModelName(Kind.UNCONDITIONAL, Fraction(1))
"""M_1, the source that is pretrained and then projected."""


def with_tildes(text: str) -> str:
    """A text with the names in it as the paper prints them: M~_1/4 with its tilde above the M."""
    return text.replace("M~", "M̃").replace("P~", "P̃")
