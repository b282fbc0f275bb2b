"""The row of the local tangent: tangents of a trained model towards held-out tasks, chosen on others, and stored."""

import dataclasses
import json
from fractions import Fraction

import pytest
import torch

from experiments import step_cost, tangents
from experiments.jobs import run_job
from experiments.plans import Plan, generators
from experiments.sizes import MINI
from experiments.tangents import Tangents, measure_tangents
from projkern.models import GPT
from projkern.training.data import open_data
from projkern.training.losses import nats_per_token
from projkern.training.stages import gpt_config
from projkern.utils.command import Interrupted

HOW = Tangents(
    tasks=3, images=6, training_images=16, iterations=3, other_tasks=2, dampings=(1.0, 1e4), radii=(0.0, 0.5)
)
TINY = {"side": 4, "vocab_size": 8, "n_layer": 1, "n_embd": 32, "batch_size": 8, "warmup": 1, "eval_images": 4}
CONFIG = MINI.base.replace(**TINY, source_steps=0, steps=4, device="cpu")


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROJKERN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def streams():
    return [open_data(CONFIG, split, torch.device("cpu")) for split in ("train", "validation")]


@pytest.fixture(scope="module")
def model():
    """A small model, trained a little."""
    torch.manual_seed(0)
    found = GPT(gpt_config(CONFIG, Fraction(1, 4)))
    training = open_data(CONFIG, "train", torch.device("cpu"))
    optimizer = torch.optim.Adam(found.parameters(), 1e-2)
    for step in range(60):
        optimizer.zero_grad()
        tokens, _ = training.batch(step)
        nats_per_token(found(tokens), tokens).backward()
        optimizer.step()
    return found


def go_on():
    return False


def test_measured_beside_the_base_on_the_same_images(model, streams):
    held_out = streams[1]
    row = measure_tangents(model, *streams, HOW, go_on)
    assert (row["damping"], row["radius"]) == (1.0, 0.5)
    assert len(row["by_image"]) == len(row["base"]["by_image"]) == len(row["dampings"]) == len(row["residuals"]) == 3
    assert row["parameters"] == sum(p.numel() for p in model.parameters())
    assert row["loss"] < row["base"]["loss"] - 0.002
    assert all(len(norms) == 4 and norms[-1] < norms[0] for norms in row["residuals"])
    # The third task is the third held-out image's; its images are of the stream's fifth and sixth batch of four.
    task = held_out.tasks(0)[2]
    images = torch.cat([held_out.batch(step, task.expand(4, -1))[0] for step in (4, 5)])[:6]
    with torch.no_grad():
        assert row["base"]["by_image"][2] == pytest.approx(nats_per_token(model(images), images).item(), abs=1e-4)


def test_the_choice_is_made_on_tasks_of_the_training_stream(model, streams, monkeypatch):
    """Held-out tasks that ask for the other radius do not change it."""
    held_out = streams[1]
    chosen = measure_tangents(model, *streams, HOW, go_on)
    monkeypatch.setattr(held_out, "batch", lambda step, t: (torch.full((4, 16), 7), t))
    other = measure_tangents(model, *streams, HOW, go_on)
    assert other["base"]["loss"] != chosen["base"]["loss"]
    assert [other[k] for k in ("damping", "radius")] == [chosen[k] for k in ("damping", "radius")]


def test_damping_is_raised_against_negative_curvature(model, streams, monkeypatch):
    tried = []

    def tangent(model, everyday, of_task, damping, iterations):
        tried.append(damping)
        if damping < 50:
            raise tangents.NegativeCurvature("too small")
        return tangents.Tangent(model, torch.zeros(sum(p.numel() for p in model.parameters())), [2.0, 1.0])

    monkeypatch.setattr(tangents, "tangent", tangent)
    row = measure_tangents(model, *streams, dataclasses.replace(HOW, dampings=(1.0,)), go_on)
    assert row["damping"] == 1.0 and row["dampings"] == [100.0] * 3
    assert tried == [1.0, 10.0, 100.0] * 5


def test_stops_between_tasks(model, streams):
    asked = iter((False, False, True))
    with pytest.raises(Interrupted, match="stopped between tangents"):
        measure_tangents(model, *streams, HOW, lambda: next(asked))


def test_the_job(tmp_path, monkeypatch):
    monkeypatch.setattr(step_cost, "WARM_UP", 1)
    monkeypatch.setattr(step_cost, "STEPS", 1)
    size = dataclasses.replace(MINI, base=CONFIG.replace(source_steps=3), brief=2)
    rows = dict(generators(Plan(size, {}, {}), seed=1))
    job = dataclasses.replace(rows["local tangent"], tangents=HOW)
    assert job.settings()["tangents"]["radii"] == [0.0, 0.5] and str(job.stage) == "M_1/4" and job.steps == 5
    assert all("tangents" not in rows[label].settings() for label in rows if label != "local tangent")
    result = run_job(tmp_path, job, lambda step: False)
    (row,) = result["models"].values()
    assert result["steps"] == 5 and len(row["base_everyday"]["by_image"]) == 4
    assert run_job(tmp_path, job, lambda step: True) == json.loads(json.dumps(result))  # it is there: not run again
