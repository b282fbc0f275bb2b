"""Memory of large results on the CPU, kept for the next result of that size.

The C library returns a large block to the system when it is freed, and each page of the next one faults at its first
write: that takes several times as long as what is written. Memory that is kept here is marked as free instead: the
system takes it back where it needs it, and only there.
"""

from __future__ import annotations

import math
import mmap
import threading
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

LARGE = 32 << 20
"""Bytes; the C library keeps smaller blocks (``keep_some_freed_memory``)."""
_FREE = getattr(mmap, "MADV_FREE", None)  # Linux has it
_HUGE = getattr(mmap, "MADV_HUGEPAGE", None)
_PRIVATE = getattr(mmap, "MAP_PRIVATE", 0) | getattr(mmap, "MAP_ANONYMOUS", 0)
_SPARE = 1.25
"""A result takes memory of up to so many times its size."""


class _Kept:
    """Blocks that are free, the one freed last at the end; together with those in use no more than ever were in use."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a collection of garbage may free a block while this thread takes one
        self._free: list[mmap.mmap] = []
        self._in_use = self._most = 0

    def take(self, size: int) -> mmap.mmap:
        """A block of at least so many bytes; raises OSError where the system has none."""
        with self._lock:
            fitting = [block for block in self._free if size <= len(block) <= _SPARE * size]
            if fitting:
                block = fitting[-1]
                self._free.remove(block)
            else:
                block = mmap.mmap(-1, size, flags=_PRIVATE)
                if _HUGE is not None:
                    block.madvise(_HUGE)
            self._in_use += len(block)
            self._most = max(self._most, self._in_use)
            return block

    def give_back(self, block: mmap.mmap) -> None:
        assert _FREE is not None
        block.madvise(_FREE)
        with self._lock:
            self._in_use -= len(block)
            self._free.append(block)
            while self._in_use + sum(map(len, self._free)) > self._most:
                del self._free[0]


_kept = _Kept()


def new_empty(like: Tensor, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
    """``like.new_empty(shape, dtype=dtype)``, on the CPU in memory that an earlier result had, where it is large."""
    dtype = dtype or like.dtype
    count = math.prod(shape)
    size = count * dtype.itemsize
    if like.device.type != "cpu" or size < LARGE or _FREE is None:
        return like.new_empty(shape, dtype=dtype)
    try:
        block = _kept.take(size)
    except OSError:
        return like.new_empty(shape, dtype=dtype)  # whose error says more
    view = memoryview(block)  # the tensor keeps it, and the block is free when it goes
    weakref.finalize(view, _kept.give_back, block).atexit = False
    return torch.frombuffer(view, dtype=dtype, count=count).view(tuple(shape))
