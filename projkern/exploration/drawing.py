"""Images drawn by a run's models, each for its own task, or by one standalone model."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..data import TASK_DIM, texture
from ..models.decode import Decoder
from ..models.sampling import Sampled, sample
from ..training.data import draw_run_tasks, read_run_tasks
from ..training.trained import TrainedRun
from ..utils.errors import InputError
from ..utils.files import read_object


class Draws(NamedTuple):
    """How tokens are drawn; see ``models.sampling.sample``."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0


class Drawing(NamedTuple):
    """Images drawn for U tasks, k each."""

    images: Tensor  # (U, k, 3, S, S) in [-1, 1]
    meaning: Tensor | None  # (U, 3, S, S): the texture or image that each task stands for, where that is known
    sampled: Sampled


def is_standalone(folder: Path) -> bool:
    """Whether a folder holds a model in another library's format; one that is neither is left to fail as a run."""
    try:
        return "model_type" in read_object(folder / "config.json", "a model")
    except InputError:
        return False


def draw_from_run(
    path: Path,
    device: torch.device,
    draws: Draws,
    *,
    scale: Fraction | None,
    tasks: Path | int | None,
    each: int = 1,
    form: str = "auto",
) -> Drawing:
    """Draw images from the models that a run generates.

    Args:
        path: the run's folder.
        device: where to compute.
        draws: how tokens are drawn; its seed is also that of random tasks.
        scale: one that the run has.
        tasks: a file of task identifiers, or how many random ones.
        each: k, images of each task.
        form: as ``ProjectionOperator.decoder`` takes it.

    Raises:
        InputError: no such run, scale or tasks.
    """
    run = TrainedRun.open(path, device)
    data = run.config.data
    if scale is None:
        known = ", ".join(map(str, run.config.operator.scales))
        raise InputError(f"--scale must be given for a run; {path} has {known}")
    if tasks is None:
        raise InputError("--t or --random must be given for a run")
    tokens = None
    if isinstance(tasks, Path):
        t = read_run_tasks(data, tasks).view(-1, data.task_dim)
    else:
        t, tokens = draw_run_tasks(data, tasks, draws.seed)
    meaning = None if tokens is None else run.decode(tokens.to(device))
    if data.folder is None:
        meaning = texture(t, data.side)
    rows = t.repeat_interleave(each, 0).to(device)
    sampled = _sample(run.operator(scale).decoder(rows, form=form), draws)
    return Drawing(run.decode(sampled.tokens).cpu().unflatten(0, (len(t), -1)), meaning, sampled)


def draw_from_model(folder: Path, device: torch.device, draws: Draws, images: int = 8) -> Drawing:
    """Draw images from a standalone model in GPT-2's format.

    Raises:
        InputError: no such model, or one whose tokens are not the colours of square images.
    """
    from ..models.huggingface import gpt2  # transformers takes seconds to import

    loaded = gpt2.load(folder)
    if loaded.palette is None:
        raise InputError(
            f"{folder} must hold a palette, the colours of its tokens; it holds none. If it comes from a run on "
            "tokenised images, sample that run: it holds their tokenizer"
        )
    decoder = loaded.model.to(device).decoder(images)
    side = math.isqrt(decoder.positions)
    if side**2 != decoder.positions:
        raise InputError(f"{folder} must hold a model of square images; it has {decoder.positions} positions")
    t = (loaded.provenance or {}).get("t")
    meaning = texture(torch.tensor([t]), side) if t is not None and len(t) == TASK_DIM else None
    sampled = _sample(decoder, draws)
    return Drawing(loaded.palette.to(device).decode(sampled.tokens).cpu()[None], meaning, sampled)


def _sample(decoder: Decoder, draws: Draws) -> Sampled:
    return sample(decoder, **draws._asdict())
