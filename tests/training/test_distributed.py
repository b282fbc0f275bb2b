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
    cases = {name: run(folder / name) for name, run in rank_cases.RUNS.items()}
    torch.set_num_threads(threads)
    return cases


@pytest.fixture(scope="module", params=[2, 4])
def together(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    out = tmp_path_factory.mktemp(f"of-{request.param}")
    process = torchrun(request.param, ROOT / "tests" / "helpers" / "rank_cases.py", out)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    return request.param, out


@pytest.mark.parametrize("case", rank_cases.RUNS)
def test_ranks_train_as_one_process_does(case, alone, together):
    size, out = together
    expected = alone[case]
    stored = [torch.load(out / f"{case}-{rank}.pt") for rank in range(size)]
    assert len(stored[0]["losses"]) == 50
    for line, reference in zip(stored[0]["losses"], expected["losses"]):
        assert line == pytest.approx(reference, abs=1e-6)  # in 50 steps the general generator makes 1e-16 into 1e-7
    gradients = {name: gradient for rank in stored for name, gradient in rank["gradients"].items()}
    assert gradients.keys() == expected["gradients"].keys()
    for name, gradient in expected["gradients"].items():
        torch.testing.assert_close(gradients[name], gradient, atol=1e-12, rtol=0)
    for rank in stored[1:]:
        assert all(torch.equal(rank["weights"][name], w) for name, w in stored[0]["weights"].items())


def test_compression_sends_values_and_gradients_of_the_small_model(together):
    """By gloo's algorithms: a tree for the broadcast; a ring and a gather for the reduction."""
    size, out = together
    stored = [torch.load(out / f"compression-{rank}.pt") for rank in range(size)]
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
