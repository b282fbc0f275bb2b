"""Files and folders that an interruption at any moment leaves whole, one writer at a time, and JSON with a version."""

import gzip
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from filelock import FileLock, Timeout

from .errors import InputError

SETTINGS = "config.json"
"""Name of the file that holds the settings of the job that a folder is of."""
LOCK = ".lock"
"""Name of the file that a process holds while it writes to the folder; it stays, empty, when the work is done."""


def hidden_name(path: Path) -> Path:
    """Where a file or a folder is filled before it gets its own name: .NAME.partial beside it."""
    return path.with_name(f".{path.name}.partial")


def _is_hidden_name(path: Path) -> bool:
    return path.name.startswith(".") and path.suffix == ".partial"


def open_text(path: Path) -> TextIO:
    """A UTF-8 file to read, plain or .gz."""
    return gzip.open(path, "rt", encoding="utf-8") if path.suffix.lower() == ".gz" else path.open(encoding="utf-8")


def visible_files(folder: Path) -> list[Path]:
    """The files below a folder, sorted; what is hidden, and what lies in a hidden folder, is not data."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Have ``write`` fill a file under a hidden name, put it onto the disk, then rename it to ``path``.

    Raises:
        OSError: it cannot be written (a full disk, say); what was at ``path`` is untouched.
    """
    partial = hidden_name(path)
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


def write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda partial: partial.write_text(text))


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill under a hidden name; at the end it is put onto the disk and renamed to ``path``.

    An error in the block, or in the renaming, leaves nothing behind.

    Raises:
        OSError: it cannot be written, or ``path`` is a folder that holds something.
    """
    partial = hidden_name(path)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        for inner in (*partial.iterdir(), partial):
            sync(inner)
        os.rename(partial, path)
        sync(path.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def sync(path: Path) -> None:
    """Have the system put a file, or the names in a folder, onto the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def is_nonempty(folder: Path) -> bool:
    """Whether ``folder`` is a file, or holds more than a lock and what a killed process left under a hidden name."""
    if not folder.exists():
        return False
    if not folder.is_dir():
        return True
    return any(path.name != LOCK and not _is_hidden_name(path) for path in folder.iterdir())


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from writing to ``folder``, which is created if it is not there.

    The system drops the lock with the process that holds it, however that ends.

    Raises:
        FolderInUse: another process holds it.
        OSError: the folder cannot be created or written to.
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


@dataclass(frozen=True)
class Format:
    """A kind of JSON file that names its format and version.

    Args:
        name: what "format" holds.
        version: what "version" holds; the one that is written.
        contents: what such a file holds, for messages: "a run".
        oldest: the first version that is still read; by default the one that is written.
    """

    name: str
    version: int
    contents: str
    oldest: int | None = None

    @property
    def head(self) -> dict[str, Any]:
        return {"format": self.name, "version": self.version}

    def write(self, path: Path, values: dict[str, Any]) -> None:
        """Write an object, atomically; raises OSError where it cannot be."""
        write_json(path, self.head | values)

    def read(self, path: Path) -> dict[str, Any]:
        """The object in a file, its "version" included and its "format" left out.

        Raises:
            InputError: no such file, one that is damaged, of another format, or of a version that is not read.
        """
        values = read_object(path, self.contents)
        if values.pop("format", None) != self.name:
            raise InputError(f"{path} must hold {self.contents} of projkern; it holds something else")
        version = values.get("version")
        oldest = self.version if self.oldest is None else self.oldest
        if not isinstance(version, int) or not oldest <= version <= self.version:
            versions = str(self.version) if oldest == self.version else f"{oldest} to {self.version}"
            hint = "; a newer projkern reads it" if isinstance(version, int) and version > self.version else ""
            raise InputError(
                f"{path} must hold {self.contents} of version {versions}; it was of version {version}{hint}"
            )
        return values

    def is_in(self, path: Path) -> bool:
        """Whether a file is of this format, whatever its version."""
        try:
            return bool(read_object(path, self.contents).get("format") == self.name)
        except InputError:
            return False


@contextmanager
def open_output(
    out: Path, format: Format, settings: dict[str, Any], *, resume: bool = False, overwrite: bool = False
) -> Iterator[None]:
    """Hold the lock of a folder that a job fills, with the job's settings stored in its ``SETTINGS``.

    Args:
        format: of these settings; by it the folder of such a job is told from any other.

    Raises:
        FileExistsError: the folder already holds such a job, and neither flag was given.
        FolderInUse: another process is writing to it.
        InputError: the folder holds something else, whatever the flags, or cannot be written.
    """
    path, noun = out / SETTINGS, format.contents.removeprefix("the settings of ")
    if is_nonempty(out) and not format.is_in(path):
        try:
            format.read(path)
        except InputError as error:
            raise InputError(f"out must be a new folder or one that holds {noun}; it was {out}: {error}") from error
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(out))
            if path.exists() and overwrite:
                _delete(out.resolve())  # and the lock with it
                stack.enter_context(locked(out))
            elif path.exists() and not resume:
                raise FileExistsError(
                    f"{out} already holds {noun}; give --resume to continue it or --overwrite to redo it"
                )
            if not path.exists():
                format.write(path, settings)
        except (FileExistsError, FolderInUse):
            raise
        except OSError as error:
            raise InputError(f"out must be a folder that can be written; it was {out}: {error}") from error
        yield


def _delete(out: Path) -> None:
    """Delete a job's folder, in such a way that no half-deleted one is ever left under its name."""
    if out == Path.cwd():
        raise InputError(f"out must not be the working directory if it is to be overwritten; it was {out}")
    renamed = out.with_name(f".{out.name}.overwritten")
    shutil.rmtree(renamed, ignore_errors=True)
    out.rename(renamed)
    shutil.rmtree(renamed)


def read_object(path: Path, contents: str) -> dict[str, Any]:
    """The object in a JSON file; raises InputError, which says what the file must hold, where there is none."""
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} must hold {contents}; it cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold {contents}; it holds no JSON object")
    return values
