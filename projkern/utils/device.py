"""Where to compute: the choice of a device and of its arithmetic, its memory, and the end of its work."""

import ctypes
import math
import os
import re
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from .errors import InputError

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4  # of glibc's mallopt
_LARGEST_KEPT, _KEPT = 32 << 20, 256 << 20
_has_kept_all = False


@dataclass(frozen=True)
class Machine:
    """Where a program computes, in which arithmetic, and why."""

    device: torch.device
    dtype: torch.dtype
    reason: str


def pick_machine(device: str = "auto", dtype: str = "auto") -> Machine:
    """Choose the device and the arithmetic.

    Args:
        device: "auto" (a CUDA card where there is one, else the CPU), "cpu", "cuda" or "cuda:N".
        dtype: "auto" (bfloat16 on a card that has it, else float32), "float32" or "bfloat16".

    Raises:
        InputError: a device that is not there.
    """
    picked = pick_device(device)
    is_bfloat16 = picked.type == "cuda" and torch.cuda.is_bf16_supported()
    name = {"auto": "bfloat16" if is_bfloat16 else "float32"}.get(dtype, dtype)
    why = "as asked"
    if device == "auto":
        why = "a CUDA card is there" if picked.type == "cuda" else "there is no CUDA card"
    return Machine(picked, getattr(torch, name), f"{describe(picked)} ({why}), {name}")


def pick_device(name: str = "auto") -> torch.device:
    """The device of that name, as ``pick_machine`` takes it. The choice of the CPU also keeps freed memory.

    Raises:
        InputError: a device that is not there.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise InputError(f"device must be auto, cpu, cuda or cuda:N; it was {name}")
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name.startswith("cuda") and int(name.partition(":")[2] or 0) >= cards:
        raise InputError(f"device must be one that is there; it was {name}, and torch sees {cards} CUDA cards")
    device = torch.device(("cuda" if cards else "cpu") if name == "auto" else name)
    if device.type == "cpu":
        keep_freed_memory()
    return device


def describe(device: torch.device) -> str:
    """A device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{threads} CPU thread{'s' * (threads > 1)}"


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The type that autocast casts to there, None where it is off or the device has none."""
    is_on = torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
    return torch.get_autocast_dtype(device.type) if is_on else None


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """A block in which autocast is off there."""
    return nullcontext() if autocast_dtype(device) is None else torch.autocast(device.type, enabled=False)


def wait_for(device: torch.device) -> None:
    """Return once ``device`` has done all its work, so that a clock may be read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free_memory(device: torch.device) -> float:
    """Bytes that can still be allocated; infinite where the system does not say."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    try:
        available = re.search(r"MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text("utf-8"))
    except OSError:
        available = None
    return int(available[1]) * 1024 if available else math.inf


def keep_freed_memory() -> bool:
    """Have the C library keep all blocks that are freed, for the next tensor of that size.

    By default glibc returns each to the system, and every page of the next one faults again, at several times the cost
    of what is written. This changes the whole process, which then keeps as much memory as it ever used, so programs
    call it (the commands and benchmarks here do), not the library, whose own results need it not (kernels/memory.py).

    Returns:
        Whether it took effect; only glibc knows these settings.
    """
    global _has_kept_all
    _has_kept_all = _mallopt({_MMAP_MAX: 0, _TRIM_THRESHOLD: -1, _TOP_PAD: 64 << 20})
    return _has_kept_all


def keep_some_freed_memory() -> None:
    """Have the C library keep freed blocks of up to 32 MiB, 256 MiB in all; called when the CPU kernels are loaded.

    By default glibc keeps about twice its largest such block, less than the gradients of all layers of a small source,
    whose pages then fault anew in most steps. Larger blocks go back to the system as before. Nothing changes where
    ``keep_freed_memory`` was called, or where the environment sets glibc's own parameters.
    """
    own = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_TOP_PAD_")
    is_set = any(name in os.environ for name in own) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if not _has_kept_all and not is_set:
        _mallopt({_MMAP_THRESHOLD: _LARGEST_KEPT, _TRIM_THRESHOLD: _KEPT})


def _mallopt(settings: dict[int, int]) -> bool:
    """Change glibc's allocator; returns whether there is one that took all settings."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(option, value) for option, value in settings.items())
