"""A stage as a job of the training loop: its optimizer, and one step."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from ..data.stream import Sequences
from . import distributed
from .config import ComputeConfig, ScheduleConfig
from .loop import Job, schedule
from .stages import Stage


def stage_job(
    stage: Stage[Any], data: Sequences, plan: ScheduleConfig, run: ComputeConfig, dtype: torch.dtype, unit: str
) -> Job:
    """The training of a stage on a data stream, as the loop runs it; ``unit`` is what a batch consists of."""
    optimizer, ranks = make_optimizer(stage, plan), distributed.current()
    ranks.require_same("data", lambda: data.batch(stage.first_batch))

    def update(step: int) -> tuple[dict[str, Tensor], Tensor]:
        with record_function("data"):
            tokens, t = (ranks.share(rows, data.examples_per_task) for rows in data.batch(stage.first_batch + step))
        return forward_backward_step(stage, tokens, t, optimizer, dtype, plan.clip)

    return Job(
        name=str(stage.name),
        steps=stage.steps,
        module=stage.module,
        optimizers=[optimizer],
        rate=lambda step: schedule(step, stage.steps, plan.warmup),
        update=update,
        unit=unit,
        batch_size=plan.batch_size,
        seed=run.seed,
        log_every=run.log_every,
        checkpoint_every=run.checkpoint_every,
    )


def make_optimizer(stage: Stage[Any], plan: ScheduleConfig) -> torch.optim.Optimizer:
    """AdamW over the stage's groups (paper, appendix C.1: Adam with a very weak weight decay)."""
    return torch.optim.AdamW(stage.groups, betas=(0.9, 0.95), weight_decay=plan.weight_decay, fused=True)


def forward_backward_step(
    stage: Stage[Any], tokens: Tensor, t: Tensor, optimizer: torch.optim.Optimizer, dtype: torch.dtype, clip: float
) -> tuple[dict[str, Tensor], Tensor]:
    """One update; returns the losses and the norm of the gradient before clipping. Profilers see its parts by name."""
    with record_function("forward"), torch.autocast(tokens.device.type, dtype=dtype, enabled=dtype != torch.float32):
        losses = (stage.backward or stage.losses)(tokens, t)
        total = sum(stage.loss_weights[name] * loss for name, loss in losses.items())
    assert isinstance(total, Tensor)
    if stage.backward is None:
        with record_function("backward"):
            total.backward()
    distributed.current().average_gradients(stage.module.parameters())
    with record_function("optimiser"):
        norm = distributed.current().whole(nn.utils.clip_grad_norm_(stage.module.parameters(), clip))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return losses, norm
