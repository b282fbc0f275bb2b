"""Where our settings differ from the paper's, and what the paper leaves open."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from projkern.training.config import PRESETS, SOURCE, TrainConfig

from ..results import ITS_OWN, Document, labels, results_of
from . import paper
from .markdown import table

NOT_THE_RESULT = {*ITS_OWN, "scales", "log_every", "checkpoint_every", "mnist", "data"}
"""Settings that change no result, are part of a training's name, or are shown otherwise."""
OF_STAGE = {
    "source": ("source_steps", "source_lr"),
    "M": ("steps", "small_lr", "conditioning", "t_mean", "t_std"),
    "P": (
        *("steps", "tuning_lr", "operator_lr", "tables_lr", "w_src", "source_batch", "distill", "joint"),
        *("rank", "generator", "start", "shared_inner", "tied", "bias_of_t", "t_mean", "t_std"),
    ),
}
"""Settings that only some stages read: of a source, of M_s and M̃_s, of projected models."""
HELP = {field.name: field.metadata["help"] for field in dataclasses.fields(TrainConfig)}
OPEN = """The paper leaves open, and the results above stand on these choices:

- how many images a step takes (`batch_size`) and the weight of the source's own loss (`w_src`): {chosen};
- how p and q start: independent of t, at g^(-1/4) ([method.md](method.md)); the recipes above try others;
- how the colours were chosen, how a digit is blended, the order of warp, rotation and scale
  ([synthmnist.md](synthmnist.md#what-the-paper-leaves-open-and-what-we-chose));
- which layer of SimCLRv2 gives t: here t is whatever embedding came with the images;
- the learning rate of each part, "of order 10⁻³" for all in the paper."""


def deviations(results: dict[str, Document]) -> str:
    """Settings of the paper's own trainings at one size that are not those of the preset ``paper``.

    Args:
        results: one size's, by experiment.
    """
    theirs = PRESETS["paper"][1].to_json()
    ours = {name: found for name, document in results.items() if (found := _settings(document))}
    lines = []
    for name in theirs:
        values = {experiment: _values(settings, name) for experiment, settings in ours.items()}
        values = {experiment: shown for experiment, shown in values.items() if shown}
        if name not in NOT_THE_RESULT and any(shown != [_shown(theirs[name])] for shown in values.values()):
            lines.append([f"`{name}`: {HELP[name]}", _shown(theirs[name]), _by_experiment(values)])
    images = {experiment: sorted({_images(settings) for settings in found}) for experiment, found in ours.items()}
    lines.append(["images", "SynthMNIST with MNIST's digits; ImageNet", _by_experiment(images)])
    return table(["setting", "preset `paper`", "here"], lines)


def left_open(results: dict[str, dict[str, Document]]) -> str:
    """What the paper does not say, with what was chosen at each size."""
    said = []
    for size, documents in results.items():
        settings = [one for document in documents.values() for one in _settings(document)]
        shown = ", ".join(f"`{name}` {' or '.join(_values(settings, name))}" for name in ("batch_size", "w_src"))
        said += [f"{shown} at {size}"] if settings else []
    return OPEN.format(chosen="; ".join(said) or "nothing has been run")


def _settings(document: Document) -> list[dict[str, Any]]:
    own = set(paper.LABELS.get(document["experiment"], ())) & set(labels(document))
    return [_read(result["settings"]) for label in sorted(own) for result in results_of(document, label)]


def _read(settings: dict[str, Any]) -> dict[str, Any]:
    """Without those settings that a training of its stage does not read."""
    kind = "source" if settings["stage"] == SOURCE else settings["stage"][0]
    others = {name for of, names in OF_STAGE.items() if of != kind for name in names}
    return {name: value for name, value in settings.items() if name not in others - set(OF_STAGE[kind])}


def _values(settings: list[dict[str, Any]], name: str) -> list[str]:
    return sorted({_shown(one[name]) for one in settings if name in one})


def _by_experiment(values: dict[str, list[str]]) -> str:
    """One list of values where all experiments have it, otherwise each list with its experiments."""
    grouped: dict[str, list[str]] = {}
    for experiment, shown in values.items():
        grouped.setdefault(", ".join(shown), []).append(experiment)
    if len(grouped) == 1:
        return next(iter(grouped))
    return "; ".join(f"{shown} ({', '.join(experiments)})" for shown, experiments in grouped.items())


def _images(settings: dict[str, Any]) -> str:
    if settings.get("data"):
        return f"tokens of {_told(settings['data'])}"
    return f"SynthMNIST, digits: {_told(settings.get('mnist') or 'scikit-learn')}"


def _told(folder: str) -> str:
    """A folder's name alone: where it lay says nothing to others."""
    return Path(folder).name if Path(folder).is_absolute() else folder


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return f"{value:g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
