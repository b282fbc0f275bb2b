"""Settings of the operator and the baselines: trained, read back and projected, the models are the same."""

from __future__ import annotations

import inspect
import json
import shutil
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest
import torch
from token_folder import write_tokens

import projkern as pk
from projkern import train
from projkern.__main__ import main as projkern
from projkern.data import TokenImages
from projkern.models.generators import GENERATORS, DiagonalGenerator
from projkern.models.huggingface import gpt2
from projkern.models.kinds import KINDS
from projkern.training.checkpoint import CheckpointError
from projkern.training.config import LEGACY_DEFAULTS, OperatorConfig, TrainConfig
from projkern.training.data import with_settings_of_data
from projkern.training.folder import read_config
from projkern.training.losses import another_task, evaluate
from projkern.training.run import run
from projkern.training.stages import count_of, gpt_config, make_operator
from projkern.training.trained import TrainedRun
from projkern.utils.errors import InputError
from projkern.utils.files import Format, write_json
from projkern.utils.settings import fields_of, setting

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = {
    **{"n_layer": 1, "n_embd": 16, "n_head": 2, "rank": 2, "batch_size": 4, "scales": (Fraction(1, 2),)},
    **{"source_steps": 4, "steps": 4, "warmup": 1, "eval_images": 9, "log_every": 4},
    **{"operator_lr": 0.1, "small_lr": 0.1, "unconditional": False},
}
DIAGONAL = {"start": "one-hot", "shared_inner": True, "tied": True}
VARIANTS = {kind: {"generator": kind} for kind in GENERATORS} | {
    "diagonal": DIAGONAL | {"conditioning": "norms", "t_mean": 0.5, "t_std": 2.0},
    "every": {"start": "noise", "conditioning": "every", "bias_of_t": True, "tables_lr": 0.02},
    "trained otherwise": {"start": "signs", "source_batch": 2, "distill": 0.5, "w_src": 0.0},
}


def config_on(tokens, **settings):
    return TrainConfig().replace(**with_settings_of_data({"folder": str(tokens)} | SHAPE | settings))


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    return write_tokens(tmp_path_factory.mktemp("tokens") / "tokens")


@pytest.fixture(scope="module", params=VARIANTS)
def trained(request, tokens, tmp_path_factory):
    """Settings, and the folder of a run with them. Tests only read it."""
    out = tmp_path_factory.mktemp("run") / "run"
    settings = VARIANTS[request.param]
    run(out, config_on(tokens, **settings))
    return settings, out


def test_read_back_the_models_are_the_same(trained, tokens):
    settings, out = trained
    finished = TrainedRun.open(out)
    assert settings.items() <= finished.config.flat().items()
    data, summary = TokenImages(tokens, "validation", batch=9), json.loads((out / "summary.json").read_text())["models"]
    for model in finished.models():
        row = summary[str(model.name)]
        assert evaluate(model.predict, data, 9).mean == pytest.approx(row["loss"], abs=1e-5)
        if model.takes_task:
            losses = evaluate(model.predict, data, 9, another_task)
            assert losses.mean == pytest.approx(row["loss_with_another_t"], abs=1e-5)


def test_settings_reach_operator_and_baseline(trained):
    _, out = trained
    finished = TrainedRun.open(out)
    operator, config = finished.operator(Fraction(1, 2)), finished.config
    assert (operator.kind, operator.task_dim) == (config.operator.generator, 3)
    assert (operator.t_mean, operator.t_std) == (config.model.t_mean, config.model.t_std)
    assert (operator.bias_of_t is not None) == config.operator.bias_of_t
    baseline = pk.GPTConfig(16, 16, 8, 1, 2, task_dim=3, conditioning=config.model.conditioning)
    assert {str(m.name): m.parameters for m in finished.models()}["M~_1/2"] == count_of(baseline)
    if config.operator.generator == "diagonal":
        inner = [p for name, p in operator.generator.named_parameters() if name.startswith("inner_weight")]
        # A first layer for each linear operator and, tied, for what they share; or one for all.
        assert sum(len(p) for p in inner) == 2 * (1 if config.operator.shared_inner else 4 + config.operator.tied)


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


def test_run_without_the_newer_settings(tmp_path, tiny_run, own_cache):
    """Its config.json is one flat object that does not name them, and LEGACY_DEFAULTS says what the run did."""
    out, legacy = tmp_path / "run", tmp_path / "legacy"
    config = read_config(tiny_run).replace(**LEGACY_DEFAULTS, scales=(Fraction(1, 4),))
    run(out, config)
    shutil.copytree(out, legacy)
    values = {f.metadata["former"] or f.name: config.flat()[f.name] for _, f in fields_of(config)}
    names = {f.metadata["former"] or f.name for _, f in fields_of(config) if f.name in LEGACY_DEFAULTS}
    assert len(names) == len(LEGACY_DEFAULTS) and {"image_size", "colors"} <= values.keys()
    settings = {name: value for name, value in values.items() if name not in names}
    write_json(legacy / "config.json", Format("projkern run", 1, "").head | settings | {"scales": ["1/4"]})
    assert read_config(legacy) == read_config(out) == config
    sequence, t = torch.randint(8, (3, 16)), torch.rand(3, 18)
    for first, second in zip(TrainedRun.open(legacy).models(), TrainedRun.open(out).models(), strict=True):
        with torch.no_grad():
            assert first.name == second.name and torch.equal(first.predict(sequence, t), second.predict(sequence, t))


def test_settings_that_are_not_the_checkpoint_s(tokens, tmp_path):
    """A run whose settings were edited by hand is refused, not read as another model."""
    out = tmp_path / "run"
    shape = ("--n-layer=1", "--n-embd=16", "--rank=2", "--batch-size=4", "--scales", "1/2", "--eval-images=9")
    steps = ("--source-steps=1", "--steps=1", "--no-unconditional")
    assert train.main(["--data", str(tokens), "--out", str(out), *shape, *steps, "--generator", "blocks"]) == 0
    settings = json.loads((out / "config.json").read_text())
    settings["operator"]["generator"] = "linear"
    write_json(out / "config.json", settings)
    with pytest.raises(CheckpointError):
        TrainedRun.open(out).operator(Fraction(1, 2))


# One switch of a generator is an argument of its constructor and a setting of the same name, and nothing else.


def test_generators_name_their_own_options():
    assert GENERATORS["diagonal"].options() == ["start", "shared_inner", "tied"]
    assert GENERATORS["low-rank"].options() == ["delta_rank"]
    assert GENERATORS["blocks"].options() == []


def test_settings_know_every_generator():
    assert tuple(GENERATORS) == KINDS


def test_defaults_of_the_settings_are_those_of_the_constructor():
    parameters = inspect.signature(DiagonalGenerator).parameters
    assert OperatorConfig().generator_options() == {n: parameters[n].default for n in DiagonalGenerator.options()}


def test_a_switch_of_the_diagonal_generator_takes_two_edits(monkeypatch):
    class Switched(DiagonalGenerator):
        def __init__(self, source, group, task_dim, rank, start="constant", tied=False, mirrored=False):
            super().__init__(source, group, task_dim, rank, start, tied=tied)
            self.mirrored = mirrored

    @dataclass(frozen=True)
    class SwitchedConfig(OperatorConfig):
        mirrored: bool = setting(False, "a new switch", option=None)

    monkeypatch.setitem(GENERATORS, "diagonal", Switched)
    config = TrainConfig(operator=SwitchedConfig(mirrored=True, start="signs"))
    generator = make_operator(pk.GPT(gpt_config(config, Fraction(1))), Fraction(1, 4), config).generator
    assert generator.mirrored
    with pytest.raises(InputError, match="mirrored must be False with generator blocks; it was True"):
        SwitchedConfig(mirrored=True, generator="blocks")


@pytest.mark.parametrize("name", ["start", "shared_inner", "tied"])
def test_switches_of_the_diagonal_generator_are_of_no_other(name):
    value = DIAGONAL[name]
    assert getattr(OperatorConfig(**{name: value}), name) == value
    for kind in GENERATORS.keys() - {"diagonal"}:
        with pytest.raises(InputError, match=f"{name} must be .* with generator {kind}; it was {value}"):
            OperatorConfig(generator=kind, **{name: value})
