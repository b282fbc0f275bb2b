"""Files and folders that an interruption at any moment leaves whole, one writer at a time, and JSON with a version."""

import errno
import gzip
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
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


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Have ``write`` fill a file under a hidden name, put it onto the disk, then rename it to ``path``.

    Whoever writes it, others may read it as the umask says.

    Raises:
        OSError: it cannot be written (a full disk, say); what was at ``path`` is untouched.
    """
    partial = hidden_name(path)
    try:
        partial.unlink(missing_ok=True)
        partial.touch()
        mode = partial.stat().st_mode
        write(partial)
        _let_read(partial, mode)
        sync(partial)
        os.replace(partial, path)
        sync(path.parent)
    except OSError as error:
        if error.errno is not None and error.filename is None:  # a full disk does not say where it was
            error.filename = str(path)
        raise
    finally:
        partial.unlink(missing_ok=True)


def _let_read(path: Path, mode: int) -> None:
    """Let read and write ``path`` whom ``mode`` lets: safetensors leaves its files to their owner alone."""
    own = path.stat().st_mode
    if own | mode & 0o666 != own:
        with suppress(OSError):  # a file system without such permissions
            path.chmod(own | mode & 0o666)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, atomically; what UTF-8 does not have, of a path say, is written as an escape."""
    write_atomically(path, lambda partial: partial.write_text(text, "utf-8", "backslashreplace"))


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


@contextmanager
def new_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """A folder to fill under a hidden name; at the end it is put onto the disk and then in its place.

    Whoever writes its files, others may read them as the umask says. An error in the block, or in what follows, leaves
    nothing behind.

    Args:
        path: its place: nothing, an empty folder, or with ``replace`` anything.
        replace: whether what is there is replaced.

    Raises:
        OSError: it cannot be written, or ``path`` is a folder that holds something.
    """
    if is_nonempty(path) and not replace:
        raise FileExistsError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(path))
    partial = place_to_fill(path)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        mode = partial.stat().st_mode
        for inner in (*partial.rglob("*"), partial):
            _let_read(inner, mode)
            sync(inner)
        put_in_place(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def place_to_fill(path: Path) -> Path:
    """Where a folder is filled that ``put_in_place`` then puts at ``path``: under a hidden name beside it.

    Within it, where it is an empty folder, a mount, or in a folder that may not be written: then it stays what it is.
    """
    is_fixed = path.is_dir() and (os.path.ismount(path) or not may_write(path.parent))
    is_within = is_fixed or (path.is_dir() and not is_nonempty(path))
    return hidden_name(path / path.name if is_within else path)


def may_write(folder: Path) -> bool:
    """Whether this process may make files in a folder."""
    return os.access(folder, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids)


def put_in_place(filled: Path, path: Path) -> None:
    """Have ``path`` be a filled folder, in place of what it is: by one rename, or by one for each file.

    Of several files ``SETTINGS`` is the first to go and the last to come: a model without it is none.
    """
    if path not in filled.parents:
        replaced = hidden_name(path.with_name(f"{path.name}.replaced"))
        if is_nonempty(path):
            _remove(replaced)
            os.rename(path, replaced)
        os.rename(filled, path)
        _remove(replaced)
        sync(path.parent)
        return
    for old in sorted(path.iterdir(), key=lambda old: old.name != SETTINGS):
        if old.name != LOCK and old not in (filled, *filled.parents):
            _remove(old)
    for new in sorted(filled.iterdir(), key=lambda new: new.name == SETTINGS):
        os.rename(new, path / new.name)
    sync(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Have the system put a file, or the names in a folder, onto the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def require_readable(path: Path) -> None:
    """Raises OSError where a file, or one of a folder of Hugging Face's format, may not be read.

    safetensors and transformers say of such a file that it is not there.
    """
    suffixes = (".json", ".model", ".safetensors", ".txt")
    for file in [inner for inner in path.iterdir() if inner.suffix in suffixes] if path.is_dir() else [path]:
        with file.open("rb"):
            pass


def is_utf8(path: Path) -> bool:
    """Whether a path is text, which the libraries take that are not written in Python."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def require_utf8(out: Path) -> None:
    """Raises InputError where transformers could not read back what is written to ``out``."""
    if not is_utf8(out.resolve()):
        raise InputError(f"out must be a path in UTF-8, as transformers takes no other; it was {out}")


def files_under(folder: Path) -> list[Path]:
    """The files under a folder, sorted, without hidden ones and those of hidden folders.

    Raises:
        OSError: a folder that may not be read, which ``Path.rglob`` passes over.
    """

    def fail(error: OSError) -> None:
        raise error

    files = []
    for parent, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [Path(parent, name) for name in names if not name.startswith(".")]
    return sorted(file for file in files if file.is_file())


def home_folder() -> Path | None:
    """The user's home folder; None where there is none, such as for a user of a container that has no name."""
    try:
        return Path.home()
    except RuntimeError:
        return None


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
    out: Path,
    format: Format,
    settings: dict[str, Any],
    *,
    resume: bool = False,
    overwrite: bool = False,
    has_moved: bool = False,
) -> Iterator[None]:
    """Hold the lock of a folder that a job fills, with the job's settings stored in its ``SETTINGS``.

    Args:
        format: of these settings; by it the folder of such a job is told from any other.
        has_moved: whether what the job reads lies in other places than its folder says, which is then told.

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
            if not path.exists() or has_moved:
                format.write(path, settings)
        except (FileExistsError, FolderInUse):
            raise
        except OSError as error:
            raise InputError(f"out must be a folder that can be written; it was {out}: {error}") from error
        yield


def _delete(out: Path) -> None:
    """Delete a job's folder, in such a way that no half-deleted one is ever left under its name.

    A mount, or a folder in one that may not be written, is emptied.
    """
    if out == Path.cwd():
        raise InputError(f"out must not be the working directory if it is to be overwritten; it was {out}")
    renamed = out.with_name(f".{out.name}.overwritten")
    try:
        shutil.rmtree(renamed, ignore_errors=True)
        out.rename(renamed)
        shutil.rmtree(renamed)
    except OSError:
        if not out.is_dir():
            raise
        for old in sorted(out.iterdir(), key=lambda old: old.name != SETTINGS):
            _remove(old)


def read_object(path: Path, contents: str) -> dict[str, Any]:
    """The object in a JSON file; raises InputError, which says what the file must hold, where there is none."""
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} must hold {contents}; it cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold {contents}; it holds no JSON object")
    return values
