"""What a measurement was made on, and how fast that machine can be at best."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import projkern as pk
from projkern.kernels import native


def describe() -> dict[str, Any]:
    """Processor, threads and versions."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line[:10] == "model name"]
        cpu = names[0] if names else cpu
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "projkern": pk.__version__,
        "native": native.build_info(),
    }


def seconds(run: Callable[[], object]) -> float:
    """Wall time of one call."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


class Limits:
    """Two speeds that bound every kernel: copying memory, and multiplying matrices; float32."""

    def __init__(self) -> None:
        self._from, self._to = torch.ones(1 << 27), torch.ones(1 << 27)  # 512 MiB each: no cache holds them
        self._a, self._b = torch.randn(2048, 2048), torch.randn(2048, 2048)
        self._c = torch.empty(2048, 2048)

    def copy_bytes_per_second(self) -> float:
        """Bytes read and bytes written, together."""
        return 2 * self._from.numel() * 4 / seconds(lambda: self._to.copy_(self._from))

    def gemm_flops_per_second(self) -> float:
        """Two for each multiply-add of torch's float32 matrix product."""
        return 2 * 2048**3 / seconds(lambda: torch.mm(self._a, self._b, out=self._c))
