"""Losses of a run's models on every task: with its own t, with another's, and on tasks that training left out."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..data.corpora import TaskTexts
from ..training.losses import Losses, evaluate
from .stages import TextModel
from .trained import LanguageRun


def judge(run: LanguageRun, models: list[TextModel]) -> dict[str, Any]:
    """Losses of all models of a run, in nats per token.

    Returns:
        "tasks": their names; "bytes_per_token" of each; "models": for each its loss, that with another task's t and
        those "by_task"; "held_out_tasks": for each of those its losses.
    """
    data = run.texts("validation")
    tasks = run.tasks
    summary: dict[str, Any] = {
        "tasks": tasks.trained,
        "bytes_per_token": dict(zip(tasks.names, (round(ratio, 4) for ratio in tasks.bytes_per_token))),
        "models": {str(model.name): _row(model, data) for model in models},
    }
    if tasks.held_out:
        summary["held_out_tasks"] = judge_held_out(run, models)
    return summary


def bits_per_byte(nats: float, bytes_per_token: float) -> float:
    """Of a loss in nats per token."""
    return nats / math.log(2) / bytes_per_token


def by_task(losses: Losses, data: TaskTexts) -> list[float]:
    """The mean loss of each task, from those of the validation split's windows."""
    means: list[float] = losses.by_image.view(-1, data.windows).mean(1).tolist()
    return means


def _row(model: TextModel, data: TaskTexts) -> dict[str, Any]:
    losses = evaluate(model.predict, data, data.count)
    row: dict[str, Any] = {
        "loss": round(losses.mean, 5),
        "standard_error": round(losses.standard_error, 5),
        "parameters": model.parameters,
        "by_task": [round(loss, 5) for loss in by_task(losses, data)],
    }
    if model.takes_task:
        row["loss_with_another_t"] = round(
            evaluate(model.predict, data, data.count, TaskTexts.with_other_tasks).mean, 5
        )
    if model.operator_parameters is not None:
        row["operator_parameters"] = model.operator_parameters
    return row


def judge_held_out(run: LanguageRun, models: list[TextModel], windows: int | None = None) -> dict[str, Any]:
    """For each task that was left out: the trained task nearest to it, and each model's losses on its text.

    A model that takes t is judged with the t of a sample of the task's text, and with that of the nearest task; on so
    many windows of each, as in the run unless given.
    """
    data = run.held_out_texts(windows)
    nearest = [run.nearest(run.t_of(task)) for task in run.tasks.held_out]
    of_nearest = torch.stack([run.t_of(name) for name in nearest])

    def with_nearest(data: TaskTexts, step: int) -> tuple[Tensor, Tensor]:
        return data.batch(step)[0], of_nearest[data.labels(step).to(run.device)]

    losses: dict[str, dict[str, Any]] = {task: {"nearest": name} for task, name in zip(run.tasks.held_out, nearest)}
    for model in models:
        means = by_task(evaluate(model.predict, data, data.count), data)
        others = by_task(evaluate(model.predict, data, data.count, with_nearest), data) if model.takes_task else None
        for number, row in enumerate(losses.values()):
            row[str(model.name)] = {"loss": round(means[number], 5)}
            if others is not None:
                row[str(model.name)]["loss_with_nearest_t"] = round(others[number], 5)
    return losses
