"""Weight generators by name: from a source and a task identifier to a small model's linear operators.

Each is used in the same way, in training and in projection (paper, Sec. 2 and appendix B; docs/generators.md).
"""

from typing import Any

from ...utils.errors import InputError
from ..gpt import GPT
from .additive import LinearGenerator, LowRankGenerator, ModularGenerator
from .base import Generator, TaskWeights, group_of
from .diagonal import DiagonalGenerator, project_factors
from .source import BlockGenerator, GeneralGenerator

GENERATORS: dict[str, type[Generator]] = {
    "diagonal": DiagonalGenerator,
    "general": GeneralGenerator,
    "blocks": BlockGenerator,
    "linear": LinearGenerator,
    "modular": ModularGenerator,
    "low-rank": LowRankGenerator,
}
"""The kinds by name."""


def make_generator(kind: str, source: GPT, group: int, task_dim: int, rank: int, **options: Any) -> Generator:
    """A fresh generator.

    Raises:
        InputError: an unknown kind, an option that this kind does not have or a value that it does not take.
    """
    if not isinstance(kind, str) or kind not in GENERATORS:
        raise InputError(f"generator must be one of {', '.join(GENERATORS)}; it was {kind!r}")
    own_options = GENERATORS[kind].options()
    for name in options:
        if name not in own_options:
            known = ", ".join(own_options) or "none"
            raise InputError(f"options of the generator {kind!r} must be among its own ({known}); one was {name!r}")
    return GENERATORS[kind](source, group, task_dim, rank, **options)
