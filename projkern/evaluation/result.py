"""All figures of a run's evaluation, as the JSON that its report is written from."""

import dataclasses
import platform
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..data.stream import Images
from ..data.tokens import TokenImages
from ..training.data import open_data, require_images
from ..training.losses import Losses, bits_per_dimension, evaluate
from ..training.stages import Model
from ..training.trained import TrainedRun
from ..utils.device import describe
from ..utils.errors import InputError
from ..utils.files import Format
from .equivalent import NoFit, equivalent_size
from .speed import measure_speed
from .sweep import VALUES, component, sweep

FORMAT = Format("projkern evaluation", 1, "an evaluation")


def evaluate_run(
    run: TrainedRun,
    images: int,
    *,
    seed: int,
    sweeps: Sequence[str] | None = None,
    speed: bool = True,
    when_losses: Callable[[dict[str, Any]], None] = lambda result: None,
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
        when_losses: called with ``models`` of the result, before the sweeps, which take most of the time.

    Returns:
        What ``evaluation.json`` holds (docs/evaluation.md).

    Raises:
        InputError: too few images or more than there are, a component that there is not, or data that cannot be had.
        IncompleteRun: a model whose training has not ended.
    """
    if sweeps is None:
        sweeps = ["scale"] if run.config.data.folder is None else []
    if sweeps and run.config.data.folder is not None:
        raise InputError(
            f"sweep must be empty for a run on tokenised images, which cannot be drawn anew for another t; it was "
            f"{' '.join(sweeps)}"
        )
    for name in sweeps:
        component(name)
    if images < 2:
        raise InputError(f"eval_images must be at least 2; it was {images}")
    config = run.config.replace(seed=seed, eval_images=images)
    data = open_data(config, "validation", run.device, run.palette)
    if isinstance(data, TokenImages):
        require_images(data, "eval_images", images)
    models = {str(model.name): model for model in run.models()}
    losses = {
        name: evaluate(model.predict, data, images)
        for name, model in tqdm(models.items(), desc="losses", unit=" models")
    }
    rows = {name: _row(model, losses[name], with_bits=run.palette is not None) for name, model in models.items()}
    when_losses({"models": rows})
    return FORMAT.head | {
        "run": run.path.resolve().name,
        "images": images,
        "image_size": config.data.side,
        "tokens": "colours" if run.palette is not None else "codes",
        "conditioning": config.model.conditioning,
        "seed": seed,
        "models": rows,
        "differences": {
            name: {"to": other, **mean_of(losses[name] - losses[other])} for name, other in pairs(models).items()
        },
        "equivalent_size": equivalent_sizes(models, losses, seed),
        "sweeps": {name: _sweep(models, data, images, name) for name in dict.fromkeys(sweeps)},
        "speed": _speed(run) if speed else None,
        "device": describe(run.device),
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }


def pairs(models: Mapping[str, Model]) -> dict[str, str]:
    """Each model that is compared to another, and that other (see ``ModelName.counterpart``)."""
    return {name: str(model.name.counterpart) for name, model in models.items() if model.name.counterpart is not None}


def mean_of(losses: Losses) -> dict[str, float]:
    return {"loss": losses.mean, "standard_error": losses.standard_error}


def _row(model: Model, losses: Losses, *, with_bits: bool) -> dict[str, Any]:
    return {
        "parameters": model.parameters,
        **mean_of(losses),
        **({"bits_per_dimension": bits_per_dimension(losses.mean)} if with_bits else {}),
        "by_position": [round(loss, 5) for loss in losses.by_position.tolist()],
    }


def equivalent_sizes(models: Mapping[str, Model], losses: dict[str, Losses], seed: int) -> dict[str, Any]:
    """For each projected model its equivalent size, or why there is none."""
    baselines = sorted((m for m in models.values() if m.name.is_conditional), key=lambda m: m.parameters)
    table = np.stack([losses[str(m.name)].by_image.numpy() for m in baselines])
    sizes = [m.parameters for m in baselines]
    equivalents: dict[str, Any] = {}
    for name, model in models.items():
        if model.name.is_projected:
            try:
                size = equivalent_size(sizes, table, losses[name].by_image.numpy(), model.parameters, seed=seed)
                equivalents[name] = dataclasses.asdict(size)
            except NoFit as reason:
                equivalents[name] = {"none_because": str(reason)}
    return equivalents


def _sweep(models: Mapping[str, Model], data: Images, images: int, name: str) -> dict[str, Any]:
    """Of the models that a user would run: tuned sources are left out."""
    swept = {model: trained for model, trained in models.items() if not trained.name.is_tuned_source}
    curves = sweep(list(swept.values()), data, images, name)
    differences = {
        model: [mean_of(a - b) for a, b in zip(curves[model], curves[other])] for model, other in pairs(swept).items()
    }
    return {
        "values": list(VALUES),
        "losses": {model: [mean_of(at) for at in losses] for model, losses in curves.items()},
        "differences": differences,
    }


def _speed(run: TrainedRun) -> dict[str, Any]:
    t = torch.full((run.config.data.task_dim,), 0.5, device=run.device)
    generate = {str(name): partial(operator.generate, t) for name, operator in run.operators().items()}
    return measure_speed(run.source(), generate)
