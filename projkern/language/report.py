"""What a run on tasks of text leaves for people to look at: tables, loss curves, samples of text."""

from __future__ import annotations

from typing import Any

from ..models.names import with_tildes
from ..models.sampling import Draws
from ..training.report import draw_curves, table
from ..utils import markdown
from ..utils.files import write_text
from .config import LanguageConfig
from .losses import bits_per_byte
from .sampling import write
from .stages import TextModel
from .trained import LanguageRun

PLACES_OF_T = {
    "first": "in place of the start token",
    "every": "at every position",
    "norms": "at every position and in every norm and bias",
}
"""Where M̃ takes t, by the setting ``conditioning``."""
SAMPLED_TASKS, SAMPLED_TOKENS = 3, 160


def write_report(run: LanguageRun, summary: dict[str, Any], models: list[TextModel]) -> None:
    """Write ``curves.png`` and ``report.md`` into a run's folder."""
    draw_curves(run.path / "curves.png", run.path / "metrics.jsonl")
    write_text(run.path / "report.md", markdown.wrap(_report(run.config, summary, _samples(run, models))))


def table_by_task(tasks: list[str], bits: dict[str, list[float]]) -> str:
    """The bits per byte of each task, by the models' names, as a Markdown table."""
    rows = ((task, *(f"{values[number]:.3f}" for values in bits.values())) for number, task in enumerate(tasks))
    return markdown.table(("task", *map(with_tildes, bits)), rows)


def held_out_section(summary: dict[str, Any]) -> list[str]:
    """The section on the tasks that training left out, none where there are none; nats per token."""
    if "held_out_tasks" not in summary:
        return []
    return [
        "## Tasks that training left out",
        "Nats per token. The t of each is what the source makes of a sample of its text; the nearest is the "
        "trained task whose t is nearest to it.",
        table_of_held_out(summary),
    ]


def table_of_held_out(summary: dict[str, Any]) -> str:
    """The losses of the tasks that training left out as a Markdown table, in nats per token."""
    head: list[str] = ["task", "nearest"]
    rows: list[list[str]] = []
    for task, losses in summary["held_out_tasks"].items():
        head, row = head[:2], [task, losses["nearest"]]
        for name in summary["models"]:
            head.append(with_tildes(name))
            row.append(f"{losses[name]['loss']:.3f}")
            if "loss_with_nearest_t" in losses[name]:
                head.append("with the nearest's t")
                row.append(f"{losses[name]['loss_with_nearest_t']:.3f}")
        rows.append(row)
    return markdown.table(head, rows, left=2)


def _report(config: LanguageConfig, summary: dict[str, Any], samples: dict[str, dict[str, str]]) -> str:
    schedule, tasks = config.schedule, config.tasks
    paragraphs = [
        f"# A small language model for each of {len(summary['tasks'])} tasks",
        f"Windows of {tasks.length} tokens, {schedule.batch_size} a step, {tasks.examples_per_task} for each task of a "
        f"batch; {schedule.source_steps} steps for the source, {schedule.steps} for every other model. Loss on "
        f"{config.run.eval_windows} held-out windows of each task, ± one standard error over windows.",
        table(summary, "with another task's t"),
        f"M is an unconditional model, M̃ takes the task identifier t {PLACES_OF_T[config.model.conditioning]}, and P "
        "is generated for each t from the source. The last column shows how much a model uses t: there each task's "
        "text comes with the t of another task.",
        "## By task",
        "Bits per byte of text:",
        table_by_task(summary["tasks"], _bits(summary)),
    ]
    paragraphs += held_out_section(summary)
    paragraphs += ["## Samples", "What each model writes from nothing, at temperature 0.8:"]
    for task, texts in samples.items():
        paragraphs.append(f"### {task}")
        paragraphs += [f"{with_tildes(name)}:\n\n```text\n{text}\n```" for name, text in texts.items()]
    paragraphs += [
        "![Training loss](curves.png)",
        f"{summary['seconds']:.0f} s of training and evaluation on {summary['device']}; "
        + ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
        + f"; seed {config.run.seed}. All settings: `config.json`.",
    ]
    return "\n\n".join(paragraphs) + "\n"


def _bits(summary: dict[str, Any]) -> dict[str, list[float]]:
    """Bits per byte of each task, by the models' names."""
    ratios = [summary["bytes_per_token"][task] for task in summary["tasks"]]
    return {name: list(map(bits_per_byte, row["by_task"], ratios)) for name, row in summary["models"].items()}


def _samples(run: LanguageRun, models: list[TextModel]) -> dict[str, dict[str, str]]:
    """Texts of the projected and the conditional models, for some tasks."""
    tasks = run.tasks.trained
    texts: dict[str, dict[str, str]] = {}
    for task in tasks[:: max(1, -(-len(tasks) // SAMPLED_TASKS))]:
        texts[task] = {}
        for model in models:
            if model.name.is_projected or model.name.is_conditional:
                small = model.standalone(run.t_of(task))
                written = write(small, run.tokenizer, Draws(temperature=0.8), tokens=SAMPLED_TOKENS)
                texts[task][str(model.name)] = written.texts[0].replace("```", "'''")
    return texts
