"""One library for every processor: each target of the compiled CPU kernels, and the choice among them."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from oracle import relative_error

import projkern as pk
from projkern.kernels.backends import cpu

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(not cpu.is_built(), reason=f"the compiled kernels are not here: {cpu.why_unavailable()}"),
]

CSRC = Path(__file__).resolve().parents[2] / "csrc" / "cpu"
LIBRARY = str(sys.modules["projkern._cpu"].__file__) if cpu.is_built() else ""
TARGETS = str(cpu.build_info()["targets"]).split() if cpu.is_built() else []
AVX2 = {"avx2", "fma", "bmi1", "bmi2"}
NEEDS = {"avx2": AVX2, "avx512": AVX2 | {f"avx512{part}" for part in ("f", "dq", "cd", "bw", "vl")}}
"""In the words of Linux."""

CASES = [  # rows, cols, groups, batch
    *((48, 48 * group, (4, group), 5) for group in (1, 2, 3, 4, 8, 16)),
    *((16 * group, 96, (group, 2), 4) for group in (1, 2, 3, 8)),
    *((2 * group, 67 * group, group, 1) for group in (1, 2, 4, 8)),
    (24, 4 * 67, 4, 33),
]
LARGE = (2, (2 << 20) + 64, 2, 5)  # W and W_s of more than 16 MB of float32, which are streamed past the caches


def runs_here(target: str) -> bool:
    flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text("utf-8"), re.MULTILINE)
    return NEEDS.get(target, set()) <= set(flags[1].split() if flags else ())


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Load a copy of the library, which chooses its target anew, with this value of the variable."""

    def load(cap):
        monkeypatch.setenv("PROJKERN_INSTRUCTION_SET", cap)
        path = shutil.copy(LIBRARY, tmp_path)
        spec = importlib.util.spec_from_file_location(f"copy_{cap}._cpu", path)  # pybind11 keeps modules by name
        assert spec is not None and spec.loader is not None
        library = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(library)
        monkeypatch.setattr(cpu, "_load", lambda: (library, None))
        cpu._cpu_plan.cache_clear()
        return library

    yield load
    cpu._cpu_plan.cache_clear()


@pytest.mark.parametrize("target", TARGETS)
def test_each_target_agrees_with_the_reference(target, load, poisoned_memory):
    if not runs_here(target):
        with pytest.raises(ImportError, match=rf"PROJKERN_INSTRUCTION_SET must be .*; it was {target}$"):
            load(target)
        return
    assert load(target).build_info()["target"] == target
    torch.manual_seed(0)
    for case in CASES:
        compare(*case, torch.float32, 1e-5)
        compare(*case, torch.bfloat16, 1e-2)
    compare(*LARGE, torch.float32, 1e-5)


def compare(rows, cols, group, batch, dtype, tolerance):
    """Values and all gradients, with the reference in float64."""
    leaves = [torch.randn(rows, cols).to(dtype), torch.randn(batch, rows), torch.randn(batch, cols)]
    truth = [x.double().requires_grad_() for x in leaves]
    leaves = [x.requires_grad_() for x in leaves]
    with pk.use_backend("reference"):
        expected = pk.project(*truth, group)
        grad = torch.randn_like(expected).to(dtype)
        expected_grads = torch.autograd.grad(expected, truth, grad.double())
    with pk.use_backend("cpu"):
        out = pk.project(*leaves, group)
        grads = torch.autograd.grad(out, leaves, grad)
    for found, right in zip((out, *grads), (expected, *expected_grads)):
        assert relative_error(found, right) <= tolerance, (rows, cols, group, batch, dtype)


def test_the_best_target_is_chosen(load):
    best = [target for target in TARGETS if runs_here(target)][-1]
    assert load("").build_info()["target"] == best


def test_a_target_that_does_not_exist(load):
    names = " or ".join(target for target in TARGETS if runs_here(target))
    message = f"PROJKERN_INSTRUCTION_SET must be {names}, which this processor can run; it was avx9"
    with pytest.raises(ImportError, match=f"^{message}$"):
        load("avx9")


@pytest.mark.parametrize("source", ["project_forward", "project_backward"])
def test_no_function_outside_the_namespace_of_its_target(source, tmp_path):
    """Of a function that two targets define, the linker keeps one for both, with instructions that one may lack.

    The compiler inlines less here than in the build, so that nothing depends on its choices.
    """
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler) is None or shutil.which("nm") is None:
        pytest.skip(f"there is no {compiler}, or no nm")
    built = tmp_path / "kernels.o"
    flags = ["-std=c++17", "-O1", "-DNDEBUG", "-fPIC", "-fvisibility=hidden", "-DPROJKERN_TARGET=some_target"]
    subprocess.run([compiler, *flags, "-c", str(CSRC / f"{source}.cpp"), "-o", str(built)], check=True)
    symbols = subprocess.run(["nm", "-C", "--defined-only", str(built)], capture_output=True, text=True, check=True)
    shared = re.findall(r"^[0-9a-f]+ [TWwu] (.*)$", symbols.stdout, re.MULTILINE)
    assert shared and not [name for name in shared if "projkern::cpu::some_target" not in name]


@pytest.mark.skipif("avx2" not in TARGETS, reason="this processor's only target is its baseline")
def test_no_instruction_outside_its_target():
    """What runs before the choice, and the baseline's kernels, run everywhere."""
    if shutil.which("objdump") is None:
        pytest.skip("there is no objdump to read the library with")
    command = ["objdump", "-dC", "--no-show-raw-insn", LIBRARY]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    functions = re.split(r"^[0-9a-f]+ <(.*)>:$", text, flags=re.MULTILINE)[1:]
    code = dict(zip(functions[::2], functions[1::2]))
    if not any("projkern" in name for name in code):
        pytest.skip("the library has no names of functions")
    special = re.compile(r"\t(v\w+|mulx|rorx|sarx|shlx|shrx|andn|bextr|bls\w+|pdep|pext) ")
    namespaces = {target: f"projkern::cpu::{target}::" for target in TARGETS if target != "baseline"}
    outside = {name for name in code if not any(namespace in name for namespace in namespaces.values())}
    assert not [name for name in outside if special.search(code[name])]
    for target, register in (("avx2", "%ymm"), ("avx512", "%zmm")):
        assert any(register in code[name] for name in code if namespaces[target] in name)
    assert not any("%zmm" in code[name] for name in code if namespaces["avx2"] in name)
