"""Sharded trainings: the same numbers as without, one layer whole at a time, checkpoints for any number of ranks."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import shard_cases
import torch
from ranks import script
from shard_cases import OF_SIZE, STEPS, STOPPED_AT

import projkern.train
from projkern.training import checkpoint
from projkern.training.checkpoint import CheckpointError
from projkern.training.config import TrainConfig
from projkern.training.sharded import parts_of
from projkern.training.trained import TrainedRun
from projkern.utils.errors import InputError
from projkern.utils.files import read_object


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that ``shard_cases.py`` fills."""
    out = tmp_path_factory.mktemp("sharded")
    status, output = script("shard_cases.py", out, timeout=400)
    logs = "\n".join(log.read_text() for log in sorted(out.glob("*.log")))
    assert status == 0, output + logs
    statuses = json.loads((out / "statuses.json").read_text())
    assert all(statuses[job] == [0] * len(statuses[job]) for job in ("cases-2", "cases-4", "run-2")), logs
    return out


@pytest.mark.parametrize(("size", "case"), [(size, case) for size in (1, 2, 4) for case in OF_SIZE[size]])
def test_shards_train_as_one_process_does(size, case, trained):
    alone, together = (torch.load(trained / f"{case}-{n}.pt") for n in (0, size))
    tolerance = 0.01 if case == "bfloat16" else 1e-12
    assert len(together["losses"]) == STEPS
    for line, expected in zip(together["losses"], alone["losses"]):
        assert line == pytest.approx(expected, abs=tolerance)
    for kind in ("gradients", "weights")[: 0 if case == "bfloat16" else 2]:
        assert together[kind].keys() == alone[kind].keys()
        for name, expected in alone[kind].items():
            torch.testing.assert_close(together[kind][name], expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("size", [2, 4])
def test_one_layer_is_whole_at_a_time(size, trained):
    assert torch.load(trained / f"the default-{size}.pt")["whole"] == 1


def test_the_last_checkpoint_is_one_that_every_command_reads(trained):
    path = checkpoint.latest(trained / "the default-4")
    _, whole = shard_cases.make_job("the default", 0)
    assert checkpoint.load(path, whole)[0] == STEPS
    expected = torch.load(trained / "the default-4.pt")["weights"]
    assert all(torch.equal(tensor, expected[name]) for name, tensor in parts_of(whole).items())


def test_a_checkpoint_in_shards_is_whole_or_refused(trained, tmp_path):
    shutil.copytree(trained / "stopped", tmp_path / "stopped")
    path = checkpoint.latest(tmp_path / "stopped")
    job, whole = shard_cases.make_job("the default", 1)
    assert job.load(path)[0] == STOPPED_AT
    with pytest.raises(CheckpointError, match="in shards"):
        checkpoint.load(path, whole)
    with pytest.raises(CheckpointError, match=r"of another model: .* operators\."):
        shard_cases.make_job("joint", 1)[0].load(path)
    files = sorted((path / "shards").iterdir())
    files[1].write_bytes(files[1].read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="cannot be read"):
        job.load(path)
    files[1].unlink()
    with pytest.raises(CheckpointError, match="lacks a part of layers.0"):
        job.load(path)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("full disk", r"could not write .*/step-00000004: .*No space left.*, on rank 1; .*/step-00000002$"),
        ("killed", r"the connection to another rank is lost"),
    ],
)
def test_a_fault_of_one_rank_ends_all_with_one_message(fault, message, trained):
    statuses = json.loads((trained / "statuses.json").read_text())
    assert statuses[fault] == [1, -9 if fault == "killed" else 1]
    errors = re.findall("faulty: error: (.*)", (trained / f"{fault}.log").read_text())
    assert len(errors) == 1 and re.search(message, errors[0]), errors
    assert [path.name for path in (trained / fault).glob("*step*")] == ["step-00000002"]


def test_a_run_is_that_of_one_process(trained, capsys, tmp_path):
    rows, expected = (read_object(trained / f"run-{n}" / "summary.json", "a summary")["models"] for n in (2, 0))
    assert rows.keys() == expected.keys()
    for name, row in rows.items():
        assert row["loss"] == pytest.approx(expected[name]["loss"], abs=2e-5)
    models = TrainedRun.open(trained / "run-2").models()
    assert [str(model.name) for model in models] == list(rows)
    assert projkern.train.main(["--out", str(trained / "run-2"), "--resume"]) == 0  # there is nothing left to train
    assert projkern.train.main(["--out", str(trained / "run-2"), "--resume", "--no-shard"]) == 1
    assert "--shard must be left out" in capsys.readouterr().err


def test_what_cannot_be_sharded_is_refused(tmp_path):
    with pytest.raises(InputError, match="shard .* generator general"):
        TrainConfig().replace(generator="general", shard=True)
