"""The stored results of experiments: docs/reproduction/SIZE/EXPERIMENT.json, checked as they are read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from projkern.training.config import BEFORE

SIZES = ("mini", "small", "paper")
EXPERIMENTS = (
    *("table1", "table2", "table3", "table4", "figure4", "lengths"),
    *("generators", "recipes", "rates", "token_rates"),
)
FORMAT: dict[str, Any] = {"format": "projkern reproduction", "version": 1}
KEYS = ["label", "seed", "settings", "models", "steps", "images", "flops", "seconds", "parts", "device", "versions"]
SOURCE = "source after co-training"
FIGURES = ("loss", "standard_error", "by_image", "parameters")
PARTS = ("data", "generation", "projection", "forward", "backward", "optimiser")
"""Of a training step: the ranges that ``training/loop.py`` and ``models/operator.py`` record for profilers."""
ITS_OWN = ("seed", "source", "device")
"""Settings that the seeds of one training need not share."""
SHARED = ("image_size", "colors", "task_dim", "data", "mnist", "eval_images")
"""Settings that fix the held-out images, hence whether losses can be compared."""

Document = dict[str, Any]
"""One experiment at one size, as its file holds it."""


def read_results(folder: Path) -> dict[str, dict[str, Document]]:
    """All stored results, by size and experiment.

    Raises:
        ValueError: a file that is cut short, foreign, in the wrong place, or holds results of two set-ups.
    """
    found: dict[str, dict[str, Document]] = {}
    for size in SIZES:
        for path in sorted((folder / size).glob("*.json")):
            document = read_experiment(path)
            if (document["size"], document["experiment"]) != (size, path.stem):
                here = f"{document['experiment']} at {document['size']}"
                raise ValueError(f"{path} must hold {path.stem} at {size}; it was {here}")
            found.setdefault(size, {})[path.stem] = document
        if (table1 := found.get(size, {}).get("table1")) is not None:
            found[size].setdefault("figure4", _figure4(table1))
    return found


def _figure4(table1: Document) -> Document:
    """Figure 4's results: those of Table 1 that were measured against t_scale."""
    swept = {
        name: result
        for name, result in table1["results"].items()
        if any("by_scale" in model for model in result["models"].values())
    }
    return table1 | {"experiment": "figure4", "results": swept}


def read_experiment(path: Path) -> Document:
    """One file of results.

    Raises:
        ValueError: it is cut short, foreign, or holds results of two set-ups.
        OSError: it cannot be read.
    """
    try:
        document = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} must be a whole JSON file; it was cut short or is none ({error})") from None
    try:
        _check(document)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return document  # type: ignore[no-any-return]


def _check(document: Any) -> None:
    if not isinstance(document, dict) or any(document.get(key) != value for key, value in FORMAT.items()):
        raise ValueError(f"it must be of {FORMAT['format']}, version {FORMAT['version']}; it was something else")
    for key, known in (("experiment", EXPERIMENTS), ("size", SIZES)):
        if document.get(key) not in known:
            raise ValueError(f"{key} must be one of {', '.join(known)}; it was {document.get(key)}")
    results = document.get("results")
    if not isinstance(results, dict):
        raise ValueError(f"results must be an object; it was {results}")
    for name, result in results.items():
        _check_result(name, result)
    # Table 4 trains on parts of one collection of images, and evaluates on the same.
    _check_one_setup(results, (*ITS_OWN, "data") if document["experiment"] == "table4" else ITS_OWN)


def _check_result(name: str, result: Any) -> None:
    missing = [key for key in KEYS if key not in result] if isinstance(result, dict) else KEYS
    if missing:
        raise ValueError(f"result {name} must have {', '.join(KEYS)}; it was without {', '.join(missing)}")
    if not result["models"]:
        raise ValueError(f"result {name} must have models; it was without any")
    for model, row in result["models"].items():
        missing = [key for key in FIGURES if key not in row]
        if missing:
            wanted = ", ".join(FIGURES)
            raise ValueError(f"{model} of result {name} must have {wanted}; it was without {', '.join(missing)}")


def _check_one_setup(results: dict[str, Any], free: Sequence[str]) -> None:
    """The seeds of one training share all settings; all trainings share their held-out images."""
    first_of: dict[str, tuple[str, dict[str, Any]]] = {}
    for name, result in results.items():
        # A setting that came after a result was stored counts as what was done before.
        settings = {key: value for key, value in (BEFORE | result["settings"]).items() if key not in free}
        for group, keys in ((f"label {result['label']}", settings.keys()), ("the experiment", SHARED)):
            other, expected = first_of.setdefault(group, (name, settings))
            apart = [key for key in keys if settings.get(key) != expected.get(key)]
            if apart:
                raise ValueError(
                    f"results must be of one set-up; {name} and {other} of {group} differ in {', '.join(apart)}"
                )


def models_of(document: Document, cell: str) -> dict[int, dict[str, Any]]:
    """By seed, the model that a cell of a table names; empty where none was run.

    Args:
        cell: a training's label, for its own model, or the name of one of P~, "P~_1/4", or of a tuned source.
    """
    if cell.startswith(("P~_", SOURCE)):
        label = cell.rpartition(" with ")[2] if " with " in cell else "P~"
        found = {r["seed"]: _either(r["models"], cell) for r in results_of(document, label)}
        return {seed: model for seed, model in found.items() if model is not None}
    return {result["seed"]: _own_model(result) for result in results_of(document, cell)}


def _either(models: dict[str, Any], name: str) -> dict[str, Any] | None:
    """The model of that name; a source that was tuned with one projected model alone may not name it."""
    return models.get(name, models.get(SOURCE) if name.startswith(SOURCE) else None)


def _own_model(result: dict[str, Any]) -> dict[str, Any]:
    """The model that its label names, or the only one that is not a tuned source."""
    models: dict[str, dict[str, Any]] = result["models"]
    name = result["label"].partition(",")[0].partition(" ")[0]
    own = [model for model in models if _is_own(model)]
    if name not in own and len(own) != 1:
        raise ValueError(f"models of result {result['label']} must have {name}; it was {', '.join(models)}")
    return models[name if name in own else own[0]]


def _is_own(model: str) -> bool:
    """Whether it is what a training is for, rather than the source that it tunes."""
    return not model.startswith(SOURCE)


def labels(document: Document) -> list[str]:
    """Of all trainings, in the order in which they are stored."""
    return list(dict.fromkeys(result["label"] for result in document["results"].values()))


def variants_of(document: Document, model: str) -> list[str]:
    """Labels of the trainings that make a model otherwise than the paper does: "P_1/4, default recipe" of "P_1/4"."""
    return [label for label in labels(document) if label.startswith(f"{model},")]


def results_of(document: Document, label: str) -> list[dict[str, Any]]:
    """The trainings of one label, one for each seed."""
    return [result for result in document["results"].values() if result["label"] == label]
