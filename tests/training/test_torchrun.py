"""Runs of several ranks: stopped, killed and resumed; and one message when one of them fails."""

from __future__ import annotations

import json
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import task_texts
from ranks import ROOT, filled, script, torchrun

import projkern.train
from projkern.training.folder import read_config
from projkern.training.metrics import read_metrics
from projkern.training.run import run
from projkern.utils.errors import InputError
from projkern.utils.files import read_object


def train(ranks: int, *options: object) -> tuple[int, str]:
    """Exit status and output of ``projkern.train`` in several ranks; of one in this process, without the output."""
    if ranks == 1:
        return projkern.train.main(list(map(str, options))), ""
    return script("rank_verbs.py", ranks, "train", *options, timeout=120)


STEPS = 60


def run_options(out: Path) -> list[object]:
    """A run of three trainings, in seconds."""
    return ["--preset", "debug", "--scales", "1/4", "--no-unconditional", "--steps", STEPS, "--out", out]


def losses_of(run: Path) -> dict[str, float]:
    summary = read_object(run / "summary.json", "a summary")
    return {name: row["loss"] for name, row in summary["models"].items()}


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that one process has trained without an interruption."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert train(1, *run_options(out))[0] == 0
    return out


def test_a_stopped_run_goes_on_with_any_number_of_ranks(whole_run, tmp_path):
    process = torchrun(2, "-m", "projkern.train", *run_options(tmp_path / "run"))
    log = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 100
    while not (log.exists() and any(line["stage"] == "P_1/4" for line in read_metrics(log))):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0 and re.search(rf"stopped at step \d+ of {STEPS} of P_1/4", output), output
    assert output.count("To go on: ") == 1
    for ranks in (1, 4):
        resumed = tmp_path / f"by-{ranks}"
        shutil.copytree(tmp_path / "run", resumed)
        status, output = train(ranks, "--out", resumed, "--resume")
        assert status == 0 and (ranks == 1 or output.count("Training on") == output.count("Wrote") == 1), output
        assert losses_of(resumed) == pytest.approx(losses_of(whole_run), abs=1e-4)  # rounding, over all steps


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that ``rank_faults.py`` fills."""
    return filled("rank_faults.py", tmp_path_factory.mktemp("faults"), timeout=120)


def outcome(faults: Path, fault: str) -> tuple[list[int], str]:
    """The exit statuses of both ranks, and what they print."""
    return json.loads((faults / "statuses.json").read_text())[fault], (faults / f"{fault}.log").read_text()


@pytest.mark.parametrize(
    ("fault", "codes", "message"),
    [
        ("nan", [1, 1], r"not finite at step 4, on rank 1; the last good checkpoint is \S*step-00000003"),
        ("full-disk", [1, 1], r"rank 0 of 2: could not write \S*step-00000004.*No space left"),
        ("killed", [1, -9], "rank 0 of 2: the connection to another rank is lost"),
        ("bug", [1, 1], None),
    ],
)
def test_a_fault_of_one_rank_ends_all_with_one_message(fault, codes, message, faults):
    statuses, output = outcome(faults, fault)
    assert statuses == codes, output
    messages = re.findall("faulty: error: (.*)", output)
    if message is None:
        assert messages == [] and "TypeError: this is no that" in output
    else:
        assert len(messages) == 1 and re.search(message, messages[0]), output
    assert [path.name for path in (faults / fault / "checkpoint").iterdir()] == ["step-00000003"]
    masks = re.findall(r"dropout (\[.*?\])", output)
    assert len(masks) == 2 and masks[0] != masks[1]  # each rank draws its own


def test_a_killed_rank_is_started_again_and_the_run_goes_on(whole_run, tmp_path):
    killed, steps = ROOT / "tests" / "helpers" / "killed.py", STEPS * 3 // 2
    process = torchrun(2, killed, "train", steps, *run_options(tmp_path / "run"), options=("--max-restarts=1",))
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 0 and output.count("Training on") == 2, output
    assert losses_of(tmp_path / "run") == pytest.approx(losses_of(whole_run), abs=1e-4)  # as above


def test_a_run_is_not_resumed_with_other_settings(whole_run, tmp_path):
    """As a restart would, whose command names a folder with another run."""
    shutil.copytree(whole_run, tmp_path / "run")
    with pytest.raises(InputError, match="seed .* was 1"):
        run(tmp_path / "run", read_config(tmp_path / "run").replace(seed=1), resume=True)
    assert losses_of(tmp_path / "run") == losses_of(whole_run)


def test_tasks_of_text_are_trained_by_several_ranks(tmp_path):
    """The stages that take their gradients themselves, and t from the source."""
    tasks, losses = task_texts.write_folder(tmp_path / "tasks"), []
    options = ["--tasks", tasks, "--preset", "tiny", "--t", "source", "--task-dim", 2, "--length", 16, "--sample", 24]
    options += ["--eval-windows", 4, "--source-steps", 6, "--steps", 6]
    for ranks in (1, 2):
        status, output = train(ranks, *options, "--out", tmp_path / f"of-{ranks}")
        assert status == 0, output
        losses.append(losses_of(tmp_path / f"of-{ranks}"))
    assert losses[1] == pytest.approx(losses[0], abs=2e-5)


def test_ranks_with_other_settings_are_refused(faults):
    statuses, output = outcome(faults, "settings")
    errors = re.findall("faulty: error: (.*)", output)
    assert statuses == [1, 1], output
    assert len(errors) == 1 and re.search("settings .* rank 1", errors[0]), output
    assert not (faults / "settings").exists()
