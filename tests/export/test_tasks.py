"""Projecting many tasks: every model checked, none lost, none half-written, whatever interrupts."""

from __future__ import annotations

import errno
import json
import os
import random
import re
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
from projkern.export import checked, onnx, tasks
from projkern.export.checked import CheckedWriter, WrongModel, state_dicts
from projkern.models.huggingface import gpt2
from projkern.models.operator import generate_weights
from projkern.training.trained import TrainedRun
from projkern.utils.errors import InputError
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
        "--side 6 --vocab-size 8 --n-layer 2 --n-embd 32 --source-steps 12 --steps 10 --batch-size 4 --eval-images 8 "
        "--warmup 2 --scales 1/2 1/4 --joint --no-unconditional"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROJKERN_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        assert main(["train", "--out", str(out), *settings.split()]) == 0
    return out


@pytest.fixture
def operator():
    torch.manual_seed(0)
    operator = pk.ProjectionOperator(pk.GPT(CONFIG), 1 / 4, task_dim=18).eval()
    with torch.no_grad():
        for parameter in (*operator.parameters(), *operator.source.parameters()):
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return operator


def project(*arguments):
    return main(["project", *map(str, arguments)])


def write(operator, t, out, **options):
    return tasks.project_tasks(operator, t, out, origin=ORIGIN, **options)


def models(out):
    return {path.name for path in out.iterdir() if path.name.startswith("task-")}


def assert_complete(out, operator, t):
    """Exactly the models of t, each whole and its task's."""
    names = [f"task-{k:05}" for k in range(len(t))]
    assert {path.name for path in out.iterdir()} == {".lock", "projection.json", "tasks.npy", *names}
    assert np.array_equal(np.load(out / "tasks.npy"), t.numpy())
    (generated,) = generate_weights([operator], t)
    for name, row, expected in zip(names, t, state_dicts(operator, generated)):
        read = gpt2.load(out / name)
        assert torch.tensor(read.provenance["t"]).equal(row)
        assert FILES <= {path.name for path in (out / name).iterdir()} <= {*FILES, "preprocessor_config.json"}
        tensors = gpt2.tensors(read.model)
        assert all(torch.allclose(tensors[key], expected[key], atol=1e-6) for key in expected)


def test_state_dicts_are_those_of_models_generated_one_by_one(operator):
    t = random_tasks(3)
    (generated,) = generate_weights([operator], t)
    for row, state in zip(t, state_dicts(operator, generated)):
        alone = gpt2.tensors(operator.generate(row))
        assert list(alone) and alone.keys() == state.keys()
        assert all(torch.allclose(alone[name], state[name], atol=1e-6) for name in alone)


@pytest.mark.parametrize("scale", [1 / 2, 1 / 8])
def test_the_benchmarks_naive_loop_gives_the_same_models(scale):
    from benchmarks import projecting as naive

    torch.manual_seed(0)
    operator = pk.ProjectionOperator(pk.GPT(CONFIG), scale, task_dim=18)
    for parameter in (*operator.parameters(), *operator.source.parameters()):
        torch.nn.init.normal_(parameter)
    assert naive.check(operator, naive.Dense(operator), random_tasks(3)) < 1e-5


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
    reference = transformers.GPT2LMHeadModel.from_pretrained(out).eval()
    torch.testing.assert_close(reference(input_ids).logits[..., :8], expected, atol=1e-5, rtol=1e-5)
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
    kill_and_resume(run, 300, tmp_path / "out", kills=2, longest=0.8)


@pytest.mark.slow
def test_ten_thousand_tasks_killed_ten_times(run, tmp_path):
    kill_and_resume(run, 10_000, tmp_path / "out", kills=10, longest=15)


@pytest.mark.parametrize("interrupt", [signal.default_int_handler, signal.SIG_IGN])  # a shell's "command &" ignores it
def test_sigterm_says_how_to_go_on(run, tmp_path, monkeypatch, capsys, interrupt):
    monkeypatch.setattr(CheckedWriter, "write", lambda *arguments: os.kill(os.getpid(), signal.SIGTERM))
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
    assert write(operator, t, tmp_path / "out", resume=True) == (3 if many else 1)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert write(operator, t, tmp_path / "out", resume=True) == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == before
    with pytest.raises(InputError, match="^onnx .*False.*True"):
        write(operator, t, tmp_path / "out", resume=True, with_onnx=True)


@pytest.mark.parametrize("many", [True, False])
def test_a_task_whose_model_gives_no_numbers(operator, tmp_path, many):
    t = random_tasks(2) if many else random_tasks(1)[0]
    t[..., 3] = 1e38
    with pytest.raises(WrongModel, match=r"^t .*\[0\..*e\+3"):
        write(operator, t, tmp_path / "out")
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize("after", [0, 7])
def test_a_full_disk_says_what_is_complete(operator, tmp_path, monkeypatch, after):
    monkeypatch.setattr(checked, "CHUNK_MODELS", 5)
    original, calls = gpt2.Writer.write, []

    def write_or_fail(self, folder, *arguments):
        calls.append(folder)
        if len(calls) > after:
            (folder / "model.safetensors").write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
        original(self, folder, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(gpt2.Writer, "write", write_or_fail)
        complete = after // 5 * 5
        with pytest.raises(OSError, match=rf"No space left.*{complete} of 12 .*--resume"):
            write(operator, random_tasks(12), tmp_path / "out")
    assert len(models(tmp_path / "out")) == complete and not list((tmp_path / "out").glob(".*.partial"))
    assert write(operator, random_tasks(12), tmp_path / "out", resume=True) == 12 - complete
    assert_complete(tmp_path / "out", operator, random_tasks(12))


def test_chunks_bound_the_memory(operator, monkeypatch):
    paper = pk.GPTConfig(vocab_size=512, n_positions=1024, n_embd=64, n_layer=24, n_head=8)
    with torch.device("meta"):
        large = pk.ProjectionOperator(pk.GPT(paper), 1, task_dim=18)
    assert CheckedWriter(operator, ORIGIN, None, False).chunk == checked.CHUNK_MODELS
    assert 1 < CheckedWriter(large, ORIGIN, None, False).chunk < 32


# What must not happen


def wrong_model(monkeypatch, change):
    original = gpt2.Writer.write

    def write(self, folder, state, *arguments):
        original(self, folder, change(state), *arguments)

    monkeypatch.setattr(gpt2.Writer, "write", write)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda s: s | {"lm_head.weight": s["lm_head.weight"] + 1e-6}, "lm_head.weight"),
        (lambda s: s | {"lm_head.weight": s["lm_head.weight"] * float("nan")}, "lm_head.weight"),
        (lambda s: {k: v for k, v in s.items() if not k.endswith("ln_f.bias")}, "ln_f.bias"),
    ],
)
@pytest.mark.parametrize("many", [True, False])
def test_a_wrong_model_is_found_and_not_kept(operator, tmp_path, monkeypatch, change, part, many):
    wrong_model(monkeypatch, change)
    with pytest.raises(WrongModel, match=part):
        write(operator, random_tasks(2) if many else random_tasks(1)[0], tmp_path / "out")
    assert not list(tmp_path.rglob("*.safetensors"))
    assert [path.name for path in tmp_path.iterdir()] == ["out"] * many


def test_a_model_that_transformers_computes_otherwise_is_not_kept(operator, tmp_path, monkeypatch):
    original = gpt2.Writer.write

    def write_another_activation(self, folder, *arguments):
        original(self, folder, *arguments)
        settings = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(settings | {"activation_function": "relu"}))

    monkeypatch.setattr(gpt2.Writer, "write", write_another_activation)
    with pytest.raises(WrongModel, match="logits"):
        write(operator, random_tasks(2), tmp_path / "out")
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize("left", ["model", "replaced", ".model.partial"])
def test_what_a_killed_process_left_of_one_model_is_removed(operator, tmp_path, left):
    (tmp_path / ".out.partial" / left).mkdir(parents=True)
    (tmp_path / ".out.partial" / left / "model.safetensors").write_bytes(b"half")
    write(operator, random_tasks(1)[0], tmp_path / "out", resume=True)
    assert gpt2.load(tmp_path / "out").provenance["t"] == random_tasks(1)[0].tolist()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("many", [True, False])
def test_existing_output_is_refused_then_replaced_when_asked(operator, tmp_path, many):
    first, second = (random_tasks(3, seed) if many else random_tasks(1, seed)[0] for seed in (0, 1))
    out = tmp_path / "out"
    write(operator, first, out)
    with pytest.raises(FileExistsError, match="--resume .* --overwrite"):
        write(operator, second, out)
    with pytest.raises(InputError, match="^(tasks|t) "):
        write(operator, second, out, resume=True)
    write(operator, second[:2] if many else second, out, overwrite=True)
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
        with pytest.raises(InputError, match="^out "):
            write(operator, random_tasks(2) if many else random_tasks(1)[0], tmp_path, **flags)
    assert [path.name for path in tmp_path.iterdir()] == [content]
    assert (tmp_path / content).read_text() == "{}"


def test_two_processes_do_not_write_to_one_folder(run, tmp_path):
    (tmp_path / "task.json").write_text(json.dumps([0.5] * 18))
    one = [run, "--scale", "1/4", "--t", tmp_path / "task.json", "--out", tmp_path / "model"]
    for words, held in ((command(run, 3, tmp_path / "out")[3:], "out"), (one, ".model.partial")):
        with locked(tmp_path / held):
            other = subprocess.run(
                [sys.executable, "-m", "projkern.project", *map(str, words)], capture_output=True, text=True
            )
        assert other.returncode == 1 and "error: out " in other.stderr
        assert project(*words) == 0


def test_a_description_that_is_damaged(operator, tmp_path):
    write(operator, random_tasks(2), tmp_path / "out")
    for content in ("{cut", '{"version": 1}', '{"format": "projkern projection", "version": 99}'):
        (tmp_path / "out/projection.json").write_text(content)
        with pytest.raises(InputError, match=r"projection\.json"):
            write(operator, random_tasks(2), tmp_path / "out", resume=True)


@pytest.mark.parametrize("shape", [(17,), (2, 17), (0, 18), (1, 2, 18)])
def test_tasks_of_another_shape(operator, tmp_path, shape):
    with pytest.raises(InputError, match=r"^t "):
        write(operator, torch.rand(shape), tmp_path / "out")


def test_palette_of_another_size(operator, tmp_path):
    with pytest.raises(InputError, match="^palette "):
        write(operator, random_tasks(2), tmp_path / "out", palette=Palette(torch.zeros(5, 3)))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        ("--scale 1/8 --random 3", "scale .* 1/8"),
        ("--scale 1/4 --random 0", "count .* 0"),
        ("--scale 1/4 --t nowhere.json", ".*nowhere.json"),
        ("--scale 1/4 --t tasks.txt", "t .* tasks.txt"),
    ],
)
def test_bad_options(run, tmp_path, capsys, arguments, pattern):
    assert project(run, *arguments.split(), "--out", tmp_path / "out") == 1
    message = capsys.readouterr().err
    assert re.match(f"projkern.project: error: {pattern}", message)
    assert not (tmp_path / "out").exists()


def test_runs_that_cannot_be_used(run, tmp_path, capsys):
    arguments = ("--scale", "1/4", "--random", 1, "--out", tmp_path / "out")
    assert project(tmp_path / "none", *arguments) == 1
    assert f"run must be a folder that exists; it was {tmp_path / 'none'}" in capsys.readouterr().err
    copied = tmp_path / "copied"
    copied.mkdir()
    (copied / "config.json").write_bytes((run / "config.json").read_bytes())
    assert project(copied, *arguments) == 1
    assert f"--out {copied} --resume" in capsys.readouterr().err
    (copied / "palette.npy").write_bytes((run / "palette.npy").read_bytes())
    assert project(copied, *arguments) == 1
    assert "step 0 of 10" in capsys.readouterr().err
    values = json.loads((run / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(values | {"version": 99}))
    assert project(copied, *arguments) == 1
    assert "config.json" in (message := capsys.readouterr().err) and "99" in message
    assert not (tmp_path / "out").exists()


def test_help(capsys):
    with pytest.raises(SystemExit):
        raise SystemExit(project("--help"))
    assert "--scale" in capsys.readouterr().out


def test_paths_may_be_relative(operator, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(operator, random_tasks(2), Path("many"))
    write(operator, random_tasks(1)[0], Path("one"))
    with pytest.raises(InputError, match="^out "):
        monkeypatch.chdir(tmp_path / "one")
        write(operator, random_tasks(1, 1)[0], Path("."), overwrite=True)
    assert models(tmp_path / "many") == {"task-00000", "task-00001"}
    assert {path.name for path in tmp_path.iterdir()} == {"many", "one"}
