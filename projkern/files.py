"""Writing files so that an interruption at any moment leaves each one whole, and only one process at a time."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

LOCK = ".lock"
"""Name of the file that a process holds while it writes to the folder; it stays, empty, when the work is done."""


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Have ``write`` fill a file beside ``path``, then put it in its place in one step.

    Raises:
        OSError: it cannot be written (a full disk, say); what was at ``path`` is untouched.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        write(partial)
        sync(partial)
        os.replace(partial, path)
        sync(path.parent)
    except OSError as error:
        if error.errno is not None and error.filename is None:  # a full disk does not say where it was
            error.filename = str(path)
        raise
    finally:
        partial.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Have the system put a file, or the names in a folder, onto the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, value: Any) -> None:
    write_atomically(path, lambda p: p.write_text(json.dumps(value, indent=2) + "\n"))


def occupied(folder: Path) -> bool:
    """Whether ``folder`` is a file, or holds more than a lock and what a killed process had begun to write."""
    if not folder.exists():
        return False
    return not folder.is_dir() or any(path.name != LOCK and path.suffix != ".partial" for path in folder.iterdir())


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from writing to ``folder``, which is made if it is not there.

    The system drops the lock with the process that holds it, however that ends.

    Raises:
        FolderInUse: another process holds it.
        OSError: the folder cannot be made or written to.
    """
    folder.resolve().mkdir(parents=True, exist_ok=True)  # the target, where folder is a link to what was deleted
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise FolderInUse(f"out must be a folder that no other process is writing to; it was {folder}") from None
    try:
        yield
    finally:
        lock.release()


class FolderInUse(OSError):
    """Another process is writing to the folder."""
