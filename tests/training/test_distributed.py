"""Several processes train as one does: the same losses, gradients and weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import rank_cases
import torch
from ranks import ROOT, torchrun

from projkern.training import distributed
from projkern.training.distributed import Ranks
from projkern.utils.errors import InputError


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("alone")
    cases = {name: rank_cases.run_case(changes, folder / name) for name, changes in rank_cases.CASES.items()}
    torch.set_num_threads(threads)
    return cases


@pytest.fixture(scope="module", params=[2, 4])
def together(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    out = tmp_path_factory.mktemp(f"of-{request.param}")
    process = torchrun(request.param, ROOT / "tests" / "helpers" / "rank_cases.py", out)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    return request.param, out


@pytest.mark.parametrize("case", rank_cases.CASES)
def test_ranks_train_as_one_process_does(case, alone, together):
    size, out = together
    expected = alone[case]
    stored = [torch.load(out / f"{case}-{rank}.pt") for rank in range(size)]
    assert len(stored[0]["losses"]) == 50
    for line, reference in zip(stored[0]["losses"], expected["losses"]):
        assert line == pytest.approx(reference, abs=1e-6)  # in 50 steps the general generator makes 1e-16 into 1e-7
    assert stored[0]["gradients"].keys() == expected["gradients"].keys()
    for name, gradient in expected["gradients"].items():
        torch.testing.assert_close(stored[-1]["gradients"][name], gradient, atol=1e-12, rtol=0)
    for rank in stored[1:]:
        assert all(torch.equal(rank["weights"][name], w) for name, w in stored[0]["weights"].items())


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
