"""The local tangent (Eq. 3) beside the generators: a trained unconditional model, specialised for held-out tasks."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from projkern.data import SynthMNIST
from projkern.models import GPT
from projkern.training.losses import nats_per_token
from projkern.training.stages import count
from projkern.utils.command import Interrupted

from .local_tangent import NegativeCurvature, Tangent, tangent
from .measures import summary

BATCH = 8
"""Images at a time that H is applied to: the graph of a second derivative is large."""


@dataclass(frozen=True)
class Tangents:
    """How the tangents of a trained model are computed and measured.

    Args:
        tasks: held-out ones that the figures are of.
        images: held-out ones of each task that the figures are of.
        training_images: of everyday, for H, and of each task; a multiple of ``BATCH``.
        iterations: of conjugate gradients, at most.
        other_tasks: on which the damping and the radius are chosen.
        dampings: to choose from, in nats per squared weight.
        radii: to choose from, in [0, 1].
    """

    tasks: int = 16
    images: int = 64
    training_images: int = 128
    iterations: int = 6
    other_tasks: int = 4
    dampings: tuple[float, ...] = (0.3, 1.0, 3.0)
    radii: tuple[float, ...] = (0.1, 0.25, 0.5, 1.0)

    def to_json(self) -> dict[str, Any]:
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}


def measure_tangents(
    model: GPT, training: SynthMNIST, held_out: SynthMNIST, how: Tangents, stop: Callable[[], bool]
) -> dict[str, Any]:
    """The loss of a model specialised for each of the first held-out tasks, and of the model itself on the same images.

    Args:
        model: unconditional and trained.
        training: gives H, the gradients, and the tasks that the damping and the radius are chosen on.
        held_out: gives the tasks and the images that are reported.
        how: see ``Tangents``.
        stop: asked between tasks.

    Returns:
        What the results hold of a model, where ``by_image`` has one entry a task, the mean over its images, and the
        standard error is over tasks; "base", the same of the model itself; the damping and the radius chosen; and of
        each task the damping used and the norms of the residuals of conjugate gradients.

    Raises:
        Interrupted: asked to stop.
    """
    everyday = _images(training, None, 0, how.training_images)
    next_step = _steps(training, how.training_images)

    def specialise(task: Tensor, damping: float) -> tuple[Tangent, float]:
        if stop():
            raise Interrupted("stopped between tangents")
        task_images = _images(training, task, 0, how.training_images)
        return _tangent(model, everyday, task_images, damping, how.iterations)

    choices: dict[tuple[float, float], float] = dict.fromkeys(((d, r) for d in how.dampings for r in how.radii), 0.0)
    for task in _tasks(training, how.other_tasks):
        unseen = _images(training, task, next_step, how.images)
        for damping in how.dampings:
            towards, _ = specialise(task, damping)
            for radius in how.radii:
                choices[damping, radius] += _loss(towards.at(radius), unseen)
    damping, radius = min(choices, key=lambda choice: choices[choice])

    losses, base, dampings, residuals = [], [], [], []
    began = time.monotonic()
    for n, task in enumerate(_tasks(held_out, how.tasks)):
        towards, used = specialise(task, damping)
        images = _images(held_out, task, n * _steps(held_out, how.images), how.images)
        losses.append(_loss(towards.at(radius), images))
        base.append(_loss(model, images))
        dampings.append(used)
        residuals.append([float(f"{norm:.4g}") for norm in towards.residuals])
    return summary(torch.tensor(losses)) | {
        "parameters": count(model),
        "base": summary(torch.tensor(base)),
        "damping": damping,
        "radius": radius,
        "dampings": dampings,
        "residuals": residuals,
        "seconds_per_task": round((time.monotonic() - began) / how.tasks, 2),
    }


def _tangent(
    model: GPT, everyday: Tensor, task_images: Tensor, damping: float, iterations: int
) -> tuple[Tangent, float]:
    """The tangent and its damping, raised tenfold as often as H has a direction of more negative curvature."""
    try:
        return tangent(model, everyday.split(BATCH), task_images.split(BATCH), damping, iterations), damping
    except NegativeCurvature:
        return _tangent(model, everyday, task_images, 10 * damping, iterations)


def _steps(stream: SynthMNIST, images: int) -> int:
    return -(-images // stream.batch_size)


def _tasks(stream: SynthMNIST, tasks: int) -> Tensor:
    """The stream's first task identifiers (tasks, task_dim)."""
    return torch.cat([stream.tasks(step) for step in range(_steps(stream, tasks))])[:tasks]


def _images(stream: SynthMNIST, task: Tensor | None, first: int, images: int) -> Tensor:
    """Tokens (images, T), from step ``first`` on: everyday ones, or those of a task, which have the same digits."""
    steps = range(first, first + _steps(stream, images))
    t = None if task is None else task.expand(stream.batch_size, -1)
    return torch.cat([stream.batch(step, t)[0] for step in steps])[:images]


@torch.no_grad()
def _loss(model: GPT, tokens: Tensor) -> float:
    return nats_per_token(model(tokens), tokens).item()
