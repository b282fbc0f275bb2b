"""Checkpoints: a folder of safetensors and JSON for each saved step, put in place by one rename.

    checkpoint/P_1-4/step-000500/{model.safetensors, optimizer.safetensors, state.json}

Where several processes have a part of the model each, each writes its own, model-00001-of-00002.safetensors and so on,
and any number of processes reads them: every tensor has one name, whichever file it is in.

Only the last one of a stage is kept, and it is dropped only once its successor is in place.
"""

import shutil
from collections.abc import Collection, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..models.names import ModelName
from ..utils.errors import InputError, ProjkernError
from ..utils.files import Format, hidden_name, new_folder
from ..utils.tensors import read_tensors, write_tensors
from .distributed import ALONE, Ranks

MODEL, OPTIMIZER = "model.safetensors", "optimizer.safetensors"
SHARDS = "shards"
"""Folder of the state of a module that processes share (see ``sharded.py``)."""
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
    """The last complete checkpoint in a stage's folder; raises OSError where that may not be read."""
    if not folder.exists():
        return None
    return max((path for path in folder.iterdir() if path.name.startswith("step-")), default=None)


def save(folder: Path, step: int, seconds: float, model: nn.Module, optimizers: Optimizers) -> None:
    """Save a training state, after ``step`` steps and ``seconds`` of work, as the stage's last checkpoint.

    Raises:
        CheckpointError: it could not be written; the one before it is kept.
    """
    Parts(model, optimizers, ALONE).save(folder, step, seconds)


def step_folder(folder: Path, step: int) -> Path:
    """Where a stage's checkpoint of a step lies."""
    return folder / f"step-{step:08d}"


@contextmanager
def new_step(folder: Path, step: int, seconds: float) -> Iterator[Path]:
    """A folder to fill with a training state, which then becomes the stage's last checkpoint.

    Raises:
        CheckpointError: it could not be written; the one before it is kept.
    """
    target = step_folder(folder, step)
    try:
        with new_folder(target) as partial:
            yield partial
            FORMAT.write(partial / "state.json", {"step": step, "seconds": seconds})
    except OSError as error:
        raise not_written(target, error) from error
    for old in (*folder.glob("step-*"), *folder.glob(".*partial")):  # hidden: left by a process that was killed
        if old != target:
            shutil.rmtree(old)


def not_written(target: Path, error: object) -> CheckpointError:
    """The error of a checkpoint that could not be written; it names the last one that was."""
    last_good = latest(target.parent) or "none"
    return CheckpointError(f"could not write {target}: {error}; the last good checkpoint is {last_good}")


def write_model(folder: Path, model: nn.Module) -> None:
    """Write a module's tensors into a checkpoint's folder; raises OSError where they cannot be."""
    write_tensors(folder / MODEL, model_tensors(model))


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
    if (path / SHARDS).exists() and not (path / MODEL).exists():
        raise CheckpointError(f"{path} must hold a whole model; it is in shards, of a training that has not ended")
    try:
        weights = _read_parts(path / MODEL)
        moments = _read_parts(path / OPTIMIZER) if optimizers else {}
    except InputError as error:
        raise CheckpointError(str(error)) from error
    _assign(path / MODEL, weights, model_tensors(model), ranks)
    if optimizers:
        make_states(model, optimizers, moments.keys())
        _assign(path / OPTIMIZER, moments, optimizer_tensors(model, optimizers), ranks)
    return step, seconds


@dataclass(frozen=True)
class Parts:
    """The state of a training of whose module each process has a part; all of them load and save it together.

    Args:
        module: this process's part.
        optimizers: of its parameters.
        ranks: the processes.
    """

    module: nn.Module
    optimizers: Optimizers
    ranks: Ranks

    def save(self, folder: Path, step: int, seconds: float) -> None:
        """As ``save``, each process a file of its own."""
        target = step_folder(folder, step)
        if self.ranks.from_main(target.exists()):
            return
        with self.ranks.on_main(new_step(folder, step, seconds)):
            partial = hidden_name(target)
            try:
                write_tensors(partial / _part(MODEL, self.ranks), model_tensors(self.module))
                write_tensors(partial / _part(OPTIMIZER, self.ranks), optimizer_tensors(self.module, self.optimizers))
            except OSError as error:
                raise not_written(target, error) from error
            self.ranks.wait()

    def load(self, path: Path) -> tuple[int, float]:
        """As ``load``, whatever number of processes has saved it."""
        return load(path, self.module, self.optimizers, self.ranks)


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


def make_states(model: nn.Module, optimizers: Optimizers, names: Collection[str]) -> None:
    """Give the optimizers the states that a checkpoint names: none for a parameter that never had a gradient."""
    owners = {p: o for o in optimizers for group in o.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        state = {key: torch.zeros_like(parameter) for key in _MOMENTS if f"{name}.{key}" in names}
        if f"{name}.{_SCALAR}" in names:
            state[_SCALAR] = torch.tensor(0.0, device=parameter.device)
        if state and parameter in owners:
            owners[parameter].state[parameter] = state


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state of a model; a tensor that has two names, such as a tied embedding, once."""
    names: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    for name, tensor in state.items():
        names.setdefault(id(tensor), name)
    return {name: state[name].detach() for name in names.values()}


def optimizer_tensors(model: nn.Module, optimizers: Optimizers) -> dict[str, Tensor]:
    """What optimizers keep of each parameter of a model, by its name and theirs."""
    states = {p: state for optimizer in optimizers for p, state in optimizer.state.items()}
    return {
        f"{name}.{key}": value
        for name, parameter in model.named_parameters()
        for key, value in states.get(parameter, {}).items()
    }


def _part(name: str, ranks: Ranks) -> str:
    """The file of one process in place of the whole one."""
    stem, suffix = Path(name).stem, Path(name).suffix
    return name if ranks.size == 1 else f"{stem}-{ranks.rank + 1:05}-of-{ranks.size:05}{suffix}"


def _read_parts(path: Path) -> dict[str, Tensor]:
    """All tensors, from one file or from those of several processes. What is not used stays on the disk."""
    parts = sorted(path.parent.glob(f"{path.stem}-*{path.suffix}")) or [path]
    return {name: tensor for part in parts for name, tensor in read_tensors(part).items()}


def require_same_names(path: Path, stored: Set[str], required: Set[str]) -> None:
    """Raise CheckpointError unless a checkpoint has the tensors of a model, and no others."""
    if differing := sorted(stored ^ required):
        raise CheckpointError(f"{path} is of another model: {len(differing)} tensors differ, such as {differing[0]}")


def _assign(path: Path, stored: dict[str, Tensor], targets: dict[str, Tensor], ranks: Ranks) -> None:
    require_same_names(path, stored.keys(), set().union(*ranks.gather(set(targets))))
    for name, target in targets.items():
        if stored[name].shape != target.shape or stored[name].dtype != target.dtype:
            raise CheckpointError(
                f"{path} is of another shape: {name} must be {target.dtype} {tuple(target.shape)}; "
                f"it was {stored[name].dtype} {tuple(stored[name].shape)}"
            )
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(stored[name])
