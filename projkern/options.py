"""Options on the command line that several commands share."""

from __future__ import annotations

import argparse
from fractions import Fraction
from pathlib import Path
from typing import Any


def scale(text: str) -> Fraction:
    """A scale on the command line: 1/4 or 0.25."""
    try:
        return Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"must be a fraction such as 1/4; it was {text!r}") from None


def seed(text: str) -> int:
    """A seed on the command line."""
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"must be a whole number below 2^63; it was {text!r}")
    return int(text)


def add_scale_and_tasks(to: argparse.ArgumentParser | argparse._ArgumentGroup, *, required: bool) -> None:
    """Add --scale, and --t or --random: which small models of a run are meant."""
    to.add_argument("--scale", type=scale, required=required, metavar="1/G", help="scale s, one that the run has")
    tasks = to.add_mutually_exclusive_group(required=required)
    tasks.add_argument("--t", type=Path, metavar="FILE", help="task identifiers, .json, .npy or .csv")
    tasks.add_argument("--random", type=int, metavar="N", help="N random tasks; of images made tokens, held-out ones")


def require_unchanged(config: object, given: dict[str, Any], out: Path) -> None:
    """Raises ValueError where an option given with --resume asks for another setting than what is continued has."""
    for name, value in given.items():
        if getattr(config, name) != value:
            raise ValueError(
                f"--{name.replace('_', '-')} must be left out with --resume, or be {getattr(config, name)} as in "
                f"{out}/config.json; it was {value}"
            )
