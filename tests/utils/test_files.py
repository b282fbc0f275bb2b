"""Files and folders that errors leave whole, locks, and JSON with a format and a version."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path

import pytest
from permissions import as_nobody

from projkern.utils import files
from projkern.utils.errors import InputError
from projkern.utils.files import FolderInUse, Format, is_nonempty, locked, new_folder, write_atomically, write_json

RUNS = Format("projkern run", 3, "the settings of a run", oldest=2)
WORDS = Format("projkern words", 1, "words")


@pytest.fixture
def closed():
    """A folder that anyone may read but for the folder "inner" in it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "a.json").touch(0o644)
        (folder / "inner").mkdir(0)
        yield folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# Format


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "config.json"
    RUNS.write(path, {"steps": 3})
    assert json.loads(path.read_text()) == {"format": "projkern run", "version": 3, "steps": 3}
    assert RUNS.read(path) == {"version": 3, "steps": 3}
    assert RUNS.is_in(path) and not WORDS.is_in(path)
    assert names(tmp_path) == ["config.json"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot be read"),
        ("", "cannot be read"),
        ('{"format": "projkern run", "vers', "cannot be read"),
        ("\x00\xff", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ("[1, 2]", "no JSON object"),
        ('"projkern run"', "no JSON object"),
        ("{}", "something else"),
        ('{"version": 3}', "something else"),
        ('{"format": "projkern words", "version": 3}', "something else"),
        ('{"format": "projkern run"}', "2 to 3; it was of version None"),
        ('{"format": "projkern run", "version": "3"}', "2 to 3; it was of version 3"),
        ('{"format": "projkern run", "version": 1}', "2 to 3; it was of version 1$"),
        ('{"format": "projkern run", "version": 4}', "2 to 3; it was of version 4; a newer projkern"),
    ],
)
def test_what_cannot_be_read(tmp_path, content, says):
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match=says) as caught:
        RUNS.read(path)
    assert str(caught.value).startswith(f"{path} must hold the settings of a run")


def test_older_versions_are_read_where_they_may_be(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"format": "projkern run", "version": 2, "steps": 1})
    assert RUNS.read(path) == {"version": 2, "steps": 1}
    write_json(path, {"format": "projkern words", "version": 2})
    with pytest.raises(InputError, match="of version 1; it was of version 2"):
        WORDS.read(path)


def test_format_of_a_file_whatever_its_version(tmp_path):
    path = tmp_path / "x.json"
    for content, is_run in (({"format": "projkern run", "version": 99}, True), ({"format": "x"}, False), ([], False)):
        write_json(path, content)
        assert RUNS.is_in(path) == is_run
    path.write_text("{cut")
    assert not RUNS.is_in(path) and not RUNS.is_in(tmp_path / "none")


# Whole files and folders


def test_a_file_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("before")

    def write(partial):
        partial.write_text("after")
        assert path.read_text() == "before" and partial.parent == tmp_path
        assert partial == files.hidden_name(path) and partial.name.startswith(".")

    write_atomically(path, write)
    assert path.read_text() == "after" and names(tmp_path) == ["x.txt"]


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError(), KeyboardInterrupt()]
)
def test_an_error_leaves_the_file_of_before(tmp_path, error):
    path = tmp_path / "x.txt"
    path.write_text("before")

    def write(partial):
        partial.write_text("half")
        raise error

    with pytest.raises(type(error)) as caught:
        write_atomically(path, write)
    assert path.read_text() == "before" and names(tmp_path) == ["x.txt"]
    if isinstance(error, OSError):
        assert caught.value.filename == str(path)  # a full disk does not say where it was


def test_an_error_that_names_its_file_keeps_the_name(tmp_path):
    def write(partial):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "other.txt")

    with pytest.raises(FileNotFoundError) as caught:
        write_atomically(tmp_path / "x.txt", write)
    assert caught.value.filename == "other.txt"


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (events.append("sync"), fsync(handle)))
    monkeypatch.setattr(os, "replace", lambda *paths: (events.append("rename"), replace(*paths)))
    files.write_text(tmp_path / "x.txt", "text")
    assert events == ["sync", "rename", "sync"]


def test_a_new_folder_appears_as_a_whole(tmp_path):
    path = tmp_path / "deep" / "folder"
    with new_folder(path) as partial:
        (partial / "a").write_text("1")
        assert not path.exists() and partial != path
    assert names(path) == ["a"] and names(path.parent) == ["folder"]


@pytest.mark.parametrize("error", [OSError("full"), RuntimeError(), KeyboardInterrupt()])
def test_an_error_leaves_no_folder(tmp_path, error):
    with pytest.raises(type(error)), new_folder(tmp_path / "folder") as partial:
        (partial / "a").write_text("1")
        raise error
    assert names(tmp_path) == []


def test_what_a_killed_process_left_is_not_in_a_new_folder(tmp_path):
    files.hidden_name(tmp_path / "folder").mkdir()
    (files.hidden_name(tmp_path / "folder") / "stale").write_text("")
    with new_folder(tmp_path / "folder") as partial:
        (partial / "a").write_text("1")
    assert names(tmp_path / "folder") == ["a"] and names(tmp_path) == ["folder"]


def test_a_folder_that_holds_something_is_not_replaced(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "before").write_text("")
    with pytest.raises(OSError), new_folder(tmp_path / "folder") as partial:
        (partial / "a").write_text("1")
    assert names(tmp_path / "folder") == ["before"] and names(tmp_path) == ["folder"]


@pytest.mark.parametrize(
    ("name", "counts"),
    [("notes.txt", True), ("x.partial", True), (".hidden", True), (".lock", False), (".step-3.partial", False)],
)
def test_what_counts_in_a_folder(tmp_path, name, counts):
    assert not is_nonempty(tmp_path) and not is_nonempty(tmp_path / "none")
    (tmp_path / name).write_text("")
    assert is_nonempty(tmp_path) == counts
    assert is_nonempty(tmp_path / name)  # a file is never a folder to fill


# Permissions


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600), (0o002, 0o664)])
def test_files_follow_the_umask_whoever_writes_them(tmp_path, umask, mode):
    def write(path):
        path.unlink(missing_ok=True)  # as safetensors does
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))

    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "file", write)
        with new_folder(tmp_path / "folder") as partial:
            write(partial / "file")
            (partial / "inner").mkdir()
            write(partial / "inner" / "file")
    finally:
        os.umask(before)
    for name in ("file", "folder/file", "folder/inner/file"):
        assert (tmp_path / name).stat().st_mode & 0o777 == mode, name


@pytest.fixture
def fixed(request, monkeypatch):
    """A folder that stays what it is: in one that may not be written, or a mount; and who then writes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "out"
        folder.mkdir()
        if request.param == "mount":
            monkeypatch.setattr(os.path, "ismount", lambda path: path == folder)
            yield folder, nullcontext
        else:
            folder.chmod(0o777)
            folder.parent.chmod(0o555)
            yield folder, as_nobody
            folder.parent.chmod(0o755)


@pytest.mark.parametrize("fixed", ["mount", "closed"], indirect=True)
def test_a_folder_that_stays_is_filled(fixed):
    folder, writer = fixed
    inode = folder.stat().st_ino
    with writer():
        for content in ("1", "2"):
            with new_folder(folder, replace=content == "2") as partial:
                (partial / f"file-{content}").touch()
                (partial / "config.json").write_text(content)
                assert "config.json" not in names(folder) or content == "2"
            assert names(folder) == ["config.json", f"file-{content}"]
            assert (folder / "config.json").read_text() == content
        with pytest.raises(RuntimeError), new_folder(folder, replace=True) as partial:
            (partial / "half").touch()
            raise RuntimeError
    assert names(folder) == ["config.json", "file-2"] and folder.stat().st_ino == inode


@pytest.mark.parametrize("fixed", ["closed"], indirect=True)
def test_a_job_in_a_folder_that_stays_is_overwritten(fixed):
    folder, writer = fixed
    with writer():
        for steps in (1, 2):
            with files.open_output(folder, RUNS, {"steps": steps}, overwrite=steps == 2):
                (folder / f"file-{steps}").touch()
    assert names(folder) == [".lock", "config.json", "file-2"] and RUNS.read(folder / "config.json")["steps"] == 2


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / ".lock").touch()
    with new_folder(tmp_path / "folder") as partial:
        (partial / "a").write_text("1")
    assert names(tmp_path / "folder") == [".lock", "a"] and names(tmp_path) == ["folder"]


def test_a_folder_that_may_not_be_read_is_not_an_empty_one(closed):
    assert files.files_under(closed) == [closed / "a.json"]
    with as_nobody(), pytest.raises(PermissionError, match="inner"):
        files.files_under(closed)


def test_what_may_not_be_read_is_told_from_what_is_not_there(closed):
    files.require_readable(closed)
    (closed / "b.json").touch(0)
    (closed / "picture").touch(0)
    with as_nobody():
        files.require_readable(closed / "a.json")
        for path in (closed, closed / "b.json"):
            with pytest.raises(PermissionError, match=r"b\.json"):
                files.require_readable(path)
        with pytest.raises(FileNotFoundError):
            files.require_readable(closed / "none")


def test_paths_that_transformers_takes(tmp_path):
    files.require_utf8(tmp_path / "rün")
    with pytest.raises(InputError, match="out must be a path in UTF-8"):
        files.require_utf8(tmp_path / os.fsdecode(b"r\xfcn"))


def test_files_under_a_folder(tmp_path):
    for name in ("b", "a/c", ".hidden/d", "a/.e"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert files.files_under(tmp_path) == [tmp_path / "a" / "c", tmp_path / "b"]


# Locks

HOLDER = """
import sys
from pathlib import Path
from projkern.utils.files import FolderInUse, locked

try:
    with locked(Path(sys.argv[1])):
        print("held", flush=True)
        sys.stdin.read()
except FolderInUse:
    print("refused", flush=True)
"""


def other_process(folder):
    """A process that holds the folder, or says that it cannot, until its standard input is closed."""
    command = [sys.executable, "-c", HOLDER, str(folder)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_one_process_at_a_time(tmp_path):
    folder = tmp_path / "deep" / "run"
    with locked(folder), other_process(folder) as other:
        assert other.stdout.readline() == "refused\n"
    with other_process(folder) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(FolderInUse, match=f"out must .* {folder}"), locked(folder):
            pass
        other.kill()  # the system drops the lock with its holder
        other.wait()
        with locked(folder):
            pass


def test_an_error_drops_the_lock(tmp_path):
    with pytest.raises(RuntimeError), locked(tmp_path):
        raise RuntimeError
    with locked(tmp_path):
        assert not is_nonempty(tmp_path)


def test_lock_of_a_link_whose_target_was_deleted(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "run")
    with locked(tmp_path / "link"):
        assert (tmp_path / "run").is_dir()
