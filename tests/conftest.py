"""Shared fixtures: backends under test, memory that shows what was not written."""

from __future__ import annotations

import os

import pytest
import torch

# Before anything imports Triton: without a card its kernels run in the interpreter.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import projkern as pk
from projkern.data import load_digits
from projkern.kernels import native


@pytest.fixture(params=["reference", "cpu"])
def backend(request):
    """Run the test once on each backend. The compiled one may be missing only where nobody required it."""
    if request.param == "cpu" and not native.is_available():
        if os.environ.get("PROJKERN_REQUIRE_NATIVE") == "1":
            pytest.fail(f"PROJKERN_REQUIRE_NATIVE=1, but: {native.why_unavailable()}")
        pytest.skip(f"the compiled kernels are not here: {native.why_unavailable()}")
    with pk.use_backend(request.param):
        yield request.param


@pytest.fixture(scope="module")
def one_thread():
    """For tests of small tensors: there threads only cost time, above all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """A palette cache that starts empty, in place of the user's."""
    monkeypatch.setenv("PROJKERN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def digits():
    """scikit-learn's, the training split."""
    return load_digits()


@pytest.fixture
def poisoned_memory():
    """Fill fresh tensors with NaN, so that an element which a kernel forgets to write shows."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.utils.deterministic.fill_uninitialized_memory = before[1]
