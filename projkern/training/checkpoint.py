"""Checkpoints: a folder of safetensors and JSON for each saved step, put in place by one rename.

    checkpoint/P_1-4/step-000500/{model.safetensors, optimizer.safetensors, state.json}

Where several processes have a part of the model each, each writes its own, model-00001-of-00002.safetensors and so on,
and any number of processes reads them: every tensor has one name, whichever file it is in.

Only the last one of a stage is kept, and it is dropped only once its successor is in place.
"""

import shutil
from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..models.names import ModelName
from ..utils.errors import InputError, ProjkernError
from ..utils.files import Format, hidden_name, new_folder
from ..utils.tensors import read_tensors, write_tensors
from .distributed import ALONE, Ranks

FORMAT = Format("projkern checkpoint", 1, "the state of a checkpoint")
Optimizers = Sequence[torch.optim.Optimizer]
_SCALAR = "step"
_MOMENTS = ("exp_avg", "exp_avg_sq", "momentum_buffer")
"""What AdamW and Muon keep of a parameter, each of the parameter's shape, beside the number of its steps."""


class CheckpointError(ProjkernError, RuntimeError):
    """A checkpoint that is incomplete, damaged, of another shape, or no checkpoint of projkern."""


def stage_folder(run: Path, stage: ModelName) -> Path:
    """Where the checkpoints of one of the run's trainings lie: those of P_1/4 in ``checkpoint/P_1-4``."""
    return run / "checkpoint" / stage.folder


def latest(folder: Path) -> Path | None:
    """The last complete checkpoint in a stage's folder."""
    return max(folder.glob("step-*"), default=None)


def save(
    folder: Path, step: int, seconds: float, model: nn.Module, optimizers: Optimizers, ranks: Ranks = ALONE
) -> None:
    """Save a training state, after ``step`` steps and ``seconds`` of work, as the stage's last checkpoint.

    Args:
        ranks: the processes of which each has a part of the model; all of them call this.

    Raises:
        CheckpointError: it could not be written; the one before it is kept.
    """
    target = folder / f"step-{step:08d}"
    if ranks.from_main(target.exists()):
        return
    try:
        with ranks.on_main(new_folder(target)):
            partial = hidden_name(target)
            write_tensors(partial / _part("model", ranks), _model_tensors(model))
            write_tensors(partial / _part("optimizer", ranks), _optimizer_tensors(model, optimizers))
            ranks.wait()
            if ranks.is_main:
                FORMAT.write(partial / "state.json", {"step": step, "seconds": seconds})
    except OSError as error:
        last_good = latest(folder) or "none"
        raise CheckpointError(f"could not write {target}: {error}; the last good checkpoint is {last_good}") from error
    if not ranks.is_main:
        return
    for old in (*folder.glob("step-*"), *folder.glob(".*partial")):  # hidden: left by a process that was killed
        if old != target:
            shutil.rmtree(old)


def load(path: Path, model: nn.Module, optimizers: Optimizers = (), ranks: Ranks = ALONE) -> tuple[int, float]:
    """Load a checkpoint into a model of the same shape, and its optimizers.

    Args:
        ranks: the processes of which each has a part of the model; all of them call this.

    Returns:
        The step and the seconds that were saved with it.

    Raises:
        CheckpointError: anything that is not a whole checkpoint of such a model.
    """
    step, seconds = read_state(path)
    try:
        weights = _read_parts(path / "model.safetensors")
        moments = _read_parts(path / "optimizer.safetensors") if optimizers else {}
    except InputError as error:
        raise CheckpointError(str(error)) from error
    _assign(path / "model.safetensors", weights, _model_tensors(model), ranks)
    if optimizers:
        _make_states(model, optimizers, moments.keys())
        _assign(path / "optimizer.safetensors", moments, _optimizer_tensors(model, optimizers), ranks)
    return step, seconds


def read_state(path: Path) -> tuple[int, float]:
    """The step of a checkpoint and the seconds up to it; raises CheckpointError where it does not say."""
    try:
        state = FORMAT.read(path / "state.json")
    except InputError as error:
        raise CheckpointError(str(error)) from error
    step, seconds = state.get("step"), state.get("seconds")
    if not isinstance(step, int) or not isinstance(seconds, (int, float)):
        raise CheckpointError(f"{path}/state.json must name the step and the seconds; it was {state}")
    return step, seconds


def _make_states(model: nn.Module, optimizers: Optimizers, names: Collection[str]) -> None:
    """Give the optimizers the states that a checkpoint names: none for a parameter that never had a gradient."""
    owners = {p: o for o in optimizers for group in o.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        state = {key: torch.zeros_like(parameter) for key in _MOMENTS if f"{name}.{key}" in names}
        if f"{name}.{_SCALAR}" in names:
            state[_SCALAR] = torch.tensor(0.0, device=parameter.device)
        if state and parameter in owners:
            owners[parameter].state[parameter] = state


def _model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state of a model; a tensor that has two names, such as a tied embedding, once."""
    names: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    for name, tensor in state.items():
        names.setdefault(id(tensor), name)
    return {name: state[name].detach() for name in names.values()}


def _optimizer_tensors(model: nn.Module, optimizers: Optimizers) -> dict[str, Tensor]:
    states = {p: state for optimizer in optimizers for p, state in optimizer.state.items()}
    return {
        f"{name}.{key}": value
        for name, parameter in model.named_parameters()
        for key, value in states.get(parameter, {}).items()
    }


def _part(name: str, ranks: Ranks) -> str:
    """The file of one process."""
    number = "" if ranks.size == 1 else f"-{ranks.rank + 1:05}-of-{ranks.size:05}"
    return f"{name}{number}.safetensors"


def _read_parts(path: Path) -> dict[str, Tensor]:
    """All tensors, from one file or from those of several processes. What is not used stays on the disk."""
    parts = sorted(path.parent.glob(f"{path.stem}-*{path.suffix}")) or [path]
    return {name: tensor for part in parts for name, tensor in read_tensors(part).items()}


def _assign(path: Path, stored: dict[str, Tensor], targets: dict[str, Tensor], ranks: Ranks) -> None:
    names = set().union(*ranks.gather(set(targets)))
    if stored.keys() != names:
        differing = sorted(stored.keys() ^ names)
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
