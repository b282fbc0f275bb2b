"""The tables of docs/tasks.md, written from the stored results."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from experiments.sweeps import Losses, Result, read_results, summary
from projkern.language.report import table_of_held_out
from projkern.models.names import Kind, with_tildes
from projkern.utils import markdown
from projkern.utils.files import Format, write_json, write_text

from .arms import ARMS, Arm

PAGE, README = Path("docs/tasks.md"), Path("README.md")
RESULTS = Path("experiments/results/languages/languages.json")
HELD_OUT, STEP_COST, SECONDS, TEXTS = "held_out.json", "step_cost.json", "seconds.json", "texts.json"
NOT_MEASURED = "Not measured yet."
LANGUAGES_OF_README = ("de", "es", "el")
FORMAT = Format("projkern language results", 1, "results on tasks of text")


def write_tables(results: Path, page: Path = PAGE, readme: Path = README) -> None:
    """Write the tables of the page and the texts of the README anew."""
    write_text(page, render(results, page.read_text("utf-8")))
    write_text(readme, render_readme(results, readme.read_text("utf-8")))


def store(file: str, values: dict[str, Any]) -> Path:
    """Write what was measured beside the stored results, and the tables anew; returns the file."""
    path = RESULTS.parent / file
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, values)
    write_tables(RESULTS)
    return path


def render(results: Path, text: str) -> str:
    """The page's text with its tables as the stored results have them."""
    stored = read_results(results, FORMAT)
    parts = {"languages": _arms(stored) if stored else NOT_MEASURED}
    tables = (
        ("held out", HELD_OUT, table_of_held_out),
        ("step cost", STEP_COST, _cost),
        ("seconds", SECONDS, _seconds),
    )
    for name, file, table in tables:
        path = results.parent / file
        parts[name] = table(json.loads(path.read_text("utf-8"))) if path.exists() else NOT_MEASURED
    parts["texts"] = _texts(results, None)
    for name, part in parts.items():
        text = markdown.with_part(text, name, part)
    return text


def render_readme(results: Path, text: str, languages: Sequence[str] = LANGUAGES_OF_README) -> str:
    """The README's text with the stored texts of some languages."""
    return markdown.with_part(text, "texts", _texts(results, languages))


def losses_of(results: list[Result], arm: Arm) -> Losses:
    """Losses of an arm by exponent and seed."""
    return {
        (r["exponent"], r["seed"]): r["models"][str(arm.model)]["loss"]
        for r in results
        if (r["arm"], r["steps"]) == (arm.name, arm.steps)
    }


def _of(results: list[Result], arm: Arm) -> list[Result]:
    """The results of an arm at its best learning rate, by seed."""
    cell = summary(losses_of(results, arm))
    if cell is None:
        return []
    chosen = [r for r in results if (r["arm"], r["steps"], r["exponent"]) == (arm.name, arm.steps, cell[0])]
    return sorted(chosen, key=lambda r: int(r["seed"]))


def _arms(results: list[Result]) -> str:
    projected = _of(results, ARMS[0])
    rows = []
    for arm in ARMS:
        chosen = _of(results, arm)
        if not chosen:
            continue
        model = str(arm.model)
        losses = [r["models"][model]["loss"] for r in chosen]
        other = [r["models"][model]["loss_with_another_t"] for r in chosen if arm.kind is not Kind.UNCONDITIONAL]
        seconds = median(r["seconds"] + (r["source_seconds"] if arm.needs_source else 0) for r in chosen)
        rows.append(
            (
                with_tildes(arm.name),
                f"{arm.steps:,}",
                f"{arm.total:,}",
                f"{chosen[0]['models'][model]['parameters']:,}",
                _spread(losses),
                _difference(projected, chosen, str(ARMS[0].model), model) if arm is not ARMS[0] else "",
                f"{mean(other):.3f}" if other else "",
                f"2^{chosen[0]['exponent']}",
                f"{seconds:.0f}",
            )
        )
    head = (
        *("model", "steps", "with its source's", "parameters", "nats per byte"),
        *(f"{with_tildes(ARMS[0].name)} minus it", "with another language's t", "rate", "seconds (median)"),
    )
    sources = {r["seed"]: r["source"] for r in projected}
    tuned = [r["models"]["source after co-training"]["loss"] for r in projected]
    note = f"The source: {_spread(list(sources.values()))} before, {_spread(tuned)} after co-training." if tuned else ""
    return "\n\n".join([markdown.table(head, rows), note])


def _spread(values: list[float]) -> str:
    return f"{mean(values):.3f} ± {stdev(values):.3f}" if len(values) > 1 else f"{values[0]:.3f}"


def _difference(results: list[Result], others: list[Result], model: str, other: str) -> str:
    """Mean over the seeds that both have, with its standard error."""
    by_seed = {r["seed"]: r["models"][other]["loss"] for r in others}
    values = [r["models"][model]["loss"] - by_seed[r["seed"]] for r in results if r["seed"] in by_seed]
    if not values:
        return ""
    error = f" ± {stdev(values) / math.sqrt(len(values)):.3f}" if len(values) > 1 else ""
    return f"{mean(values):+.3f}{error}"


def _cost(stored: dict[str, Any]) -> str:
    rows = []
    for row in stored["rows"]:
        seconds, parts = row["seconds"], ("generation and projection", "their backward")
        total = sum(seconds.values())
        share = sum(seconds[name] for name in parts) / total
        frozen = sum(seconds[name] for name in parts) / (total - seconds["source"])
        rows.append(
            (
                f"{row['group']}",
                f"{row['parameters']:,}",
                f"{row['rank']}",
                *(f"{seconds[name]:.2f}" for name in (*parts, "small models", "source")),
                f"{share:.1%}",
                f"{frozen:.1%}",
            )
        )
    head = (
        *("g", "parameters of a small model", "r", "generation and projection, s", "their backward, s"),
        *("small models, s", "source, s", "share of a step", "with the source frozen, without distillation"),
    )
    first = stored["rows"][0]
    return "\n\n".join(
        [
            f"{stored['model']}, {stored['tasks']} tasks of {stored['tokens']:,} tokens; seconds of the processor, one "
            f"thread; {first['device']}; torch {first['versions']['torch']}.",
            markdown.table(head, rows),
        ]
    )


def _seconds(stored: dict[str, Any]) -> str:
    rows = []
    for model, seconds in stored["seconds"].items():
        steps = stored["steps_in_the_time_of_P"].get(model)
        rows.append((with_tildes(model), f"{seconds:.3f}", f"{steps:,.0f}" if steps else ""))
    head = ("model", "seconds of a step", "steps in the time of P_1/4 and its source")
    note = f"Seconds of the processor, medians in turns; {stored['device']}; torch {stored['versions']['torch']}."
    return "\n\n".join([markdown.table(head, rows), note])


def _texts(results: Path, languages: Sequence[str] | None) -> str:
    """What the models for some languages write, all where it is None, and how the run came out."""
    path = results.parent / TEXTS
    if not path.exists():
        return NOT_MEASURED
    stored = json.loads(path.read_text("utf-8"))
    rows = [
        (language, with_tildes(model), _in_a_cell(text, stored["prompts"][language]))
        for language in languages or stored["texts"]
        for model, text in stored["texts"][language].items()
    ]
    losses = (f"{with_tildes(name)} {row['loss']:.3f}" for name, row in stored["models"].items())
    return "\n\n".join(
        [
            markdown.table(("language", "model", "writes"), rows, left=3),
            f"The first text of each model, at temperature {stored['temperature']}. Nats per byte of held-out text in "
            f"{len(stored['tasks'])} languages: {', '.join(losses)}. "
            f"{stored['seconds'] / 60:.0f} minutes in all on {stored['device']}; torch {stored['versions']['torch']}.",
        ]
    )


def _in_a_cell(text: str, prompt: str) -> str:
    """A text in a cell of a table, with its prompt in bold."""
    written = " ".join(text.removeprefix(prompt).split())
    return f"**{_escaped(prompt.strip())}** {_escaped(written)}"


def _escaped(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", text)
