"""What is measured of trainings: operations by hand, seconds of the parts of a step; and the chosen learning rates."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_reproduction import TINY
from token_folder import write_tokens

from experiments import step_cost
from experiments.documents import PARTS, read_experiment
from experiments.page.variants import model_of_rates
from experiments.plans import Plan, rates, token_rates
from experiments.sizes import MINI
from projkern.data import TokenImages
from projkern.models.names import ModelName
from projkern.training.data import with_settings_of_data
from projkern.training.stages import make_stage

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
B, T, V, DIM, D, G, LAYERS, HEADS, RANK = 4, 16, 16, 3, 32, 4, 2, 2, 2
RESULTS = Path(__file__).parent.parent.parent / "experiments/results/mini"
NEAR = 0.01
"""Nats within which a rate counts as the best: a sweep has one seed, and seeds differ by thousandths to hundredths."""


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    """Settings of the shape above, and images."""
    folder = write_tokens(tmp_path_factory.mktemp("data") / "tokens", vocabulary=V, grid=4, task_dim=DIM)
    shape = {"n_layer": LAYERS, "n_embd": D, "rank": RANK, "batch_size": B}
    settings = with_settings_of_data({"folder": str(folder)}) | shape
    return TINY.base.replace(**settings), TokenImages(folder, "train", batch=B)


def stage_of(name, config):
    source = make_stage(ModelName.parse("M_1"), config, CPU).module if name.startswith("P") else None
    return make_stage(ModelName.parse(name), config, CPU, source)


def of_model(d):
    """Of a GPT: two operations a weight and position forward, twice that backward; attention's 2 + 5 products."""
    linear = 2 * B * T * (LAYERS * 12 * d * d + d * V)
    attention = 2 * B * T * T * HEADS * max(16, d // HEADS) * LAYERS  # narrower heads are padded on a CPU
    return 3 * linear + 7 * attention


def test_operations_of_a_step(setup):
    config, data = setup
    assert step_cost.flops_per_step(stage_of("M_1", config), data) == of_model(D)
    assert step_cost.flops_per_step(stage_of("M_1/4", config), data) == of_model(D // G)
    # M~: its start is Linear(t), whose input needs no gradient.
    assert step_cost.flops_per_step(stage_of("M~_1/4", config), data) == of_model(D // G) + 2 * 2 * B * DIM * (D // G)

    # Every operator's MLPs: t -> r without a gradient of t, then r -> N + M. Operators' N + M are 16 d in all.
    generation = 2 * B * (2 * 4 * LAYERS * DIM * RANK + 3 * LAYERS * RANK * 16 * D)
    # W q over all of W, then p over one in g; backward W q, dW, dp over all, and two more over one in g.
    weights = LAYERS * 12 * D * D
    projection = 2 * B * (weights + weights // G) + 2 * B * (3 * weights + 2 * weights // G)
    expected = of_model(D) + of_model(D // G) + generation + projection
    assert step_cost.flops_per_step(stage_of("P_1/4", config), data) == expected


def test_counting_leaves_no_trace(setup):
    config, data = setup
    stage = stage_of("P_1/4", config)
    before = [p.detach().clone() for p in stage.module.parameters()]
    step_cost.flops_per_step(stage, data)
    assert all(p.grad is None and torch.equal(p, b) for p, b in zip(stage.module.parameters(), before))


@pytest.mark.parametrize("name", ["M_1", "P_1/4"])
def test_parts_of_a_step_make_up_the_step(name, setup, monkeypatch):
    config, data = setup
    taken, step = [], step_cost.forward_backward_step

    def timed(*arguments):
        began = time.perf_counter()
        result = step(*arguments)
        taken.append(time.perf_counter() - began)
        return result

    monkeypatch.setattr(step_cost, "forward_backward_step", timed)
    monkeypatch.setattr(step_cost, "STEPS", 4)
    parts = step_cost.seconds_of_parts(lambda: stage_of(name, config), data, config, torch.float32)
    assert len(taken) == step_cost.WARM_UP + 4
    whole = sum(taken[step_cost.WARM_UP :]) / 4
    assert 0.7 * whole < sum(parts.values()) - parts["data"] < 1.02 * whole
    assert set(parts) == {*PARTS, "projection, backward"}
    assert all(parts[part] > 0 for part in ("data", "forward", "backward", "optimiser"))
    generated = [parts[part] for part in ("generation", "projection", "projection, backward")]
    assert all(part > 0 for part in generated) if name == "P_1/4" else generated == [0, 0, 0]


@pytest.mark.parametrize(
    ("plan_of", "size"),
    [(rates, MINI), (token_rates, replace(MINI, rates=MINI.rates | MINI.token_rates))],
    ids=["rates", "token_rates"],
)
def test_mini_trains_at_the_best_rates_of_its_sweep(plan_of, size):
    """Up to ``NEAR``, with a swept rate on either side of each."""
    stored = RESULTS / f"{plan_of.__name__}.json"
    if not stored.exists():
        pytest.skip("no learning rates have been swept at the size mini")
    losses = {
        result["label"]: result["models"][result["settings"]["stage"]]["loss"]
        for result in read_experiment(stored)["results"].values()
    }
    planned = dict(plan_of(Plan(size, {}, {}), 0))
    assert planned.keys() <= losses.keys(), "the sweep must be around the rates that are taken"
    for model in map(model_of_rates, planned):
        chosen = next(label for label in planned if model_of_rates(label) == model)
        best = min(loss for label, loss in losses.items() if model_of_rates(label) == model)
        assert losses[chosen] <= best + NEAR, f"{model} has a better rate than {chosen}"


def test_models_that_were_not_swept_take_the_rates_of_one_that_was():
    assert MINI.rates["P_1/2"] == MINI.rates["P_1/8"] == MINI.rates["P~"] == MINI.rates["P_1/4"]
