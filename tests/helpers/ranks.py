"""Processes under torchrun on this machine."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
_TCP_INFO, _BYTES_SENT = 232, 200
"""The size of struct tcp_info, and where tcpi_bytes_sent lies in it (linux/tcp.h)."""
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


def sent_bytes() -> int:
    """The bytes that this process has sent over the TCP connections that it has now, as the kernel counts them."""
    total = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            with socket.socket(fileno=os.dup(int(name))) as connection:
                info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO)
        except OSError:  # no TCP connection
            continue
        total += struct.unpack_from("Q", info, _BYTES_SENT)[0]
    return total
