"""A whole run in one folder: every stage, then the evaluation, the table and the pictures."""

import platform
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data import VQVAE, Palette
from ..data.stream import Images
from ..data.tokens import TOKENIZER
from ..kernels.dispatch import describe
from ..models import GPT
from ..models.names import SOURCE, ModelName
from ..utils.device import Machine, free_memory, pick_machine
from ..utils.errors import InputError
from ..utils.files import SETTINGS, write_json
from ..utils.version import __version__
from . import checkpoint, distributed
from .config import TrainConfig
from .data import SPLITS, check_data, open_data, run_palette, with_digests
from .distributed import Ranks
from .folder import PALETTE, open_run, read_coder, resumed_config
from .loop import Job, train
from .losses import another_task, evaluate
from .metrics import Metrics
from .report import write_report
from .source import Source, source_of
from .stages import ImageModel, ImageStage, make_stage, stage_names
from .steps import stage_job


def run(out: Path, config: TrainConfig, *, resume: bool = False, overwrite: bool = False) -> dict[str, Any]:
    """Train all models of a run, continuing where its folder left off, and report on them.

    The folder is touched only once the device and the data are known to be there.

    Returns:
        What ``summary.json`` holds.

    Raises:
        InputError, OSError: settings that cannot be met, or a folder that cannot be used (see ``open_run``).
    """
    return distributed.run_together(_run, out, config, resume, overwrite)


def _run(out: Path, config: TrainConfig, ranks: Ranks, resume: bool, overwrite: bool) -> dict[str, Any]:
    machine = pick_machine(distributed.local_device(config.run.device), config.run.dtype)
    is_resumed = resume and (out / SETTINGS).exists()
    config = resumed_config(out, config.flat()) if is_resumed else config.absolute()
    if config.run.shard:
        from .sharded import require_torch  # here, as torch's part of it takes a second to import

        require_torch()
    ranks.require_even(config.schedule.batch_size, config.data.examples_per_task, config.schedule.source_batch)
    check_data(config)
    for name, folder in (("source", config.model.source), ("data", config.data.folder)):
        if overwrite and folder is not None and Path(folder).resolve().is_relative_to(out.resolve()):
            raise InputError(f"{name} must not be in the folder that is to be overwritten, {out}; it was {folder}")
    has_begun = checkpoint.latest(checkpoint.stage_folder(out, SOURCE)) is not None and not overwrite
    needs_source = config.model.source is not None and not has_begun  # a checkpoint holds all of it
    source = source_of(config) if needs_source and (ranks.is_main or not config.run.shard) else None
    if not is_resumed:
        source_digest = ranks.from_main(source.digest if source else None)
        config = with_digests(config).replace(source_digest=source_digest)
    with ranks.on_main(open_run(out, config, resume=resume, overwrite=overwrite)):
        return _train_all(out, config, machine, ranks, source)


def _train_all(out: Path, config: TrainConfig, machine: Machine, ranks: Ranks, start: Source | None) -> dict[str, Any]:
    print(f"Training on {machine.reason}; projection by {describe(machine.device)}.")
    for note in start.notes if start else ():
        print(f"Source {config.model.source}: {note}")
    with ranks.main_first():
        coder = _coder(out, config, start.coder if start else None)
    palette = coder if isinstance(coder, Palette) else None
    training, validation = (open_data(config, split, machine.device, palette) for split in SPLITS)
    metrics = Metrics(out)
    seconds = 0.0
    stages: list[ImageStage] = []
    source = None
    for name in stage_names(config):
        weights = start.weights(config.data.positions) if name == SOURCE and start is not None else None
        stage, job = _stage_and_job(name, config, machine, training, source, weights)
        seconds += train(job, checkpoint.stage_folder(out, name), metrics)
        stage.module.eval()
        if name == SOURCE:
            assert isinstance(stage.module, GPT)
            source = stage.module
        stages.append(stage)
    ranks.finish()
    start_time = time.monotonic()
    models = [model for stage in stages for model in stage.models]
    if config.run.shard:
        device = _device_for(stages, machine.device)
        validation = open_data(config, "validation", device, palette)
    summary = {
        "models": {str(model.name): _row(model, validation, config.run.eval_images) for model in models},
        "seconds": round(seconds + time.monotonic() - start_time, 1),
        "device": machine.reason,
        "versions": {"projkern": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }
    write_report(out, config, summary, models, validation)
    write_json(out / "summary.json", summary)
    return summary


def _stage_and_job(
    name: ModelName,
    config: TrainConfig,
    machine: Machine,
    data: Images,
    source: GPT | None,
    weights: dict[str, Tensor] | None,
) -> tuple[ImageStage, Job]:
    """A stage, which starts from ``weights`` if they are given, and its training."""
    if not (config.run.shard and (name == SOURCE or name.is_projected)):
        stage = make_stage(name, config, machine.device, source)
        if weights is not None:
            stage.module.load_state_dict(weights)
        return stage, stage_job(stage, data, config.schedule, config.run, machine.dtype, "images")
    from .sharded import sharded_job, whole_stage

    stage = whole_stage(name, config, source)
    if weights is not None:
        stage.module.load_state_dict(weights)
    return stage, sharded_job(stage, config, machine, data)


def _device_for(stages: list[ImageStage], device: torch.device) -> torch.device:
    """Put all models onto a device that has room for them and as much again, or else onto the CPU."""
    size = sum(p.nbytes for stage in stages for p in stage.module.parameters())
    chosen = device if 2 * size < free_memory(device) else torch.device("cpu")
    for stage in stages:
        stage.module.to(chosen)
    return chosen


def _coder(out: Path, config: TrainConfig, source_coder: Palette | VQVAE | None) -> Palette | VQVAE:
    """What decodes the run's tokens to images, stored in its folder.

    The tokenizer of tokenised images; for SynthMNIST the source's palette, or one fitted at the run's start.
    """
    path = out / (PALETTE if config.data.folder is None else TOKENIZER)
    if not path.exists():
        if config.data.folder is not None:
            VQVAE.load(Path(config.data.folder) / TOKENIZER).save(path)
        elif isinstance(source_coder, Palette):
            source_coder.save(path)
        else:
            run_palette(config.data).save(path)
    return read_coder(out, config)


def _row(model: ImageModel, data: Images, images: int) -> dict[str, Any]:
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
