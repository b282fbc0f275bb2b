"""Several processes train as one does: the same losses, gradients and weights."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import rank_cases
import torch
from ports import free_port
from ranks import filled

from projkern.training import distributed
from projkern.training.distributed import Ranks
from projkern.utils.errors import InputError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return filled("rank_cases.py", tmp_path_factory.mktemp("cases"), timeout=400)


def stored_by(folder: Path, case: str, size: int) -> list[dict[str, Any]]:
    return [torch.load(folder / f"of-{size}" / f"{case}-{rank}.pt") for rank in range(size)]


@pytest.mark.parametrize(("size", "case"), [(size, case) for size in (2, 4) for case in rank_cases.OF_SIZE[size]])
def test_ranks_train_as_one_process_does(size, case, folder):
    (expected,), stored = stored_by(folder, case, 1), stored_by(folder, case, size)
    assert len(stored[0]["losses"]) == (50 if size == 2 and case in ("the default", "compression") else 8)
    for line, reference in zip(stored[0]["losses"], expected["losses"]):
        assert line == pytest.approx(reference, abs=1e-6)  # in 50 steps the general generator makes 1e-16 into 1e-7
    gradients = {name: gradient for rank in stored for name, gradient in rank["gradients"].items()}
    assert gradients.keys() == expected["gradients"].keys()
    for name, gradient in expected["gradients"].items():
        torch.testing.assert_close(gradients[name], gradient, atol=1e-12, rtol=0)
    for rank in stored[1:]:
        assert all(torch.equal(rank["weights"][name], w) for name, w in stored[0]["weights"].items())


@pytest.mark.parametrize("size", [2, 4])
def test_compression_sends_values_and_gradients_of_the_small_model(size, folder):
    """By gloo's algorithms: a tree for the broadcast; a ring and a gather for the reduction."""
    stored = stored_by(folder, "compression", size)
    numbers = {id(w): w.numel() for w in stored[0]["weights"].values()}  # of tied tables once
    expected = 8 * sum(numbers.values()) * (size - 1) * (2 + 1 / size)  # in float64
    assert expected < sum(rank["sent"] for rank in stored) < 1.06 * expected  # heads of messages of small matrices


def test_a_batch_is_dealt_by_task():
    rows = torch.arange(12)
    parts = [Ranks(rank, 3).share(rows, 2).tolist() for rank in range(3)]
    assert parts == [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]
    Ranks(0, 3).require_even(12, 2)
    with pytest.raises(InputError, match="batch_size .* was 8"):
        Ranks(0, 3).require_even(8, 2)
    with pytest.raises(InputError, match="source_batch .* was 4"):
        Ranks(0, 3).require_even(12, 2, source_batch=4)


def test_several_ranks_take_a_card_each():
    with pytest.raises(InputError, match="device .* was cuda:1"):
        distributed._connect(Ranks(0, 2), None, "cuda:1")


def test_without_torchrun_there_is_one_process(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")  # alone, of something else
    with distributed.processes("cpu") as ranks:
        assert ranks == Ranks() and ranks.is_main and not ranks.is_restart
        ranks.finish()


def test_no_thread_of_the_connection_outlives_it(monkeypatch):
    """One that still runs may abort a process that ends."""
    place = {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    for name, value in place.items():
        monkeypatch.setenv(name, str(value))
    program = """
from pathlib import Path
from projkern.training import distributed
with distributed.processes("cpu") as ranks:
    import torch.distributed.fsdp  # its functions have the group of then as default arguments
    ranks.finish()
print(*((task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()))
"""
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100)
    assert finished.returncode == 0, finished.stderr
    assert "gloo" not in finished.stdout
