"""A run, read back: the same models, and clear words where it is not whole."""

from __future__ import annotations

import json
import shutil
from fractions import Fraction

import pytest
import torch

from projkern.train import main
from projkern.training.checkpoint import CheckpointError
from projkern.training.losses import evaluate
from projkern.training.metrics import read_metrics
from projkern.training.trained import IncompleteRun, TrainedRun

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
    models = {model.name: model for model in trained.models()}
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
        name = f"{'P~' if trained.config.joint else 'P'}_{scale}"
        with torch.no_grad():
            assert torch.equal(operator(tokens, t), models[name].predict(tokens, t))
            assert torch.equal(trained.operators()[name](tokens, t), models[name].predict(tokens, t))
    assert len(trained.operators()) == 2
    assert trained.source().config.n_embd == 32


def test_a_scale_that_was_not_trained(run):
    with pytest.raises(ValueError, match=r"scale must be one that .* was trained for \(1/2, 1/4\); it was 1/8"):
        TrainedRun.open(run).operator(Fraction(1, 8))


def test_run_that_stopped_in_the_middle(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    for stage in (copy / "checkpoint").glob("P*"):
        shutil.rmtree(stage)
    with pytest.raises(IncompleteRun, match=r"it stands at step 0 of 4.*--resume"):
        TrainedRun.open(copy).operator(Fraction(1, 4))
    (copy / "palette.npy").unlink()
    with pytest.raises(IncompleteRun, match="has only begun"):
        TrainedRun.open(copy)


def test_damaged_checkpoint(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    for path in copy.glob("checkpoint/P*/*/model.safetensors"):
        path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="damaged or cut short"):
        TrainedRun.open(copy).operator(Fraction(1, 4))


def test_pickled_checkpoint_is_refused(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    for path in copy.glob("checkpoint/P*/*/model.safetensors"):
        torch.save({"source.tables.head": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match="pickled weights, which can run code .* is refused"):
        TrainedRun.open(copy).operator(Fraction(1, 4))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"version": 2}, "holds a run of a newer version, 2; this projkern reads version 1"),
        ({"n_layer": "four"}, "config.json cannot be used: n_layer must be of type int; it was four"),
        ({"n_embd": 32.5}, "n_embd must be of type int; it was 32.5"),
        ({"device": None}, "device must be of type str; it was None"),
        ({"scales": ["1/0"]}, r"scales must be a list of fractions 1/g; it was \['1/0'\]"),
        ({"scales": None}, "scales must be a list of fractions 1/g; it was None"),
        ({"depth": 3}, r"settings of another version: \['depth'\]"),
        ({"colors": 9}, "palette.npy must hold the run's 9 colours; it held 8"),
    ],
)
def test_settings_that_cannot_be_used(tiny_run, tmp_path, changes, says):
    for name in ("config.json", "palette.npy"):
        shutil.copy(tiny_run / name, tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | changes))
    with pytest.raises(ValueError, match=says) as caught:
        TrainedRun.open(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_log_that_is_no_json(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\njunk\n{"step": 3')
    with pytest.raises(ValueError, match=r"metrics.jsonl must hold a JSON object a line"):
        read_metrics(tmp_path / "metrics.jsonl")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 3')
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1}]


def test_no_run(tmp_path):
    with pytest.raises(ValueError, match="holds no run"):
        TrainedRun.open(tmp_path)
