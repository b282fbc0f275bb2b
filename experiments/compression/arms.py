"""What is compared: arms, each a method with its settings, at several budgets of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

BUDGETS = (153_600, 307_200, 614_400)
"""Tokens: 75, 150 and 300 steps of 16 windows of 128."""
DETAIL = (307_200,)
"""Where single changes are looked at."""
SEEDS = (0, 1, 2)
COMMON = {"hidden_size": 32, "intermediate_size": 86, "length": 128, "batch_size": 16}
PAPER = {"importance": "activation", "start": "pruned", "optimizer": "adamw", "distill": 0.0}
"""The paper's recipe."""


@dataclass(frozen=True)
class Arm:
    """One way to compress.

    Args:
        name: in the tables and in the stored results.
        settings: of ``CompressConfig``, beside those that all arms share.
        exponent: of the learning rate 2^exponent that the sweep begins with.
        budgets: the numbers of tokens that it is trained on.
        seeds: of the order of the text. The first sweeps the learning rate; the others run at the best.
        through: sizes that half of the tokens are spent on first, where it goes in two steps.
        is_random: whether it starts from random weights instead of the source's.
    """

    name: str
    settings: dict[str, Any]
    exponent: int
    budgets: tuple[int, ...] = BUDGETS
    seeds: tuple[int, ...] = SEEDS
    through: dict[str, int] | None = None
    is_random: bool = False


def _paper_arms() -> list[Arm]:
    """Both methods with both optimizers, each with distillation and without."""
    first = {("prune", "adamw"): -7, ("project", "adamw"): -8, ("prune", "muon"): -6, ("project", "muon"): -7}
    return [
        Arm(
            f"{method}, {optimizer}" + (", distillation" if distill else ""),
            PAPER | {"method": method, "optimizer": optimizer, "distill": distill},
            exponent,
        )
        for (method, optimizer), exponent in first.items()
        for distill in (0.0, 0.5)
    ]


def _changes() -> list[Arm]:
    """One change at a time from Muon with distillation, for projection and for its baseline; then all that won."""
    shallow = {"layers": 3, "hidden_size": 40, "intermediate_size": 124}  # 88,440 parameters
    joined = {"start": "compensated", "distill": 1.0, "batch_size": 4}
    changes: dict[str, dict[str, Any]] = {
        "compensated start": {"start": "compensated"},
        "by magnitude": {"importance": "magnitude"},
        "in index order": {"importance": "index"},
        "divergence alone": {"distill": 1.0},
        "batches of 4": {"batch_size": 4},
        "3 layers": shallow,
        "all that won": joined,
        "all that won, 3 layers": joined | shallow,
    }
    base = PAPER | {"optimizer": "muon", "distill": 0.5}
    arms = []
    for method, exponent in (("prune", -6), ("project", -7)):
        settings = base | {"method": method}
        for name, change in changes.items():
            first = exponent - ("batch_size" in change)
            seeds = SEEDS if name.startswith("all") else SEEDS[:1]
            arms.append(Arm(f"{method}, {name}", settings | change, first, DETAIL, seeds))
        half = {"hidden_size": 48, "intermediate_size": 128}
        arms.append(Arm(f"{method}, in two steps", settings, exponent, DETAIL, SEEDS[:1], half))
    return [
        *arms,
        Arm("group", base | {"method": "group"}, -6, DETAIL, SEEDS[:1]),
        Arm("project, blocks of 16", base | {"method": "project", "block": 16}, -7, DETAIL, SEEDS[:1]),
    ]


RANDOM = Arm("random start, muon", PAPER | {"method": "prune", "optimizer": "muon"}, -5, DETAIL, is_random=True)
ARMS = [*_paper_arms(), RANDOM, *_changes()]
