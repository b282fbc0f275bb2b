"""A run, read back: the same models, and clear words where it is not whole."""

from __future__ import annotations

import json
import shutil
from fractions import Fraction

import pytest
import torch

from projkern.models.names import ModelName
from projkern.train import main
from projkern.training.checkpoint import CheckpointError
from projkern.training.losses import evaluate
from projkern.training.metrics import read_metrics
from projkern.training.trained import IncompleteRun, TrainedRun
from projkern.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=["one source for each", "joint"])
def run(request, tmp_path_factory, tiny_run, tiny_settings):
    if request.param != "joint":
        return tiny_run
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert main(["--out", str(folder), "--scales", "1/2", "1/4", "--joint", *tiny_settings]) == 0
    return folder


def test_models_are_those_that_were_trained(run):
    """Their losses are the ones that the run wrote down itself."""
    from projkern.data import load_digits
    from projkern.training.data import make_data

    trained = TrainedRun.open(run)
    data = make_data(trained.config, trained.palette, load_digits(split="validation"), "validation", trained.device)
    summary = json.loads((run / "summary.json").read_text())["models"]
    models = {str(model.name): model for model in trained.models()}
    assert models.keys() == summary.keys() and len(models) >= 6
    for name, model in models.items():
        assert evaluate(model.predict, data, 8).mean == pytest.approx(summary[name]["loss"], abs=1e-5)
        assert model.parameters == summary[name]["parameters"]


def test_operators_are_of_their_scale(run):
    trained = TrainedRun.open(run)
    tokens, t = torch.randint(8, (3, 16)), torch.rand(3, 18)
    models = {model.name: model for model in trained.models()}
    for scale in (Fraction(1, 2), Fraction(1, 4)):
        operator = trained.operator(scale)
        assert operator.group == scale.denominator and not operator.training
        name = ModelName.parse(f"{'P~' if trained.config.schedule.joint else 'P'}_{scale}")
        with torch.no_grad():
            assert torch.equal(operator(tokens, t), models[name].predict(tokens, t))
            assert torch.equal(trained.operators()[name](tokens, t), models[name].predict(tokens, t))
    assert len(trained.operators()) == 2
    assert trained.source().config.n_embd == 32


def test_a_scale_that_was_not_trained(run):
    with pytest.raises(InputError, match=r"scale must be .*\(1/2, 1/4\); it was 1/8"):
        TrainedRun.open(run).operator(Fraction(1, 8))


def test_run_that_stopped_in_the_middle(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    for stage in (copy / "checkpoint").glob("P*"):
        shutil.rmtree(stage)
    with pytest.raises(IncompleteRun, match=r"P.* step 0 of 4.*--resume"):
        TrainedRun.open(copy).operator(Fraction(1, 4))
    (copy / "palette.npy").unlink()
    with pytest.raises(IncompleteRun, match="--resume"):
        TrainedRun.open(copy)


def test_damaged_checkpoint(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    for path in copy.glob("checkpoint/P*/*/model.safetensors"):
        path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="model.safetensors is damaged"):
        TrainedRun.open(copy).operator(Fraction(1, 4))


def test_pickled_checkpoint_is_refused(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    for path in copy.glob("checkpoint/P*/*/model.safetensors"):
        torch.save({"source.tables.head": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match="model.safetensors holds pickled weights"):
        TrainedRun.open(copy).operator(Fraction(1, 4))


def test_a_setting_that_came_later_has_its_legacy_default(tiny_run, tmp_path):
    for name in ("config.json", "palette.npy"):
        shutil.copy(tiny_run / name, tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["schedule"].pop("distill") > 0
    (tmp_path / "config.json").write_text(json.dumps(stored))
    assert TrainedRun.open(tmp_path).config.schedule.distill == 0.0


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"n_layer": "four"}, "config.json cannot be used: n_layer must be of type int; it was four"),
        ({"n_embd": 32.5}, "n_embd must be of type int; it was 32.5"),
        ({"device": None}, "device must be of type str; it was None"),
        ({"scales": ["1/0"]}, r"scales must be .*; it was \['1/0'\]"),
        ({"scales": None}, "scales must be .*; it was None"),
        ({"depth": 3}, "settings must be .* depth"),
        ({"seed": ...}, "settings must be .* seed"),
        ({"vocab_size": 9}, "palette.npy must hold the run's 9 colours; it held 8"),
    ],
)
def test_settings_that_cannot_be_used(tiny_run, tmp_path, changes, says):
    """Each is changed where the run has it, or left out."""
    for name in ("config.json", "palette.npy"):
        shutil.copy(tiny_run / name, tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    for name, value in changes.items():
        section = next((part for part in stored.values() if isinstance(part, dict) and name in part), stored["model"])
        section[name] = value
        if value is ...:
            del section[name]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    with pytest.raises(InputError, match=says) as caught:
        TrainedRun.open(tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"version": 3}, "config.json must hold .* version 3; a newer projkern reads it"),
        ({"version": 0}, "config.json must hold .* version 0$"),
        ({"format": "projkern tokens"}, "config.json must hold"),
        ({"data": 4}, "settings must be .* 4"),
        ({"schedule": None, "run": []}, "settings must be"),
    ],
)
def test_config_that_cannot_be_read(tiny_run, tmp_path, changes, says):
    stored = json.loads((tiny_run / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(stored | changes))
    with pytest.raises(InputError, match=says) as caught:
        TrainedRun.open(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_log_that_is_no_json(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\njunk\n{"step": 3')
    with pytest.raises(InputError, match=r"metrics.jsonl must hold"):
        read_metrics(tmp_path / "metrics.jsonl")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 3')
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1}]


def test_no_run(tmp_path):
    with pytest.raises(InputError, match="config.json must hold"):
        TrainedRun.open(tmp_path)
