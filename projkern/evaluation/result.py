"""All figures of a run's evaluation, as the JSON that its report is made from."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..data.stream import Images
from ..data.tokens import TokenImages
from ..training.config import SOURCE_NAME
from ..training.data import open_data, require_images
from ..training.run import describe
from ..training.stages import Model
from ..training.trained import TrainedRun
from .equivalent import NoFit, equivalent_size
from .losses import Losses, bits_per_dimension, evaluate
from .speed import measure_speed
from .sweep import VALUES, component, sweep

FORMAT: dict[str, Any] = {"format": "projkern evaluation", "version": 1}


def evaluate_run(
    run: TrainedRun, images: int, *, seed: int, sweeps: Sequence[str] | None = None, speed: bool = True
) -> dict[str, Any]:
    """Evaluate every model of a run on the same held-out images.

    Args:
        run: on the device to compute on.
        images: N >= 2.
        seed: of the images, their t, and the resampling; the run's own gives the images that it reported on. Tokenised
            images are always the first ones held out.
        sweeps: components of t to vary, each over [0, 2]; without it "scale" for SynthMNIST, none for tokenised images,
            which cannot be drawn anew for another t.
        speed: also measure inference.

    Returns:
        What ``evaluation.json`` holds (docs/evaluation.md).

    Raises:
        ValueError: too few images or more than there are, a component that there is not, or data that cannot be had.
        IncompleteRun: a model whose training has not ended.
    """
    if sweeps is None:
        sweeps = ["scale"] if run.config.data is None else []
    if sweeps and run.config.data is not None:
        raise ValueError(
            f"sweep must be empty for a run on tokenised images, which cannot be drawn anew for another t; it was "
            f"{' '.join(sweeps)}"
        )
    for name in sweeps:
        component(name)
    if images < 2:
        raise ValueError(f"images must be at least 2; it was {images}")
    config = dataclasses.replace(run.config, seed=seed, eval_images=images)
    data = open_data(config, "validation", run.device, run.palette)
    if isinstance(data, TokenImages):
        require_images(data, "images", images)
    models = {model.name: model for model in run.models()}
    losses = {
        name: evaluate(model.predict, data, images)
        for name, model in tqdm(models.items(), desc="losses", unit=" models")
    }
    pairs = [(name, other) for name in models if (other := counterpart(name)) is not None]
    return FORMAT | {
        "run": run.path.resolve().name,
        "images": images,
        "image_size": config.image_size,
        "tokens": "colours" if run.palette is not None else "codes",
        "conditioning": config.conditioning,
        "seed": seed,
        "models": {
            name: _row(model, losses[name], with_bits=run.palette is not None) for name, model in models.items()
        },
        "differences": {name: {"to": other, **_mean(losses[name] - losses[other])} for name, other in pairs},
        "equivalent_size": _equivalent_sizes(models, losses, seed),
        "sweeps": {name: _sweep(models, data, images, name) for name in dict.fromkeys(sweeps)},
        "speed": _speed(run) if speed else None,
        "device": describe(run.device),
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }


def counterpart(name: str) -> str | None:
    """What a model is compared to: P_s with the conditional baseline of its shape, a tuned source with M_1."""
    if name.startswith("P"):
        return "M~_" + name.partition("_")[2]
    return SOURCE_NAME if name.startswith("source") else None


def _mean(losses: Losses) -> dict[str, float]:
    return {"loss": losses.mean, "standard_error": losses.standard_error}


def _row(model: Model, losses: Losses, *, with_bits: bool) -> dict[str, Any]:
    return {
        "parameters": model.parameters,
        **_mean(losses),
        **({"bits_per_dimension": bits_per_dimension(losses.mean)} if with_bits else {}),
        "by_position": [round(loss, 5) for loss in losses.by_position.tolist()],
    }


def _equivalent_sizes(models: dict[str, Model], losses: dict[str, Losses], seed: int) -> dict[str, Any]:
    """For each projected model its equivalent size, or why there is none."""
    baselines = sorted((m for m in models.values() if m.name.startswith("M~")), key=lambda m: m.parameters)
    table = np.stack([losses[m.name].by_image.numpy() for m in baselines])
    sizes = [m.parameters for m in baselines]
    found: dict[str, Any] = {}
    for model in models.values():
        if model.name.startswith("P"):
            try:
                size = equivalent_size(sizes, table, losses[model.name].by_image.numpy(), model.parameters, seed=seed)
                found[model.name] = dataclasses.asdict(size)
            except NoFit as reason:
                found[model.name] = {"none_because": str(reason)}
    return found


def _sweep(models: dict[str, Model], data: Images, images: int, name: str) -> dict[str, Any]:
    """Of the models that a user would run: tuned sources are left out."""
    swept = [model for model in models.values() if not model.name.startswith("source")]
    found = sweep(swept, data, images, name)
    differences = {
        model: [_mean(a - b) for a, b in zip(losses, found[other])]
        for model, losses in found.items()
        if (other := counterpart(model)) is not None
    }
    return {
        "values": list(VALUES),
        "losses": {model: [_mean(at) for at in losses] for model, losses in found.items()},
        "differences": differences,
    }


def _speed(run: TrainedRun) -> dict[str, Any]:
    t = torch.full((run.config.task_dim,), 0.5, device=run.device)
    generate = {name: partial(operator.generate, t) for name, operator in run.operators().items()}
    return measure_speed(run.source(), generate)
