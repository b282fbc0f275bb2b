"""Images drawn by a run's models, each for its own task, or by one standalone model, as one picture."""

import math
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..data import TASK_DIM, texture
from ..models.decode import Decoder
from ..models.sampling import Draws, Sampled, check_draws, sample
from ..training.data import draw_run_tasks, read_run_tasks
from ..training.trained import TrainedRun
from ..utils.errors import InputError
from ..utils.files import may_write, read_object
from ..utils.pictures import beside_tasks


class Drawing(NamedTuple):
    """Images drawn for U tasks, k each."""

    title: str
    images: Tensor  # (U, k, 3, S, S) in [-1, 1]
    meaning: Tensor | None  # (U, 3, S, S): the texture or image that each task stands for, where that is known
    sampled: Sampled

    def write(self, path: Path) -> None:
        """Write the picture, a PNG file."""
        beside_tasks(path, self.images, self.meaning, self.title)


def draw(
    path: Path,
    device: torch.device,
    draws: Draws,
    *,
    images: int | None = None,
    scale: Fraction | None = None,
    tasks: Path | int | None = None,
    form: str | None = None,
) -> Drawing:
    """Draw images from the models that a run generates, or from one standalone model.

    Args:
        path: the folder of a run, or of a model in GPT-2's format.
        device: where to compute.
        draws: how tokens are drawn; its seed is also that of random tasks.
        images: k; 1 of each task of a run unless given, 8 of a standalone model.
        scale: one that the run has. This and the following are for runs alone.
        tasks: a file of task identifiers, or the number of random ones.
        form: as ``ProjectionOperator.decoder`` takes it; "auto" unless given.

    Raises:
        InputError: no such run or model, or an argument that it does not take.
    """
    check_draws(draws.temperature, draws.top_k, draws.top_p)
    if images is not None and images < 1:
        raise InputError(f"--images must be at least 1; it was {images}")
    if not _is_standalone(path):
        return _draw_from_run(path, device, draws, scale, tasks, images or 1, form or "auto")
    of_runs = {"--scale": scale, "--t or --random": tasks, "--form": form}
    unused = [option for option, value in of_runs.items() if value is not None]
    if unused:
        raise InputError(f"{', '.join(unused)} must be left out for a model, which is of one task already")
    return _draw_from_model(path, device, draws, images or 8)


def require_new_picture(path: Path, overwrite: bool) -> None:
    """Raise, before the drawing, what would fail after it.

    Raises:
        FileExistsError: the file is there, and ``overwrite`` was not given.
        InputError: a folder, or a file in a folder that does not exist or may not be written.
    """
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; give --overwrite to replace it, or another --out")
    if not path.parent.is_dir() or path.is_dir() or not may_write(path.parent):
        raise InputError(f"--out must be a file in a folder that exists and can be written; it was {path}")


def _is_standalone(folder: Path) -> bool:
    """Whether a folder holds a model in another library's format; one that is neither is left to fail as a run."""
    try:
        return "model_type" in read_object(folder / "config.json", "a model")
    except InputError:
        return False


def _draw_from_run(
    path: Path,
    device: torch.device,
    draws: Draws,
    scale: Fraction | None,
    tasks: Path | int | None,
    images: int,
    form: str,
) -> Drawing:
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
    decoder = run.operator(scale).decoder(t.repeat_interleave(images, 0).to(device), form=form)
    sampled = _sample(decoder, draws)
    drawn = run.decode(sampled.tokens).cpu().unflatten(0, (len(t), -1))
    return Drawing(f"{path.resolve().name}, s = {scale}", drawn, meaning, sampled)


def _draw_from_model(folder: Path, device: torch.device, draws: Draws, images: int) -> Drawing:
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
    drawn = loaded.palette.to(device).decode(sampled.tokens).cpu()[None]
    return Drawing(folder.resolve().name, drawn, meaning, sampled)


def _sample(decoder: Decoder, draws: Draws) -> Sampled:
    return sample(decoder, **draws._asdict())
