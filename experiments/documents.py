"""The stored results of experiments: results/SIZE/EXPERIMENT.json with EXPERIMENT.npz, checked as they are read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from projkern.models.names import Kind
from projkern.utils.errors import InputError
from projkern.utils.files import Format, write_text

from .image_losses import Masks, masks_of, put_back, read_arrays, take_out, write_arrays
from .settings import complete

RESULTS = Path("experiments/results")
"""Where a checkout stores them, from its root."""
SIZES = ("mini", "small", "paper")
EXPERIMENTS = (
    *("table1", "table2", "table3", "table4", "figure4", "lengths"),
    *("generators", "recipes", "rates", "token_rates"),
)
FORMAT = Format("projkern reproduction", 2, "results of an experiment", oldest=1)
"""Version 1 has the losses of each image in the JSON itself."""
KEYS = ["label", "seed", "settings", "models", "steps", "images", "flops", "seconds", "parts", "device", "versions"]
SOURCE = Kind.TUNED_SOURCE.value
FIGURES = ("loss", "standard_error", "by_image", "parameters")
PARTS = ("data", "generation", "projection", "forward", "backward", "optimiser")
"""Of a training step: the ranges that ``training/loop.py`` and ``models/operator.py`` record for profilers."""
ITS_OWN = ("seed", "source", "device")
"""Settings that the seeds of one training need not share."""
SHARED = ("side", "vocab_size", "task_dim", "folder", "mnist", "eval_images")
"""Settings that fix the held-out images, hence whether losses can be compared."""

Document = dict[str, Any]
"""One experiment at one size: ``experiment``, ``size``, and ``results`` by "LABEL/seed-N"."""


def read_results(folder: Path) -> dict[str, dict[str, Document]]:
    """All stored results, by size and experiment.

    Raises:
        InputError: a file that is cut short, foreign, in the wrong place, or holds results of two set-ups.
    """
    results: dict[str, dict[str, Document]] = {}
    for size in SIZES:
        for path in sorted((folder / size).glob("*.json")):
            document = read_experiment(path)
            if (document["size"], document["experiment"]) != (size, path.stem):
                content = f"{document['experiment']} at {document['size']}"
                raise InputError(f"{path} must hold {path.stem} at {size}; it was {content}")
            results.setdefault(size, {})[path.stem] = document
        if (table1 := results.get(size, {}).get("table1")) is not None:
            results[size].setdefault("figure4", _figure4(table1))
    return results


def _figure4(table1: Document) -> Document:
    """Figure 4's results: those of Table 1 that were measured against t_scale."""
    swept = {
        name: result
        for name, result in table1["results"].items()
        if any("by_scale" in model for model in result["models"].values())
    }
    return table1 | {"experiment": "figure4", "results": swept}


def read_experiment(path: Path) -> Document:
    """The results of one experiment, the losses of each image in their places.

    Raises:
        InputError: a file that cannot be read, is cut short, foreign, or holds results of two set-ups.
    """
    document = FORMAT.read(path)
    try:
        if document.pop("version") > 1:
            document["results"] = put_back(document["results"], read_arrays(_arrays_of(path)))
        _check(document)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return document


def write_experiment(path: Path, document: Document, masks: Masks) -> None:
    """Write the results of an experiment, with masks of parts of the held-out images (see ``image_losses``).

    A result is never taken away, so that the arrays, which are written first, also serve the JSON of before: whatever
    stops this in between, the two agree.
    """
    results, arrays = take_out(document["results"], masks or masks_of(read_arrays(_arrays_of(path))))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_arrays(_arrays_of(path), arrays)
    write_text(path, _text(FORMAT.head | document, results))


def _arrays_of(path: Path) -> Path:
    return path.with_suffix(".npz")


def _text(document: Document, results: dict[str, Any]) -> str:
    """JSON with one result a line, so that a difference of two versions shows which results are new."""
    head = json.dumps(document | {"results": {}}, indent=2)
    lines = [f"    {json.dumps(key)}: {json.dumps(result)}" for key, result in results.items()]
    return head.replace('"results": {}', '"results": {\n' + ",\n".join(lines) + "\n  }") + "\n"


def _check(document: Document) -> None:
    for key, known in (("experiment", EXPERIMENTS), ("size", SIZES)):
        if document.get(key) not in known:
            raise InputError(f"{key} must be one of {', '.join(known)}; it was {document.get(key)}")
    results = document.get("results")
    if not isinstance(results, dict):
        raise InputError(f"results must be an object; it was {results}")
    for name, result in results.items():
        _check_result(name, result)
    # Table 4 trains on parts of one collection of images, and evaluates on the same.
    _check_one_setup(results, (*ITS_OWN, "folder") if document["experiment"] == "table4" else ITS_OWN)


def _check_result(name: str, result: Any) -> None:
    missing = [key for key in KEYS if key not in result] if isinstance(result, dict) else KEYS
    if missing:
        raise InputError(f"result {name} must have {', '.join(KEYS)}; it was without {', '.join(missing)}")
    if not result["models"]:
        raise InputError(f"result {name} must have models; it was without any")
    for model, row in result["models"].items():
        missing = [key for key in FIGURES if key not in row]
        if missing:
            needed = ", ".join(FIGURES)
            raise InputError(f"{model} of result {name} must have {needed}; it was without {', '.join(missing)}")


def _check_one_setup(results: dict[str, Any], free: Sequence[str]) -> None:
    """The seeds of one training share all settings; all trainings share their held-out images."""
    first_of: dict[str, tuple[str, dict[str, Any]]] = {}
    for name, result in results.items():
        settings = {key: value for key, value in complete(result["settings"]).items() if key not in free}
        for group, keys in ((f"label {result['label']}", settings.keys()), ("the experiment", SHARED)):
            other, expected = first_of.setdefault(group, (name, settings))
            differing = [key for key in keys if settings.get(key) != expected.get(key)]
            if differing:
                raise InputError(
                    f"results must be of one set-up; {name} and {other} of {group} differ in {', '.join(differing)}"
                )


def models_of(document: Document, cell: str) -> dict[int, dict[str, Any]]:
    """By seed, the model that a cell of a table names; empty where none was run.

    Args:
        cell: a training's label, for its own model, or the name of one of P~, "P~_1/4", or of a tuned source.
    """
    if cell.startswith(("P~_", SOURCE)):
        label = cell.rpartition(" with ")[2] if " with " in cell else "P~"
        models = {r["seed"]: _joint_model_or_source(r["models"], cell) for r in results_of(document, label)}
        return {seed: model for seed, model in models.items() if model is not None}
    return {result["seed"]: _own_model(result) for result in results_of(document, cell)}


def _joint_model_or_source(models: dict[str, Any], name: str) -> dict[str, Any] | None:
    """The model of that name; a source that was tuned with one projected model alone may not name it."""
    return models.get(name, models.get(SOURCE) if name.startswith(SOURCE) else None)


def _own_model(result: dict[str, Any]) -> dict[str, Any]:
    """The model that its label names, or the only one that is not a tuned source."""
    models: dict[str, dict[str, Any]] = result["models"]
    name = result["label"].partition(",")[0].partition(" ")[0]
    own = [model for model in models if not model.startswith(SOURCE)]
    if name not in own and len(own) != 1:
        raise InputError(f"models of result {result['label']} must have {name}; it was {', '.join(models)}")
    return models[name if name in own else own[0]]


def labels(document: Document) -> list[str]:
    """Of all trainings, in the order in which they are stored."""
    return list(dict.fromkeys(result["label"] for result in document["results"].values()))


def variants_of(document: Document, model: str) -> list[str]:
    """Labels of the trainings that make a model otherwise than the paper does: "P_1/4, default recipe" of "P_1/4"."""
    return [label for label in labels(document) if label.startswith(f"{model},")]


def results_of(document: Document, label: str) -> list[dict[str, Any]]:
    """The trainings of one label, one for each seed."""
    return [result for result in document["results"].values() if result["label"] == label]
