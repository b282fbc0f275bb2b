"""Checkpoints: a folder of safetensors and JSON for each saved step, put in place by one rename.

    checkpoint/P_1-4/step-000500/{model.safetensors, optimizer.safetensors, state.json}

Only the last one of a stage is kept, and it is dropped only once its successor is in place.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from ..exchange.weights import read_tensors
from ..files import sync

FORMAT = {"format": "projkern checkpoint", "version": 1}


class CheckpointError(RuntimeError):
    """A checkpoint that is incomplete, damaged, of another shape, or not ours."""


def stage_folder(run: Path, stage: str) -> Path:
    """Where the checkpoints of one of the run's models lie: "P_1/4" in ``checkpoint/P_1-4``."""
    return run / "checkpoint" / stage.replace("/", "-")


def latest(folder: Path) -> Path | None:
    """The last complete checkpoint in a stage's folder."""
    return max(folder.glob("step-*"), default=None)


def save(folder: Path, step: int, seconds: float, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Save a training state, after ``step`` steps and ``seconds`` of work, as the stage's last checkpoint.

    Raises:
        CheckpointError: it could not be written; the one before it is kept.
    """
    target = folder / f"step-{step:08d}"
    if target.exists():
        return
    partial = folder / ".partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _save_tensors(partial / "model.safetensors", model.state_dict())
        _save_tensors(partial / "optimizer.safetensors", _optimizer_tensors(model, optimizer))
        (partial / "state.json").write_text(json.dumps(FORMAT | {"step": step, "seconds": seconds}, indent=2) + "\n")
        for path in (*partial.iterdir(), partial):
            sync(path)
        os.rename(partial, target)
        sync(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        kept = latest(folder)
        raise CheckpointError(
            f"could not write {target}: {error}; the last good checkpoint is {kept or 'none'}"
        ) from error
    for old in folder.glob("step-*"):
        if old != target:
            shutil.rmtree(old)


def load(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> tuple[int, float]:
    """Load a checkpoint into a model of the same shape, and its optimizer.

    Returns:
        The step and the seconds that were saved with it.

    Raises:
        CheckpointError: anything that is not a whole checkpoint of such a model.
    """
    state = _load_state(path)
    _assign(path / "model.safetensors", dict(model.state_dict()))
    if optimizer is not None:
        stored = _read(path / "optimizer.safetensors")
        for name, parameter in model.named_parameters():
            if f"{name}.step" in stored:  # none for a parameter that never had a gradient
                optimizer.state[parameter] = {
                    "step": torch.tensor(0.0, device=parameter.device),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
        _assign(path / "optimizer.safetensors", _optimizer_tensors(model, optimizer))
    return state["step"], state["seconds"]


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{name}.{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, path)


def _load_state(path: Path) -> dict[str, Any]:
    try:
        state = json.loads((path / "state.json").read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not a checkpoint: its state.json cannot be read ({error})") from error
    if not isinstance(state, dict) or {key: state.get(key) for key in FORMAT} != FORMAT:
        raise CheckpointError(f"{path} must hold a projkern checkpoint of version {FORMAT['version']}; it does not")
    if not isinstance(state.get("step"), int) or not isinstance(state.get("seconds"), (int, float)):
        raise CheckpointError(f"{path}/state.json must name the step and the seconds; it was {state}")
    return state


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return read_tensors(path)
    except ValueError as error:
        raise CheckpointError(str(error)) from error


def _assign(path: Path, targets: dict[str, Tensor]) -> None:
    stored = _read(path)
    if stored.keys() != targets.keys():
        differing = sorted(stored.keys() ^ targets.keys())
        raise CheckpointError(f"{path} is of another model: {len(differing)} tensors differ, such as {differing[0]}")
    for name, target in targets.items():
        if stored[name].shape != target.shape or stored[name].dtype != target.dtype:
            raise CheckpointError(
                f"{path} is of another shape: {name} must be {target.dtype} {tuple(target.shape)}; "
                f"it was {stored[name].dtype} {tuple(stored[name].shape)}"
            )
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(stored[name])
