"""Losses, differences and claims as the page writes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from projkern.models.names import with_tildes
from projkern.utils.markdown import table

from .statistics import Difference, Spread, difference, spread

NOT_RUN = "not run"
ONE_SEED = "undecided: one seed"

Models = Mapping[int, Mapping[str, Any]]
"""A model's stored figures, by seed; empty where it was not run."""


def spread_of(models: Models) -> Spread:
    """Of the losses over seeds."""
    return spread([model["loss"] for model in models.values()])


def mean_and_deviation(spread: Spread, digits: int = 3) -> str:
    deviation = "" if spread.deviation is None else f" ± {spread.deviation:.{digits}f}"
    return f"{spread.mean:.{digits}f}{deviation}"


def seeds(count: int) -> str:
    return f"{count} seed{'s' * (count > 1)}"


def range_of(models: Models) -> str:
    losses = spread_of(models)
    shown = f"{losses.low:.3f}" if losses.seeds == 1 else f"{losses.low:.3f} to {losses.high:.3f}"
    return f"{shown} ({seeds(losses.seeds)})"


def interval(gap: Difference, digits: int = 3) -> str:
    """A difference and its interval, with what that leaves out."""
    low, high = gap.interval
    scope = "" if gap.over_seeds else ", images alone"
    return f"{gap.mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}{scope}]"


def marked_difference(models: Models, rivals: Models) -> str:
    """Of a model's loss and a rival's: bold if the model's is lower beyond noise, italic if it is higher."""
    if not models or not rivals:
        return NOT_RUN
    gap = difference(models, rivals)
    low, high = gap.interval
    mark = "" if not gap.over_seeds else "**" if high < 0 else "*" if low > 0 else ""
    return f"{mark}{interval(gap)}{mark}"


@dataclass(frozen=True)
class Cell:
    """A line of a table of losses.

    Args:
        name: of the line.
        models: those of this project.
        paper: the paper's loss; None where it has none.
        base: name of the line that losses are also divided by.
    """

    name: str
    models: Models
    paper: float | None
    base: str


def losses_table(cells: Sequence[Cell], over: str, digits: int = 3) -> str:
    """Ours beside the paper's, ``over`` being what the relative losses are relative to."""
    by_name = {cell.name: cell for cell in cells}

    def line(cell: Cell) -> list[str]:
        base = by_name.get(cell.base)
        paper = "" if cell.paper is None else f"{cell.paper:.{digits}f}".rstrip("0")
        paper_over = f"{cell.paper / base.paper:.3f}" if cell.paper and base and base.paper else ""
        if not cell.models:
            return [with_tildes(cell.name), "", NOT_RUN, "", paper, "", "", paper_over]
        losses = spread_of(cell.models)
        return [
            with_tildes(cell.name),
            f"{next(iter(cell.models.values()))['parameters']:,}",
            mean_and_deviation(losses, digits),
            " ".join(f"{model['loss']:.{digits}f}" for _, model in sorted(cell.models.items())),
            paper,
            f"{losses.mean / cell.paper:.2f}" if cell.paper else "",
            f"{losses.mean / spread_of(base.models).mean:.3f}" if base and base.models else "",
            paper_over,
        ]

    head = ["model", "parameters", "ours", "each seed", "the paper's", "ours / paper's"]
    return table([*head, f"ours, over {over}", f"the paper's, over {over}"], map(line, cells))


@dataclass(frozen=True)
class Claim:
    """Something that the paper says, what our figures say of it, and which these are."""

    statement: str
    verdict: str
    evidence: str = ""


def claims_table(claims: Iterable[Claim]) -> str:
    rows = ([claim.statement, f"**{claim.verdict}**", claim.evidence] for claim in claims)
    return table(["claim", "verdict", "figures"], rows, left=3)


def clearly_below(statement: str, low: Models, high: Models) -> Claim:
    """That one model is below another by more than their ranges over seeds; the interval, if images allow one, tells
    how sure that is."""
    if not low or not high:
        return Claim(statement, NOT_RUN)
    a, b = spread_of(low), spread_of(high)
    evidence = f"{range_of(low)} against {range_of(high)}"
    if min(a.seeds, b.seeds) == 1:
        return Claim(statement, ONE_SEED, evidence)
    if a.high >= b.low:
        return Claim(statement, "fails", evidence)
    if not all("by_image" in model for model in (*low.values(), *high.values())):
        return Claim(statement, "holds", evidence)
    gap = difference(low, high)
    return Claim(statement, sign_verdict(gap), f"{evidence}: {interval(gap)}")


def not_above(statement: str, low: Models, high: Models, digits: int = 3) -> Claim:
    """That one model is at or below another; the interval of the difference tells how sure that is."""
    if not low or not high:
        return Claim(statement, NOT_RUN)
    gap = difference(low, high)
    a, b = (f"{spread_of(models).mean:.{digits}f}" for models in (low, high))
    return Claim(statement, sign_verdict(gap), f"{a} against {b}: {interval(gap, digits)}")


def sign_verdict(gap: Difference) -> str:
    """Whether a difference that ought to be at or below zero is, and whether its interval leaves that open."""
    if not gap.over_seeds:
        return ONE_SEED
    low, high = gap.interval
    is_sure = high < 0 if gap.mean <= 0 else low > 0
    return ("holds" if gap.mean <= 0 else "fails") + ("" if is_sure else ", within noise")
