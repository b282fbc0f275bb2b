"""The pictures of an evaluation, from its JSON."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..models.names import Kind, ModelName, with_tildes
from ..utils.pictures import save_figure

NATS = "loss, nats per token"
DPI = 110


def label(name: str) -> str:
    """A model's name, short enough for a picture: the source that was tuned with P_1/4 is "source, with P_1/4"."""
    source = Kind.TUNED_SOURCE.value
    return with_tildes(name.replace(f"{source} with ", "source, with ").replace(source, "source, tuned"))


def draw_positions(path: Path, result: dict[str, Any]) -> None:
    """Loss of each model against the row of the image, mean over the row's pixels."""
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axis = figure.subplots()
    style = _styles(result)
    for name, loss_map in _maps(result).items():
        axis.plot(np.arange(1, len(loss_map) + 1), loss_map.mean(1), label=label(name), **style[name])
    axis.set(xlabel="row of the image, from the top", ylabel=f"{NATS} of the row", xlim=(1, result["image_size"]))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=9)
    save_figure(path, figure, DPI)


def draw_maps(path: Path, result: dict[str, Any]) -> None:
    """Loss of each model at each pixel, all in one scale of colours."""
    maps = _maps(result)
    everything = np.concatenate([m.ravel() for m in maps.values()])
    low, high = np.quantile(everything, (0.01, 0.99))
    titles = {name: f"{label(name)}: {result['models'][name]['loss']:.3f}" for name in maps}
    _grid(path, maps, titles, NATS, "viridis", low, high)


def draw_differences(path: Path, result: dict[str, Any]) -> None:
    """Loss of each projected model minus that of its conditional baseline, at each pixel."""
    maps, titles = {}, {}
    every = _maps(result)
    for name, row in result["differences"].items():
        if ModelName.parse(name).is_projected:
            maps[name] = every[name] - every[row["to"]]
            titles[name] = f"{label(name)} − {label(row['to'])}: {row['loss']:+.3f}"
    end = float(np.quantile(np.abs(np.concatenate([m.ravel() for m in maps.values()])), 0.99))
    caption = "difference, nats per token\n(blue: the projected model is better)"
    _grid(path, maps, titles, caption, "RdBu_r", -end, end)


def draw_sweep(path: Path, result: dict[str, Any], name: str) -> None:
    """Losses against one component of t, and the projected models' lead over their baselines (Figure 4)."""
    swept = result["sweeps"][name]
    values, style = np.array(swept["values"]), _styles(result)
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for model, losses in swept["losses"].items():
        _band(left, values, losses, label(model), style[model])
    for model, losses in swept["differences"].items():
        _band(right, values, losses, f"{label(model)} − {label(result['differences'][model]['to'])}", style[model])
    for axis in (left, right):
        axis.axvspan(0, 1, color="0.92", zorder=0, label="range of the training")
        axis.set(xlabel=f"component “{name}” of t", xlim=(values[0], values[-1]))
    left.set(ylabel=NATS, title="loss")
    right.axhline(0, color="black", linewidth=0.8)
    right.set(ylabel="difference, nats per token", title="projected minus conditional: below 0 it is better")
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    save_figure(path, figure, DPI)


def draw_equivalent_sizes(path: Path, result: dict[str, Any]) -> None:
    """Loss against parameters: the conditional baselines' line, and how far to its right the projected models lie."""
    models, style = result["models"], _styles(result)
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axis = figure.subplots()
    named = {name: (row["parameters"], row["loss"]) for name, row in models.items() if _is_conditional(name)}
    baselines = sorted(named.values())
    axis.plot(*zip(*baselines), "o-", color="black", label="conditional models")
    for name, point in named.items():
        axis.annotate(label(name), point, (6, 4), textcoords="offset points")
    for name, size in result["equivalent_size"].items():
        row, colour = models[name], style[name]["color"]
        axis.plot(row["parameters"], row["loss"], "s", color=colour, label=with_tildes(name))
        if "none_because" in size or size["parameters"] > 1e3 * baselines[-1][0]:
            continue
        arrow = {"arrowstyle": "->", "color": colour, "linestyle": "--" if size["beyond"] else "-"}
        axis.annotate("", (size["parameters"], row["loss"]), (row["parameters"], row["loss"]), arrowprops=arrow)
        middle = (row["parameters"] * size["parameters"]) ** 0.5
        text = f"× {size['times']:.2g}" + (" (line extended)" if size["beyond"] else "")
        axis.annotate(text, (middle, row["loss"]), (0, 4), textcoords="offset points", ha="center", color=colour)
        if size["beyond"]:
            end = baselines[-1 if size["beyond"] == "largest" else 0]
            axis.plot((end[0], size["parameters"]), (end[1], row["loss"]), ":", color="black")
    axis.set(xscale="log", xlabel="parameters", ylabel=NATS)
    axis.margins(0.12)  # room for the names beside the points
    axis.grid(alpha=0.3)
    axis.legend(fontsize=9)
    save_figure(path, figure, DPI)


def _maps(result: dict[str, Any]) -> dict[str, np.ndarray]:
    side = result["image_size"]
    maps = {name: np.reshape(row["by_position"], (side, side)) for name, row in result["models"].items()}
    return dict(sorted(maps.items(), key=lambda item: ModelName.parse(item[0]).is_tuned_source))  # those last


def _is_conditional(name: str) -> bool:
    return ModelName.parse(name).is_conditional


def _styles(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """A colour for each scale, a line for each kind of model."""
    scales = list(dict.fromkeys(ModelName.parse(name).scale for name in result["equivalent_size"]))
    colours = {scale: f"C{i}" for i, scale in enumerate(scales)}
    lines = {Kind.UNCONDITIONAL: ":", Kind.CONDITIONAL: "--"}
    styles: dict[str, dict[str, Any]] = {}
    for text in result["models"]:
        name = ModelName.parse(text)
        if name.is_tuned_source:
            colour = colours.get(name.partner.scale, "0.3") if name.partner else "0.3"
            styles[text] = {"color": colour, "linestyle": "-.", "linewidth": 0.8}
        else:
            line = lines.get(name.kind, "-") if name.scale in colours else "-"
            styles[text] = {"color": colours.get(name.scale, "black"), "linestyle": line, "linewidth": 1.6}
    return styles


def _band(axis: Any, values: np.ndarray, losses: list[dict[str, float]], name: str, style: dict[str, Any]) -> None:
    """A curve with its standard error."""
    mean, error = (np.array([at[key] for at in losses]) for key in ("loss", "standard_error"))
    axis.plot(values, mean, label=name, **style)
    axis.fill_between(values, mean - error, mean + error, color=style["color"], alpha=0.15, linewidth=0)


def _grid(
    path: Path, maps: dict[str, np.ndarray], titles: dict[str, str], caption: str, colours: str, low: float, high: float
) -> None:
    columns = min(5, len(maps))
    rows = -(-len(maps) // columns)
    figure = Figure(figsize=(2.6 * columns + 1.2, 2.7 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, (name, values) in zip(axes.flat, maps.items()):
        shown = axis.imshow(values, cmap=colours, vmin=low, vmax=high, interpolation="nearest")
        axis.set_title(titles[name], fontsize=10)
    figure.colorbar(shown, ax=axes, label=caption, shrink=0.8, extend="both")
    save_figure(path, figure, DPI)
