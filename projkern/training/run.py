"""A whole run in one folder: every stage, then the evaluation, the table and the pictures."""

from __future__ import annotations

import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..data import VQVAE, Palette, synthmnist_palette
from ..data.stream import Images
from ..data.tokens import TOKENIZER
from ..evaluation.losses import another_task, evaluate
from ..files import write_json
from ..kernels.backends import available_backends
from ..memory import keep_freed_memory
from ..models import GPT
from . import checkpoint
from .config import SOURCE_NAME, TrainConfig
from .data import SPLITS, check_data, open_data, run_digits
from .folder import PALETTE, open_run, read_coder
from .loop import train
from .metrics import Metrics
from .report import write_report
from .source import Source, source_of
from .stages import Model, make_stage, stage_names


@dataclass(frozen=True)
class Machine:
    """Where a run computes, and why there."""

    device: torch.device
    dtype: torch.dtype
    reason: str


def pick_machine(config: TrainConfig) -> Machine:
    """The device and arithmetic of a run; raises ValueError where what was asked for is not there."""
    cuda = torch.cuda.is_available()
    index = int(config.device.partition(":")[2] or 0)
    if config.device.startswith("cuda") and index >= torch.cuda.device_count():
        cards = torch.cuda.device_count()
        raise ValueError(f"device must be one that is there; it was {config.device}, and torch sees {cards} CUDA cards")
    device = torch.device(("cuda" if cuda else "cpu") if config.device == "auto" else config.device)
    bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
    name = {"auto": "bfloat16" if bfloat16 else "float32"}.get(config.dtype, config.dtype)
    why = "as asked" if config.device != "auto" else ("a CUDA card is there" if cuda else "there is no CUDA card")
    return Machine(device, getattr(torch, name), f"{describe(device)} ({why}), {name}")


def describe(device: torch.device) -> str:
    """A device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{threads} CPU thread{'s' * (threads > 1)}"


def run(out: Path, config: TrainConfig, *, resume: bool = False, overwrite: bool = False) -> dict[str, Any]:
    """Train all models of a run, continuing where its folder left off, and report on them.

    The folder is touched only once the device and the data are known to be there.

    Returns:
        What ``summary.json`` holds.

    Raises:
        ValueError, OSError: settings that cannot be met, or a folder that cannot be used (see ``open_run``).
    """
    machine = pick_machine(config)
    check_data(config)
    for name, given in (("source", config.source), ("data", config.data)):
        if overwrite and given is not None and Path(given).resolve().is_relative_to(out.resolve()):
            raise ValueError(f"{name} must not be in the folder that is to be overwritten, {out}; it was {given}")
    begun = checkpoint.latest(checkpoint.stage_folder(out, SOURCE_NAME)) is not None and not overwrite
    source = source_of(config) if config.source is not None and not begun else None  # a checkpoint holds all of it
    with open_run(out, config, resume=resume, overwrite=overwrite):
        return _train_all(out, config, machine, source)


def _train_all(out: Path, config: TrainConfig, machine: Machine, given: Source | None) -> dict[str, Any]:
    kernels = [name for name in available_backends() if name != "reference"]
    print(f"Training on {machine.reason}; projection by {', '.join(kernels) or 'plain torch, which is slow'}.")
    if machine.device.type == "cpu":
        keep_freed_memory()
    for note in given.notes if given else ():
        print(f"Source {config.source}: {note}")
    coder = _coder(out, config, given.coder if given else None)
    palette = coder if isinstance(coder, Palette) else None
    training, validation = (open_data(config, split, machine.device, palette) for split in SPLITS)
    metrics = Metrics(out)
    seconds, models = 0.0, []
    source = None
    for name in stage_names(config):
        stage = make_stage(name, config, machine.device, source)
        if name == SOURCE_NAME and given is not None:
            stage.module.load_state_dict(given.weights(config.image_size**2))
        seconds += train(stage, training, config, machine.dtype, checkpoint.stage_folder(out, name), metrics)
        stage.module.eval()
        if name == SOURCE_NAME:
            assert isinstance(stage.module, GPT)
            source = stage.module
        models += stage.models
    began = time.monotonic()
    summary = {
        "models": {m.name: _row(m, validation, config.eval_images) for m in models},
        "seconds": round(seconds + time.monotonic() - began, 1),
        "device": machine.reason,
        "versions": {"projkern": package_version(), "torch": torch.__version__, "python": platform.python_version()},
    }
    write_report(out, config, summary, models, validation)
    write_json(out / "summary.json", summary)
    return summary


def _coder(out: Path, config: TrainConfig, given: Palette | VQVAE | None) -> Palette | VQVAE:
    """What makes images of the run's tokens, kept in its folder.

    Of tokenised images their tokenizer; else the source's palette, or one fitted at the run's start.
    """
    path = out / (PALETTE if config.data is None else TOKENIZER)
    if not path.exists():
        if config.data is not None:
            VQVAE.load(Path(config.data) / TOKENIZER).save(path)
        elif isinstance(given, Palette):
            given.save(path)
        else:
            synthmnist_palette(config.image_size, config.colors, run_digits(config, "train")).save(path)
    return read_coder(out, config)


def _row(model: Model, data: Images, images: int) -> dict[str, Any]:
    losses = evaluate(model.predict, data, images)
    row: dict[str, Any] = {
        "loss": round(losses.mean, 5),
        "standard_error": round(losses.standard_error, 5),
        "parameters": model.parameters,
    }
    if model.takes_task:
        row["loss_with_another_t"] = round(evaluate(model.predict, data, images, another_task).mean, 5)
    if model.operator_parameters is not None:
        row["operator_parameters"] = model.operator_parameters
    return row


def package_version() -> str:
    from .. import __version__

    return __version__
