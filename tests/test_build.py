"""A build packs the library that it has made, or none, whatever earlier builds have left in the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = ("setup.py", "pyproject.toml", "CMakeLists.txt", "MANIFEST.in", "LICENSE", "README.md", "csrc")


@pytest.fixture
def checkout(tmp_path):
    """The files of a build, and a library and a module that an earlier one has left."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        copy(ROOT / name, folder / name)
    for path in ("__init__.py", "utils/__init__.py", "utils/version.py"):
        (folder / "projkern" / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / "projkern" / path, folder / "projkern" / path)
    left = folder / "build" / f"lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}" / "projkern"
    left.mkdir(parents=True)
    for name in (f"_cpu{sysconfig.get_config_var('EXT_SUFFIX')}", "deleted.py"):
        (left / name).write_text("of another build")
    return folder


def wheel(checkout, out, **changes):
    """The files of the package in a wheel of the checkout."""
    environment = {name: value for name, value in os.environ.items() if name != "PROJKERN_REQUIRE_NATIVE"}
    environment |= {"PROJKERN_CUDA": "0"} | changes
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(out), str(checkout)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if "No matching distribution" in done.stderr and os.environ.get("PROJKERN_REQUIRE_NATIVE") != "1":
        pytest.skip("the tools of a build cannot be had here")
    assert done.returncode == 0, done.stderr
    (path,) = out.iterdir()
    with zipfile.ZipFile(path) as packed:
        return {name: packed.read(name) for name in packed.namelist() if name.startswith("projkern/")}


def test_two_builds_of_one_checkout(checkout, tmp_path):
    """The first finds no compiler; the second finds CMake's cache of the first, which is of another place."""
    sources = {f"projkern/{path}" for path in ("__init__.py", "utils/__init__.py", "utils/version.py")}
    assert wheel(checkout, tmp_path / "first", CXX="/none/c++").keys() == sources
    moved = checkout.rename(tmp_path / "moved")
    assert list(moved.glob("build/temp*/*/CMakeCache.txt"))
    compiler = tmp_path / "c++"  # a quick one: not the kernels are tested here
    compiler.write_text(f'#!/bin/sh\nexec {os.environ.get("CXX", "c++")} "$@" -O0\n')
    compiler.chmod(0o755)
    files = wheel(moved, tmp_path / "second", CXX=str(compiler))
    (library,) = files.keys() - sources
    assert library == f"projkern/_cpu{sysconfig.get_config_var('EXT_SUFFIX')}" and files[library].startswith(b"\x7fELF")
