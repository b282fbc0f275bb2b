"""The experiment on tasks of text: a tiny one from its trainings to its table."""

import dataclasses
import json
from pathlib import Path

import pytest
from task_texts import SETTINGS, write_folder
from text_models import write_model

from experiments.languages import __main__ as experiment
from experiments.languages import arms, held_out, page, seconds, step_cost, texts, training
from projkern.language.presets import TINY
from projkern.language.run import run
from projkern.language.trained import LanguageRun
from projkern.models.names import Kind

ROOT = Path(__file__).parents[2]
TINY_CHANGES = {
    **{name: getattr(TINY.model, name) for name in ("n_layer", "n_head", "n_embd")},
    **{"batch_size": 8, "length": 16, "rank": 2, "log_every": 2},
}


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    monkeypatch.setattr(training, "BASE", {"source_steps": 2, "eval_windows": 2} | TINY_CHANGES)
    return write_folder(tmp_path / "tasks")


def test_arms_are_trained_and_compared(tiny, tmp_path):
    in_all = {arm.name: arm for arm in arms.ARMS if arm.total == arms.TOTAL}
    projected, conditional, plain = (in_all[name] for name in ("P_1/4", "M~_1/4, norms", "M_1/4"))
    assert projected.kind is Kind.PROJECTED
    training.train_base(tmp_path / "out", tiny, 0, {})
    results = []
    for arm in (projected, conditional, plain):
        for exponent in (-8, -7):
            results.append(training.train_arm(arm, exponent, 0, tmp_path / "out", {"steps": 2}))
    assert {r["source"] for r in results} == {results[0]["source"]}
    assert set(results[0]["models"]) == {"P_1/4", "source after co-training"}
    path = tmp_path / "results" / "languages.json"
    path.parent.mkdir()
    experiment.store(path).write(results)
    assert len(experiment.store(path).read()) == 6
    assert json.loads(path.read_text())["format"] == "projkern language results"
    document = tmp_path / "tasks.md"
    names = ("texts", "languages", "seconds", "held out", "step cost")
    document.write_text("".join(f"<!-- {name} -->\n<!-- end of {name} -->\n" for name in names))
    readme = tmp_path / "README.md"
    readme.write_text("<!-- texts -->\n<!-- end of texts -->\n")
    page.write_tables(path, document, readme)
    rows = [line for line in document.read_text().splitlines() if line.startswith("| ")][1:]
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == ["P_1/4", "M̃_1/4, norms", "M_1/4"]
    best = min(r["models"]["P_1/4"]["loss"] for r in results[:2])
    assert f"{best:.3f}" in rows[0]


def test_the_source_is_compressed_on_the_same_windows(tiny, tmp_path, monkeypatch):
    training.train_base(tmp_path / "out", tiny, 0, {})
    arm = next(arm for arm in arms.ARMS if arm.is_compressed)
    result = training.train_arm(arm, -7, 0, tmp_path / "out", {"steps": 2})
    row = result["models"]["M_1/4"]
    folder = tmp_path / "out" / f"compressed-0-{arm.steps}"
    summary = json.loads((folder / "rate-0.0078125" / "summary.json").read_text())
    assert row["parameters"] == summary["result"]["parameters"] and summary["sizes"]["hidden"] == 8
    assert row["loss"] == pytest.approx(summary["result"]["loss"], abs=1e-4)  # of the same windows


@pytest.mark.parametrize("adapter_rank", [None, 2])
def test_a_copy_is_fine_tuned_for_each_task(tiny, tmp_path, adapter_rank):
    if adapter_rank is not None:
        pytest.importorskip("peft", reason="LoRA is peft's")
    training.train_base(tmp_path / "out", tiny, 0, {})
    arm = dataclasses.replace(arms.ARMS[-2], tuning=arms.Tuning(20, adapter_rank))
    losses = [
        training.train_arm(arm, exponent, 0, tmp_path / "out", {"steps": 2})["models"]["M_1/4"]
        for exponent in (-40, -6)
    ]
    assert len(losses[0]["by_task"]) == 4
    assert losses[1]["loss"] < losses[0]["loss"] - 0.05  # at the first rate nothing is learnt


def test_the_page_has_the_stored_results():
    text = (ROOT / page.PAGE).read_text()
    assert page.render(ROOT / page.RESULTS, text) == text
    readme = (ROOT / page.README).read_text()
    assert page.render_readme(ROOT / page.RESULTS, readme) == readme


def test_texts_of_a_run_are_stored_and_shown(tmp_path, monkeypatch):
    run(tmp_path / "run", SETTINGS.replace(tasks=str(write_folder(tmp_path / "tasks"))))
    monkeypatch.setattr(texts, "PROMPTS", {"red": "a |"})
    monkeypatch.setattr(texts, "TOKENS", 8)
    stored = texts.texts_of(LanguageRun.open(tmp_path / "run"))
    assert set(stored["texts"]["red"]) == {"M~_1/2", "P_1/2"}
    assert all(text.startswith("a |") for text in stored["texts"]["red"].values())
    (tmp_path / page.TEXTS).write_text(json.dumps(stored))
    shown = page.render_readme(tmp_path / "languages.json", "<!-- texts -->\n<!-- end of texts -->\n", ["red"])
    assert "| red | P_1/2 | **a \\|** " in shown and f"P_1/2 {stored['models']['P_1/2']['loss']:.3f}" in shown


def test_languages_left_out_are_judged(tmp_path, monkeypatch):
    tasks = write_folder(tmp_path / "tasks")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(held_out, "LANGUAGES", SETTINGS)
    monkeypatch.setattr(held_out, "LEFT_OUT", ("red",))
    monkeypatch.setattr(page, "write_tables", lambda results: None)
    assert held_out.main(["--tasks", str(tasks), "--out", str(tmp_path / "run")]) == 0
    stored = json.loads((tmp_path / page.RESULTS.parent / page.HELD_OUT).read_text())
    row = stored["held_out_tasks"]["red"]
    assert f"{row['P_1/2']['loss']:.3f}" in page.table_of_held_out(stored)


def test_the_cost_of_a_step_is_measured_in_parts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(step_cost, "TOKENS", 64)
    monkeypatch.setattr(page, "write_tables", lambda results: None)
    write_model(tmp_path / "model")
    assert step_cost.main([str(tmp_path / "model"), "--rounds", "1"]) == 0
    stored = json.loads((tmp_path / page.RESULTS.parent / page.STEP_COST).read_text())
    assert [row["group"] for row in stored["rows"]] == [2, 4]
    assert all(seconds > 0 for row in stored["rows"] for seconds in row["seconds"].values())
    assert "| 2 |" in page._cost(stored)


def test_a_step_of_each_model_is_timed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(seconds, "LANGUAGES", TINY.replace(scales=(arms.SCALE,)))
    monkeypatch.setattr(page, "write_tables", lambda results: None)
    assert seconds.main(["--rounds", "2"]) == 0
    stored = json.loads((tmp_path / page.RESULTS.parent / page.SECONDS).read_text())
    assert stored["seconds"].keys() == seconds.MODELS.keys() and min(stored["seconds"].values()) > 0
    assert all(f"{value:.3f}" in page._seconds(stored) for value in stored["seconds"].values())
