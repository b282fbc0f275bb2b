"""One training of an arm, and what is measured of it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from projkern.compression.config import CompressConfig
from projkern.compression.measures import held_out_loss
from projkern.compression.projected import ProjectedModel
from projkern.compression.start import choose, make_projected, target_sizes
from projkern.compression.training import compression_job
from projkern.data.text import Windows, open_tokens
from projkern.models.huggingface.causal import PretrainedFolder
from projkern.training.loop import Job, train
from projkern.training.metrics import Metrics
from projkern.utils.device import pick_machine

from .arms import COMMON, Arm

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def train_arm(
    arm: Arm, budget: int, exponent: int, seed: int, source: Path, tokens: Path, held_out: int
) -> dict[str, Any]:
    """Train an arm at one rate from one seed; returns its losses before and after, and what it took.

    Args:
        budget: tokens of training.
        source: folder of the pretrained model.
        tokens: the token file, training text first, then the ``held_out`` windows.
    """
    machine = pick_machine()
    if machine.device.type == "cpu":
        torch.set_num_threads(1)
    config = CompressConfig().replace(**COMMON | arm.settings)
    tuning = {"tokens": budget, "lr": 2.0**exponent, "seed": seed}
    config = config.replace(**tuning, held_out=held_out, log_every=50, checkpoint_every=10**9)
    model = PretrainedFolder.open(source).load(machine.device, torch.float32)
    windows = Windows(open_tokens(tokens), config.text.length, config.tuning.batch_size, held_out, seed)
    torch.manual_seed(seed)  # of random weights
    calibration = Windows(open_tokens(tokens), config.text.length, config.tuning.batch_size, held_out, 0)
    projected_source = model
    if arm.is_random:
        projected_source = type(model)(model.config)
        projected_source.to(machine.device)  # type: ignore[arg-type]
    if arm.through is not None:
        halfway = config.replace(**arm.through, tokens=budget // 2)
        first = _projected(model, calibration, halfway)
        _train(compression_job(first, model, windows, halfway, machine.dtype))
        projected_source = first.merge()
        config = config.replace(tokens=budget // 2)
    projected = _projected(projected_source, calibration, config)
    start = held_out_loss(projected.small, windows, 64)
    job = compression_job(projected, model, windows, config, machine.dtype)
    seconds = _train(job)
    projected.materialise()
    loss = held_out_loss(projected.small, windows, 64)
    return {
        "arm": arm.name,
        "tokens": budget,
        "exponent": exponent,
        "seed": seed,
        "start": start.to_json(),
        "result": loss.to_json(),
        "trained_parameters": sum(p.numel() for p in projected.parameters()),
        "seconds": round(seconds, 1),
        "settings": arm.settings,
        "device": machine.reason,
        "versions": {"torch": torch.__version__},
    }


def _projected(source: PreTrainedModel, windows: Windows, config: CompressConfig) -> ProjectedModel:
    sizes = target_sizes(source.config, config)
    kept, inputs = choose(source, windows, config, sizes)
    return make_projected(source, kept, config, sizes, inputs)


def _train(job: Job) -> float:
    """Train without a trace; returns the seconds."""
    with tempfile.TemporaryDirectory() as folder:
        return train(job, Path(folder) / "checkpoint", Metrics(Path(folder)), lambda step: False)
