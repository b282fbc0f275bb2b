"""Where the settings here differ from the paper's, and what the paper leaves open."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from projkern.models.names import SOURCE, ModelName
from projkern.training.config import TrainConfig
from projkern.training.presets import PAPER
from projkern.utils.markdown import table
from projkern.utils.settings import fields_of

from ..documents import ITS_OWN, Document, labels, results_of
from ..settings import as_json, complete
from . import paper
from .words import words

NOT_THE_RESULT = {*ITS_OWN, "scales", "log_every", "checkpoint_every", "mnist", "folder"}
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
HELP = {field.name: field.metadata["help"] for _, field in fields_of(TrainConfig)}


def deviations(results: dict[str, Document]) -> str:
    """Settings of the paper's own trainings at one size that are not those of the preset ``paper``.

    Args:
        results: one size's, by experiment.
    """
    preset = as_json(PAPER)
    stored = {name: settings for name, document in results.items() if (settings := _settings(document))}
    lines = []
    for name in preset:
        values = {experiment: _values(settings, name) for experiment, settings in stored.items()}
        values = {experiment: shown for experiment, shown in values.items() if shown}
        if name not in NOT_THE_RESULT and any(shown != [_shown(preset[name])] for shown in values.values()):
            lines.append([f"`{name}`: {HELP[name]}", _shown(preset[name]), _by_experiment(values)])
    images = {experiment: sorted({_images(one) for one in settings}) for experiment, settings in stored.items()}
    lines.append(["images", "SynthMNIST with MNIST's digits; ImageNet", _by_experiment(images)])
    return table(["setting", "preset `paper`", "here"], lines)


def left_open(results: dict[str, dict[str, Document]]) -> str:
    """What the paper does not say, with what was chosen at each size."""
    chosen = []
    for size, documents in results.items():
        settings = [one for document in documents.values() for one in _settings(document)]
        shown = ", ".join(f"`{name}` {' or '.join(_values(settings, name))}" for name in ("batch_size", "w_src"))
        chosen += [f"{shown} at {size}"] if settings else []
    return words("open", chosen="; ".join(chosen) or "nothing has been run")


def _settings(document: Document) -> list[dict[str, Any]]:
    own = set(paper.LABELS.get(document["experiment"], ())) & set(labels(document))
    return [_read(complete(result["settings"])) for label in sorted(own) for result in results_of(document, label)]


def _read(settings: dict[str, Any]) -> dict[str, Any]:
    """Without those settings that a training of its stage does not read."""
    stage = ModelName.parse(settings["stage"])
    kind = "source" if stage == SOURCE else "P" if stage.is_projected else "M"
    others = {name for other, names in OF_STAGE.items() if other != kind for name in names}
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
    if settings["folder"]:
        return f"tokens of {_name_of(settings['folder'])}"
    return f"SynthMNIST, digits: {_name_of(settings['mnist'] or 'scikit-learn')}"


def _name_of(folder: str) -> str:
    """A folder's name alone: where it lay says nothing to others."""
    return Path(folder).name if Path(folder).is_absolute() else folder


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return f"{value:g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
