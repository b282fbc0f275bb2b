"""A source and its operators shared among the processes: FSDP2 by layer pairs, and checkpoints in shards.

Each rank keeps a part of every parameter, of its gradient and of its moments. A layer is whole, on all ranks, for as
long as it runs forward or backward (``projkern/models/pairs.py``). The main process has the whole modules in its memory
beside that: they give the first weights, and take the last ones, for what comes after the training.

    checkpoint/P_1-4/step-00000500/{shards/*.safetensors, state.json}, of the last step model.safetensors too
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from ..data.stream import Sequences
from ..models import GPT, ProjectionOperator
from ..models.names import ModelName
from ..models.pairs import LayerPairs, named_parts
from ..utils.device import Machine
from ..utils.errors import MissingDependency
from ..utils.files import hidden_name
from . import checkpoint, distributed
from .checkpoint import SHARDS, CheckpointError
from .config import TrainConfig
from .loop import Job
from .stages import ImageStage, gpt_config, make_stage
from .steps import stage_job

META = torch.device("meta")


def require_torch() -> None:
    """Raise MissingDependency where this torch cannot save shards in safetensors."""
    if not hasattr(dcp, "HuggingFaceStorageReader"):
        raise MissingDependency(f"--shard needs a later torch, such as 2.13; this is {torch.__version__}")


def whole_stage(name: ModelName, config: TrainConfig, source: GPT | None) -> ImageStage:
    """A stage as ``make_stage`` makes it, in the memory of the main process; the others' weights take none.

    Args:
        source: as ``make_stage`` takes it, from such a stage.
    """
    device = torch.device("cpu" if distributed.current().is_main else "meta")
    with device:
        return make_stage(name, config, device, source)


def sharded_job(whole: ImageStage, config: TrainConfig, machine: Machine, data: Sequences) -> Job:
    """The training of a stage, shared among the processes.

    Args:
        whole: the stage, as ``whole_stage`` makes it, which gives the first weights and takes the last ones.
    """
    gc.collect()  # what FSDP has made for the stage before

    def shard(source: GPT, operators: Sequence[ProjectionOperator]) -> LayerPairs:
        return _shard(LayerPairs(source, operators), machine)

    with META:
        stage = make_stage(whole.name, config, META, GPT(gpt_config(config, Fraction(1))), shard)
    _fill(stage.module, parts_of(whole.module))
    job = stage_job(stage, data, config.schedule, config.run, machine.dtype, "images")
    return replace(job, shards=SharedState(stage.module, job.optimizers, whole.module, stage.steps))


def parts_of(whole: nn.Module) -> dict[str, Tensor]:
    """The tensors of a stage's module by the names that they have in its layer pairs."""
    if isinstance(whole, GPT):
        return named_parts(whole)
    source, operators = whole.get_submodule("source"), whole.get_submodule("operators").children()
    assert isinstance(source, GPT)
    return named_parts(source, [o for o in operators if isinstance(o, ProjectionOperator)])


@dataclass(frozen=True)
class SharedState:
    """The state of a training whose module is shared among the processes; all of them load and save it together.

    Args:
        module: this process's part.
        optimizers: of its parameters.
        whole: the module that takes the weights of the last step; without memory on all but the main process.
        steps: of the training.
    """

    module: nn.Module
    optimizers: Sequence[torch.optim.Optimizer]
    whole: nn.Module
    steps: int

    def save(self, folder: Path, step: int, seconds: float) -> None:
        """Save the state after ``step`` steps and ``seconds`` of work as the stage's last checkpoint.

        Raises:
            CheckpointError: it could not be written; the one before it is kept.
        """
        ranks, target = distributed.current(), checkpoint.step_folder(folder, step)
        if ranks.from_main(target.exists()):
            return
        with ranks.on_main(checkpoint.new_step(folder, step, seconds)):
            tensors, path = self._tensors(), str(hidden_name(target) / SHARDS)
            files = {name: _file_of(name) for name in tensors}
            with _one_error(lambda error: checkpoint.not_written(target, error)):
                dcp.save(tensors, storage_writer=dcp.HuggingFaceStorageWriter(path, files, save_distributed=True))
            if step == self.steps:
                self._gather()
                if ranks.is_main:
                    checkpoint.write_model(hidden_name(target), self.whole)
        ranks.wait()

    def load(self, path: Path) -> tuple[int, float]:
        """Load a checkpoint that any number of processes has saved; of the last step, into the whole module alone.

        Returns:
            The step and the seconds that were saved with it.

        Raises:
            CheckpointError: anything that is not a whole checkpoint of such a module.
        """
        step, seconds = checkpoint.read_state(path)
        if step == self.steps:
            if distributed.current().is_main:
                checkpoint.load(path, self.whole)
            return step, seconds
        with _one_error(lambda error: CheckpointError(f"{path} cannot be read: {error}")):
            reader = dcp.HuggingFaceStorageReader(str(path / SHARDS))
            stored = reader.read_metadata().state_dict_metadata
            for name, tensor in stored.items():  # a file that is missing would leave its part as it was
                assert isinstance(tensor, TensorStorageMetadata)
                if sum(chunk.sizes.numel() for chunk in tensor.chunks) != tensor.size.numel():
                    raise CheckpointError(f"{path} lacks a part of {name}")
            checkpoint.make_states(self.module, self.optimizers, stored.keys())
            tensors = self._tensors()
            checkpoint.require_same_names(path, stored.keys(), tensors.keys())
            dcp.load(tensors, storage_reader=reader)
        return step, seconds

    def _tensors(self) -> dict[str, Tensor]:
        model = checkpoint.model_tensors(self.module)
        return model | checkpoint.optimizer_tensors(self.module, self.optimizers)

    def _gather(self) -> None:
        """Copy the weights into the whole module, a tensor at a time."""
        ranks, parts = distributed.current(), parts_of(self.whole)
        for name, tensor in self.module.state_dict().items():
            tensor = ranks.whole(tensor)
            if ranks.is_main:
                parts[name].copy_(tensor)


@contextmanager
def _one_error(describe: Callable[[object], CheckpointError]) -> Iterator[None]:
    """Turn the errors of one or more ranks, which all of them get, into one of ours."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # as it is for one process
            yield
    except CheckpointException as error:
        rank, (reason, _) = min(error.failures.items())
        raise describe(reason if distributed.current().size == 1 else f"{reason}, on rank {rank}") from error
    except (OSError, SafetensorError) as error:
        raise describe(error) from error


def _file_of(name: str) -> int:
    """Which file of a rank holds a tensor: each layer has one, which is put together in memory to be written."""
    module, _, rest = name.partition(".")
    return 2 + int(rest.partition(".")[0]) if module == "layers" else 1


def _shard(pairs: LayerPairs, machine: Machine) -> LayerPairs:
    """Give this process its part of every parameter, not filled yet; one process alone has all."""
    ranks = distributed.current()
    if ranks.size > 1:
        mesh = init_device_mesh(machine.device.type, (ranks.size,))
        # Under autocast parameters travel as they are used: else each would be cast, and the copy kept until backward.
        param_dtype = None if machine.dtype == torch.float32 else machine.dtype
        reduce_dtype = None if param_dtype is None else torch.float32
        policy = MixedPrecisionPolicy(param_dtype, reduce_dtype, cast_forward_inputs=False)
        for layer in pairs.layers:
            fully_shard(layer, mesh=mesh, mp_policy=policy)
        fully_shard(pairs, mesh=mesh)
    return pairs.to_empty(device=machine.device)


def _fill(pairs: nn.Module, parts: dict[str, Tensor]) -> None:
    """Give all processes their parts of the main one's tensors."""
    if distributed.current().size == 1:
        pairs.load_state_dict(parts)
        return
    own: dict[str, Any] = {**parts} if distributed.current().is_main else {}
    set_model_state_dict(pairs, own, options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True))
