"""What trainings cost: steps, operations, seconds, and the parts of a step."""

from __future__ import annotations

import json
from typing import Any

from projkern.models.names import with_tildes
from projkern.utils.markdown import table

from ..documents import PARTS, Document, labels, results_of
from . import paper
from .statistics import spread
from .tables import NOT_RUN, mean_and_deviation


def costs(document: Document) -> str:
    """Of each training, means over its seeds, and where it ran."""
    lines = []
    for label in labels(document):
        results = results_of(document, label)
        operators = {
            name: row["operator_parameters"]
            for name, row in results[0]["models"].items()
            if row.get("operator_parameters") is not None
        }
        lines.append(
            [
                with_tildes(label),
                " + ".join(f"{count:,}" for count in operators.values()),
                f"{spread([r['steps'] for r in results]).mean:,.0f}",
                f"{spread([r['images'] for r in results]).mean:,.0f}",
                f"{spread([r['flops'] / 1e12 for r in results]).mean:,.2f}",
                f"{spread([r['seconds'] for r in results]).mean:,.0f}",
            ]
        )
    head = ["training", "parameters of its operator", "steps", "images", "FLOPs (10¹²)", "seconds"]
    return f"{table(head, lines)}\n\n{machines(document)}"


def machines(document: Document) -> str:
    """Devices and versions, each as often as they differ."""
    shown = dict.fromkeys(
        f"{r['device']}; {', '.join(f'{name} {version}' for name, version in r['versions'].items())}"
        for r in document["results"].values()
    )
    trainings = distinct(document)
    hours = sum(result["seconds"] for result in trainings) / 3600
    count = f"{len(trainings)} training{'s' * (len(trainings) > 1)}"
    return f"{count}, {hours:.1f} hours in all, sources that are no line left out. On {'. On '.join(shown)}."


def distinct(document: Document) -> list[dict[str, Any]]:
    """The trainings behind the stored results: one may stand behind several lines."""
    trainings = {json.dumps([r["settings"], r["seed"], r["seconds"]]): r for r in document["results"].values()}
    return list(trainings.values())


def step_parts(document: Document) -> str:
    """Milliseconds of each part of a step of Table 1's trainings, means over seeds."""
    stages = [f"{kind}_{s}" for kind in ("M", "M~", "P") for s in paper.SCALES if (kind, s) != ("P", "1")]
    lines = []
    for label in (*stages, "P~"):
        results = results_of(document, label)
        if not results:
            lines.append([with_tildes(label), *[""] * len(PARTS), NOT_RUN, ""])
            continue
        taken = [_parts(r["parts"]) for r in results]
        means = {part: spread([parts[part] for parts in taken]).mean for part in PARTS}
        whole = spread([1e3 * sum(parts.values()) for parts in taken])
        share = 100 * (means["generation"] + means["projection"]) / sum(means.values())
        shown = [f"{1e3 * means[part]:.1f}" for part in PARTS]
        lines.append([with_tildes(label), *shown, mean_and_deviation(whole, 1), f"{share:.1f} %"])
    return table(["step of", *(f"{part}, ms" for part in PARTS), "all, ms", "generation + projection"], lines)


def _parts(stored: dict[str, float]) -> dict[str, float]:
    """Seconds of each part, the projection's both ways."""
    parts = {part: stored.get(part, 0.0) for part in PARTS}
    parts["projection"] += stored.get("projection, backward", 0.0)
    return parts
