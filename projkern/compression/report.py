"""What a compression leaves for people to look at: a table, the loss curve, samples of text side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from ..data.text import Windows
from ..training.metrics import read_metrics
from ..utils import markdown
from ..utils.files import write_text
from ..utils.pictures import save_figure
from .config import CompressConfig


def write_report(
    out: Path,
    config: CompressConfig,
    summary: dict[str, Any],
    windows: Windows,
    samples: list[dict[str, str]],
    notes: list[str],
) -> None:
    """Write ``curves.png`` and ``report.md``."""
    _curves(out / "curves.png", out / "metrics.jsonl", summary)
    write_text(out / "report.md", markdown.wrap(_report(config, summary, windows, samples, notes)))


def table(summary: dict[str, Any]) -> str:
    """Losses, sizes and speed as a Markdown table."""
    head = ("model", "parameters", "held-out loss, nats per token", "tokens per second", "weights, MB")
    rows = []
    for name in ("source", "start", "result"):
        row = summary[name]
        speed = summary["speed"].get(name)
        rows.append(
            (
                {"start": "result before training"}.get(name, name),
                f"{row.get('parameters', summary['result']['parameters']):,}",
                f"{row['loss']:.3f} ± {row['standard_error']:.3f}",
                f"{speed['tokens_per_second']:.0f}" if speed else "",
                f"{speed['weight_bytes'] / 1e6:.1f}" if speed else "",
            )
        )
    return markdown.table(head, rows)


def _report(
    config: CompressConfig, summary: dict[str, Any], windows: Windows, samples: list[dict[str, str]], notes: list[str]
) -> str:
    sizes, versions = summary["sizes"], summary["versions"]
    text = "text that the source wrote itself" if config.text.generate is not None else "text"
    share = summary["result"]["parameters"] / summary["source"]["parameters"]
    paragraphs = [
        f"# {Path(config.model).name}, compressed to {share:.0%} of its parameters",
        f"Hidden size {sizes['hidden']}, intermediate size {sizes['intermediate']}, {sizes['layers']} layers; method "
        f"`{summary['method']}`, {summary['tokens']:,} tokens of {text}, peak learning rate {summary['lr']:.3g}, "
        f"{config.tuning.optimizer}, divergence from the source weighted {config.tuning.distill:g}.",
        table(summary),
        f"Loss on {windows.held_out} held-out windows of {config.text.length} tokens, ± one standard error. Speed "
        "of greedy decoding, one sequence. The result is an ordinary transformers model, in `model/`.",
        *notes,
        "![Training loss](curves.png)",
    ]
    if samples:
        paragraphs.append("## The same beginnings, continued by both")
        for sample in samples:
            paragraphs += [f"**{_plain(sample['prompt'])}**", f"- source: {_plain(sample['source'])}"]
            paragraphs[-1] += f"\n- result: {_plain(sample['result'])}"
    paragraphs.append(
        f"{summary['seconds']:.0f} s of training on {summary['device']}; "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + f"; seed {config.run.seed}. All settings: `config.json`."
    )
    return "\n\n".join(paragraphs) + "\n"


def _plain(text: str) -> str:
    """A piece of text that Markdown shows as it is, in one line."""
    return " ".join(text.split()).replace("\\", "\\\\").replace("*", "\\*").replace("_", "\\_").replace("<", "&lt;")


def _curves(path: Path, metrics: Path, summary: dict[str, Any], points: int = 100) -> None:
    """Training losses against tokens, and the held-out losses of the source, the start and the result."""
    lines = [line for line in read_metrics(metrics) if line["stage"] == "compression"]
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axis = figure.subplots()
    per_step = summary["tokens"] / max((line["step"] for line in lines), default=1)
    labels = {"text": "training text", "from the source": "divergence from the source"}
    for name, label in labels.items():
        logged = [(line["step"] * per_step, line["losses"][name]) for line in lines if name in line["losses"]]
        if not logged:
            continue
        tokens, losses = np.array(logged).T
        width = max(1, len(losses) // points)
        mean = np.convolve(losses, np.ones(width) / width, mode="valid")
        axis.plot(tokens[width - 1 :], mean, label=label, linewidth=1.5)
    ends = [summary[name]["loss"] for name in ("start", "result")]
    axis.plot([0, summary["tokens"]], ends, "o", color="black", label="held-out text, before and after")
    axis.axhline(summary["source"]["loss"], color="black", linestyle=":", label="held-out text, the source")
    axis.set(xlabel="tokens", ylabel="loss, nats per token")
    axis.set_ylim(bottom=0)
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=9)
    save_figure(path, figure)
