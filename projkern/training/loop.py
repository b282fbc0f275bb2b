"""The training loop: one job, from its last checkpoint to its last step."""

import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..utils.command import Interrupted, stop_signals
from ..utils.errors import ProjkernError
from ..utils.seeds import seed_of
from . import checkpoint, distributed
from .metrics import Metrics


class Diverged(ProjkernError, RuntimeError):
    """The loss or the gradient is no longer a finite number."""


class Shards(Protocol):
    """The state of a job whose module the processes share; all of them load and save it together."""

    def load(self, path: Path) -> tuple[int, float]:
        """Load a checkpoint; returns its step and its seconds."""

    def save(self, folder: Path, step: int, seconds: float) -> None:
        """Save the state after a step as the last checkpoint."""


@dataclass(frozen=True)
class Job:
    """One training, as the loop sees it.

    Args:
        name: what messages and the log call it.
        steps: updates in all.
        module: what is trained, and what checkpoints hold.
        optimizers: of its parameters; the learning rates of their groups are the peaks of the schedule.
        rate: from a step to its learning rate as a part of the peak.
        update: makes step k; returns the losses by name, and the norm of the gradient before clipping.
        unit: what a batch consists of: "images".
        batch_size: how many of them a step takes.
        seed: with the step it seeds torch, which draws dropout.
        log_every, checkpoint_every: steps.
        shards: where the processes share the module; else each has all of it.
    """

    name: str
    steps: int
    module: nn.Module
    optimizers: Sequence[torch.optim.Optimizer]
    rate: Callable[[int], float]
    update: Callable[[int], tuple[dict[str, Tensor], Tensor]]
    unit: str
    batch_size: int
    seed: int
    log_every: int
    checkpoint_every: int
    shards: Shards | None = None

    def load(self, path: Path) -> tuple[int, float]:
        """Load a checkpoint; returns its step and its seconds."""
        if self.shards is not None:
            return self.shards.load(path)
        return checkpoint.load(path, self.module, self.optimizers)

    def save(self, folder: Path, step: int, seconds: float) -> None:
        """Save the state after a step; all processes call it."""
        if self.shards is not None:
            self.shards.save(folder, step, seconds)
        elif distributed.current().is_main:
            checkpoint.save(folder, step, seconds, self.module, self.optimizers)


def train(job: Job, folder: Path, metrics: Metrics, on_step: Callable[[int], bool] | None = None) -> float:
    """Train, from the last checkpoint in ``folder`` if there is one, and leave a checkpoint of the last step.

    Step k's batch, dropout and learning rate depend on (seed, k) alone, so that a resumed run continues as if
    it had never stopped.

    Args:
        folder: of the job's checkpoints.
        on_step: called with the number of steps done, in place of a progress bar; returns whether to stop.

    Returns:
        Seconds spent on the job, those before an interruption included.

    Raises:
        Interrupted: by Ctrl-C, SIGTERM, SIGHUP or ``on_step``; a checkpoint was written first.
        Diverged: a loss or gradient that is not finite; the last good checkpoint is kept.
        CheckpointError: a checkpoint that cannot be read or written.
    """
    ranks = distributed.current()
    groups = [group for optimizer in job.optimizers for group in optimizer.param_groups]
    peaks = [group["lr"] for group in groups]
    start, seconds = 0, 0.0
    if last := ranks.from_main(checkpoint.latest(folder)):
        start, seconds = job.load(last)
    if last and start == job.steps:
        return seconds
    if job.shards is None:
        ranks.broadcast(job.module.state_dict().values())
    if ranks.is_main:
        metrics.begin(job.name, job.unit, start)
    start_time, step = time.monotonic() - seconds, start

    def save() -> None:
        _mean(job.name, unlogged, step, folder)
        job.save(folder, step, time.monotonic() - start_time)

    job.module.train()
    unlogged: list[Tensor] = []  # [losses..., norm of the gradient] of the steps since the last log line
    done, total, is_quiet = start * job.batch_size, job.steps * job.batch_size, on_step is not None or not ranks.is_main
    bar = tqdm(
        total=total, initial=done, desc=f"{job.name:>6}", unit=f" {job.unit}", unit_scale=total > 1e6, disable=is_quiet
    )
    with bar as progress, _stop_requests() as stop:
        while step < job.steps:
            for group, peak in zip(groups, peaks):
                group["lr"] = peak * job.rate(step)
            dropout = job.seed * 1_000_003 + step
            torch.manual_seed(dropout if ranks.is_main else seed_of(dropout, ranks.rank, bits=32))
            losses, norm = job.update(step)
            unlogged.append(torch.stack([*(loss.detach() for loss in losses.values()), norm]))
            step += 1
            progress.update(job.batch_size)
            if on_step is not None and on_step(step):
                stop.requested = True
            if step % job.log_every == 0 or step == job.steps:
                *mean, norm_mean = _mean(job.name, unlogged, step, folder).mean(0).tolist()
                if ranks.is_main:
                    rate = len(unlogged) * job.batch_size / metrics.lap()
                    metrics.log(step, dict(zip(losses, mean)), norm_mean, groups[-1]["lr"], rate)
                progress.set_postfix({n: f"{v:.3f}" for n, v in zip(losses, mean)}, refresh=False)
                unlogged.clear()
            if ranks.any(stop.requested):
                save()
                raise Interrupted(f"stopped at step {step} of {job.steps} of {job.name}")
            if step % job.checkpoint_every == 0:
                save()
        save()
        metrics.close()
        if ranks.any(stop.requested):
            raise Interrupted(f"stopped after the last step of {job.name}")
    return time.monotonic() - start_time


def schedule(step: int, steps: int, warmup: int, floor: float = 0.0) -> float:
    """The learning rate of a step as a part of its peak: linear warm-up, then a cosine to ``floor`` (appendix C.1)."""
    warmup = min(warmup, steps // 2)
    if step < warmup:
        return (step + 1) / warmup
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _mean(name: str, unlogged: list[Tensor], step: int, folder: Path) -> Tensor:
    """The losses and norms of steps, averaged over the ranks; raises Diverged where one is not finite."""
    if not unlogged:
        return torch.empty(0)
    ranks = distributed.current()
    own = torch.stack(unlogged).cpu()
    values = ranks.average(own)
    finite = values.isfinite().all(1)
    if not finite.all():
        index = int((~finite).int().argmax())
        where = ""
        if ranks.size > 1:
            culprits = [rank for rank, ok in enumerate(ranks.gather(bool(own[index, :-1].isfinite().all()))) if not ok]
            where = f", on rank {' '.join(map(str, culprits))}" if culprits else ""
        raise Diverged(
            f"the loss or gradient of {name} is not finite at step {step - len(unlogged) + 1 + index}{where}; the last "
            f"good checkpoint is {checkpoint.latest(folder) or 'none'}. A run keeps its settings: try another, with a "
            "lower learning rate."
        )
    return values


@contextmanager
def _stop_requests() -> Iterator[SimpleNamespace]:
    """Turn signals that ask for an end into a flag that the loop reads between steps; a second one ends at once.

    Of several ranks it does not: what signals torchrun, which signals them, may signal them too.
    """
    stop, is_alone = SimpleNamespace(requested=False), distributed.current().size == 1

    def request(number: int, frame: object) -> None:
        if stop.requested and is_alone:
            raise KeyboardInterrupt
        stop.requested = True

    previous = {}
    try:
        for number in stop_signals():
            previous[number] = signal.signal(number, request)
    except ValueError:  # not in the main thread: the caller handles its own signals
        pass
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
