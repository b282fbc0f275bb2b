"""Checkpoints: a folder of safetensors and JSON for each saved step, put in place by one rename.

    checkpoint/P_1-4/step-000500/{model.safetensors, optimizer.safetensors, state.json}

Only the last one of a stage is kept, and it is dropped only once its successor is in place.
"""

import shutil
from pathlib import Path

import torch
from torch import Tensor, nn

from ..models.names import ModelName
from ..utils.errors import InputError, ProjkernError
from ..utils.files import Format, new_folder
from ..utils.tensors import read_tensors, write_tensors

FORMAT = Format("projkern checkpoint", 1, "the state of a checkpoint")


class CheckpointError(ProjkernError, RuntimeError):
    """A checkpoint that is incomplete, damaged, of another shape, or no checkpoint of projkern."""


def stage_folder(run: Path, stage: ModelName) -> Path:
    """Where the checkpoints of one of the run's trainings lie: those of P_1/4 in ``checkpoint/P_1-4``."""
    return run / "checkpoint" / stage.folder


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
    try:
        with new_folder(target) as partial:
            write_tensors(partial / "model.safetensors", model.state_dict())
            write_tensors(partial / "optimizer.safetensors", _optimizer_tensors(model, optimizer))
            FORMAT.write(partial / "state.json", {"step": step, "seconds": seconds})
    except OSError as error:
        last_good = latest(folder) or "none"
        raise CheckpointError(f"could not write {target}: {error}; the last good checkpoint is {last_good}") from error
    for old in (*folder.glob("step-*"), *folder.glob(".*partial")):  # hidden: left by a process that was killed
        if old != target:
            shutil.rmtree(old)


def load(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> tuple[int, float]:
    """Load a checkpoint into a model of the same shape, and its optimizer.

    Returns:
        The step and the seconds that were saved with it.

    Raises:
        CheckpointError: anything that is not a whole checkpoint of such a model.
    """
    try:
        state = FORMAT.read(path / "state.json")
        weights = read_tensors(path / "model.safetensors")
        moments = read_tensors(path / "optimizer.safetensors") if optimizer is not None else {}
    except InputError as error:
        raise CheckpointError(str(error)) from error
    if not isinstance(state.get("step"), int) or not isinstance(state.get("seconds"), (int, float)):
        raise CheckpointError(f"{path}/state.json must name the step and the seconds; it was {state}")
    _assign(path / "model.safetensors", weights, dict(model.state_dict()))
    if optimizer is not None:
        for name, parameter in model.named_parameters():
            if f"{name}.step" in moments:  # none for a parameter that never had a gradient
                optimizer.state[parameter] = {
                    "step": torch.tensor(0.0, device=parameter.device),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
        _assign(path / "optimizer.safetensors", moments, _optimizer_tensors(model, optimizer))
    return state["step"], state["seconds"]


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{name}.{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _assign(path: Path, stored: dict[str, Tensor], targets: dict[str, Tensor]) -> None:
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
