"""Builds csrc/cuda with a plain C++ compiler, so that its kernels run, and are checked, without a card.

    import cuda_on_host                       # with tests/helpers on the path, as under pytest
    library = cuda_on_host.build()            # or build("races")
    plan = library.Plan(weights=..., matrices=..., p_width=..., q_width=...)
    plan.project_forward(..., stream=0)       # addresses of CPU memory

``library`` is csrc/cuda's extension module with ``on_host = True`` and these additions:

``set_schedule("ascending" | "descending" | "random", seed=0)``
    Which thread goes on when several may, and the order of blocks. Results must not depend on it, atomic sums apart.
``set_late_copies(late)``
    Whether copy_async is done at the wait that requires it (the default) or at once. Late copies that no wait
    requires are lost.
``set_memory({name: tensor, ...})``
    All memory that kernels may touch; other accesses are errors, and messages use the names. None: not known. Only in
    "races".

What is wrong in a kernel is a RuntimeError that says block, thread, file and line: misaligned accesses, copies beside
shared memory, writes beside it, threads that do not all arrive at a barrier, lanes that do not all take part in what a
warp does together, launches that a card would refuse. With kind "races" every access to memory is followed, and two
that nothing orders, one of them a write, are an error too, whatever the schedule (about six times slower). Shared
memory starts as NaN in each block.

    python tests/helpers/cuda_on_host/build.py races  # prints where the library is, or the compiler's errors

Object files are kept in build/cuda_on_host, and made again when their source, or any header, has changed. CXX names
the compiler.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import importlib.util
import os
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
CSRC = ROOT / "csrc"
ORDERS = ("ascending", "descending", "random")

FLAGS = {"plain": ["-O1", "-g"], "races": ["-O1", "-g", "-DPROJKERN_CHECK_RACES"], "host": ["-O0"]}


def compiler() -> str:
    return os.environ.get("CXX", "g++")


def _flags(kind: str) -> list[str]:
    import pybind11

    strings = ("COMPILER", "ARCHITECTURES", "VERSION", "REVISION")
    return [
        *("-std=c++17", "-fPIC", "-fvisibility=hidden", "-fno-strict-aliasing"),
        *("-fno-optimize-sibling-calls", "-Wall", "-Wextra", "-Wno-unknown-pragmas"),
        "-DPROJKERN_ON_HOST",
        *(f'-DPROJKERN_{name}="on the host"' for name in strings),
        *(f"-I{path}" for path in (HERE, pybind11.get_include(), sysconfig.get_path("include"))),
        *FLAGS[kind],
    ]


def _compile(kind: str, folder: Path, source: Path, headers: bytes) -> Path:
    if source.suffix == ".cu" and kind == "races":
        more = ["-fsanitize=thread"]
    elif source.suffix == ".cpp" and source.parent != HERE:
        kind, more = "host", []  # whatever only the host does is the same for both
    else:
        more = []
    command = [compiler(), *_flags(kind), *more, "-x", "c++", "-c", str(source)]
    digest = hashlib.sha256("\0".join(command).encode() + headers + source.read_bytes()).hexdigest()[:16]
    target = folder / f"{source.stem}-{kind}-{digest}.o"
    if not target.exists():
        for old in folder.glob(f"{source.stem}-{kind}-*.o"):
            old.unlink()
        _run([*command, "-o", f"{target}.part"])
        Path(f"{target}.part").rename(target)
    return target


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
    if done.stderr:
        print(done.stderr, file=sys.stderr)


def kernels(csrc: Path = CSRC) -> list[Path]:
    """The sources of the extension module."""
    return [*sorted((csrc / "cuda").glob("*.cu")), *sorted((csrc / "cuda").glob("*.cpp")), csrc / "plan.cpp"]


def make(kind: str, sources: list[Path], folder: Path = ROOT / "build" / "cuda_on_host") -> Path:
    """The library of these sources and the machine, made in the folder if it is not there or out of date."""
    folder.mkdir(parents=True, exist_ok=True)
    # These first: what they share with a kernel's file, such as std::string, is then not the one with checks.
    sources = [HERE / "machine.cpp", HERE / "races.cpp", *sources]
    folders = {CSRC, CSRC / "cuda", *(source.parent for source in sources)}
    header_paths = sorted(header for x in folders for ending in ("*.h", "*.cuh") for header in x.glob(ending))
    headers = b"\0".join(header.read_bytes() for header in header_paths)
    with open(folder / "lock", "w") as lock, ThreadPoolExecutor(os.cpu_count()) as pool:
        fcntl.flock(lock, fcntl.LOCK_EX)
        objects = list(pool.map(lambda source: _compile(kind, folder, source, headers), sources))
        digest = hashlib.sha256("\0".join(map(str, objects)).encode()).hexdigest()[:16]
        library = folder / f"_cuda-{kind}-{digest}.so"
        if not library.exists():
            _run([compiler(), "-shared", "-o", f"{library}.part", *map(str, objects), "-ldl", "-pthread"])
            Path(f"{library}.part").rename(library)
    return library


class Controls:
    """What can be said to the machine in a library."""

    def __init__(self, library: Path):
        self.library = ctypes.CDLL(str(library))

    def set_schedule(self, order: str, seed: int = 0) -> None:
        self.library.projkern_set_schedule(ORDERS.index(order), ctypes.c_uint64(seed))

    def set_late_copies(self, late: bool) -> None:
        self.library.projkern_set_late_copies(bool(late))

    def set_memory(self, memory: Mapping[str, Any] | None) -> None:
        names, tensors = list(memory or {}), list((memory or {}).values())
        n = len(names)
        self.library.projkern_set_memory(
            n,
            (ctypes.c_char_p * n)(*(name.encode() for name in names)),
            (ctypes.c_size_t * n)(*(tensor.data_ptr() for tensor in tensors)),
            (ctypes.c_int64 * n)(*(tensor.numel() * tensor.element_size() for tensor in tensors)),
        )


@lru_cache
def build(kind: str = "plain") -> ModuleType:
    """The extension module; see the head of this file."""
    return load(kind, make(kind, kernels()))


def load(kind: str, path: Path) -> ModuleType:
    # pybind11 keeps modules by name: each library has its own. The last part is what its entry is called.
    spec = importlib.util.spec_from_file_location(f"cuda_on_host.{path.stem}._cuda", path)
    library = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(library)
    controls = Controls(path)
    library.on_host, library.kind = True, kind
    library.set_schedule = controls.set_schedule
    library.set_late_copies = controls.set_late_copies
    library.set_memory = controls.set_memory
    return library


if __name__ == "__main__":
    try:
        print(make(sys.argv[1] if len(sys.argv) > 1 else "plain", kernels()))
    except RuntimeError as error:
        sys.exit(str(error))
