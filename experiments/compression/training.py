"""One training of an arm, and what is measured of it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from projkern.compression.config import CompressConfig
from projkern.compression.measures import held_out_loss
from projkern.compression.start import choose, make_projected
from projkern.compression.training import compression_job
from projkern.data.text import Windows, open_tokens
from projkern.models.huggingface.causal import Checkpoint
from projkern.training.loop import train
from projkern.training.metrics import Metrics
from projkern.utils.device import keep_freed_memory, pick_machine

from .arms import COMMON, Arm


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
        keep_freed_memory()
    config = CompressConfig().replace(**COMMON | arm.settings)
    tuning = {"tokens": budget, "lr": 2.0**exponent, "seed": seed}
    config = config.replace(**tuning, held_out=held_out, log_every=50, checkpoint_every=10**9)
    model = Checkpoint.open(source).load(machine.device, torch.float32)
    windows = Windows(open_tokens(tokens), config.text.length, config.tuning.batch_size, held_out, seed)
    calibration = Windows(open_tokens(tokens), config.text.length, config.tuning.batch_size, held_out, 0)
    if arm.is_random:
        torch.manual_seed(seed)
        kept, _ = choose(model, calibration, config)
        model = type(model)(model.config)
        projected = make_projected(model, kept, config)
    else:
        kept, inputs = choose(model, calibration, config)
        projected = make_projected(model, kept, config, inputs)
    start = held_out_loss(projected.small, windows, 64)
    job = compression_job(projected, model, windows, config, machine.dtype)
    with tempfile.TemporaryDirectory() as folder:
        seconds = train(job, Path(folder) / "checkpoint", Metrics(Path(folder)), lambda step: False)
    projected.materialise()
    loss = held_out_loss(projected.small, windows, 64)
    return {
        "arm": arm.name,
        "tokens": job.steps * job.batch_size,
        "steps": job.steps,
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
