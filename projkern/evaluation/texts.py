"""All figures of the evaluation of a run on tasks of text, as the JSON that its report is written from."""

from __future__ import annotations

import platform
import time
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..data.corpora import TaskTexts
from ..language.losses import bits_per_byte, by_task, judge_held_out
from ..language.stages import TextModel
from ..language.trained import LanguageRun
from ..training.losses import Losses, evaluate
from ..utils.device import describe, wait_for
from ..utils.errors import InputError
from .result import FORMAT, equivalent_sizes, mean_of, pairs

MATRIX_WINDOWS = 4
"""Of each task, in the matrix of every task's model on every task's text."""
GENERATIONS = 5


def evaluate_texts(run: LanguageRun, windows: int) -> dict[str, Any]:
    """Evaluate every model of a run on the same held-out windows.

    Args:
        run: on the device to compute on.
        windows: of each task, at least 2.

    Returns:
        What ``evaluation.json`` holds (docs/tasks.md).

    Raises:
        InputError: too few windows.
        IncompleteRun: a model whose training has not ended.
    """
    if windows < 2:
        raise InputError(f"eval_windows must be at least 2; it was {windows}")
    models = {str(model.name): model for model in run.models()}
    data, tasks = run.texts("validation", windows), run.tasks.trained
    with_another: dict[str, float] = {}
    losses: dict[str, Losses] = {}
    for name, model in tqdm(models.items(), desc="losses", unit=" models"):
        losses[name] = evaluate(model.predict, data, data.count)
        if model.takes_task:
            with_another[name] = evaluate(model.predict, data, data.count, TaskTexts.with_other_tasks).mean
    ratios = dict(zip(run.tasks.names, run.tasks.bytes_per_token))
    result = FORMAT.head | {
        "run": run.path.resolve().name,
        "windows": windows,
        "length": run.config.tasks.length,
        "conditioning": run.config.model.conditioning,
        "tasks": tasks,
        "models": {
            name: {
                "parameters": model.parameters,
                **mean_of(losses[name]),
                "bits_per_byte": _bits_per_byte(by_task(losses[name], data), [ratios[task] for task in tasks]),
                **({"loss_with_another_t": with_another[name]} if name in with_another else {}),
            }
            for name, model in models.items()
        },
        "differences": {
            name: {"to": other, **mean_of(losses[name] - losses[other])} for name, other in pairs(models).items()
        },
        "equivalent_size": equivalent_sizes(models, losses, run.config.run.seed),
        "matrices": {name: _matrix(model, run) for name, model in models.items() if model.takes_task},
        "generation": {name: _seconds(model, run) for name, model in models.items() if model.name.is_projected},
        "device": describe(run.device),
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }
    if run.tasks.held_out:
        result["held_out_tasks"] = judge_held_out(run, list(models.values()), windows)
    return result


def _bits_per_byte(losses: list[float], ratios: list[float]) -> list[float]:
    return [round(bits_per_byte(loss, ratio), 5) for loss, ratio in zip(losses, ratios)]


def _matrix(model: TextModel, run: LanguageRun) -> list[list[float]]:
    """The loss, in nats per token, with the t of each task (a row) on the text of each task (a column)."""
    data = run.texts("validation", MATRIX_WINDOWS)
    rows = []
    for task in tqdm(run.tasks.trained, desc=f"{model.name} of each task", unit=" tasks", leave=False):
        t = run.t_of(task)

        def with_t(data: TaskTexts, step: int, t: Tensor = t) -> tuple[Tensor, Tensor]:
            tokens, own = data.batch(step)
            return tokens, t.expand_as(own)

        losses = evaluate(model.predict, data, data.count, with_t)
        rows.append([round(loss, 4) for loss in by_task(losses, data)])
    return rows


def _seconds(model: TextModel, run: LanguageRun) -> float:
    """Seconds from t to an ordinary model, the best of a few."""
    t, best = run.t_of(run.tasks.trained[0]), float("inf")
    for _ in range(GENERATIONS):
        wait_for(run.device)
        began = time.perf_counter()
        model.standalone(t)
        wait_for(run.device)
        best = min(best, time.perf_counter() - began)
    return best
