"""Projecting many tasks: every model checked, none lost, none half-written, whatever interrupts."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

import projkern as pk
from projkern.__main__ import main
from projkern.data import Palette
from projkern.data.tasks import random_tasks
from projkern.export import onnx
from projkern.export import tasks as projecting
from projkern.models.huggingface import gpt2
from projkern.models.operator import generate_weights
from projkern.training.trained import TrainedRun
from projkern.utils.files import locked

CONFIG = pk.GPTConfig(vocab_size=8, n_positions=9, n_embd=32, n_layer=2, n_head=2)
ORIGIN = {"run": "a run", "scale": "1/4", "step": 10, "digest": "0123456789abcdef"}
FILES = {"README.md", "config.json", "generation_config.json", "model.safetensors"}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two scales, trained for a moment."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    settings = (
        "--image-size 6 --colors 8 --n-layer 2 --n-embd 32 --source-steps 12 --steps 10 --batch-size 4 --eval-images 8 "
        "--warmup 2 --scales 1/2 1/4 --joint --no-unconditional"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROJKERN_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        assert main(["train", "--out", str(out), *settings.split()]) == 0
    return out


@pytest.fixture
def operator():
    torch.manual_seed(0)
    made = pk.ProjectionOperator(pk.GPT(CONFIG), 1 / 4, task_dim=18).eval()
    with torch.no_grad():
        for parameter in (*made.parameters(), *made.source.parameters()):
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return made


def project(*arguments):
    return main(["project", *map(str, arguments)])


def make(operator, t, out, **options):
    return projecting.project_tasks(operator, t, out, origin=ORIGIN, **options)


def models(out):
    return {path.name for path in out.iterdir() if path.name.startswith("task-")}


def assert_complete(out, operator, t):
    """Exactly the models of t, each whole and its task's."""
    names = [f"task-{k:05}" for k in range(len(t))]
    assert {path.name for path in out.iterdir()} == {".lock", "projection.json", "tasks.npy", *names}
    assert np.array_equal(np.load(out / "tasks.npy"), t.numpy())
    (made,) = generate_weights([operator], t)
    for name, row, expected in zip(names, t, projecting.state_dicts(operator, made)):
        read = gpt2.load(out / name)
        assert torch.tensor(read.provenance["t"]).equal(row)
        assert FILES <= {path.name for path in (out / name).iterdir()} <= {*FILES, "preprocessor_config.json"}
        found = gpt2.tensors(read.model)
        assert all(torch.allclose(found[key], expected[key], atol=1e-6) for key in expected)


def test_state_dicts_are_those_of_the_models_made_one_by_one(operator):
    t = random_tasks(3)
    (made,) = generate_weights([operator], t)
    for row, state in zip(t, projecting.state_dicts(operator, made)):
        alone = gpt2.tensors(operator.generate(row))
        assert list(alone) and alone.keys() == state.keys()
        assert all(torch.allclose(alone[name], state[name], atol=1e-6) for name in alone)


@pytest.mark.parametrize("scale", [1 / 2, 1 / 8])
def test_the_benchmarks_naive_loop_makes_the_same_models(scale, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent))  # as `python -m pytest` does, and `pytest` does not
    from benchmarks import projecting as naive

    torch.manual_seed(0)
    made = pk.ProjectionOperator(pk.GPT(CONFIG), scale, task_dim=18)
    for parameter in (*made.parameters(), *made.source.parameters()):
        torch.nn.init.normal_(parameter)
    assert naive.check(made, naive.Dense(made), random_tasks(3)) < 1e-5


# A trained run, all the way


@torch.no_grad()
@pytest.mark.parametrize("s", ["1/2", "1/4"])
def test_exported_models_give_the_training_times_logits(run, tmp_path, s, capsys):
    t = random_tasks(1, seed=3)[0]
    (tmp_path / "task.json").write_text(json.dumps(t.tolist()))
    out = tmp_path / "deep" / "model"
    assert project(run, "--scale", s, "--t", tmp_path / "task.json", "--out", out, "--onnx") == 0
    assert f"Wrote and checked 1 model in {out}." in capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == {*FILES, "model.onnx", "preprocessor_config.json"}
    assert [path.name for path in out.parent.iterdir()] == ["model"]
    opened = TrainedRun.open(run)
    tokens = torch.randint(8, (5, 36))
    expected = opened.operator(Fraction(s))(tokens, t.expand(5, -1))
    input_ids = torch.cat([torch.full((5, 1), 8), tokens[:, :-1]], dim=1)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(out).eval()
    torch.testing.assert_close(theirs(input_ids).logits[..., :8], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(onnx.run(out / "model.onnx", input_ids), expected, atol=1e-4, rtol=1e-4)
    read = gpt2.load(out)
    assert torch.equal(read.palette.colors, opened.palette.colors)
    assert read.provenance["run"] == "tiny" and read.provenance["scale"] == s and read.provenance["step"] == 10
    card = (out / "README.md").read_text()
    assert f"| scale s | {s} |" in card and "| t: angle |" in card and read.provenance["digest"] in card


def test_the_command_makes_many(run, tmp_path):
    t = random_tasks(5, seed=2)
    np.save(tmp_path / "tasks.npy", t.numpy())
    assert project(run, "--scale", "1/4", "--t", tmp_path / "tasks.npy", "--out", tmp_path / "a") == 0
    assert project(run, "--scale", "1/4", "--random", 5, "--seed", 2, "--out", tmp_path / "b") == 0
    for out in (tmp_path / "a", tmp_path / "b"):
        assert_complete(out, TrainedRun.open(run).operator(Fraction(1, 4)), t)


def test_tasks_outside_the_training_range_are_warned_of(run, tmp_path):
    (tmp_path / "task.json").write_text(json.dumps([1.5] + [0.5] * 17))
    with pytest.warns(UserWarning, match=r"leave the training range.*angle of task 0, 1.5, which is 0.5 outside"):
        assert project(run, "--scale", "1/4", "--t", tmp_path / "task.json", "--out", tmp_path / "model") == 0


def test_the_module_of_the_command_is_the_function():
    code = (
        "import torch, projkern as pk, projkern.project; import projkern.project as again\n"
        "from projkern import project\n"
        "assert pk.project is projkern.project is again is project\n"
        "assert projkern.project(torch.ones(4, 4), torch.ones(4), torch.ones(4), group=2).shape == (2, 2)"
    )
    subprocess.run([sys.executable, "-W", "error::RuntimeWarning", "-c", code], check=True)


# Interruptions


def command(run, count, out, *options):
    arguments = [run, "--scale", "1/4", "--random", count, "--out", out, *options]
    return [sys.executable, "-m", "projkern.project", *map(str, arguments)]


def kill_and_resume(run, count, out, kills, longest):
    """Start a job, kill it ``kills`` times within ``longest`` seconds of its work each, then let it end."""
    rng = random.Random(0)
    for _ in range(kills):
        before = {path.name for path in out.iterdir()} if out.exists() else set()
        process = subprocess.Popen(command(run, count, out, "--resume"), stderr=subprocess.DEVNULL)
        while not out.exists() or {path.name for path in out.iterdir()} <= before | {".lock", "projection.json"}:
            assert process.poll() is None, "the job ended before it could be killed"
            time.sleep(0.005)
        time.sleep(rng.uniform(0, longest))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "the job ended before it could be killed"
    assert subprocess.run(command(run, count, out, "--resume"), stderr=subprocess.DEVNULL).returncode == 0
    assert_complete(out, TrainedRun.open(run).operator(Fraction(1, 4)), random_tasks(count))


def test_killed_and_resumed_nothing_is_missing_or_half_written(run, tmp_path):
    kill_and_resume(run, 300, tmp_path / "out", kills=3, longest=0.8)


@pytest.mark.slow
def test_ten_thousand_tasks_killed_ten_times(run, tmp_path):
    kill_and_resume(run, 10_000, tmp_path / "out", kills=10, longest=15)


@pytest.mark.parametrize("interrupt", [signal.default_int_handler, signal.SIG_IGN])  # a shell's "command &" ignores it
def test_sigterm_says_how_to_go_on(run, tmp_path, monkeypatch, capsys, interrupt):
    monkeypatch.setattr(projecting.Maker, "make", lambda *arguments: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.signal(signal.SIGINT, interrupt)
    try:
        assert project(run, "--scale", "1/4", "--random", 3, "--out", tmp_path / "out") == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert "the same command with --resume" in capsys.readouterr().err
    monkeypatch.undo()
    assert project(run, "--scale", "1/4", "--random", 3, "--out", tmp_path / "out", "--resume") == 0
    assert len(models(tmp_path / "out")) == 3


@pytest.mark.parametrize("many", [True, False])
def test_resuming_what_is_complete_changes_nothing(operator, tmp_path, many):
    t = random_tasks(3) if many else random_tasks(1)[0]
    assert make(operator, t, tmp_path / "out", resume=True) == (3 if many else 1)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert make(operator, t, tmp_path / "out", resume=True) == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == before
    with pytest.raises(ValueError, match="onnx must be that of the job in .*, False; it was True"):
        make(operator, t, tmp_path / "out", resume=True, with_onnx=True)


@pytest.mark.parametrize("many", [True, False])
def test_a_task_whose_model_gives_no_numbers(operator, tmp_path, many):
    t = random_tasks(2) if many else random_tasks(1)[0]
    t[..., 3] = 1e38
    with pytest.raises(projecting.WrongModel, match=r"t must give a model of finite logits; it was \[0\..*e\+3"):
        make(operator, t, tmp_path / "out")
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize("after", [0, 7])
def test_a_full_disk_says_what_is_complete(operator, tmp_path, monkeypatch, after):
    monkeypatch.setattr(projecting, "CHUNK_MODELS", 5)
    original, calls = gpt2.Writer.write, []

    def write(self, folder, *arguments):
        calls.append(folder)
        if len(calls) > after:
            (folder / "model.safetensors").write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
        original(self, folder, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(gpt2.Writer, "write", write)
        kept = after // 5 * 5
        with pytest.raises(OSError, match=rf"No space left.*{kept} of 12 models are complete; --resume makes the rest"):
            make(operator, random_tasks(12), tmp_path / "out")
    assert len(models(tmp_path / "out")) == kept and not list((tmp_path / "out").glob(".*.partial"))
    assert make(operator, random_tasks(12), tmp_path / "out", resume=True) == 12 - kept
    assert_complete(tmp_path / "out", operator, random_tasks(12))


def test_chunks_bound_the_memory(operator, monkeypatch):
    paper = pk.GPTConfig(vocab_size=512, n_positions=1024, n_embd=64, n_layer=24, n_head=8)
    with torch.device("meta"):
        large = pk.ProjectionOperator(pk.GPT(paper), 1, task_dim=18)
    assert projecting.Maker(operator, ORIGIN, None, False).chunk == projecting.CHUNK_MODELS
    assert 1 < projecting.Maker(large, ORIGIN, None, False).chunk < 32


# What must not happen


def wrong_model(monkeypatch, change):
    original = gpt2.Writer.write

    def write(self, folder, state, *arguments):
        original(self, folder, change(state), *arguments)

    monkeypatch.setattr(gpt2.Writer, "write", write)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: s | {"lm_head.weight": s["lm_head.weight"] + 1e-3}, "logits of the training-time forward"),
        (lambda s: s | {"lm_head.weight": s["lm_head.weight"] * float("nan")}, "logits of the training-time forward"),
        (lambda s: {k: v for k, v in s.items() if not k.endswith("ln_f.bias")}, "does not hold .*ln_f.bias"),
    ],
)
@pytest.mark.parametrize("many", [True, False])
def test_a_wrong_model_is_found_and_not_kept(operator, tmp_path, monkeypatch, change, says, many):
    wrong_model(monkeypatch, change)
    with pytest.raises(projecting.WrongModel, match=says):
        make(operator, random_tasks(2) if many else random_tasks(1)[0], tmp_path / "out")
    assert not list(tmp_path.rglob("*.safetensors"))
    assert [path.name for path in tmp_path.iterdir()] == ["out"] * many


@pytest.mark.parametrize("left", ["model", "replaced", ".model.partial"])
def test_what_a_killed_process_left_of_one_model_is_removed(operator, tmp_path, left):
    (tmp_path / ".out.partial" / left).mkdir(parents=True)
    (tmp_path / ".out.partial" / left / "model.safetensors").write_bytes(b"half")
    make(operator, random_tasks(1)[0], tmp_path / "out", resume=True)
    assert gpt2.load(tmp_path / "out").provenance["t"] == random_tasks(1)[0].tolist()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("many", [True, False])
def test_existing_output_is_refused_then_replaced_when_asked(operator, tmp_path, many):
    first, second = (random_tasks(3, seed) if many else random_tasks(1, seed)[0] for seed in (0, 1))
    out = tmp_path / "out"
    make(operator, first, out)
    with pytest.raises(FileExistsError, match="already holds what was projected; give --resume .* or --overwrite"):
        make(operator, second, out)
    with pytest.raises(ValueError, match="must be that of the job in"):
        make(operator, second, out, resume=True)
    make(operator, second[:2] if many else second, out, overwrite=True)
    if many:
        assert_complete(out, operator, second[:2])
    else:
        assert gpt2.load(out).provenance["t"] == second.tolist()
        assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("content", ["thesis.tex", "config.json", "task-00000"])
@pytest.mark.parametrize("many", [True, False])
def test_a_folder_with_something_else_is_left_alone(operator, tmp_path, content, many):
    (tmp_path / content).write_text("{}")
    for flags in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(ValueError, match="holds something else"):
            make(operator, random_tasks(2) if many else random_tasks(1)[0], tmp_path, **flags)
    assert [path.name for path in tmp_path.iterdir()] == [content]
    assert (tmp_path / content).read_text() == "{}"


def test_two_processes_do_not_write_to_one_folder(run, tmp_path):
    for count, held in ((3, tmp_path / "out"), (1, tmp_path / ".model.partial")):
        arguments = command(run, count, tmp_path / "out")
        if count == 1:
            (tmp_path / "task.json").write_text(json.dumps([0.5] * 18))
            arguments = [*arguments[:6], "--t", str(tmp_path / "task.json"), "--out", str(tmp_path / "model")]
        with locked(held):
            other = subprocess.run(arguments, capture_output=True, text=True)
        assert other.returncode == 1 and "no other process is writing to" in other.stderr
        assert subprocess.run(arguments, capture_output=True).returncode == 0


def test_a_description_that_is_damaged(operator, tmp_path):
    make(operator, random_tasks(2), tmp_path / "out")
    for content, says in (("{cut", "cannot be read"), ('{"version": 2}', "must be of a projection of version 1")):
        (tmp_path / "out/projection.json").write_text(content)
        with pytest.raises(ValueError, match=says):
            make(operator, random_tasks(2), tmp_path / "out", resume=True)


@pytest.mark.parametrize("shape", [(17,), (2, 17), (0, 18), (1, 2, 18)])
def test_tasks_of_another_shape(operator, tmp_path, shape):
    with pytest.raises(ValueError, match=r"t must be \(18,\) or \(N, 18\); it was"):
        make(operator, torch.rand(shape), tmp_path / "out")


def test_palette_of_another_size(operator, tmp_path):
    with pytest.raises(ValueError, match="palette must have a colour for each of the model's 8 tokens"):
        make(operator, random_tasks(2), tmp_path / "out", palette=Palette(torch.zeros(5, 3)))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--scale 1/8 --random 3", r"scale must be one that .* was trained for (1/2, 1/4); it was 1/8"),
        ("--scale 1/4 --random 0", "count must be at least 1; it was 0"),
        ("--scale 1/4 --t nowhere.json", "nowhere.json"),
        ("--scale 1/4 --t tasks.txt", "t must be a .json, .npy or .csv file; it was tasks.txt"),
    ],
)
def test_bad_options(run, tmp_path, capsys, arguments, says):
    assert project(run, *arguments.split(), "--out", tmp_path / "out") == 1
    said = capsys.readouterr().err
    assert all(part in said for part in says.split(" .* ")) and said.startswith("projkern.project: error: ")
    assert not (tmp_path / "out").exists()


def test_runs_that_cannot_be_used(run, tmp_path, capsys):
    arguments = ("--scale", "1/4", "--random", 1, "--out", tmp_path / "out")
    assert project(tmp_path / "none", *arguments) == 1
    assert "holds no run" in capsys.readouterr().err
    copied = tmp_path / "copied"
    copied.mkdir()
    (copied / "config.json").write_bytes((run / "config.json").read_bytes())
    assert project(copied, *arguments) == 1
    assert "has only begun" in capsys.readouterr().err
    (copied / "palette.npy").write_bytes((run / "palette.npy").read_bytes())
    assert project(copied, *arguments) == 1
    assert "stands at step 0 of 10" in capsys.readouterr().err
    values = json.loads((run / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(values | {"version": 99}))
    assert project(copied, *arguments) == 1
    assert "a newer version, 99" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_help(capsys):
    with pytest.raises(SystemExit):
        raise SystemExit(project("--help"))
    assert "--scale" in capsys.readouterr().out


def test_paths_may_be_relative(operator, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make(operator, random_tasks(2), Path("many"))
    make(operator, random_tasks(1)[0], Path("one"))
    with pytest.raises(ValueError, match="must not be the working directory"):
        monkeypatch.chdir(tmp_path / "one")
        make(operator, random_tasks(1, 1)[0], Path("."), overwrite=True)
    assert models(tmp_path / "many") == {"task-00000", "task-00001"}
    assert {path.name for path in tmp_path.iterdir()} == {"many", "one"}
