"""The folder of an evaluation: figures as JSON, a report in Markdown, pictures."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..models.names import ModelName, with_tildes
from ..training.losses import bits_per_dimension
from ..training.report import PLACES_OF_T
from ..utils import markdown
from ..utils.errors import InputError
from ..utils.files import is_nonempty, locked, write_json, write_text
from .pictures import draw_differences, draw_equivalent_sizes, draw_maps, draw_positions, draw_sweep
from .result import FORMAT

JSON = "evaluation.json"
REPORT = "report.md"
MORE_SCALES = "To have more of them: python -m projkern.train --scales 1/2 1/4 1/8"


@contextmanager
def open_folder(out: Path, *, overwrite: bool = False) -> Iterator[None]:
    """Hold the folder that an evaluation will be written to.

    Raises:
        FileExistsError: it holds a whole one, and ``overwrite`` was not given.
        InputError: it holds something else, whatever the flag.
        OSError: it cannot be written, or another process is writing to it.
    """
    if is_nonempty(out) and not FORMAT.is_in(out / JSON):
        raise InputError(f"out must be a new folder or one that holds an evaluation; it was {out}")
    if (out / REPORT).exists() and not overwrite:
        raise FileExistsError(f"{out} already holds an evaluation; give --overwrite to replace it, or another --out")
    with locked(out):
        yield


def write_report(out: Path, result: dict[str, Any]) -> list[Path]:
    """Write an evaluation into its folder, in place of an older one.

    Returns:
        The files, the report first.
    """
    pictures = {"positions.png": draw_positions, "maps.png": draw_maps, "differences.png": draw_differences}
    if not any("none_because" in size for size in result["equivalent_size"].values()):
        pictures["equivalent_size.png"] = draw_equivalent_sizes
    report = out / REPORT  # goes first and comes last: without it an evaluation is not whole
    for old in (report, *out.glob("sweep_*.png"), out / "equivalent_size.png"):
        old.unlink(missing_ok=True)
    write_json(out / JSON, result)
    for name, draw in pictures.items():
        draw(out / name, result)
    sweeps = {f"sweep_{name}.png": name for name in result["sweeps"]}
    for file, name in sweeps.items():
        draw_sweep(out / file, result, name)
    write_text(report, report_text(result))
    return [report, out / JSON, *(out / name for name in (*pictures, *sweeps))]


def report_text(result: dict[str, Any]) -> str:
    """The report, as Markdown."""
    unit = "pixel" if result["tokens"] == "colours" else "token"
    parts = [
        "# Evaluation",
        f"Of the run {result['run']}, on {result['images']} held-out images of {result['image_size']}×"
        f"{result['image_size']} {unit}s (seed {result['seed']}), the same for all models; ± one standard error over "
        f"images. {result['device']}; torch {result['versions']['torch']}, Python {result['versions']['python']}.",
        losses_table(result),
        f"M is an unconditional model, M̃ takes the task identifier t {PLACES_OF_T[result['conditioning']]}, P is "
        f"generated for each t from a source. {_meaning(result)}",
        "## Against their counterparts",
        "Differences of the losses image by image. What makes an image hard for both models cancels, so their error is "
        "smaller than the errors above suggest; it is the one to judge by. A source goes on learning while it is "
        "tuned.",
        differences_table(result),
        "## Equivalent size",
        equivalent_sizes(result),
        "## Where the loss is",
        f"Each map shows the mean loss of every {unit}; images are predicted row by row, from the top left.",
        f"![Loss of each model at each {unit}](maps.png)",
        f"![Projected minus conditional, at each {unit}](differences.png)",
        "![Loss of each row](positions.png)",
    ]
    for name in result["sweeps"]:
        parts += [
            f"## Against “{name}”",
            f"All images drawn anew with each value of this component of t; the rest of t and the digits stay. "
            f"Training drew it from [0, 1]; bands are ± one standard error.{_lead(result, name)}",
            f"![Losses against {name}](sweep_{name}.png)",
        ]
    if result["speed"] is not None:
        parts += ["## Inference", speed_table(result)]
    return "\n\n".join(parts) + "\n"


def _meaning(result: dict[str, Any]) -> str:
    """What a token is, and what follows for the figures."""
    if result["tokens"] == "codes":
        return "A token is a code of the tokenizer: losses of runs on other tokens are not comparable to these."
    return (
        "A token is a pixel, which is three colour values: bits per dimension are nats per token / (3 ln 2), of the "
        "image in its palette's colours. They are not comparable to those of images in all 256 levels."
    )


def losses_table(result: dict[str, Any]) -> str:
    with_bits = all("bits_per_dimension" in row for row in result["models"].values())
    head = ["model", "parameters", "nats per token"] + ["bits per dimension"] * with_bits
    rows = []
    for name, row in result["models"].items():
        cells = [with_tildes(name), f"{row['parameters']:,}", f"{row['loss']:.3f} ± {row['standard_error']:.3f}"]
        if with_bits:
            cells.append(f"{row['bits_per_dimension']:.3f} ± {bits_per_dimension(row['standard_error']):.3f}")
        rows.append(cells)
    return markdown.table(head, rows)


def differences_table(result: dict[str, Any]) -> str:
    rows = []
    for name, row in result["differences"].items():
        independent = sum(result["models"][model]["standard_error"] ** 2 for model in (name, row["to"])) ** 0.5
        difference = f"{row['loss']:+.4f} ± {row['standard_error']:.4f}"
        rows.append((with_tildes(name), with_tildes(row["to"]), difference, f"± {independent:.4f}"))
    return markdown.table(("model", "minus", "nats per token", "if the errors were independent"), rows, left=2)


def equivalent_sizes(result: dict[str, Any]) -> str:
    """For each projected model a sentence; a picture where there is something to show."""
    sizes = result["equivalent_size"]
    lines = [f"- {_equivalent_size(result, name)}" for name in sizes]
    if not any("none_because" in size for size in sizes.values()):
        lines.append(
            "\nRead off straight lines between the conditional baselines' losses over the logarithm of their size; "
            "intervals are from resampling the images. P_s also stands on what its source had learnt before, so after "
            "a short training k compares more than the forms of the models.\n\n![Loss against "
            "size](equivalent_size.png)"
        )
    return "\n".join(lines)


def _equivalent_size(result: dict[str, Any], name: str) -> str:
    size, models, title = result["equivalent_size"][name], result["models"], with_tildes(name)
    if "none_because" in size:
        return f"{title}: no figure, because {size['none_because']}. {MORE_SCALES}"
    interval = size["interval"]
    spread = (
        f"95 % interval {_times(interval[0])} to {_times(interval[1])}"
        if interval
        else "no interval: in too many resamplings of the images the baselines' losses do not fall with their size"
    )
    if size["beyond"] is None:
        return (
            f"**{title} acts like a conditional model of {_times(size['times'])} times its size** ({spread}): "
            f"{size['parameters']:,.0f} parameters in place of {models[name]['parameters']:,}."
        )
    pick, bound, side = (max, "more", "below") if size["beyond"] == "largest" else (min, "less", "above")
    baseline = pick((m for m in models if ModelName.parse(m).is_conditional), key=lambda m: models[m]["parameters"])
    times = _times(models[baseline]["parameters"] / models[name]["parameters"])
    return (
        f"**{title} acts like a conditional model of {bound} than {times} times its size**: its loss lies "
        f"{side} that of {with_tildes(baseline)}, the {size['beyond']} baseline. The line extended from there would "
        f"say {_times(size['times'])} ({spread}; that is the noise of the images alone)."
    )


def _times(k: float) -> str:
    return f"{k:.1f}" if k < 100 else f"{k:.2g}"


def _lead(result: dict[str, Any], name: str) -> str:
    """The projected models' lead within the training range and beyond it."""
    swept = result["sweeps"][name]
    sentences = []
    for model, losses in swept["differences"].items():
        inside, beyond = (
            [at["loss"] for value, at in zip(swept["values"], losses) if (value <= 1) == is_inside]
            for is_inside in (True, False)
        )
        sentences.append(
            f" {with_tildes(model)} minus {with_tildes(result['differences'][model]['to'])}: "
            f"{sum(inside) / len(inside):+.3f} on average inside, {sum(beyond) / len(beyond):+.3f} beyond."
        )
    return "".join(sentences)


def speed_table(result: dict[str, Any]) -> str:
    """Speed and memory of one model in use."""
    speed = result["speed"]
    counts = list(speed["M_1"]["tokens_per_second"])
    head = (
        "model",
        "latency, ms per token",
        *(f"tokens per second, {count} at once" for count in counts),
        *("weights, MB", "keys and values, MB", "generated in, ms"),
    )
    rows = []
    for name, row in speed.items():
        rates = [(row["tokens_per_second"][c], speed["M_1"]["tokens_per_second"][c]) for c in counts]
        rows.append(
            (
                with_tildes(name),
                f"{1e3 * row['latency']:.3f}",
                *(f"{rate:,.0f} (× {rate / of_source:.1f})" for rate, of_source in rates),
                *(f"{row[size] / 1e6:.2f}" for size in ("weight_bytes", "cache_bytes")),
                f"{1e3 * row['generation']:.2f}" if "generation" in row else "",
            )
        )
    return markdown.table(head, rows) + (
        "\n\nWhole images decoded with keys and values kept, models in turn, medians over rounds; in brackets, the "
        "ratio to M_1. P_s is generated once for one task identifier and then stands alone. Keys and values are of one "
        "sequence."
    )
