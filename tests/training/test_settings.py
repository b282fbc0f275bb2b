"""Settings of the operator and the baselines: trained, read back and projected, the models are the same."""

from __future__ import annotations

import json
import shutil
from fractions import Fraction

import numpy as np
import pytest
import torch
from token_folder import write_tokens

import projkern as pk
from projkern import train
from projkern.__main__ import main as projkern
from projkern.data import TokenImages
from projkern.models.generators import GENERATORS
from projkern.models.huggingface import gpt2
from projkern.training.checkpoint import CheckpointError
from projkern.training.config import BEFORE
from projkern.training.folder import read_config
from projkern.training.losses import another_task, evaluate
from projkern.training.stages import count_of
from projkern.training.trained import TrainedRun

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = (
    *("--n-layer", "1", "--n-embd", "16", "--n-head", "2", "--rank", "2", "--batch-size", "4", "--scales", "1/2"),
    *("--source-steps", "4", "--steps", "4", "--warmup", "1", "--eval-images", "9", "--log-every", "4"),
    *("--operator-lr", "0.1", "--small-lr", "0.1", "--no-unconditional"),
)
DIAGONAL = {"start": "one-hot", "shared_inner": True, "tied": True}
VARIANTS = {kind: {"generator": kind} for kind in GENERATORS} | {
    "diagonal": DIAGONAL | {"conditioning": "norms", "t_mean": 0.5, "t_std": 2.0},
    "every": {"start": "noise", "conditioning": "every", "bias_of_t": True, "tables_lr": 0.02},
    "trained otherwise": {"start": "signs", "source_batch": 2, "distill": 0.5, "w_src": 0.0},
}


def options(settings):
    for name, value in settings.items():
        name = name.replace("_", "-")
        yield from (f"--{'' if value else 'no-'}{name}",) if isinstance(value, bool) else (f"--{name}", str(value))


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    return write_tokens(tmp_path_factory.mktemp("tokens") / "tokens")


@pytest.fixture(scope="module", params=VARIANTS)
def trained(request, tokens, tmp_path_factory):
    """The settings that were asked for, and the folder of a run with them. Not to be written to."""
    out = tmp_path_factory.mktemp("run") / "run"
    settings = VARIANTS[request.param]
    assert train.main(["--data", str(tokens), "--out", str(out), *SHAPE, *options(settings)]) == 0
    return settings, out


def test_read_back_the_models_are_the_same(trained, tokens):
    settings, out = trained
    run = TrainedRun.open(out)
    assert {name: getattr(run.config, name) for name in settings} == settings
    data, summary = TokenImages(tokens, "validation", batch=9), json.loads((out / "summary.json").read_text())["models"]
    for model in run.models():
        assert evaluate(model.predict, data, 9).mean == pytest.approx(summary[model.name]["loss"], abs=1e-5)
        if model.takes_task:
            told = evaluate(model.predict, data, 9, another_task)
            assert told.mean == pytest.approx(summary[model.name]["loss_with_another_t"], abs=1e-5)


def test_settings_reach_operator_and_baseline(trained):
    _, out = trained
    run = TrainedRun.open(out)
    operator, config = run.operator(Fraction(1, 2)), run.config
    assert (operator.kind, operator.task_dim) == (config.generator, 3)
    assert (operator.t_mean, operator.t_std) == (config.t_mean, config.t_std)
    assert (operator.bias_of_t is not None) == config.bias_of_t
    baseline = pk.GPTConfig(16, 16, 8, 1, 2, task_dim=3, conditioning=config.conditioning)
    assert {m.name: m.parameters for m in run.models()}["M~_1/2"] == count_of(baseline)
    if config.generator == "diagonal":
        inner = [p for name, p in operator.generator.named_parameters() if name.startswith("inner_weight")]
        # A first layer for each linear operator and, tied, for what they share; or one for all.
        assert sum(len(p) for p in inner) == 2 * (1 if config.shared_inner else 4 + config.tied)


def test_projected_models_are_the_run_s(trained, tmp_path):
    _, out = trained
    t = torch.tensor([[0.3, -1.0, 2.0], [-0.5, 0.5, 1.0]])
    np.save(tmp_path / "t.npy", t.numpy())
    assert projkern(["project", str(out), "--scale", "1/2", "--t", f"{tmp_path}/t.npy", "--out", f"{tmp_path}/m"]) == 0
    sequence = torch.randint(16, (2, 16))
    operator = TrainedRun.open(out).operator(Fraction(1, 2))
    with torch.no_grad():
        expected = operator(sequence, t)
        assert (expected - operator(sequence, t.flip(0))).abs().max() > 1e-3  # models do differ by t
        for k in range(2):
            small = gpt2.load(tmp_path / f"m/task-0000{k}").model
            torch.testing.assert_close(small(sequence)[k], expected[k], rtol=1e-4, atol=1e-5)


def test_run_of_before_these_settings(tmp_path, tiny_settings, own_cache):
    """Its config.json does not name them, and it did what BEFORE says."""
    out, old = tmp_path / "run", tmp_path / "old"
    given = {name: value for name, value in BEFORE.items() if value is not None}
    assert train.main(["--out", str(out), *tiny_settings, "--scales", "1/4", *options(given)]) == 0
    shutil.copytree(out, old)
    settings = json.loads((old / "config.json").read_text())
    assert BEFORE.items() <= settings.items()
    (old / "config.json").write_text(json.dumps({k: v for k, v in settings.items() if k not in BEFORE}))
    assert read_config(old) == read_config(out)
    sequence, t = torch.randint(8, (3, 16)), torch.rand(3, 18)
    for mine, theirs in zip(TrainedRun.open(old).models(), TrainedRun.open(out).models()):
        with torch.no_grad():
            assert mine.name == theirs.name and torch.equal(mine.predict(sequence, t), theirs.predict(sequence, t))


def test_settings_that_are_not_the_checkpoint_s(tokens, tmp_path):
    """A run whose settings were edited by hand is refused, not read as another model."""
    out = tmp_path / "run"
    assert train.main(["--data", str(tokens), "--out", str(out), *SHAPE, "--generator", "blocks"]) == 0
    settings = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(settings | {"generator": "linear"}))
    with pytest.raises(CheckpointError):
        TrainedRun.open(out).operator(Fraction(1, 2))
