"""Runs jobs side by side: several processes of one thread each on a CPU, one process on a card."""

from __future__ import annotations

import math
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Container
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ProcessPoolExecutor, wait
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from projkern.training.loop import Interrupted

from .jobs import Job, job_seconds, result_of, run_job, work

OnResult = Callable[[Job, dict[str, Any]], None]
POLL = 0.5  # seconds


class Stopped(Exception):
    """Not all jobs are done: the time was up or somebody asked to stop. What was done is stored."""


class Failed(RuntimeError):
    """Some jobs could not be done; the others were."""


def run_jobs(root: Path, jobs: list[Job], store: OnResult, workers: int, seconds: float | None = None) -> None:
    """Run all jobs that have no result yet, each as soon as its source is there, with one progress bar over all.

    Args:
        root: folder of the jobs.
        jobs: to be done; the jobs of their sources are done first.
        store: called with each result, those found done first.
        workers: processes.
        seconds: to stop after, with everything saved.

    Raises:
        Stopped: interrupted, or out of time.
        Failed: jobs that ended in an error, and those that would have built on them.
        SetUpDiffers, ValueError: a folder that holds another job or a damaged file; nothing was run.
    """
    jobs = _with_sources(jobs)
    found = {job.name: result_of(root, job) for job in jobs}
    for job in jobs:
        if (result := found[job.name]) is not None:
            store(job, result)
    pending = [job for job in jobs if found[job.name] is None]
    if not pending:
        return
    if seconds is not None:
        _require_time(root, pending, seconds)
    deadline = None if seconds is None else time.monotonic() + seconds
    context = multiprocessing.get_context("spawn")
    steps: multiprocessing.Queue[tuple[str, int]] = context.Queue()
    stop = context.Event()
    done = {name for name, result in found.items() if result is not None}
    errors: dict[str, str] = {}
    running: dict[Future[dict[str, Any]], Job] = {}
    bar = _Bar(jobs, done)
    with bar.tqdm, ProcessPoolExecutor(workers, context, _begin, (steps, stop)) as pool:
        try:
            while pending or running:
                if deadline is not None and time.monotonic() > deadline:
                    stop.set()
                for job in [j for j in pending if _source_in(j, errors)]:
                    pending.remove(job)
                    errors[job.name] = "its source failed"
                for job in [j for j in pending if j.source is None or _source_in(j, done)]:
                    if len(running) < workers and not stop.is_set():
                        pending.remove(job)
                        running[pool.submit(_work, root, job)] = job
                if not running:
                    break
                ended, _ = wait(running, POLL, FIRST_COMPLETED)
                bar.show(steps)
                for future in ended:
                    job = running.pop(future)
                    try:
                        store(job, future.result())
                        done.add(job.name)
                        bar.finish(job)
                    except (Interrupted, KeyboardInterrupt):
                        stop.set()
                    except BrokenExecutor:  # all workers end with the one that was killed
                        stop.set()
                        errors[job.name] = "a worker was killed; this goes on from its last checkpoint"
                    except Exception as error:
                        errors[job.name] = f"{type(error).__name__}: {error}"
        except KeyboardInterrupt:
            stop.set()  # the pool's exit waits for the workers, which save what they have
    state = f"{len(done)} of {len(jobs)} trainings done"
    if errors:
        names = {error: [name for name in errors if errors[name] == error] for error in errors.values()}
        raise Failed(f"{state}; " + "; ".join(f"{', '.join(names[error])}: {error}" for error in names))
    if len(done) < len(jobs):
        raise Stopped(f"stopped with {state}")


def _with_sources(jobs: list[Job]) -> list[Job]:
    """The jobs, each once, with those of their sources before all."""
    sources = {job.source.name: job.source for job in jobs if job.source is not None}
    return list((sources | {job.name: job for job in jobs}).values())


def _source_in(job: Job, names: Container[str]) -> bool:
    return job.source is not None and job.source.name in names


def default_workers(device: str) -> int:
    """As many as there are cores, or one where a card is used."""
    on_card = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if on_card:
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _require_time(root: Path, pending: list[Job], seconds: float) -> None:
    shortest = min((j for j in pending if j.source is None or result_of(root, j.source)), key=work)
    needed = job_seconds(root, shortest)
    if needed > seconds:
        minutes = math.ceil(needed / 6) / 10
        raise ValueError(
            f"minutes must be at least {minutes}, which the shortest training left, {shortest.name}, takes here; "
            f"it was {seconds / 60:g}"
        )


class _Bar:
    """Progress over all jobs, in their work."""

    def __init__(self, jobs: list[Job], done: set[str]) -> None:
        self._jobs = {job.name: (job, work(job)) for job in jobs}
        self._steps = {job.name: job.steps if job.name in done else 0 for job in jobs}
        self._done = len(done)
        self._unit = sum(weight for _, weight in self._jobs.values()) / 100
        self.tqdm = tqdm(
            total=100,
            initial=self._percent(),
            bar_format="{desc}{percentage:5.1f}%|{bar}| {elapsed} spent, {remaining} left{postfix}",
        )
        self._label()

    def show(self, steps: multiprocessing.Queue[tuple[str, int]]) -> None:
        while True:
            try:
                name, step = steps.get_nowait()
            except queue.Empty:
                break
            self._steps[name] = step
        self.tqdm.update(self._percent() - self.tqdm.n)

    def finish(self, job: Job) -> None:
        self._steps[job.name] = job.steps
        self._done += 1
        self._label()

    def _label(self) -> None:
        self.tqdm.set_description_str(f"{self._done} of {len(self._jobs)} trainings ", refresh=False)
        self.tqdm.update(self._percent() - self.tqdm.n)

    def _percent(self) -> float:
        parts = (weight * self._steps[name] / max(1, job.steps) for name, (job, weight) in self._jobs.items())
        return sum(parts) / self._unit


_steps: Any = None
_stop: Event


def _begin(steps: Any, stop: Event) -> None:
    """Set up a worker."""
    global _steps, _stop
    _steps, _stop = steps, stop
    for number in (signal.SIGINT, signal.SIGTERM):  # these reach the parent too, which asks all to stop
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


def _work(root: Path, job: Job) -> dict[str, Any]:
    def on_step(step: int) -> bool:
        if step % job.config.log_every == 0:
            _steps.put((job.name, step))
        return _stop.is_set()

    return run_job(root, job, on_step)
