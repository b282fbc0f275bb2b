"""Builds the compiled kernels with CMake; pyproject.toml has everything else.

Torch is not needed here: the kernels take raw pointers. Environment variables:

    PROJKERN_NATIVE=1          CPU kernels for the processor that builds too, beside those for any of its kind
    PROJKERN_REQUIRE_NATIVE=1  a failing native build is an error, not a warning and a pure Python install
    PROJKERN_CUDA=0|1|auto     CUDA kernels: never, always, or where a compiler for them is found
    CUDAARCHS                  CMake's: the architectures to compile them for, "90-real" say
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CPU, CUDA = "projkern._cpu", "projkern._cuda"


def flag(name: str) -> bool:
    return os.environ.get(name, "0").lower() in ("1", "on", "true", "yes")


def warn(text: str) -> None:
    banner = "*" * 80
    print(f"{banner}\nWARNING: {text}\n{banner}", file=sys.stderr)


def revision() -> str:
    """The git revision of the sources, marked if they differ from it."""
    if not (ROOT / ".git").exists():
        return "unknown"
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, encoding="utf-8", check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


class FreshBuild(build):
    """Into an empty folder: what an earlier build of this checkout left in it would be packed too."""

    def run(self) -> None:
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class CMakeBuild(build_ext):
    def run(self) -> None:
        self.is_in_place = bool(self.inplace)  # while it builds, setuptools says that it does not
        super().run()

    def build_extension(self, ext: Extension) -> None:
        if ext.name != CPU:
            return  # CMake builds all of them at once
        cuda = os.environ.get("PROJKERN_CUDA", "auto").lower()
        if cuda not in ("0", "1", "auto"):
            raise SystemExit(f"PROJKERN_CUDA={cuda}: expected 0, 1 or auto")
        destination = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        for folder in (destination, ROOT / "projkern") if self.editable_mode or self.is_in_place else (destination,):
            for name in (Path(self.get_ext_filename(CPU)).name, "_cuda*.so", "_native*.so"):  # _native was _cpu before
                for stale in folder.glob(name):
                    stale.unlink()  # of another build: this one may fail, or leave it out
        failures = []
        for choice in ("auto", "0") if cuda == "auto" else (cuda,):
            try:
                self.build_with_cmake(destination, choice)
                break
            except (OSError, ImportError, subprocess.CalledProcessError) as error:
                failures.append(error)
        else:
            if flag("PROJKERN_REQUIRE_NATIVE") or cuda == "1":
                raise SystemExit(f"the native build failed, and the environment requires it: {failures[-1]}")
            warn(
                f"the native build failed, so projkern is installed WITHOUT its compiled kernels:\n    {failures[-1]}"
                "\nEverything works, slowly. PROJKERN_REQUIRE_NATIVE=1 makes this an error."
            )
            return
        if failures:
            warn(
                f"the CUDA kernels did not build, so projkern is installed without them:\n    {failures[0]}\n"
                "PROJKERN_CUDA=1 makes this an error."
            )

    def build_with_cmake(self, destination: Path, cuda: str) -> None:
        import pybind11

        tree = Path(self.build_temp).resolve() / f"cuda-{cuda}"
        shutil.rmtree(tree, ignore_errors=True)  # CMake's cache holds tools of an environment that pip has deleted
        tree.mkdir(parents=True)
        architectures = os.environ.get("CUDAARCHS", "")
        configure = [
            "cmake",
            *("-S", str(ROOT), "-B", str(tree), "-G", "Ninja"),
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DCMAKE_INSTALL_PREFIX={destination}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DPROJKERN_NATIVE={'ON' if flag('PROJKERN_NATIVE') else 'OFF'}",
            f"-DPROJKERN_CUDA={cuda}",
            *([f"-DCMAKE_CUDA_ARCHITECTURES={architectures}"] if architectures else []),
            f"-DPROJKERN_VERSION={self.distribution.get_version()}",
            f"-DPROJKERN_REVISION={revision()}",
        ]
        # The tools that pip puts beside the interpreter of an isolated build count as found.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        environment = {**os.environ, "PATH": path}
        subprocess.run(configure, check=True, env=environment)
        subprocess.run(["cmake", "--build", str(tree)], check=True, env=environment)
        subprocess.run(["cmake", "--install", str(tree)], check=True, env=environment)

    def get_outputs(self) -> list[str]:
        return [output for output in super().get_outputs() if Path(output).exists()]


if __name__ == "__main__":
    setup(
        ext_modules=[
            Extension(CPU, sources=[], optional=not flag("PROJKERN_REQUIRE_NATIVE")),
            Extension(CUDA, sources=[], optional=True),
        ],
        cmdclass={"build": FreshBuild, "build_ext": CMakeBuild},
    )
