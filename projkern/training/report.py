"""What a run leaves for people to look at: a table, loss curves and samples beside real images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..data.stream import Images
from ..files import write_atomically
from ..pictures import in_rows
from ..sampling import sample
from .config import SOURCE_NAME, TrainConfig
from .metrics import read_metrics
from .stages import Model

COLUMNS = 8
TOLD = {"first": "by its first position", "every": "at every position", "norms": "at every position and in every norm"}
"""How M̃ is told t, by the setting ``conditioning``."""


def write_report(
    out: Path, config: TrainConfig, summary: dict[str, Any], models: list[Model], data: Images
) -> None:
    """Write ``samples.png``, ``curves.png`` and ``report.md`` into a run's folder."""
    _samples(out / "samples.png", models, data)
    _curves(out / "curves.png", out / "metrics.jsonl")
    write_atomically(out / "report.md", lambda p: p.write_text(_report(config, summary)))


def table(summary: dict[str, Any]) -> str:
    """The run's losses as a Markdown table."""
    lines = ["| model | parameters | loss, nats per token | given another image's t |", "|---|---:|---:|---:|"]
    for name, row in summary["models"].items():
        other = f"{row['loss_with_another_t']:.3f}" if "loss_with_another_t" in row else ""
        lines.append(
            f"| {pretty(name)} | {row['parameters']:,} | {row['loss']:.3f} ± {row['standard_error']:.3f} | {other} |"
        )
    return "\n".join(lines)


def pretty(name: str) -> str:
    """A model's name as the paper prints it: M~_1/4 with its tilde above."""
    return name.replace("M~", "M̃").replace("P~", "P̃")


def _report(config: TrainConfig, summary: dict[str, Any]) -> str:
    models = summary["models"]
    source = models[SOURCE_NAME]["loss"]
    lines = [
        f"# Projected models on {'SynthMNIST' if config.data is None else 'tokenised images'}",
        "",
        f"Images {config.image_size}×{config.image_size} in {config.colors} "
        f"{'colours' if config.data is None else 'codes'}; {config.n_layer} layers, "
        f"{config.n_head} heads, source width {config.n_embd}; batches of {config.batch_size} images; "
        f"{config.source_steps} steps for the source, {config.steps} for every other model. "
        f"Loss on {config.eval_images} held-out images, ± one standard error.",
        "",
        table(summary),
        "",
    ]
    for name, row in models.items():
        if name.startswith("P"):
            baseline = "M~_" + name.split("_")[1]
            gain = models[baseline]["loss"] - row["loss"]
            lines.append(
                f"- {pretty(name)} is {gain:.3f} nats per token "
                f"{'below' if gain >= 0 else 'above (!)'} {pretty(baseline)}, the conditional baseline of its shape. "
                f"Its operator has {row['operator_parameters']:,} parameters of its own."
            )
        elif name.startswith("source"):
            change = 100 * (row["loss"] / source - 1)
            lines.append(f"- The {name} stands at {change:+.1f} % of its loss before.")
    lines += [
        "",
        f"M is an unconditional model, M̃ one told the task identifier t {TOLD[config.conditioning]}, and P one "
        "generated for each t from the source (paper, Table 1). The last column shows how much a model makes of t: "
        "there each image comes with the t of another.",
        "",
        "![Real images, and samples for the same task identifiers](samples.png)",
        "",
        "![Training loss](curves.png)",
        "",
        f"{summary['seconds']:.0f} s of training and evaluation on {summary['device']}; "
        + ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
        + f"; seed {config.seed}. All settings: `config.json`.",
        "",
    ]
    return "\n".join(lines)


def _samples(path: Path, models: list[Model], data: Images) -> None:
    """Rows: real images of eight tasks, then samples of the projected and the conditional models for them."""
    tokens, t = data.batch(0)
    t = t[:COLUMNS]
    rows = [("real", tokens[: len(t)])]
    for model in models:
        if model.name.startswith(("P", "M~")):
            rows.append((pretty(model.name), sample(model.decoder(t)).tokens))
    images = [(label, data.decode(drawn)) for label, drawn in rows]
    in_rows(path, images, "Each column is one task identifier t")


def _curves(path: Path, metrics: Path, smooth: int = 10) -> None:
    """Training loss of every model against the steps of its stage."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for line in read_metrics(metrics):
        for name, loss in line["losses"].items():
            curves.setdefault(name, []).append((line["step"], loss))
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axis = figure.subplots()
    for name, points in curves.items():
        steps, losses = np.array(points).T
        width = min(smooth, len(losses))
        mean = np.convolve(losses, np.ones(width) / width, mode="valid")
        style = "--" if name.startswith("source") else "-"
        axis.plot(steps[width - 1 :], mean, style, label=pretty(name), linewidth=1.5)
    axis.set(xlabel="step of the model's own training", ylabel="training loss, nats per token")
    if curves:
        top = max(float(np.median([loss for _, loss in points])) for points in curves.values())
        axis.set_ylim(top=1.3 * top)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=9)
    write_atomically(path, lambda p: figure.savefig(p, dpi=120, format="png"))
