"""The choice of a device and of its arithmetic, on machines with cards and without."""

from __future__ import annotations

import ctypes
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from projkern.kernels.backends import cpu
from projkern.utils import device
from projkern.utils.errors import InputError


@pytest.fixture
def cards(monkeypatch):
    """Sets how many CUDA cards torch sees, and whether they have bfloat16."""

    def see(count, has_bfloat16=True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: has_bfloat16)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda card: f"card {card.index or 0}")

    return see


@pytest.mark.parametrize(
    ("name", "count", "expected"),
    [
        ("auto", 0, "cpu"),
        ("auto", 2, "cuda"),
        ("cpu", 0, "cpu"),
        ("cpu", 2, "cpu"),
        ("cuda", 1, "cuda"),
        ("cuda:1", 2, "cuda:1"),
    ],
)
def test_device_of_a_name(cards, name, count, expected):
    cards(count)
    assert device.pick_device(name) == torch.device(expected)


@pytest.mark.parametrize(("name", "count"), [("cuda", 0), ("cuda:0", 0), ("cuda:2", 2), ("cuda:99", 1)])
def test_a_card_that_is_not_there(cards, name, count):
    cards(count)
    with pytest.raises(InputError, match=f"device must .*; it was {name}, .* {count} "):
        device.pick_device(name)


@pytest.mark.parametrize("name", ["", "tpu", "cuda:", "cuda:-1", "cuda:x", "cpu:0", "CPU", "auto "])
def test_names_that_are_no_device(cards, name):
    cards(1)
    with pytest.raises(InputError, match=f"device must be auto, cpu, cuda or cuda:N; it was {name}$"):
        device.pick_device(name)


@pytest.mark.parametrize(
    ("name", "dtype", "count", "has_bfloat16", "expected"),
    [
        ("auto", "auto", 1, True, torch.bfloat16),
        ("auto", "auto", 1, False, torch.float32),
        ("auto", "auto", 0, True, torch.float32),
        ("cpu", "auto", 1, True, torch.float32),
        ("cpu", "bfloat16", 1, True, torch.bfloat16),
        ("cuda", "float32", 1, True, torch.float32),
    ],
)
def test_arithmetic(cards, name, dtype, count, has_bfloat16, expected):
    cards(count, has_bfloat16)
    machine = device.pick_machine(name, dtype)
    assert machine.dtype == expected and machine.device == device.pick_device(name)
    assert machine.reason.endswith(str(expected).removeprefix("torch."))


def test_the_reason_names_what_was_chosen_and_why(cards):
    cards(1)
    assert device.pick_machine().reason == "card 0 (a CUDA card is there), bfloat16"
    cards(0)
    assert "there is no CUDA card" in device.pick_machine().reason
    assert "there is no CUDA card" not in device.pick_machine("cpu").reason


def test_processors_in_words():
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert device.describe(torch.device("cpu")) == "1 CPU thread"
        torch.set_num_threads(2)
        assert device.describe(torch.device("cpu")) == "2 CPU threads"
    finally:
        torch.set_num_threads(threads)


def test_free_memory(monkeypatch):
    assert device.free_memory(torch.device("cpu")) > 2**20
    monkeypatch.setattr(Path, "read_text", lambda self, encoding: "MemTotal: 9 kB\nMemAvailable:       3 kB\n")
    assert device.free_memory(torch.device("cpu")) == 3 * 1024
    monkeypatch.setattr(Path, "read_text", lambda self, encoding: "nothing of the kind")
    assert device.free_memory(torch.device("cpu")) == math.inf

    def missing(self, encoding):
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    assert device.free_memory(torch.device("cpu")) == math.inf


def test_free_memory_of_a_card_counts_what_torch_keeps(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda card: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda card: 70)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda card: 30)
    assert device.free_memory(torch.device("cuda")) == 140


def test_waiting_is_for_cards_alone(monkeypatch):
    waits = []
    monkeypatch.setattr(torch.cuda, "synchronize", waits.append)
    device.wait_for(torch.device("cpu"))
    device.wait_for(torch.device("cuda:1"))
    assert waits == [torch.device("cuda:1")]


@pytest.fixture
def mallopt(monkeypatch):
    """Calls of glibc's mallopt, which is not made."""
    calls = []

    class Library:
        @staticmethod
        def mallopt(option, value):
            calls.append((option, value))
            return 1

    for name in [name for name in os.environ if name.startswith("MALLOC_") or name == "GLIBC_TUNABLES"]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(device, "_has_kept_all", False)
    monkeypatch.setattr(device.ctypes, "CDLL", lambda name: Library)
    return calls


def test_some_freed_memory_is_kept_by_default(mallopt, monkeypatch):
    device.keep_some_freed_memory()
    assert mallopt == [(-3, 32 << 20), (-1, 256 << 20)]  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD of malloc.h
    mallopt.clear()
    for name, value in (("MALLOC_TRIM_THRESHOLD_", "1000"), ("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=1000")):
        with monkeypatch.context() as environment:
            environment.setenv(name, value)
            device.keep_some_freed_memory()
    assert not mallopt
    assert device.keep_freed_memory()
    mallopt.clear()
    device.keep_some_freed_memory()  # not less than was asked for
    assert not mallopt


STEPS = """
import resource, torch
import projkern as pk
assert "cpu" in pk.available_backends()
stack = [torch.randn(6, n * 256, m * 256, requires_grad=True) for n, m in ((3, 1), (1, 1), (4, 1), (1, 4))]
p, q = (torch.randn(1, sum(w.shape[0] * w.shape[k] for w in stack), requires_grad=True) for k in (1, 2))
faults = [0]
for step in range(12):
    for leaf in (*stack, p, q):
        leaf.grad = None
    outputs = pk.project_layers(stack, p, q, 4)
    torch.autograd.backward(outputs, [torch.ones_like(out) for out in outputs])
    del outputs
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(faults[-1] - faults[-9])
"""


def test_gradients_of_a_step_are_written_to_kept_memory():
    """Gradients of 19 MB are 4608 pages, each of which faults in each of eight steps where glibc returns it.

    A step or two may still find its memory moved, by what else the process does.
    """
    if cpu.why_unavailable() is not None or not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"):
        pytest.skip("the CPU kernels and glibc are needed")
    finished = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert int(finished.stdout) < 4 * 4608, "faults in eight steps"


def test_freed_memory_is_kept_where_the_c_library_can(mallopt, monkeypatch):
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(sys, "platform", "darwin")
        assert device.keep_freed_memory() is False
    assert device.keep_freed_memory() is True
    assert mallopt == [(-4, 0), (-1, -1), (-2, 64 << 20)]  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD of malloc.h
    monkeypatch.setattr(device.ctypes, "CDLL", lambda name: object())  # musl has no mallopt
    assert device.keep_freed_memory() is False
