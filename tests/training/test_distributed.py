"""Several processes train as one does: the same losses, gradients and weights; and one message when one fails."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import rank_cases
import torch

from projkern.training.distributed import Ranks
from projkern.utils.errors import InputError

ROOT = Path(__file__).parents[2]
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone")


def torchrun(ranks: int, *words: object, options: tuple[str, ...] = (), **settings: object) -> subprocess.Popen[str]:
    """Start processes on this machine, whose connection is its loopback."""
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests" / "helpers", os.environ.get("PYTHONPATH", ""))))
    return subprocess.Popen(
        [*TORCHRUN, f"--nproc-per-node={ranks}", *options, *map(str, words)],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"} | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def train(ranks: int, *options: object, of_torchrun: tuple[str, ...] = ()) -> tuple[int, str]:
    """Exit status and output of ``torchrun -m projkern.train``."""
    process = torchrun(ranks, "-m", "projkern.train", *options, options=of_torchrun)
    output, _ = process.communicate(timeout=120)
    return process.returncode, output


def own_lines(output: str) -> list[str]:
    """What the command itself has said of an error."""
    return [line for line in output.splitlines() if line.startswith("projkern.train: error:")]


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
        assert line == pytest.approx(reference, abs=1e-7)  # Adam divides gradients near 0 by 1e-8
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


def quick_options(out: Path) -> list[object]:
    return ["--preset", "debug", "--out", out, "--dropout", 0]


def test_torchrun_trains_a_run_and_writes_it_once(tmp_path):
    status, output = train(2, *quick_options(tmp_path / "run"))
    assert status == 0, output
    assert output.count("Training on") == output.count("Wrote") == 1
    assert (tmp_path / "run" / "report.md").exists()
