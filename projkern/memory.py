"""The process's memory on the CPU."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # of glibc's mallopt


def keep_freed_memory() -> bool:
    """Have the C library keep large blocks that are freed, for the next tensor of that size.

    By default glibc returns each to the system, and every page of the next one faults again: writing the fresh
    result of a large projection then takes several times as long as computing it. This changes the whole process, so
    programs call it (the commands and benchmarks here do), not the library on import.

    Returns:
        Whether it took effect; only glibc knows these settings.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all(mallopt(k, v) for k, v in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_TOP_PAD, 64 << 20)))
