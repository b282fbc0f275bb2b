"""Processes under torchrun on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
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
