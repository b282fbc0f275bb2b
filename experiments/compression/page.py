"""The tables of docs/compression.md, written from the stored results."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from experiments.sweeps import Result, read_results, summary
from projkern.utils import markdown
from projkern.utils.files import write_text

from .arms import ARMS, BUDGETS, DETAIL
from .step_cost import PARTS, share
from .sweep import FORMAT, of_cell

PAGE = Path("docs/compression.md")
STEP_COST, LARGER = "step_cost.json", "smollm2.json"
METHODS = ("prune", "project")
OPTIMIZERS = {"adamw": "AdamW", "muon": "Muon"}
SHARES = ("of 8k tokens", "of 64k", "with distillation, of 8k", "of 64k")
"""What the merge and its gradients are of a step."""
BASE = "{method}, muon, distillation"


def write_tables(results: Path, page: Path = PAGE) -> None:
    """Write every table of the page anew from the files beside ``results``."""
    write_text(page, render(results, page.read_text("utf-8")))


def render(results: Path, text: str) -> str:
    """The page's text with its tables as the stored results have them."""
    arms = read_results(results, FORMAT)
    parts = {"arms": _arms(arms), "differences": _differences(arms), "changes": _changes(arms)}
    for name, file, table in (("step cost", STEP_COST, _step_cost), ("larger model", LARGER, _larger)):
        path = results.parent / file
        parts[name] = table(json.loads(path.read_text("utf-8"))) if path.exists() else "Not measured yet."
    for name, part in parts.items():
        text = markdown.with_part(text, name, part)
    return text


def _millions(tokens: int) -> str:
    return f"{tokens / 1e6:.2f} M tokens"


def _cell(results: list[Result], arm: str, budget: int) -> str:
    cell = summary(of_cell(results, arm, budget))
    if cell is None:
        return ""
    exponent, loss, spread, seeds = cell
    shown = f"{loss:.3f} ± {spread:.3f}" if seeds > 1 else f"{loss:.3f}"
    return f"{shown} (2^{exponent})"


def _arms(results: list[Result]) -> str:
    names = [arm.name for arm in ARMS if arm.budgets == BUDGETS or arm.is_random]
    rows = [(name, *(_cell(results, name, budget) for budget in BUDGETS)) for name in names]
    return markdown.table(("arm", *map(_millions, BUDGETS)), rows)


def _differences(results: list[Result]) -> str:
    rows = []
    for optimizer, title in OPTIMIZERS.items():
        for suffix in ("", ", distillation"):
            cells = []
            for budget in BUDGETS:
                pair = [summary(of_cell(results, f"{method}, {optimizer}{suffix}", budget)) for method in METHODS]
                cells.append(_difference(*pair))
            rows.append((f"{title}{suffix}", *cells))
    return markdown.table(("project - prune", *map(_millions, BUDGETS)), rows)


def _difference(prune: Any, project: Any) -> str:
    """Of two means, with the standard error of it that the spreads of the seeds give."""
    if prune is None or project is None:
        return ""
    error = math.sqrt(prune[2] ** 2 / prune[3] + project[2] ** 2 / project[3])
    return f"{project[1] - prune[1]:+.3f} ± {error:.3f}"


def _changes(results: list[Result]) -> str:
    names = [arm.name.partition(", ")[2] for arm in ARMS if arm.name.startswith("prune") and arm.budgets == DETAIL]
    rows = []
    bases = {method: summary(of_cell(results, BASE.format(method=method), DETAIL[0])) for method in METHODS}
    for name in names:
        rows.append((name, *(_change(results, f"{method}, {name}", bases[method]) for method in bases)))
    for name in ("group", "project, blocks of 16"):
        rows.append((name, "", _change(results, name, bases["project"])))
    return markdown.table(("change", "prune", "project"), rows)


def _change(results: list[Result], arm: str, base: Any) -> str:
    cell = summary(of_cell(results, arm, DETAIL[0]))
    if cell is None or base is None:
        return ""
    return f"{cell[1]:.3f} ({cell[1] - base[1]:+.3f}; 2^{cell[0]})"


def _step_cost(stored: dict[str, Any]) -> str:
    head = ("method", "optimizer", *(f"{part}, s" for part in PARTS), *SHARES)
    rows = []
    for row in stored["rows"]:
        shares = [f"{share(row, n, with_source=run):.1%}" for run in (False, True) for n in (8192, 65536)]
        seconds = [f"{row['seconds'][part]:.2f}" for part in PARTS]
        rows.append((row["method"], OPTIMIZERS[row["optimizer"]], *seconds, *shares))
    memory = [
        (
            row["method"],
            OPTIMIZERS[row["optimizer"]],
            f"{row['parameters']['trained'] / 1e6:.0f} M",
            *(f"{row['bytes'][name] / 1e9:.2f}" for name in ("source", "trained and optimizer")),
            f"{row['bytes']['small model and gradients'] / 1e9:.2f}",
            f"{row['bytes']['largest block'] / 1e9:.2f}",
            f"{row['bytes']['peak'] / 1e9:.2f}",
        )
        for row in stored["rows"]
    ]
    names = ("source", "P, A and optimizer", "small model and gradients", "largest block", "peak of the process")
    first = stored["rows"][0]
    return "\n\n".join(
        [
            f"{stored['model']} to hidden size {stored['sizes']['hidden_size']} and intermediate size "
            f"{stored['sizes']['intermediate_size']}; seconds of the processor, one thread, for {first['tokens']:,} "
            f"tokens; {first['device']}; torch {first['versions']['torch']}.",
            markdown.table(head, rows, left=2),
            "Memory in GB:",
            markdown.table(("method", "optimizer", "trained", *names), memory, left=2),
        ]
    )


def _larger(stored: dict[str, Any]) -> str:
    rows = [
        (
            row["method"],
            f"{row['result']['parameters']:,}",
            f"{row['start']['loss']:.3f}",
            f"{row['result']['loss']:.3f} ± {row['result']['standard_error']:.3f}",
            f"{row['lr']:.1e}",
            f"{row['seconds']:.0f}",
        )
        for row in stored["rows"]
    ]
    source, first = stored["rows"][0]["source"], stored["rows"][0]
    return "\n\n".join(
        [
            f"{stored['model']}, {source['parameters']:,} parameters, {source['loss']:.3f} ± "
            f"{source['standard_error']:.3f} nats per token on the held-out part; {first['tokens']:,} tokens with "
            f"{OPTIMIZERS[stored['optimizer']]} and distillation; "
            f"{first['device']}; torch {first['versions']['torch']}.",
            markdown.table(("method", "parameters", "before training", "loss", "peak rate", "seconds"), rows),
        ]
    )
