"""The sweeps of docs/compression.md: which training comes next, a tiny one from end to end, and the page's tables."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import text_models

from experiments import sweeps
from experiments.compression import page, sweep
from experiments.compression.arms import ARMS, SEEDS, Arm
from experiments.compression.sweep import FORMAT, of_cell, run_arms
from experiments.compression.training import train_arm
from experiments.sweeps import next_training, read_results, summary
from projkern.compression.config import CompressConfig

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "experiments" / "results" / "compression" / "stories.json"


def test_a_sweep_goes_on_until_the_best_has_a_neighbour_on_either_side():
    truth = {-9: 2.4, -8: 2.3, -7: 2.1, -6: 2.05, -5: 2.2, -4: 3.0}
    losses, order = {}, []
    while (training := next_training(losses, -8, SEEDS)) is not None:
        order.append(training)
        losses[training] = truth[training[0]]
    assert order == [(-8, 0), (-7, 0), (-6, 0), (-5, 0), (-6, 1), (-6, 2)]
    assert summary(losses) == (-6, pytest.approx(2.05), 0.0, 3)


def test_a_sweep_of_one_seed_ends_there():
    losses = {(-8, 0): 2.2, (-7, 0): 2.1, (-6, 0): 2.3}
    assert next_training({(-8, 0): 1.0}, -8, SEEDS, is_swept=False) == (-8, 1)
    assert next_training(losses, -8, seeds=(0,)) is None and next_training(losses, -8, SEEDS) == (-7, 1)
    assert summary({}) is None


def test_arms_have_settings_that_are_taken_and_names_of_their_own():
    assert len({arm.name for arm in ARMS}) == len(ARMS)
    for arm in ARMS:
        CompressConfig().replace(**arm.settings)


@pytest.mark.usefixtures("one_thread")
def test_a_tiny_sweep(tmp_path, monkeypatch):
    """In this process; what is stored is not run again, and a random start is far from the source's."""
    model = text_models.write_model(tmp_path / "model")
    tokens = tmp_path / "tokens.npy"
    np.save(tokens, (np.arange(4000) * 7 % 90).astype(np.uint16))
    settings = {"hidden_size": 32, "intermediate_size": 56, "length": 16, "batch_size": 4, "calibration": 4}
    monkeypatch.setattr("experiments.compression.training.COMMON", settings)
    arms = [Arm("project", {}, -6, (640,)), Arm("random", {"distill": 0.0}, -6, (640,), (0,), is_random=True)]
    monkeypatch.setattr(sweep, "ARMS", arms)
    monkeypatch.setattr(sweeps, "ProcessPoolExecutor", InThisProcess)
    path = tmp_path / "results" / "stories.json"
    run_arms(path, {"source": "model"}, model, tokens, 8, 1, lambda arm, budget: True)
    results = read_results(path, FORMAT)
    assert all(next_training(of_cell(results, arm.name, 640), -6, arm.seeds) is None for arm in arms)
    assert all(r["result"]["loss"] < r["start"]["loss"] for r in results if r["exponent"] == -6)
    calls = []
    monkeypatch.setattr(sweep, "train_arm", lambda *more, **settings: calls.append(more))
    run_arms(path, {"source": "model"}, model, tokens, 8, 1, lambda arm, budget: True)
    assert not calls and read_results(path, FORMAT) == results
    again = train_arm(arms[0], 640, results[0]["exponent"], results[0]["seed"], model, tokens, 8)
    assert again["result"] == results[0]["result"]


class InThisProcess:
    """An executor that runs each job as it is submitted."""

    def __init__(self, *more):
        from concurrent.futures import Future

        self.future = Future

    def __enter__(self):
        return self

    def __exit__(self, *more):
        return None

    def submit(self, function, *arguments):
        future = self.future()
        future.set_result(function(*arguments))
        return future


needs_results = pytest.mark.skipif(not RESULTS.exists(), reason="the arms have not been run")


@needs_results
def test_the_page_is_what_its_results_make():
    text = (ROOT / "docs" / "compression.md").read_text()
    assert page.render(RESULTS, text) == text


@needs_results
def test_projection_is_below_pruning_beyond_noise():
    """What the page claims, from the stored results: every optimizer, with distillation and without, every budget."""
    results = read_results(RESULTS, FORMAT)
    for optimizer in page.OPTIMIZERS:
        for suffix in ("", ", distillation"):
            for budget in page.BUDGETS:
                cells = [of_cell(results, f"{method}, {optimizer}{suffix}", budget) for method in page.METHODS]
                prune, project = map(summary, cells)
                assert project[1] + 2 * project[2] < prune[1] - 2 * prune[2], (optimizer, suffix, budget)


@needs_results
def test_every_stored_arm_is_swept_whole():
    results = json.loads(RESULTS.read_text())["results"]
    for arm in ARMS:
        for budget in arm.budgets:
            cell = of_cell(results, arm.name, budget)
            assert next_training(cell, arm.exponent, arm.seeds) is None, (arm.name, budget)
