"""The CUDA kernels for real cards, without one: what the compiler says of them, and the instructions that it made."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

SOURCES = sorted((Path(__file__).resolve().parents[2] / "csrc" / "cuda").glob("*.cu"))
ARCHITECTURES = ("sm_80", "sm_90a", "sm_120")
OTHERS = ("sm_86", "sm_89", "sm_90", "sm_100")  # that the build is for
MOST_REGISTERS = 128  # two blocks of 256 threads on a multiprocessor of 65,536 registers

INSTRUCTIONS = {
    "tensor cores": r"\bHMMA\.16816\.F32\.BF16|\bHMMA\.1688\.F32\.BF16",
    "16-byte loads": r"\bLDG\.E\.(\w+\.)*128\b",
    "16-byte stores": r"\bSTG\.E\.(\w+\.)*128\b",
    "16-byte copies to shared memory": r"\bLDGSTS\.E\.(\w+\.)*128\b",
}
# By mangled name: a kernel's first template argument is its path (table.h: 1 lanes, 2 matrix), or it serves them all,
# and then multiplies on tensor cores if its last argument, the type of W_s or G, is not float.
MEANT = {
    r"_kernelILNS0_4PathE[12]E|forward_kernelI(?!L)": ["16-byte loads", "16-byte copies to shared memory"],
    r"_kernelILNS0_4PathE2E|forward_kernelI(?!L)\w+(?<!f)EEv": ["tensor cores"],
}


def disassembler() -> str | None:
    """nvcc's, or Triton's, which has one for the cards that it compiles for."""
    found = shutil.which("cuobjdump")
    triton = importlib.util.find_spec("triton")
    if found is None and triton is not None:
        here = Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        found = str(here) if here.exists() else None
    return found


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> dict[tuple[str, str], tuple[Path, str]]:
    """(source, architecture) -> the file of machine code, and the compiler's report."""
    return compile_for(ARCHITECTURES, tmp_path_factory.mktemp("cubins"))


def compile_for(architectures: tuple[str, ...], folder: Path) -> dict[tuple[str, str], tuple[Path, str]]:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        (pytest.fail if os.environ.get("PROJKERN_CUDA") == "1" else pytest.skip)("there is no nvcc on the PATH")

    def compile_one(job: tuple[Path, str]) -> tuple[Path, str]:
        source, architecture = job
        cubin = folder / f"{source.stem}.{architecture}.cubin"
        flags = ["-std=c++17", "-O3", "-DNDEBUG", "--resource-usage", "-cubin", f"-arch={architecture}"]
        done = subprocess.run([nvcc, *flags, "-o", str(cubin), str(source)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return cubin, done.stdout + done.stderr

    jobs = [(source, architecture) for source in SOURCES for architecture in architectures]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return {(source.stem, a): found for (source, a), found in zip(jobs, pool.map(compile_one, jobs))}


def kernels(report: str) -> dict[str, str]:
    """Mangled name -> the part of the compiler's report that is about it."""
    parts = re.split(r"Compiling entry function '(\w+)' for '\w+'", report)
    return dict(zip(parts[1::2], parts[2::2]))


def functions(cubin: Path) -> dict[str, str]:
    """Mangled name -> its instructions."""
    tool = disassembler()
    if tool is None:
        pytest.skip("there is no cuobjdump on the PATH nor in Triton")
    done = subprocess.run([tool, "-sass", str(cubin)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    parts = re.split(r"Function : (\w+)", done.stdout)
    return dict(zip(parts[1::2], parts[2::2]))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("source", [source.stem for source in SOURCES])
def test_registers_are_enough(compiled, source, architecture):
    check_registers(compiled[source, architecture][1])


@pytest.mark.slow
def test_registers_are_enough_on_the_other_architectures(tmp_path):
    for _, report in compile_for(OTHERS, tmp_path).values():
        check_registers(report)


def check_registers(report: str) -> None:
    assert "warning" not in report
    found = kernels(report)
    assert found
    nothing = r"\b0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"
    spilling = [name for name, text in found.items() if not re.search(nothing, text)]
    assert not spilling, "\n".join(spilling)
    large = [name for name, text in found.items() if int(re.search(r"Used (\d+) registers", text)[1]) > MOST_REGISTERS]
    assert not large, "\n".join(large)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("source", [source.stem for source in SOURCES])
def test_instructions(compiled, source, architecture):
    found = functions(compiled[source, architecture][0])
    assert found.keys() == kernels(compiled[source, architecture][1]).keys()
    local = [name for name, text in found.items() if re.search(r"\b(LDL|STL)\b", text)]
    assert not local, "\n".join(local)
    missing = [
        (name, what)
        for kernel, meant in MEANT.items()
        for name, text in found.items()
        for what in meant
        if re.search(kernel, name) and not re.search(INSTRUCTIONS[what], text)
    ]
    assert not missing


def test_every_entry_of_the_table_is_about_some_kernel(compiled):
    names = [name for _, report in compiled.values() for name in kernels(report)]
    for both in MEANT:
        for kernel in both.split("|"):
            assert any(re.search(kernel, name) for name in names), kernel
