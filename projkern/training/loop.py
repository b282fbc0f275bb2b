"""The training loop: one stage, from its last checkpoint to its last step."""

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.profiler import record_function
from tqdm import tqdm

from ..data.stream import Images
from ..models.names import ModelName
from ..utils.command import Interrupted
from ..utils.errors import ProjkernError
from . import checkpoint
from .config import ScheduleConfig, TrainConfig
from .metrics import Metrics
from .stages import Stage


class Diverged(ProjkernError, RuntimeError):
    """The loss or the gradient is no longer a finite number."""


def train(
    stage: Stage,
    data: Images,
    config: TrainConfig,
    dtype: torch.dtype,
    folder: Path,
    metrics: Metrics,
    on_step: Callable[[int], bool] | None = None,
) -> float:
    """Train a stage, from its last checkpoint if it has one, and leave a checkpoint of the last step.

    Step k's batch, dropout and learning rate depend on (seed, k) alone, so that a resumed run continues as if
    it had never stopped.

    Args:
        on_step: called with the number of steps done, in place of a progress bar; returns whether to stop.

    Returns:
        Seconds spent on the stage, those before an interruption included.

    Raises:
        Interrupted: by Ctrl-C, SIGTERM or ``on_step``; a checkpoint was written first.
        Diverged: a loss or gradient that is not finite; the last good checkpoint is kept.
        CheckpointError: a checkpoint that cannot be read or written.
    """
    plan, run = config.schedule, config.run
    optimizer = make_optimizer(stage, plan)
    peaks = [group["lr"] for group in optimizer.param_groups]
    start, seconds = 0, 0.0
    if last := checkpoint.latest(folder):
        start, seconds = checkpoint.load(last, stage.module, optimizer)
    if last and start == stage.steps:
        return seconds
    metrics.begin(stage.name, start)
    start_time, step = time.monotonic() - seconds, start

    def save() -> None:
        _require_finite(stage.name, unlogged, step, folder)
        checkpoint.save(folder, step, time.monotonic() - start_time, stage.module, optimizer)

    stage.module.train()
    unlogged: list[Tensor] = []  # [losses..., norm of the gradient] of the steps since the last log line
    total = stage.steps * plan.batch_size
    images, is_quiet = start * plan.batch_size, on_step is not None
    progress = tqdm(total=total, initial=images, desc=f"{stage.name!s:>6}", unit=" images", disable=is_quiet)
    with progress, _stop_requests() as stop:
        while step < stage.steps:
            for group, peak in zip(optimizer.param_groups, peaks):
                group["lr"] = peak * schedule(step, stage.steps, plan.warmup)
            with record_function("data"):
                tokens, t = data.batch(stage.first_batch + step)
            torch.manual_seed(run.seed * 1_000_003 + step)  # dropout
            losses, norm = forward_backward_step(stage, tokens, t, optimizer, dtype, plan.clip)
            unlogged.append(torch.stack([*(loss.detach() for loss in losses.values()), norm]))
            step += 1
            progress.update(plan.batch_size)
            if on_step is not None and on_step(step):
                stop.requested = True
            if step % run.log_every == 0 or step == stage.steps:
                *mean, norm_mean = _require_finite(stage.name, unlogged, step, folder).mean(0).tolist()
                rate = len(unlogged) * plan.batch_size / metrics.lap()
                metrics.log(step, dict(zip(losses, mean)), norm_mean, optimizer.param_groups[-1]["lr"], rate)
                progress.set_postfix({n: f"{v:.3f}" for n, v in zip(losses, mean)}, refresh=False)
                unlogged.clear()
            if stop.requested:
                save()
                raise Interrupted(f"stopped at step {step} of {stage.steps} of {stage.name}")
            if step % run.checkpoint_every == 0:
                save()
        save()
        metrics.close()
        if stop.requested:
            raise Interrupted(f"stopped after the last step of {stage.name}")
    return time.monotonic() - start_time


def make_optimizer(stage: Stage, plan: ScheduleConfig) -> torch.optim.Optimizer:
    """AdamW over the stage's groups (paper, appendix C.1: Adam with a very weak weight decay)."""
    return torch.optim.AdamW(stage.groups, betas=(0.9, 0.95), weight_decay=plan.weight_decay, fused=True)


def forward_backward_step(
    stage: Stage, tokens: Tensor, t: Tensor, optimizer: torch.optim.Optimizer, dtype: torch.dtype, clip: float
) -> tuple[dict[str, Tensor], Tensor]:
    """One update; returns the losses and the norm of the gradient before clipping. Profilers see its parts by name."""
    with record_function("forward"), torch.autocast(tokens.device.type, dtype=dtype, enabled=dtype != torch.float32):
        losses = stage.losses(tokens, t)
        total = sum(stage.loss_weights[name] * loss for name, loss in losses.items())
    assert isinstance(total, Tensor)
    with record_function("backward"):
        total.backward()
    with record_function("optimiser"):
        norm = nn.utils.clip_grad_norm_(stage.module.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return losses, norm


def schedule(step: int, steps: int, warmup: int) -> float:
    """The learning rate of a step as a part of its peak: linear warm-up, then a cosine to zero (appendix C.1)."""
    warmup = min(warmup, steps // 2)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _require_finite(name: ModelName, unlogged: list[Tensor], step: int, folder: Path) -> Tensor:
    if not unlogged:
        return torch.empty(0)
    values = torch.stack(unlogged).cpu()
    finite = values.isfinite().all(1)
    if not finite.all():
        first = step - len(unlogged) + 1 + int((~finite).int().argmax())
        raise Diverged(
            f"the loss or gradient of {name} is not finite at step {first}; the last good checkpoint is "
            f"{checkpoint.latest(folder) or 'none'}. A run keeps its settings: try another, with a lower learning rate."
        )
    return values


@contextmanager
def _stop_requests() -> Iterator[SimpleNamespace]:
    """Turn SIGINT and SIGTERM into a flag that the loop reads between steps; a second one ends at once."""
    stop = SimpleNamespace(requested=False)

    def request(number: int, frame: object) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = True

    previous = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, request)
    except ValueError:  # not in the main thread: the caller handles its own signals
        pass
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
