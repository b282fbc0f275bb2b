"""What a run leaves for people to look at: a table, loss curves and samples beside real images."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..data.stream import Images
from ..models.names import SOURCE, ModelName, with_tildes
from ..models.sampling import sample
from ..utils import markdown
from ..utils.files import write_text
from ..utils.pictures import in_rows, save_figure
from .config import TrainConfig
from .metrics import read_metrics
from .stages import ImageModel

COLUMNS = 8
PLACES_OF_T = {
    "first": "in its first position",
    "every": "at every position",
    "norms": "at every position and in every norm",
}
"""Where M̃ takes t, by the setting ``conditioning``."""


def write_report(
    out: Path, config: TrainConfig, summary: dict[str, Any], models: list[ImageModel], data: Images
) -> None:
    """Write ``samples.png``, ``curves.png`` and ``report.md`` into a run's folder."""
    _samples(out / "samples.png", models, data)
    draw_curves(out / "curves.png", out / "metrics.jsonl")
    write_text(out / "report.md", _report(config, summary))


def table(summary: dict[str, Any], other: str = "with another image's t") -> str:
    """The run's losses as a Markdown table; ``other`` heads those with the t of another."""
    head = ("model", "parameters", "loss, nats per token", other)
    return markdown.table(head, (_row(name, row) for name, row in summary["models"].items()))


def _row(name: str, row: dict[str, Any]) -> tuple[str, ...]:
    with_another_t = f"{row['loss_with_another_t']:.3f}" if "loss_with_another_t" in row else ""
    loss = f"{row['loss']:.3f} ± {row['standard_error']:.3f}"
    return with_tildes(name), f"{row['parameters']:,}", loss, with_another_t


def _report(config: TrainConfig, summary: dict[str, Any]) -> str:
    data, model, schedule = config.data, config.model, config.schedule
    is_synthmnist = data.folder is None
    paragraphs = [
        f"# Projected models on {'SynthMNIST' if is_synthmnist else 'tokenised images'}",
        f"Images {data.side}×{data.side} in {data.vocab_size} {'colours' if is_synthmnist else 'codes'}; "
        f"{model.n_layer} layers, {model.n_head} heads, source width {model.n_embd}; batches of "
        f"{schedule.batch_size} images; {schedule.source_steps} steps for the source, {schedule.steps} for every other "
        f"model. Loss on {config.run.eval_images} held-out images, ± one standard error.",
        table(summary),
        "\n".join(_comparisons(summary["models"])),
        f"M is an unconditional model, M̃ takes the task identifier t {PLACES_OF_T[model.conditioning]}, and P is "
        "generated for each t from the source (paper, Table 1). The last column shows how much a model uses t: "
        "there each image comes with the t of another.",
        "![Real images, and samples for the same task identifiers](samples.png)",
        "![Training loss](curves.png)",
        f"{summary['seconds']:.0f} s of training and evaluation on {summary['device']}; "
        + ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
        + f"; seed {config.run.seed}. All settings: `config.json`.",
    ]
    return "\n\n".join(paragraphs) + "\n"


def _comparisons(models: dict[str, Any]) -> list[str]:
    """A sentence for each projected model and each tuned source, against its counterpart."""
    lines = []
    for text, row in models.items():
        name = ModelName.parse(text)
        if name.is_projected:
            baseline = name.counterpart
            assert baseline is not None
            gain = models[str(baseline)]["loss"] - row["loss"]
            lines.append(
                f"- {name.title} is {gain:.3f} nats per token {'below' if gain >= 0 else 'above (!)'} "
                f"{baseline.title}, the conditional baseline of its shape. "
                f"Its operator has {row['operator_parameters']:,} parameters of its own."
            )
        elif name.is_tuned_source:
            change = 100 * (row["loss"] / models[str(SOURCE)]["loss"] - 1)
            lines.append(f"- The {text} stands at {change:+.1f} % of its loss before.")
    return lines


def _samples(path: Path, models: list[ImageModel], data: Images) -> None:
    """Rows: real images of eight tasks, then samples of the projected and the conditional models for them."""
    tokens, t = data.batch(0)
    t = t[:COLUMNS]
    rows = [("real", tokens[: len(t)])]
    for model in models:
        if model.name.is_projected or model.name.is_conditional:
            rows.append((model.name.title, sample(model.decoder(t)).tokens))
    images = [(label, data.decode(tokens)) for label, tokens in rows]
    in_rows(path, images, "Each column is one task identifier t")


def draw_curves(path: Path, metrics: Path, smooth: int = 10) -> None:
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
        axis.plot(steps[width - 1 :], mean, style, label=with_tildes(name), linewidth=1.5)
    axis.set(xlabel="step of the model's own training", ylabel="training loss, nats per token")
    if curves:
        top = max(float(np.median([loss for _, loss in points])) for points in curves.values())
        axis.set_ylim(top=1.3 * top)
        axis.legend(fontsize=9)
    axis.grid(alpha=0.3)
    save_figure(path, figure)
