"""What a machine can do: the few constants that the cost model (``projkern/kernels/cost.py``) stands on."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from statistics import median

import torch

from ..utils.device import free_memory
from ..utils.errors import InputError


@dataclass(frozen=True)
class Constants:
    """What a machine can do; ``measure`` finds out."""

    bandwidth: float
    """Bytes a second, read and written, of a copy far larger than the caches."""
    cache_bandwidth: float
    """The same of a copy inside the last-level cache."""
    rates: Mapping[torch.dtype, float]
    """Multiply-adds a second of a large matrix product, by type."""
    launch: float
    """Seconds of one tiny operator in a row of them."""
    free: float = math.inf
    """Bytes of free memory."""


def measure(device: torch.device | str, dtypes: Sequence[torch.dtype] = (torch.float32, torch.bfloat16)) -> Constants:
    """Measure what a device can do, in well under a second. All but the free memory is kept for the process.

    Args:
        device: a CPU or CUDA device.
        dtypes: the types to multiply matrices in, under torch's precision settings at the first call.
    """
    device = torch.device(device)
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device must be a CPU or CUDA device; it was {device}")
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    # On a thread of its own, which the caller's autocast, gradients or fake tensors do not reach.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_measure, device, tuple(dtypes)).result()


@torch.no_grad()
def _measure(device: torch.device, dtypes: tuple[torch.dtype, ...]) -> Constants:
    large, cached = 32 << 20, 128 << 10
    if device.type == "cuda":
        torch.cuda.set_device(device)  # of this thread only
        large, cached = 128 << 20, torch.cuda.get_device_properties(device).L2_cache_size // 3
    bandwidth = _copy_speed(device, large)
    return Constants(
        bandwidth,
        max(bandwidth, _copy_speed(device, cached)),
        {dtype: _rate(device, dtype) for dtype in dtypes},
        _launch(device),
        free_memory(device),
    )


@lru_cache
def _copy_speed(device: torch.device, size: int) -> float:
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return 4 * 2 * size / _seconds(device, lambda: [target.copy_(source) for _ in range(4)])


@lru_cache
def _rate(device: torch.device, dtype: torch.dtype) -> float:
    side = 384 if device.type == "cpu" else 2048 if dtype == torch.float64 else 4096
    a, b = torch.rand(2, side, side, device=device).to(dtype)  # a card runs faster on zeros
    return side**3 / _seconds(device, lambda: a @ b)


@lru_cache
def _launch(device: torch.device) -> float:
    one = torch.zeros(1, device=device)
    return _seconds(device, lambda: [one.add_(1) for _ in range(100)]) / 100


def _seconds(device: torch.device, run: Callable[[], object], repeats: int = 5) -> float:
    """The median time of ``run``, on the device's own clock."""
    run()
    times = []
    for _ in range(repeats):
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) / 1e3)
        else:
            start_time = time.perf_counter()
            run()
            times.append(time.perf_counter() - start_time)
    return median(times)
