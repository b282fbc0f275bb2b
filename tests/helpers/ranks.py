"""Processes of one training on this machine: under torchrun, or forked, which saves each the imports."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from ports import free_port

ROOT = Path(__file__).parents[2]
_LONGEST = 300
"""Seconds; ranks that take longer are killed."""
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone")


def torchrun(ranks: int, *words: object, options: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """Start processes on this machine, whose connection is its loopback."""
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests" / "helpers", os.environ.get("PYTHONPATH", ""))))
    return subprocess.Popen(
        [*TORCHRUN, f"--nproc-per-node={ranks}", *options, *map(str, words)],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def fork(ranks: int, work: Callable[[], object], log: Path | None = None) -> list[int | None]:
    """Run ``work`` in so many ranks, forked from this process, which must not have run autograd; their exit codes.

    Args:
        log: what they print goes there.
    """
    port = free_port()

    def run(rank: int) -> None:
        if ranks > 1:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
        if log is not None:
            handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
        sys.exit(work())

    processes = [multiprocessing.get_context("fork").Process(target=run, args=(rank,)) for rank in range(ranks)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(_LONGEST)
        process.kill()
    return [process.exitcode for process in processes]


def script(name: str, *words: object, timeout: int) -> tuple[int, str]:
    """Exit status and output of a script of this folder that forks ranks."""
    path = os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))
    finished = subprocess.run(
        [sys.executable, ROOT / "tests" / "helpers" / name, *map(str, words)],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
    )
    return finished.returncode, finished.stdout


def filled(name: str, folder: Path, timeout: int) -> Path:
    """A folder that a script fills, which must succeed."""
    status, output = script(name, folder, timeout=timeout)
    assert status == 0, output
    return folder
