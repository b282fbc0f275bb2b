"""What a measurement is made on: its description, its clocks, and how fast it can be at best."""

from __future__ import annotations

import gc
import math
import os
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

import projkern as pk
from projkern.kernels.backends import cpu

Result = TypeVar("Result")


class Machine:
    """The CPU: calls are timed by the wall clock, one set of inputs is measured, and there are no graphs.

    A subclass for cards answers the same questions, so that whoever measures need not ask where.
    """

    device = torch.device("cpu")
    has_graphs = False
    cache_bytes = 0  # inputs are rotated beyond it; on a CPU one set is several times the caches at the sizes measured
    repeats = 1  # samples of a provider at its turn
    warm_up = False  # one call more at each turn, not timed: whoever ran before left the caches in another state
    copy_numbers = 1 << 27  # 512 MiB to read and 512 MiB to write: no cache holds them
    matrix = 2048
    rates: tuple[torch.dtype, ...] = (torch.float32,)

    def describe(self) -> dict[str, Any]:
        """Processor, threads and versions."""
        name = platform.processor() or platform.machine()
        info = Path("/proc/cpuinfo")
        if info.exists():
            lines = info.read_text("utf-8", "replace").splitlines()
            names = [line.split(":", 1)[1].strip() for line in lines if line[:10] == "model name"]
            name = names[0] if names else name
        return {
            "cpu": name,
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "projkern": pk.__version__,
            "native": cpu.build_info() if cpu.is_built() else None,
        }

    def time(self, run: Callable[[], Result], head_start: float = 0.0) -> tuple[float, float, Result]:
        """Seconds that the device works on a call, seconds that the host is busy with it, and its result."""
        start = time.perf_counter()
        result = run()
        elapsed = time.perf_counter() - start
        return elapsed, elapsed, result

    def wall(self, run: Callable[[], object]) -> float:
        """Seconds from the call until its last result is there."""
        start = time.perf_counter()
        run()
        self.wait()
        return time.perf_counter() - start

    def wait(self) -> None:
        """Until the device has nothing left to do."""

    def clear(self) -> None:
        """Give back memory that no tensor uses."""
        gc.collect()

    def free_bytes(self) -> float:
        """What new tensors may take; unknown, hence unbounded, on a CPU."""
        return math.inf

    def peak_bytes(self, run: Callable[[], Result]) -> tuple[int | None, Result]:
        """The most memory a call takes beside what is there already, None where it cannot be told; and its result."""
        return None, run()

    def limits(self) -> Limits:
        return Limits(self)


class Card(Machine):
    """A CUDA card: events around a call that is queued behind a wait, several sets of inputs, and CUDA graphs."""

    device = torch.device("cuda")
    has_graphs = True
    repeats = 3
    warm_up = True
    copy_numbers = 1 << 28
    matrix = 8192
    rates = (torch.float32, torch.bfloat16)

    def __init__(self) -> None:
        if not torch.cuda.is_available():
            raise RuntimeError("torch sees no CUDA card here; benchmarks of one need it")
        torch.set_float32_matmul_precision("highest")  # TF32 would be another arithmetic than the kernels'
        self._properties = torch.cuda.get_device_properties(self.device)
        self.cache_bytes = 3 * self._properties.L2_cache_size
        self._begin, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._cycles_per_second = 1e9
        for _ in range(3):  # the first sleeps wake the card up; the last one is right
            elapsed, _, _ = self.time(lambda: torch.cuda._sleep(20_000_000))
            self._cycles_per_second = 20_000_000 / elapsed

    def describe(self) -> dict[str, Any]:
        try:
            import triton

            version = triton.__version__
        except ImportError:
            version = None
        return super().describe() | {
            "gpu": {
                "name": self._properties.name,
                "capability": f"{self._properties.major}.{self._properties.minor}",
                "multiprocessors": self._properties.multi_processor_count,
                "memory_bytes": self._properties.total_memory,
                "l2_bytes": self._properties.L2_cache_size,
                "driver": _driver(),
                "cuda": torch.version.cuda,
                "triton": version,
            }
        }

    def time(self, run: Callable[[], Result], head_start: float = 0.0) -> tuple[float, float, Result]:
        """Events see the device's time and not the host's, if ``head_start`` covers what launching takes."""
        self.wait()
        if head_start:
            torch.cuda._sleep(int(head_start * self._cycles_per_second))
        self._begin.record()
        start = time.perf_counter()
        result = run()
        host = time.perf_counter() - start
        self._end.record()
        self._end.synchronize()
        return self._begin.elapsed_time(self._end) / 1e3, host, result

    def wait(self) -> None:
        torch.cuda.synchronize()

    def clear(self) -> None:
        gc.collect()
        self.wait()
        torch.cuda.empty_cache()

    def free_bytes(self) -> float:
        self.clear()
        return torch.cuda.mem_get_info()[0]

    def peak_bytes(self, run: Callable[[], Result]) -> tuple[int | None, Result]:
        self.wait()
        torch.cuda.reset_peak_memory_stats()
        allocated = torch.cuda.memory_allocated()
        result = run()
        self.wait()
        return torch.cuda.max_memory_allocated() - allocated, result

    def graph(self, run: Callable[[], Any], pool: Any) -> Graph:
        """Record what a call launches, after calling it twice: what compiles or allocates at first must be done."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                run()
        torch.cuda.current_stream().wait_stream(side)
        self.clear()
        return Graph(run, pool)

    def graph_pool(self) -> Any:
        return torch.cuda.graph_pool_handle()


class Graph:
    """A recorded call; calling it launches all of it at once, into the same results.

    Graphs of one pool use the same memory, as soon as the results of the earlier ones are released.
    """

    def __init__(self, run: Callable[[], Any], pool: Any) -> None:
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool):
            self._result = run()

    def __call__(self) -> Any:
        self._graph.replay()
        return self._result

    def release(self) -> None:
        self._result = None


def machine_of(device: str) -> Machine:
    """The machine behind a --device; raises RuntimeError where there is no such card."""
    return Machine() if device == "cpu" else Card()


def _driver() -> str | None:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, encoding="utf-8", check=True, timeout=20).stdout.split()[0]
    except (OSError, IndexError, subprocess.SubprocessError):
        return None


class Limits:
    """The speeds that bound every kernel: copying memory, and multiplying matrices of random numbers.

    The arithmetic limit of a part is that of float32 multiply-adds (torch's float32 product, TF32 off); a card's
    bfloat16 product, on its tensor cores, is recorded beside it.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine, device = machine, machine.device
        self._from = torch.rand(machine.copy_numbers, device=device)
        self._to = torch.ones_like(self._from)
        self._factors = [torch.randn(2, machine.matrix, machine.matrix, device=device).to(t) for t in machine.rates]
        self._products = [torch.empty_like(pair[0]) for pair in self._factors]

    def sample(self) -> dict[str, float]:
        """Bytes read and written a second, together; operations a second, two for each multiply-add."""
        copied, _, _ = self._machine.time(lambda: self._to.copy_(self._from), 1e-4)
        speeds = {"copy_bytes_per_second": 2 * self._from.numel() * 4 / copied}
        for (a, b), product in zip(self._factors, self._products):
            seconds, _, _ = self._machine.time(lambda a=a, b=b, c=product: torch.mm(a, b, out=c), 1e-4)
            name = "gemm" if product.dtype == torch.float32 else str(product.dtype).removeprefix("torch.") + "_gemm"
            speeds[f"{name}_flops_per_second"] = 2 * self._machine.matrix**3 / seconds
        return speeds
