"""Runs jobs side by side: several processes of one thread each on a CPU, one process on a card."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ProcessPoolExecutor, wait
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from projkern.utils.command import Interrupted, stop_signals
from projkern.utils.errors import InputError, ProjkernError

from .jobs import Job, job_seconds, result_of, run_job, work

Result = dict[str, Any]
OnResult = Callable[[Job, Result], None]
POLL = 0.5  # seconds


class Failed(ProjkernError):
    """Some jobs could not be done; the others were."""


def run_jobs(root: Path, jobs: list[Job], store: OnResult, workers: int, seconds: float | None = None) -> None:
    """Run all jobs that have no result yet, each as soon as its source is there, with one progress bar over all.

    Args:
        root: folder of the jobs.
        jobs: to be done; the jobs of their sources are done first.
        store: called with each result, those of earlier calls first.
        workers: processes.
        seconds: to stop after, with everything saved.

    Raises:
        Interrupted: by a signal, or out of time; what was done is stored.
        Failed: jobs that ended in an error, and those that would have built on them.
        SetUpDiffers, InputError: a folder that holds another job or a damaged file; nothing was run.
    """
    sources = {job.source.name: job.source for job in jobs if job.source is not None}
    jobs = list((sources | {job.name: job for job in jobs}).values())
    stored = {job.name: result for job in jobs if (result := result_of(root, job)) is not None}
    for job in jobs:
        if job.name in stored:
            store(job, stored[job.name])
    pending = [job for job in jobs if job.name not in stored]
    if not pending:
        return
    if seconds is not None:
        _require_time(root, pending, seconds)
    progress = _Progress(jobs, set(stored))
    deadline = math.inf if seconds is None else time.monotonic() + seconds
    errors = _run(root, pending, store, workers, deadline, progress)
    state = f"{len(progress.done)} of {len(jobs)} trainings done"
    if errors:
        names = {error: ", ".join(name for name in errors if errors[name] == error) for error in errors.values()}
        raise Failed(f"{state}; " + "; ".join(f"{names[error]}: {error}" for error in names))
    if len(progress.done) < len(jobs):
        raise Interrupted(f"stopped with {state}")


def _run(
    root: Path, pending: list[Job], store: OnResult, workers: int, deadline: float, progress: _Progress
) -> dict[str, str]:
    """Run jobs until all are done or something stops them; returns the errors by job."""
    context = multiprocessing.get_context("spawn")
    updates, stop = context.SimpleQueue(), context.Event()
    errors, running = dict[str, str](), dict[Future[Result], Job]()
    with progress.bar, ProcessPoolExecutor(workers, context, _begin, (updates, stop)) as pool:
        try:
            while True:
                if time.monotonic() > deadline:
                    stop.set()
                ready = [job for job in pending if job.source is None or job.source.name in progress.done]
                for job in ready[: 0 if stop.is_set() else workers - len(running)]:
                    pending.remove(job)
                    running[pool.submit(_work, root, job)] = job
                if not running:
                    break
                for future in wait(running, POLL, FIRST_COMPLETED).done:
                    job = running.pop(future)
                    try:
                        store(job, future.result())
                        progress.done.add(job.name)
                    except Interrupted:
                        stop.set()
                    except BrokenExecutor:  # all workers end with the one that was killed
                        stop.set()
                        errors[job.name] = "a worker was killed; this goes on from its last checkpoint"
                    except (ProjkernError, OSError, MemoryError, torch.OutOfMemoryError) as error:
                        errors[job.name] = f"{type(error).__name__}: {error}"
                progress.show(updates)
        except KeyboardInterrupt:
            pass
        finally:
            stop.set()  # the pool's exit waits for the workers, which save what they have
    return errors | {job.name: "its source failed" for job in pending if job.source and job.source.name in errors}


def default_workers(device: str) -> int:
    """As many as there are cores, or one where a card is used."""
    if device.startswith("cuda") or (device == "auto" and torch.cuda.is_available()):
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _require_time(root: Path, pending: list[Job], seconds: float) -> None:
    shortest = min((j for j in pending if j.source is None or result_of(root, j.source)), key=work)
    needed = job_seconds(root, shortest)
    if needed > seconds:
        minutes = math.ceil(needed / 6) / 10
        raise InputError(
            f"minutes must be at least {minutes}, which the shortest training left, {shortest.name}, takes here; "
            f"it was {seconds / 60:g}"
        )


class _Progress:
    """One bar over all jobs, in their work."""

    def __init__(self, jobs: list[Job], done: set[str]) -> None:
        self._work = {job.name: work(job) for job in jobs}
        self._steps = {job.name: max(1, job.steps) for job in jobs}
        self._share = dict.fromkeys(self._work, 0.0) | dict.fromkeys(done, 1.0)
        self.done = done
        layout = "{desc}{percentage:5.1f}%|{bar}| {elapsed} spent, {remaining} left{postfix}"
        self.bar = tqdm(total=sum(self._work.values()), initial=self._computed(), bar_format=layout)

    def show(self, updates: multiprocessing.SimpleQueue[tuple[str, int]]) -> None:
        while not updates.empty():
            name, step = updates.get()
            self._share[name] = step / self._steps[name]
        self._share |= dict.fromkeys(self.done, 1.0)
        self.bar.set_description_str(f"{len(self.done)} of {len(self._work)} trainings ", refresh=False)
        self.bar.update(self._computed() - self.bar.n)

    def _computed(self) -> float:
        return sum(self._work[name] * share for name, share in self._share.items())


_updates: multiprocessing.SimpleQueue[tuple[str, int]]
_stop: Event


def _begin(updates: multiprocessing.SimpleQueue[tuple[str, int]], stop: Event) -> None:
    """Set up a worker."""
    global _updates, _stop
    _updates, _stop = updates, stop
    for number in stop_signals():  # these reach the parent too, which asks all to stop
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if not torch.cuda.is_available():
        torch.set_num_threads(1)


def _end_with_parent() -> None:
    """A killed parent no longer holds the folder; whoever goes on there must not meet its workers."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(root: Path, job: Job) -> Result:
    def on_step(step: int) -> bool:
        if step % job.config.run.log_every == 0:
            _updates.put((job.name, step))
        return _stop.is_set()

    return run_job(root, job, on_step)
