"""Shared fixtures: backends under test, memory that shows what was not written."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil

import pytest
import torch

# Before anything imports Triton: without a card its kernels run in the interpreter.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import cuda_on_host

import projkern as pk
from projkern.data import load_digits
from projkern.kernels import dispatch
from projkern.kernels.backends import cuda


def patch_interpreter():
    """Let Triton's interpreter loop up to a number from an argument or from memory, with NumPy 2.4 too.

    Up to Triton 3.6 it converts an array of one element to an int, which NumPy now refuses
    (github.com/triton-lang/triton/issues/9171).
    """
    interpreter = importlib.import_module("triton.runtime.interpreter")
    patch = interpreter._patch_lang_tensor

    def patched(tensor, *scope):
        patch(tensor, *scope)
        tensor.__index__ = lambda self: int(self.handle.data.item())

    interpreter._patch_lang_tensor = patched


if os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton") is not None:
    patch_interpreter()


@pytest.fixture(params=["reference", "cpu", "triton", "cuda"])
def backend(request, monkeypatch):
    """Run the test once on each backend; on tensors of the card, where there is one, for those that need it.

    Without a card Triton's kernels are interpreted, and the CUDA kernels run as C++ (tests/helpers/cuda_on_host).
    """
    name = request.param
    card = name in ("triton", "cuda") and torch.cuda.is_available()
    if name == "cuda" and not card:
        if shutil.which(cuda_on_host.compiler()) is None:
            give_up = pytest.fail if os.environ.get("PROJKERN_REQUIRE_NATIVE") == "1" else pytest.skip
            give_up(f"there is no {cuda_on_host.compiler()} to build the CUDA kernels for the host")
        library = cuda_on_host.build()
        monkeypatch.setattr(cuda, "_load", lambda: (library, None))
    reason = dispatch.why_unavailable(name)
    if reason is not None:
        if os.environ.get("PROJKERN_REQUIRE_NATIVE") == "1":
            pytest.fail(f"PROJKERN_REQUIRE_NATIVE=1, but {name} cannot run here: {reason}")
        pytest.skip(f"{name} cannot run here: {reason}")
    with pk.use_backend(name):
        torch.set_default_device("cuda" if card else None)
        yield name
        torch.set_default_device(None)


@pytest.fixture
def fast_backend(backend):
    """A backend that is not interpreted, for tests with more work."""
    if backend == "triton" and not torch.cuda.is_available():
        pytest.skip("minutes in Triton's interpreter; tests/kernels/test_triton.py has smaller cases")
    return backend


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


TINY = [
    *("--side", "4", "--vocab-size", "8", "--n-layer", "2", "--n-embd", "32", "--n-head", "2", "--rank", "2"),
    *("--batch-size", "4", "--source-steps", "4", "--steps", "4", "--log-every", "2", "--checkpoint-every", "4"),
    *("--eval-images", "8", "--no-unconditional"),
]


@pytest.fixture(scope="session")
def tiny_settings():
    """Options of ``projkern.train`` for a run of a second or two."""
    return TINY


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """The folder of a trained run with two scales, 1/2 and 1/4. Not to be written to."""
    from projkern import train

    folder = tmp_path_factory.mktemp("tiny") / "run"
    assert train.main(["--out", str(folder), "--scales", "1/2", "1/4", *TINY]) == 0
    return folder
