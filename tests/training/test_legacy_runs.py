"""A run of version 1, written before the settings had sections: all of it is still read, used and resumed.

legacy_run/ holds its settings, models and losses; it was trained with settings that have no option any more.
"""

from __future__ import annotations

import json
import shutil
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from projkern import evaluate, sample, train
from projkern.__main__ import main as projkern
from projkern.data import load_digits
from projkern.models.huggingface import gpt2
from projkern.training import losses
from projkern.training.data import make_data
from projkern.training.folder import read_config
from projkern.training.metrics import read_metrics
from projkern.training.trained import TrainedRun

pytestmark = pytest.mark.usefixtures("one_thread")

LEGACY = Path(__file__).parent / "legacy_run"
SUMMARY = json.loads((LEGACY / "summary.json").read_text())["models"]


@pytest.fixture
def copy(tmp_path):
    return shutil.copytree(LEGACY, tmp_path / "run")


def interrupt(run):
    """Turn a run into one that was interrupted before its last stage."""
    shutil.rmtree(run / "checkpoint/P_1-4")
    (run / "summary.json").unlink()
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(line for line in lines if '"stage": "P_1/4"' not in line))


def test_it_is_of_version_1():
    settings = json.loads((LEGACY / "config.json").read_text())
    assert settings["version"] == 1 and {"image_size", "colors", "data"} <= settings.keys()


def test_settings_are_read_by_their_new_names():
    config = read_config(LEGACY)
    assert (config.data.folder, config.data.side, config.data.vocab_size) == (None, 4, 8)
    assert (config.operator.scales, config.operator.start) == ((Fraction(1, 2), Fraction(1, 4)), "signs")
    assert config.operator.tied and not config.operator.shared_inner and config.operator.bias_of_t
    assert (config.schedule.tables_lr, config.schedule.source_batch, config.schedule.unconditional) == (0.01, 2, False)


def test_models_have_the_losses_that_it_wrote_down():
    run = TrainedRun.open(LEGACY)
    data = make_data(run.config, run.palette, load_digits(split="validation"), "validation", run.device)
    models = {str(model.name): model for model in run.models()}
    assert list(models) == list(SUMMARY)
    for name, model in models.items():
        row = SUMMARY[name]
        assert losses.evaluate(model.predict, data, 8).mean == pytest.approx(row["loss"], abs=1e-5)
        assert model.parameters == row["parameters"] and model.operator_parameters == row.get("operator_parameters")
        assert model.takes_task == ("loss_with_another_t" in row)
        if model.takes_task:
            another = losses.evaluate(model.predict, data, 8, losses.another_task).mean
            assert another == pytest.approx(row["loss_with_another_t"], abs=1e-5)


def test_evaluate(copy):
    assert evaluate.main([str(copy), "--no-speed", "--device", "cpu"]) == 0
    rows = json.loads((copy / "evaluation/evaluation.json").read_text())["models"]
    assert rows.keys() == SUMMARY.keys()
    for name, row in rows.items():
        assert row["loss"] == pytest.approx(SUMMARY[name]["loss"], abs=1e-5)


def test_sample_and_project(copy, tmp_path):
    assert sample.main([str(copy), "--scale", "1/2", "--random", "2", "--out", str(tmp_path / "samples.png")]) == 0
    assert (tmp_path / "samples.png").read_bytes().startswith(b"\x89PNG")
    project = ["project", str(copy), "--scale", "1/4", "--random", "2", "--out", str(tmp_path / "models")]
    assert projkern(project) == 0
    tokens = torch.randint(8, (3, 16))
    operator = TrainedRun.open(copy).operator(Fraction(1, 4))
    for folder in sorted((tmp_path / "models").glob("task-*")):
        small = gpt2.load(folder)
        t = torch.tensor(small.provenance["t"])
        with torch.no_grad():
            torch.testing.assert_close(small.model(tokens), operator(tokens, t.expand(3, -1)), rtol=1e-4, atol=1e-5)


def test_resuming_it_changes_nothing(copy):
    assert train.main(["--out", str(copy), "--resume"]) == 0
    for path in LEGACY.rglob("*.safetensors"):
        assert (copy / path.relative_to(LEGACY)).read_bytes() == path.read_bytes()
    for name in ("config.json", "palette.npy", "metrics.jsonl"):
        assert (copy / name).read_bytes() == (LEGACY / name).read_bytes()


def test_an_interrupted_one_goes_on(copy):
    """To the models that it would have had; its settings stay as they were written."""
    interrupt(copy)
    assert train.main(["--out", str(copy), "--resume"]) == 0
    assert (copy / "config.json").read_bytes() == (LEGACY / "config.json").read_bytes()
    last = "checkpoint/P_1-4/step-00000002/model.safetensors"
    weights, expected = load_file(copy / last), load_file(LEGACY / last)
    assert weights.keys() == expected.keys()
    # All as one vector: Adam turns a gradient that is rounding noise, as that of the keys' biases, into whole steps.
    resumed, stored = (torch.cat([part[name].flatten() for name in expected]) for part in (weights, expected))
    assert (resumed - stored).norm() <= 1e-4 * stored.norm()
    models = json.loads((copy / "summary.json").read_text())["models"]
    assert list(models) == list(SUMMARY)
    for name, row in models.items():
        assert row["loss"] == pytest.approx(SUMMARY[name]["loss"], abs=1e-5)
    stored, resumed = (read_metrics(run / "metrics.jsonl") for run in (LEGACY, copy))
    assert [(x["stage"], x["step"], x["lr"]) for x in resumed] == [(x["stage"], x["step"], x["lr"]) for x in stored]
    for line, expected_line in zip(resumed, stored):
        assert line["losses"] == pytest.approx(expected_line["losses"], abs=1e-5)
