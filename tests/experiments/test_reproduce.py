"""The paper's experiments from a command to the page: run, resumed, stopped, failing, refused."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_reproduction as tiny

from experiments import plans, pool, sizes, step_cost
from experiments.documents import read_experiment
from projkern import reproduce
from projkern.utils.files import locked

pytestmark = pytest.mark.usefixtures("one_thread")

MINI = Path("out/mini")
STORED = Path("experiments/results/mini/table1.json")
PAGE = Path("docs/reproduction.md")
OPTIONS = ["--mnist", "mnist", "--out", "out", "--results", "experiments/results", "--device", "cpu", "--jobs", "1"]


@pytest.fixture(scope="module")
def mnist(tmp_path_factory):
    return tiny.write_mnist(tmp_path_factory.mktemp("digits") / "mnist")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def prepare(folder, mnist, cache, monkeypatch):
    """Work in a folder, where the size mini is tiny, Table 1 has three rows, and jobs run in this process."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PROJKERN_CACHE", str(cache))
    Path("mnist").symlink_to(mnist)
    monkeypatch.setattr(step_cost, "WARM_UP", 1)
    monkeypatch.setattr(step_cost, "STEPS", 1)
    monkeypatch.setattr(pool, "ProcessPoolExecutor", tiny.Here)
    monkeypatch.setitem(sizes.SIZES, "mini", tiny.TINY)
    monkeypatch.setitem(plans.ON_SYNTHMNIST, "table1", tiny.few)


@pytest.fixture(autouse=True)
def workplace(tmp_path, mnist, cache, monkeypatch):
    """A folder of the test's own to work in."""
    prepare(tmp_path, mnist, cache, monkeypatch)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, mnist, cache):
    """A folder where the command has been run, and what it printed. Not to be written to."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as monkeypatch:
        prepare(folder, mnist, cache, monkeypatch)
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            assert table1() == 0
    return folder, printed.getvalue()


@pytest.fixture
def results(workplace, finished):
    """Here too, then."""
    for name in ("out", "experiments", "docs"):
        shutil.copytree(finished[0] / name, name)


def table1(*arguments):
    return reproduce.main(["table1", *OPTIONS, *arguments])


def stored():
    return read_experiment(STORED)["results"]


def figures():
    """The stored results without what a clock has measured."""
    return {key: {k: v for k, v in r.items() if k not in ("seconds", "parts")} for key, r in stored().items()}


def weights(root=MINI):
    """The last weights of each training."""
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("model.safetensors")}


def error_of(capsys, *arguments, status=1):
    """What the command says where it must not succeed: one line, no traceback."""
    capsys.readouterr()
    assert table1(*arguments) == status
    lines = [line for line in capsys.readouterr().err.splitlines() if "trainings" not in line or "error" in line]
    said = [line for line in lines if line.startswith("projkern.reproduce: error: ")]
    assert len(said) == 1 and "Traceback" not in "".join(lines)
    return said[0]


@pytest.fixture
def no_training(monkeypatch):
    """From here on whatever trains is an error."""

    def forbid():
        monkeypatch.setattr(pool, "run_job", lambda *_: pytest.fail("something is trained"))

    return forbid


def change(monkeypatch, **changes):
    """Give the tiny size other settings."""
    size = sizes.SIZES["mini"]
    monkeypatch.setitem(sizes.SIZES, "mini", replace(size, base=size.base.replace(**changes)))


# ---------------------------------------------------------------- run, and resumed


def test_from_nothing_to_the_page_and_never_twice(results, finished, no_training, monkeypatch, capsys):
    assert finished[1] == f"3 results added, 0 were there before. Wrote {STORED} and {PAGE}.\n"
    assert [result["label"] for result in stored().values()] == ["M_1", "P_1/4", "M~_1/4"]
    row = stored()["P_1/4/seed-0"]
    assert row["steps"] == 4 and row["images"] == 16 and row["settings"]["source"]["stage"] == "M_1"
    assert len(row["models"]["P_1/4"]["by_image"]) == 8
    assert f"{row['models']['P_1/4']['loss']:.3f}" in PAGE.read_text()

    no_training()
    texts = STORED.read_text(), PAGE.read_text()
    assert table1() == 0
    assert capsys.readouterr().out.startswith("0 results added, 3 were there before.")
    assert (STORED.read_text(), PAGE.read_text()) == texts

    PAGE.unlink()
    assert reproduce.main(["page", *OPTIONS]) == 0 and PAGE.read_text() == texts[1]

    # The same trainings serve another experiment, and what was stored of them can be lost.
    monkeypatch.setitem(plans.ON_SYNTHMNIST, "figure4", tiny.few)
    assert reproduce.main(["figure4", *OPTIONS]) == 0
    assert PAGE.with_name("images").is_dir()
    STORED.unlink()
    assert table1() == 0 and STORED.read_text() == texts[0]


def test_more_seeds_are_added_to_those_stored(results, capsys):
    first = stored()
    shutil.rmtree("out")  # the sources are trained again then, but no stored result changes
    assert table1("--seeds", "2") == 0
    assert "3 results added, 3 were there before" in capsys.readouterr().out
    assert {key: result for key, result in stored().items() if key.endswith("seed-0")} == first
    assert len(stored()) == 6


def test_rates_take_one_seed_unless_told_otherwise(monkeypatch):
    monkeypatch.setitem(sizes.SIZES, "mini", replace(tiny.TINY, seeds=3))
    monkeypatch.setitem(plans.ON_SYNTHMNIST, "rates", lambda p, seed: [("M_1", p.source(seed + 100))])
    assert reproduce.main(["rates", *OPTIONS]) == 0
    assert list(read_experiment(STORED.with_name("rates.json"))["results"]) == ["M_1/seed-100"]


def test_no_result_names_a_folder_or_a_device(tmp_path, mnist):
    assert table1("--mnist", str(mnist)) == 0
    text = STORED.read_text() + (MINI / "P_1-4" / "seed-0" / "job.json").read_text()
    assert not any(str(folder) in text for folder in (tmp_path, mnist, Path.home()))
    for result in stored().values():
        for settings in (result["settings"], result["settings"]["source"] or result["settings"]):
            assert (settings["mnist"], settings["folder"], settings["device"]) == ("MNIST", None, "auto")


# ---------------------------------------------------------------- stopped


def test_stopped_at_any_step_it_goes_on_as_if_it_never_was(results, monkeypatch, capsys):
    never_stopped = figures(), weights()
    for folder in ("out", "experiments", "docs"):
        shutil.rmtree(folder)

    run_job, left = pool.run_job, [0]

    def stopping(root, job, on_step):
        def counted(step):
            left[0] -= 1
            if left[0] == 0:
                pool._stop.set()
            return on_step(step)

        return run_job(root, job, counted)

    monkeypatch.setattr(pool, "run_job", stopping)
    said = []
    for _ in range(10):
        left[0] = 3
        if (status := table1()) == 0:
            break
        assert status == 130
        said += re.findall(r"stopped with (\d of \d) trainings done\. The same", capsys.readouterr().err)
        assert len(stored() if STORED.exists() else ()) == (0, 1, 2, 2)[len(said) - 1]
    assert said == ["0 of 3", "1 of 3", "2 of 3", "0 of 1"]  # within each training, and after the last step
    assert (figures(), weights()) == never_stopped


def test_it_ends_when_the_time_is_up(monkeypatch, capsys):
    clock, run_job = [0.0], pool.run_job

    def slow(*arguments):
        clock[0] += 40
        return run_job(*arguments)

    monkeypatch.setattr(pool, "run_job", slow)
    monkeypatch.setattr(pool, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    assert table1("--minutes", "1") == 130
    assert "stopped with 2 of 3 trainings done. The same command goes on." in capsys.readouterr().err
    assert len(stored()) == 2
    assert table1("--minutes", "1") == 0 and len(stored()) == 3


def test_too_little_time_for_one_training(no_training, monkeypatch, capsys):
    change(monkeypatch, source_steps=100_000, steps=200_000)
    no_training()
    said = error_of(capsys, "--minutes", "0.1")
    needed = float(re.search(r"minutes must be at least ([\d.]+), which the shortest training left, M_1/", said)[1])
    assert 0.3 < needed < 1000 and said.endswith("it was 0.1")
    assert not STORED.exists() and not list(MINI.rglob("checkpoint"))


def command(**pipes):
    words = [sys.executable, "-u", tiny.__file__, "table1", *OPTIONS]
    paths = os.pathsep.join([str(Path(tiny.__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(words, env=environment, start_new_session=True, text=True, **pipes)


def begun(model, process):
    """Wait until a training has a checkpoint."""
    until = time.monotonic() + 240
    while not list((MINI / model).glob("seed-0/checkpoint/*/step-*")):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.01)


def test_processes_interrupted_and_killed_lose_nothing(monkeypatch):
    with command(stderr=subprocess.PIPE) as process:
        begun("M_1", process)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal's Ctrl-C: parent and worker
        said = process.communicate(timeout=240)[1]
    assert process.returncode == 130, said
    assert "stopped with 0 of 3 trainings done. The same command goes on." in said and "Traceback" not in said
    assert len(weights()) == 1

    with command(stderr=subprocess.PIPE) as process:
        begun("P_1-4", process)
        process.kill()
        process.communicate(timeout=240)  # the pipe ends with the last of its writers: the worker ends too
    assert list(stored()) == ["M_1/seed-0"]
    begun_at = [json.loads(path.read_text())["step"] for path in (MINI / "P_1-4").rglob("state.json")]
    assert begun_at and begun_at[0] < 60

    with command(stderr=subprocess.PIPE) as process:
        said = process.communicate(timeout=240)[1]
    assert process.returncode == 0, said
    found = figures(), weights()

    monkeypatch.setitem(sizes.SIZES, "mini", tiny.with_steps(60))
    for folder in ("out", "experiments", "docs"):
        shutil.rmtree(folder)
    assert table1() == 0
    assert (figures(), weights()) == found


def test_a_worker_that_is_killed_is_told_of(monkeypatch, capsys):
    def killed(*_):
        raise pool.BrokenExecutor("a child process terminated abruptly")

    monkeypatch.setattr(pool, "run_job", killed)
    said = error_of(capsys)
    assert "0 of 3 trainings done; M_1/seed-0: a worker was killed; this goes on from its last checkpoint" in said


# ---------------------------------------------------------------- failing


@pytest.mark.parametrize("model, rate", [("M_1/4", "small_lr"), ("M_1", "source_lr")])
def test_a_training_that_diverges_stops_no_other(model, rate, monkeypatch, capsys):
    rates = tiny.TINY.rates | {model: {rate: 1e30}}
    monkeypatch.setitem(sizes.SIZES, "mini", replace(tiny.TINY, rates=rates))
    said = error_of(capsys)
    assert "Diverged: the loss or gradient of" in said and PAGE.exists()
    if model == "M_1":
        assert "1 of 3 trainings done" in said and "P_1-4/seed-0: its source failed" in said
        assert list(stored()) == ["M~_1/4/seed-0"]
    else:
        assert "2 of 3 trainings done; M~_1-4/seed-0: Diverged" in said
        assert list(stored()) == ["M_1/seed-0", "P_1/4/seed-0"]


def test_a_bug_keeps_its_traceback(monkeypatch):
    """It is raised, not told in a line; what was done before is stored."""
    run_job = pool.run_job

    def broken(root, job, on_step):
        return run_job(root, job, on_step) if job.source is None else {}[job.name]

    monkeypatch.setattr(pool, "run_job", broken)
    with pytest.raises(KeyError, match="P_1-4"):
        table1()
    assert list(stored()) == ["M_1/seed-0"]


# ---------------------------------------------------------------- refused


@pytest.mark.parametrize("name", ["table1", "table3"])
def test_a_half_written_file_of_results_is_named_and_kept(name, results, no_training, capsys):
    damaged = STORED.with_name(f"{name}.json")
    half = STORED.read_text()[:999]
    damaged.write_text(half)
    page = PAGE.read_text()
    no_training()
    assert f"{damaged} must hold results of an experiment; it cannot be read" in error_of(capsys)
    assert damaged.read_text() == half and PAGE.read_text() == page


@pytest.mark.parametrize("name", ["job.json", "result.json"])
def test_a_half_written_file_of_a_job_is_named_and_kept(name, results, no_training, capsys):
    STORED.unlink()
    damaged = MINI / "P_1-4" / "seed-0" / name
    damaged.write_text(damaged.read_text()[:50])
    no_training()
    assert f"{damaged} cannot be read" in error_of(capsys)
    damaged.write_text("[]")
    assert f"{damaged} must hold an object; it held list. Delete {damaged.parent} to have it" in error_of(capsys)
    assert not STORED.exists()


def test_a_job_of_unknown_settings_is_refused(results, no_training, capsys):
    STORED.unlink()
    (MINI / "M_1" / "seed-0" / "job.json").unlink()
    no_training()
    assert f"{MINI}/M_1/seed-0 must have a job.json" in error_of(capsys)


def test_results_of_two_set_ups_do_not_mix(results, no_training, monkeypatch, capsys):
    text = STORED.read_text()
    change(monkeypatch, steps=5, rank=3)
    no_training()
    said = error_of(capsys, "--out", "elsewhere")
    assert f"in {STORED} holds a result of another set-up (rank = 2 there and 3 here, steps = 4 there and 5" in said
    said = error_of(capsys, "--results", "new/reproduction")
    assert f"{MINI}/M_1/seed-0 holds a result of another set-up (rank = 2 there and 3 here" in said
    assert said.endswith("give another folder, or delete it")
    assert STORED.read_text() == text and not Path("new/reproduction").exists()


def test_a_folder_takes_one_process_at_a_time(no_training, capsys):
    no_training()
    with locked(MINI):
        assert f"out must be a folder that no other process is writing to; it was {MINI}" in error_of(capsys)
    assert not STORED.exists()


def test_mnist_must_be_there(no_training, capsys):
    no_training()
    said = error_of(capsys, "--mnist", "nowhere")
    assert "mnist must be a folder with MNIST's four idx files, or 'openml'; it was nowhere" in said


@pytest.mark.parametrize(
    "words, wanted",
    [
        (["table5"], "invalid choice: 'table5'"),
        (["table1", "--size", "huge"], "invalid choice: 'huge'"),
        (["table1", "--minutes", "0"], "--minutes must be above 0; it was 0"),
        (["table1", "--seeds", "-1"], "--seeds must be above 0; it was -1"),
    ],
)
def test_a_wrong_command_line(words, wanted, capsys):
    with contextlib.suppress(SystemExit):
        assert reproduce.main(words) == "never"
    assert wanted in capsys.readouterr().err


def test_outside_a_checkout_it_says_what_is_needed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reproduce, "__file__", str(tmp_path / "site-packages" / "projkern" / "reproduce.py"))
    assert reproduce.main(["page"]) == 1
    said = capsys.readouterr().err
    assert "checkout" in said and said.count("\n") == 1
