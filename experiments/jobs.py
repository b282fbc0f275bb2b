"""Jobs: one training each, in a folder of its own, with its result beside its checkpoints.

    ROOT/SIZE/JOB/{job.json, checkpoint/, metrics.jsonl, tensorboard/, result.json}

A job that was interrupted goes on from its last checkpoint; one that has its result is not run again.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import torch

from projkern.data import SynthMNIST
from projkern.models import GPT
from projkern.models.names import SOURCE, ModelName
from projkern.training import checkpoint
from projkern.training.config import TrainConfig
from projkern.training.data import open_data
from projkern.training.loop import train
from projkern.training.metrics import Metrics
from projkern.training.stages import ImageStage, count_of, gpt_config, make_stage
from projkern.training.steps import stage_job
from projkern.utils.device import keep_freed_memory, pick_machine
from projkern.utils.errors import InputError
from projkern.utils.files import is_nonempty, write_json
from projkern.utils.version import __version__

from .measures import measure
from .settings import as_json, complete
from .step_cost import flops_per_step, seconds_of_parts
from .tangents import Tangents, measure_tangents

HELD_OUT_SEED = 0
"""Every model of every seed is evaluated on the same images, so that only its training differs."""


OVERHEAD = 40_000
"""A step of the smallest models takes as long as one of about so many parameters."""


class SetUpDiffers(InputError):
    """A folder or a file that holds the results of another set-up."""


@dataclass(frozen=True)
class Job:
    """One training and what is measured of it.

    Args:
        name: of its folder.
        stage: what is trained, as ``training/stages.py`` names it.
        config: all its settings.
        source: the job that trains the M_1 that it starts from.
        shown: what results say in place of settings of ``config`` that belong to this machine, such as folders.
        tangents: measured in place of the model, which then is an unconditional one of SynthMNIST.
    """

    name: str
    stage: ModelName
    config: TrainConfig
    source: Job | None = None
    shown: Mapping[str, str] = field(default_factory=dict)
    tangents: Tangents | None = None

    def settings(self) -> dict[str, Any]:
        """All that determines the result, as JSON that names no folder of this machine."""
        settings = {name: self.shown.get(name, value) for name, value in as_json(self.config).items()}
        settings |= {"stage": str(self.stage), "source": self.source and self.source.settings()}
        return settings if self.tangents is None else settings | {"tangents": self.tangents.to_json()}

    @property
    def seed(self) -> int:
        return self.config.run.seed

    @property
    def steps(self) -> int:
        return self.config.schedule.source_steps if self.stage == SOURCE else self.config.schedule.steps


def require_same(where: str, stored: Mapping[str, Any], planned: Mapping[str, Any]) -> None:
    """Raises SetUpDiffers, which names the settings that differ; those of before are understood (see ``complete``)."""
    stored, planned = complete(stored), complete(planned)
    differing = sorted(k for k in stored.keys() | planned.keys() if stored.get(k) != planned.get(k))
    if differing:
        shown = ", ".join(f"{k} = {stored.get(k)} there and {planned.get(k)} here" for k in differing[:3])
        more = f", and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise SetUpDiffers(
            f"{where} holds a result of another set-up ({shown}{more}); give another folder, or delete it"
        )


def result_of(root: Path, job: Job) -> dict[str, Any] | None:
    """A job's stored result, None where it has not ended.

    Raises:
        SetUpDiffers: the folder is another job's.
        InputError: a damaged file.
    """
    folder = root / job.name
    settings = _read_json(folder / "job.json")
    if settings is not None:
        require_same(str(folder), settings, job.settings())
    elif is_nonempty(folder):
        raise InputError(f"{folder} must have a job.json, the set-up of what it holds; delete it to have it run again")
    return _read_json(folder / "result.json")


def _read_json(path: Path) -> dict[str, Any] | None:
    """The object in a file, None where there is no such file; raises InputError where it is damaged."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); delete {path.parent} to have it run again") from error
    if not isinstance(value, dict):
        raise InputError(
            f"{path} must hold an object; it held {type(value).__name__}. Delete {path.parent} to have it run again"
        )
    return value


def run_job(root: Path, job: Job, on_step: Callable[[int], bool]) -> dict[str, Any]:
    """Train, measure and store; returns the result.

    Args:
        root: folder of all jobs of this size.
        on_step: called with the number of steps done; returns whether to stop.

    Raises:
        SetUpDiffers, InputError: as ``result_of``; Interrupted, Diverged and others as ``train``.
    """
    if (stored := result_of(root, job)) is not None:
        return stored
    folder, config = root / job.name, job.config
    machine = pick_machine(config.run.device, config.run.dtype)
    if machine.device.type == "cpu":
        keep_freed_memory()
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "job.json", job.settings())
    training = open_data(config, "train", machine.device)
    held_out = open_data(config.replace(seed=HELD_OUT_SEED), "validation", machine.device)

    def make() -> ImageStage:
        return make_stage(job.stage, config, machine.device, _source(root, job, machine.device))

    stage = make()
    flops = flops_per_step(stage, training)
    parts = seconds_of_parts(make, training, config, machine.dtype)
    seconds = train(
        stage_job(stage, training, config.schedule, config.run, machine.dtype, "images"),
        checkpoint.stage_folder(folder, job.stage),
        Metrics(folder),
        on_step,
    )
    stage.module.eval()
    images = config.run.eval_images
    if job.tangents is None:
        models = {str(model.name): measure(model, held_out, images) for model in stage.models}
    else:
        assert isinstance(stage.module, GPT) and isinstance(training, SynthMNIST) and isinstance(held_out, SynthMNIST)
        base = measure(stage.models[0], held_out, images)
        should_stop = partial(on_step, stage.steps)
        tangents = measure_tangents(stage.module, training, held_out, job.tangents, should_stop)
        models = {"tangent": tangents | {"base_everyday": base}}
    result = {
        "seed": job.seed,
        "settings": job.settings(),
        "models": models,
        "steps": stage.steps,
        "images": stage.steps * config.schedule.batch_size,
        "flops": stage.steps * flops,
        "seconds": round(seconds, 1),
        "parts": {name: round(value, 6) for name, value in parts.items()},
        "device": machine.reason,
        "versions": {"projkern": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }
    write_json(folder / "result.json", result)
    return result


def _source(root: Path, job: Job, device: torch.device) -> GPT | None:
    """The pretrained model that a job starts from."""
    if job.source is None:
        return None
    stage = make_stage(SOURCE, job.config, device)
    last = checkpoint.latest(checkpoint.stage_folder(root / job.source.name, SOURCE))
    if last is None:
        raise InputError(f"{root / job.source.name} must hold a trained {SOURCE}; it holds none")
    checkpoint.load(last, stage.module)
    assert isinstance(stage.module, GPT)
    return stage.module


def work(job: Job) -> float:
    """About how much a job computes, in steps times parameters; says how a progress bar is to advance."""
    if job.stage.is_projected:
        scales = job.config.operator.scales if job.stage.scale is None else (job.stage.scale,)
        size = sum(_size(job.config, s) for s in (Fraction(1), *scales))
    else:
        assert job.stage.scale is not None
        size = _size(job.config, job.stage.scale)
    return job.steps * size


def _size(config: TrainConfig, scale: Fraction) -> int:
    return count_of(gpt_config(config, scale)) + OVERHEAD


def job_seconds(root: Path, job: Job) -> float:
    """How long a job will take here, from the time of a few of its steps; its source's job must be done."""
    machine = pick_machine(job.config.run.device, job.config.run.dtype)
    data = open_data(job.config, "train", machine.device)

    def make() -> ImageStage:
        return make_stage(job.stage, job.config, machine.device, _source(root, job, machine.device))

    parts = seconds_of_parts(make, data, job.config, machine.dtype)
    return job.steps * sum(parts.values())
