"""Digests, by which a job recognises the data that it began with."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from torch import Tensor

from .tensor_file import bytes_of


def digest(parts: Iterable[bytes | memoryview]) -> str:
    """16 hexadecimal digits that tell data from any other."""
    total = hashlib.sha256()
    for part in parts:
        total.update(part)
    return total.hexdigest()[:16]


def parts_of(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[bytes | memoryview]:
    """The names, types, shapes and numbers of tensors."""
    for name, tensor in tensors:
        yield f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()
        yield bytes_of(tensor)


def contents(paths: Iterable[Path]) -> Iterator[bytes]:
    """The bytes of files, one after another, in parts."""
    for path in paths:
        with path.open("rb") as file:
            while part := file.read(1 << 20):
                yield part


def samples(paths: Iterable[Path]) -> Iterator[bytes]:
    """The sizes of files and 64 parts of each, of 1 MiB, evenly spaced: all of a file of up to 64 MiB."""
    part, count = 1 << 20, 64
    for path in paths:
        size = path.stat().st_size
        yield str(size).encode()
        with path.open("rb") as file:
            for start in range(0, size, max(part, size // count)):
                file.seek(start)
                yield file.read(part)
