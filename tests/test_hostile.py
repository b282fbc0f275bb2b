"""A run where little is as a developer has it: no home and no name, an ASCII locale, odd file names, no readers.

Each process meets many of these at once, as containers and clusters have them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from projkern.data import TASK_DIM

ROOT = Path(__file__).parent.parent
NAME = os.fsdecode(b"r\xfcn")  # "rün" in Latin-1, and no UTF-8
FEW = ("--preset", "debug", "--scales", "1/4", "--no-unconditional", "--source-steps", "2", "--steps", "2")

PROGRAM = """
import mmap, os, pwd, sys

def nameless(user):
    raise KeyError(user)

umask, odd, closed, verb, *argv = sys.argv[1:]
os.umask(int(umask, 8))
pwd.getpwuid = nameless
with open(odd, "rb") as file:
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
if closed == "2":
    os.close(2)
    sys.stderr = sys.__stderr__ = None
from projkern.__main__ import main

sys.exit(main([verb, *argv]))
"""


def without_privileges() -> list[str]:
    """What has a command of root's heed permissions, where it can be had."""
    command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    has_it = os.getuid() == 0 and shutil.which("setpriv") and subprocess.run([*command, "true"]).returncode == 0
    return command if has_it else []


@pytest.fixture
def place(tmp_path):
    """A folder that may not be written, with two empty ones in it that may."""
    (tmp_path / NAME).mkdir()
    (tmp_path / "model").mkdir()
    (tmp_path / f"mapped {NAME}").write_bytes(b"x")
    np.save(tmp_path / "t.npy", np.full(TASK_DIM, 0.5, np.float32))
    tmp_path.chmod(0o555)
    yield tmp_path
    tmp_path.chmod(0o755)


@contextmanager
def no_readers():
    """A pipe that nobody reads any more, and one that is full."""
    lost, unread = os.pipe(), os.pipe()
    os.close(lost[0])
    os.set_blocking(unread[1], False)
    try:
        while os.write(unread[1], b"x" * 4096):
            pass
    except BlockingIOError:
        os.set_blocking(unread[1], True)
    try:
        yield lost[1], unread[1]
    finally:
        for number in (lost[1], *unread):
            os.close(number)


def run(place, umask, closed, *words, flags=(), **streams):
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        **{"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "OMP_NUM_THREADS": "1"},
    }
    python = [*without_privileges(), sys.executable, *flags, "-c", PROGRAM]
    command = [*python, umask, str(place / f"mapped {NAME}"), closed, *words]
    return subprocess.run(command, env=environment, cwd=place, timeout=90, **streams)


def modes(folder):
    return {path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()}


def test_a_run_is_not_lost(place):
    """First training without standard error, then a model for nobody who would read what is printed."""
    run_folder, model = place / NAME, place / "model"
    done = run(place, "022", "2", "train", *FEW, "--out", str(run_folder), stdout=subprocess.PIPE)
    assert done.returncode == 0, done.stdout
    assert b"projection by cpu." in done.stdout and b"M\\u0303_1/4" in done.stdout  # which ASCII does not have
    assert "M̃_1/4" in (run_folder / "report.md").read_text("utf-8")
    assert json.loads((run_folder / "summary.json").read_text("utf-8"))["models"].keys() >= {"P_1/4"}
    assert modes(run_folder) == {0o644}

    words = ("project", str(run_folder), "--t", "t.npy", "--out", str(model))
    with no_readers() as (lost, unread):
        done = run(place, "077", "none", *words, flags=("-O",), stdout=lost, stderr=unread)
    assert done.returncode == 0
    assert {path.name for path in model.iterdir()} >= {"config.json", "model.safetensors"}
    assert modes(model) == {0o600}
