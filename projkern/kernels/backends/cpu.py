"""The compiled CPU kernels: finds the library, hands it addresses and sizes.

`csrc/plan.h` has the formula. The library is loaded at its first use; where it is missing or cannot run
here, using it raises and says why. It starts no threads of its own: it runs on the OpenMP runtime that
torch has loaded.
"""

import ctypes
import os
import re
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ...utils.device import keep_some_freed_memory
from ..plan import Plan
from . import extension
from .backend import Backward, Forward

_NOT_BUILT = (
    "this installation was built without compiled kernels; with a C++17 compiler (GCC >= 9 or Clang), "
    "`PROJKERN_REQUIRE_NATIVE=1 pip install .` in the project's root builds them, or shows what fails"
)
SERVES = "float32 and bfloat16 weights and outputs on the CPU"


@lru_cache(maxsize=1)
def _load() -> tuple[ModuleType | None, str | None]:
    """The library, or the reason why there is none."""
    library, reason = extension.load("projkern._cpu", _NOT_BUILT)
    if library is None:
        return None, reason
    library.use_openmp(_gomp_parallel())
    keep_some_freed_memory()
    return library, None


def _gomp_parallel() -> int:
    """The address of GOMP_parallel in the OpenMP runtime that torch runs on, or 0.

    GCC's runtime, LLVM's and Intel's all export it.
    """
    for path in _openmp_runtimes():
        try:
            # Not to load a second runtime: this asks for the one that is there.
            runtime = ctypes.CDLL(path, mode=ctypes.DEFAULT_MODE | os.RTLD_NOLOAD)
            return ctypes.cast(runtime.GOMP_parallel, ctypes.c_void_p).value or 0
        except (OSError, AttributeError):  # without RTLD_NOLOAD (Windows) too
            continue
    return 0


def _openmp_runtimes() -> list[str]:
    names = ("libgomp", "libiomp5", "libomp")
    try:
        maps = Path("/proc/self/maps").read_bytes()  # file names are bytes of any encoding
        loaded = set(map(os.fsdecode, re.findall(rb"^(?:\S+ +){5}(/.*)$", maps, re.MULTILINE)))
    except OSError:
        libraries = Path(torch.__file__).parent / "lib"
        loaded = {str(path) for path in libraries.glob("*")}
    # Torch's own first, should another library have brought a second one.
    return sorted((path for path in loaded if Path(path).name.startswith(names)), key=lambda path: "torch" not in path)


def _library() -> ModuleType:
    library, reason = _load()
    if library is None:
        raise RuntimeError(f"projkern's compiled kernels cannot be used: {reason}")
    return library


def is_built() -> bool:
    return _load()[0] is not None


def why_unavailable() -> str | None:
    return _load()[1]


def build_info() -> dict[str, Any]:
    """How the library was built (compiler, targets, version, revision), and the target in use: flags, float32 lanes."""
    return dict(_library().build_info())


def serves(device: torch.device, weight_dtype: torch.dtype, output_dtype: torch.dtype) -> bool:
    served = (torch.float32, torch.bfloat16)
    return device.type == "cpu" and weight_dtype in served and output_dtype in served


@lru_cache(maxsize=256)
def _cpu_plan(plan: Plan, shapes: tuple[tuple[int, ...], ...]) -> Any:
    return extension.make_plan(_library(), plan, shapes)


def _prepare(plan: Plan, weights: list[Tensor]) -> Any:
    return _cpu_plan(plan, extension.shapes_of(weights))


def project_forward(plan: Plan, call: Forward) -> None:
    weights, p, q, flat = call
    cpu_plan = _prepare(plan, weights)
    batch = p.shape[0]
    cpu_plan.project_forward(
        [w.data_ptr() for w in weights],
        extension.dtype_name(weights),
        p.data_ptr(),
        q.data_ptr(),
        extension.output_addresses(plan, flat, batch),
        extension.DTYPES[flat.dtype],
        batch,
        torch.get_num_threads(),
    )


def project_backward(plan: Plan, call: Backward) -> None:
    weights, p, q, grads, d_weights, dp, dq = call
    cpu_plan = _prepare(plan, weights)
    cpu_plan.project_backward(
        [w.data_ptr() for w in weights],
        extension.dtype_name(weights),
        p.data_ptr(),
        q.data_ptr(),
        [g.data_ptr() for g in grads],
        extension.dtype_name(grads),
        extension.addresses(d_weights),
        extension.address(dp),
        extension.address(dq),
        p.shape[0],
        torch.get_num_threads(),
    )
