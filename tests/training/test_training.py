"""Training runs: what they leave behind, that they resume bit for bit, and that nothing is lost."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file, save_file

from projkern.data import SynthMNIST
from projkern.models.names import SOURCE, ModelName
from projkern.train import main
from projkern.training import checkpoint
from projkern.training.config import TrainConfig
from projkern.training.folder import read_config
from projkern.training.loop import schedule
from projkern.training.metrics import read_metrics
from projkern.training.presets import PRESETS, QUICK
from projkern.training.stages import make_stage, stage_names
from projkern.utils import tensors
from projkern.utils.files import locked
from projkern.utils.settings import fields_of

TINY = (
    *("--side", "6", "--vocab-size", "8", "--n-layer", "2", "--n-embd", "32", "--source-steps", "12"),
    *("--steps", "10", "--batch-size", "4", "--eval-images", "8", "--log-every", "2", "--checkpoint-every", "3"),
    *("--warmup", "2", "--dropout", "0.1"),
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("PROJKERN_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that nobody disturbed."""
    os.environ["PROJKERN_CACHE"] = str(tmp_path_factory.getbasetemp() / "cache")
    out = tmp_path_factory.mktemp("runs") / "finished"
    assert main(["--out", str(out), *TINY]) == 0
    return out


def final_weights(run):
    return {
        path.parent.parent.name: load_file(path)
        for path in sorted((run / "checkpoint").glob("*/step-*/model.safetensors"))
    }


def assert_same_weights(run, other):
    first, second = final_weights(run), final_weights(other)
    assert first.keys() == second.keys()
    for stage in first:
        assert first[stage].keys() == second[stage].keys()
        assert all(torch.equal(first[stage][k], second[stage][k]) for k in second[stage]), stage


def test_what_a_run_leaves(finished):
    for name in ("config.json", "metrics.jsonl", "samples.png", "curves.png", "report.md", "palette.npy"):
        assert (finished / name).stat().st_size > 0
    assert {p.name for p in (finished / "checkpoint").iterdir()} == {"M_1", "M_1-4", "M~_1-4", "P_1-4"}
    assert list((finished / "tensorboard").glob("*/events*"))
    summary = json.loads((finished / "summary.json").read_text())
    assert set(summary) == {"models", "seconds", "device", "versions"}
    assert set(summary["models"]) == {"M_1", "M_1/4", "M~_1/4", "P_1/4", "source after co-training"}
    for row in summary["models"].values():
        assert 0 < row["loss"] < 4 and row["standard_error"] > 0 and row["parameters"] > 0
    assert [n for n, row in summary["models"].items() if "loss_with_another_t" in row] == ["M~_1/4", "P_1/4"]
    report = (finished / "report.md").read_text()
    for row in summary["models"].values():
        assert f"{row['loss']:.3f} ± {row['standard_error']:.3f}" in report


def test_no_pickle_anywhere(finished):
    files = {p for p in finished.rglob("*") if p.is_file() and "tensorboard" not in p.parts and p.name != ".lock"}
    kinds = {p.suffix for p in files}
    assert kinds == {".json", ".jsonl", ".png", ".md", ".npy", ".safetensors"}


def test_metrics_log_every_step_once(finished):
    lines = read_metrics(finished / "metrics.jsonl")
    steps = {stage: [x["step"] for x in lines if x["stage"] == stage] for stage in {x["stage"] for x in lines}}
    assert steps == {"M_1": [2, 4, 6, 8, 10, 12]} | {s: [2, 4, 6, 8, 10] for s in ("M_1/4", "M~_1/4", "P_1/4")}


def interrupt_at(monkeypatch, batch_index):
    original = SynthMNIST.batch

    def batch(self, step, t=None):
        if self.split == "train" and step == batch_index:
            monkeypatch.setattr(SynthMNIST, "batch", original)
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, step, t)

    monkeypatch.setattr(SynthMNIST, "batch", batch)


@pytest.mark.parametrize("batch_index", [0, 7, 16])
def test_ctrl_c_leaves_a_checkpoint_and_resume_is_bit_equal(finished, tmp_path, monkeypatch, capsys, batch_index):
    out = tmp_path / "run"
    interrupt_at(monkeypatch, batch_index)
    assert main(["--out", str(out), *TINY]) == 130
    assert f"python -m projkern.train --out {out} --resume" in capsys.readouterr().err
    assert not (out / "summary.json").exists()
    assert main(["--out", str(out), "--resume"]) == 0
    assert_same_weights(out, finished)
    drop = ("images_per_second",)
    resumed, whole = (
        [{k: v for k, v in line.items() if k not in drop} for line in read_metrics(run / "metrics.jsonl")]
        for run in (out, finished)
    )
    steps = [[(x["stage"], x["step"]) for x in lines if x["step"] % 2 == 0] for lines in (resumed, whole)]
    assert steps[0] == steps[1]
    results = [json.loads((run / "summary.json").read_text())["models"] for run in (out, finished)]
    assert results[0] == results[1]


def train_in_a_process(out, *arguments):
    command = [sys.executable, "-m", "projkern.train", "--out", str(out), *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def kill_and_resume(out, settings, kills, longest):
    """Start a run, kill it ``kills`` times within ``longest`` seconds of training each, then let it end."""
    rng = random.Random(0)
    for _ in range(kills):
        started = (out / "config.json").exists()
        logged = (out / "metrics.jsonl").stat().st_mtime_ns if (out / "metrics.jsonl").exists() else 0
        process = train_in_a_process(out, *(["--resume"] if started else settings))
        while not (out / "metrics.jsonl").exists() or (out / "metrics.jsonl").stat().st_mtime_ns == logged:
            assert process.poll() is None, "the run ended before it could be killed"
            time.sleep(0.01)
        time.sleep(rng.uniform(0, longest))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    assert train_in_a_process(out, "--resume").wait() == 0


def test_killed_at_random_moments_and_resumed_is_bit_equal(tmp_path):
    settings = [*TINY, "--source-steps", "80", "--steps", "80"]
    assert main(["--out", str(tmp_path / "whole"), *settings]) == 0
    kill_and_resume(tmp_path / "killed", settings, kills=2, longest=0.3)
    assert_same_weights(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.slow
def test_quick_run_killed_ten_times_is_bit_equal(tmp_path):
    assert train_in_a_process(tmp_path / "whole").wait() == 0
    kill_and_resume(tmp_path / "killed", [], kills=10, longest=40)
    assert_same_weights(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.parametrize("extra", [("--w-src", "0"), ("--steps", "1")])
def test_parameters_that_get_no_gradient_resume_too(tmp_path, monkeypatch, extra):
    settings = [*TINY, *extra]
    assert main(["--out", str(tmp_path / "whole"), *settings]) == 0
    original = torch.optim.AdamW.step
    calls = []

    def step(self, *arguments):
        calls.append(1)
        if len(calls) == 12 + 2 * (10 if extra[0] == "--w-src" else 1) + 1:  # the first step of P_1/4
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    assert main(["--out", str(tmp_path / "run"), *settings]) == 130
    assert main(["--out", str(tmp_path / "run"), "--resume"]) == 0
    assert_same_weights(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("where", "has_begun"), [("check_data", False), ("make_stage", True), ("evaluate", True)])
def test_polite_stops_outside_the_loop(finished, tmp_path, monkeypatch, capsys, number, where, has_begun):
    import projkern.training.run as run_module

    with monkeypatch.context() as patch:
        patch.setattr(run_module, where, lambda *arguments, **options: os.kill(os.getpid(), number))
        assert main(["--out", str(tmp_path / "run"), *TINY]) == 130
    assert ("--resume" in capsys.readouterr().err) == (tmp_path / "run").exists() == has_begun
    if not has_begun:
        return
    assert main(["--out", str(tmp_path / "run"), "--resume"]) == 0
    assert_same_weights(tmp_path / "run", finished)


def test_resuming_a_finished_run_changes_nothing(finished):
    before = final_weights(finished)
    lines = (finished / "metrics.jsonl").read_text()
    assert main(["--out", str(finished), "--resume"]) == 0
    after = final_weights(finished)
    assert all(torch.equal(after[s][k], before[s][k]) for s in before for k in before[s])
    assert (finished / "metrics.jsonl").read_text() == lines


def test_joint_run_of_several_scales(tmp_path):
    out = tmp_path / "run"
    arguments = [*TINY, "--scales", "1/2", "1/4", "--joint", "--no-unconditional", "--examples-per-task", "2"]
    assert main(["--out", str(out), *arguments]) == 0
    models = json.loads((out / "summary.json").read_text())["models"]
    assert set(models) == {"M_1", "M~_1/2", "M~_1/4", "P~_1/2", "P~_1/4", "source after co-training"}


def test_small_models_see_the_same_data():
    config = QUICK.replace(steps=3, source_steps=5)
    source = make_stage(SOURCE, config, torch.device("cpu")).module
    stages = [make_stage(n, config, torch.device("cpu"), source) for n in stage_names(config)]
    assert [(s.first_batch, s.steps) for s in stages] == [(0, 5), (5, 3), (5, 3), (5, 3)]


def test_source_is_copied_not_shared():
    source = make_stage(SOURCE, QUICK, torch.device("cpu")).module
    stage = make_stage(ModelName.parse("P_1/4"), QUICK, torch.device("cpu"), source)
    copy = stage.module["source"]
    assert all(torch.equal(a, b) and a is not b for a, b in zip(copy.parameters(), source.parameters()))


def test_schedule_warms_up_and_ends_at_zero():
    rates = [schedule(step, 100, 10) for step in range(101)]
    assert rates[0] == 0.1 and rates[9] == rates[10] == 1
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert rates[100] == pytest.approx(0)


def test_presets_and_their_json():
    for _, config in PRESETS.values():
        assert TrainConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_help_names_every_setting(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for _, field in fields_of(QUICK):
        option = field.metadata["option"]
        listed = f"--{(option or field.name).replace('_', '-')} " in f"{shown} ".replace(",", " ").replace("]", " ")
        assert listed == (option is not None), field.name


# Bad input


def fails(capsys, *arguments):
    assert main([str(a) for a in arguments]) == 1
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        ("--scales 1/3", "scales", "1/3"),
        ("--scales 2/3", "scales", "2/3"),
        ("--scales 1/2 1/2", "scales", "1/2 1/2"),
        ("--n-embd 33", "n_embd", "33"),
        ("--batch-size 0", "batch_size", "0"),
        ("--small-lr 0", "small_lr", "0.0"),
        ("--dropout 1", "dropout", "1.0"),
        ("--examples-per-task 3", "examples_per_task", "3"),
        ("--device tpu", "device", "tpu"),
        ("--device cuda:99", "device", "cuda:99"),
        ("--dtype int8", "dtype", "int8"),
        ("--mnist /nowhere", "mnist", "/nowhere"),
        ("--seed 99999999999", "seed", "99999999999"),
        ("--weight-decay -1", "weight_decay", "-1.0"),
    ],
)
def test_bad_settings(capsys, tmp_path, arguments, name, value):
    message = fails(capsys, "--out", tmp_path / "run", *arguments.split())
    assert re.search(rf"error: {name} must be .*; it was {value}\b", message)
    assert not (tmp_path / "run").exists()  # so that the corrected command is not refused


def test_folder_with_a_run_is_refused(finished, capsys):
    before = (finished / "summary.json").read_bytes()
    message = fails(capsys, "--out", finished, *TINY)
    assert str(finished) in message and "--resume" in message and "--overwrite" in message
    assert (finished / "summary.json").read_bytes() == before


def test_folder_that_another_process_writes_to(finished, capsys):
    with locked(finished):
        for flag in ("--resume", "--overwrite"):
            message = fails(capsys, "--out", finished, flag, *([] if flag == "--resume" else TINY))
            assert "out must" in message and str(finished) in message
    assert (finished / "summary.json").exists()
    assert main(["--out", str(finished), "--resume"]) == 0  # the lock went with its holder


@pytest.mark.parametrize("config", [None, "{}", "[]", '{"model_type": "gpt2"}', "{cut"])
def test_folder_with_something_else_is_never_overwritten(tmp_path, capsys, config):
    (tmp_path / "thesis.tex").write_text("years of work")
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    for flag in ("--overwrite", "--resume", "--no-joint"):
        assert str(tmp_path) in fails(capsys, "--out", tmp_path, flag, *TINY)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_overwriting_a_run_starts_anew(tmp_path, monkeypatch, capsys):
    assert main(["--out", str(tmp_path / "run"), *TINY]) == 0
    (tmp_path / "run" / "stray").write_text("of the run before")
    (tmp_path / "link").symlink_to(tmp_path / "run")
    assert main(["--out", str(tmp_path / "link"), "--overwrite", *TINY]) == 0
    assert not (tmp_path / "run" / "stray").exists()
    assert {p.name for p in tmp_path.iterdir()} == {"run", "link"}
    monkeypatch.chdir(tmp_path / "run")
    assert "out must" in fails(capsys, "--out", ".", "--overwrite", *TINY)
    assert (tmp_path / "run" / "summary.json").exists()


def test_folder_that_cannot_be_written(capsys):
    assert re.search("error: out must .*/proc/x", fails(capsys, "--out", "/proc/x", *TINY))


def test_resume_needs_a_run_and_its_own_settings(finished, tmp_path, capsys):
    message = fails(capsys, "--out", tmp_path / "none", "--resume")
    assert f"--out must be a folder that exists; it was {tmp_path}/none" in message
    for arguments, name in (
        (["--resume"], "--out"),
        (["--resume", "--out", str(finished), "--preset", "paper"], "--preset"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2 and name in capsys.readouterr().err.splitlines()[-1]
    for option in ("--side", "--image-size", "--small-lr"):
        name = option if option != "--image-size" else "--side"
        assert f"{name} must be left out with --resume" in fails(capsys, "--out", finished, "--resume", option, 9)


def test_settings_of_another_version(finished, tmp_path, capsys):
    values = json.loads((finished / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | {"version": 3}))
    assert "version 3" in fails(capsys, "--out", tmp_path, "--resume")
    (tmp_path / "config.json").write_text(json.dumps(values | {"data": values["data"] | {"flux": 1}}))
    assert "flux" in fails(capsys, "--out", tmp_path, "--resume")


def test_diverging_loss_stops_with_its_step(tmp_path, monkeypatch, capsys):
    import projkern.training.stages as stages

    original, calls = stages.nats_per_token, []

    def poisoned(logits, tokens):
        calls.append(1)
        return original(logits, tokens) * (float("nan") if len(calls) == 8 else 1)

    monkeypatch.setattr(stages, "nats_per_token", poisoned)
    message = fails(capsys, "--out", tmp_path / "run", *TINY)
    assert "M_1" in message and "step 8;" in message
    (kept,) = (tmp_path / "run/checkpoint/M_1").iterdir()
    assert kept.name == "step-00000006" and str(kept) in message
    assert all(v.isfinite().all() for v in load_file(kept / "model.safetensors").values())


def stage_of(run, **changes):
    return make_stage(SOURCE, read_config(run).replace(**changes), torch.device("cpu"))


def copied_checkpoint(finished, tmp_path):
    target = tmp_path / "step-00000012"
    target.mkdir()
    for path in checkpoint.latest(finished / "checkpoint" / "M_1").iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def test_checkpoint_of_another_shape(finished):
    path = checkpoint.latest(finished / "checkpoint" / "M_1")
    with pytest.raises(checkpoint.CheckpointError, match=r"model.safetensors .* must be .*; it was"):
        checkpoint.load(path, stage_of(finished, n_embd=64).module)
    with pytest.raises(checkpoint.CheckpointError, match="model.safetensors is of another model"):
        checkpoint.load(path, make_stage(ModelName.parse("M~_1/4"), QUICK, torch.device("cpu")).module)


@pytest.mark.parametrize("size", [0, 5, 1000])
def test_checkpoint_cut_short(finished, tmp_path, size):
    path = copied_checkpoint(finished, tmp_path)
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(checkpoint.CheckpointError, match="model.safetensors is damaged"):
        checkpoint.load(path, stage_of(finished).module)


def test_checkpoint_that_is_not_ours(finished, tmp_path):
    path = copied_checkpoint(finished, tmp_path)
    (path / "state.json").write_text('{"format": "other", "step": 3}')
    with pytest.raises(checkpoint.CheckpointError, match="state.json must hold"):
        checkpoint.load(path, stage_of(finished).module)
    (path / "state.json").unlink()
    with pytest.raises(checkpoint.CheckpointError, match="state.json must hold"):
        checkpoint.load(path, stage_of(finished).module)


def test_checkpoint_of_other_tensors(finished, tmp_path):
    path = copied_checkpoint(finished, tmp_path)
    save_file({"x": torch.zeros(1)}, path / "model.safetensors")
    with pytest.raises(checkpoint.CheckpointError, match="model.safetensors is of another model"):
        checkpoint.load(path, stage_of(finished).module)


def test_disk_that_fills_up_keeps_the_last_checkpoint(finished, tmp_path):
    stage = stage_of(finished)
    optimizer = torch.optim.AdamW(stage.groups)
    checkpoint.save(tmp_path, 3, 1.5, stage.module, [optimizer])
    kept = {p: p.read_bytes() for p in (tmp_path / "step-00000003").iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))  # writes beyond it fail, as on a full disk
    try:
        with pytest.raises(checkpoint.CheckpointError, match="could not write .*the last good checkpoint is .*00003"):
            checkpoint.save(tmp_path, 6, 2.5, stage.module, [optimizer])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == kept
    assert checkpoint.load(tmp_path / "step-00000003", stage.module) == (3, 1.5)


def test_full_disk_is_an_error_of_the_command(tmp_path, monkeypatch, capsys):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tensors, "save_file", full)
    message = fails(capsys, "--out", tmp_path / "run", *TINY)
    assert "step-00000003" in message and os.strerror(errno.ENOSPC) in message
    assert not list(tmp_path.rglob("*.partial"))


def test_former_names_of_options_still_work(finished, tmp_path):
    former = [{"--side": "--image-size", "--vocab-size": "--colors"}.get(word, word) for word in TINY]
    assert "--image-size" in former and "--colors" in former
    assert main(["--out", str(tmp_path / "run"), *former]) == 0
    assert read_config(tmp_path / "run") == read_config(finished)
    assert_same_weights(tmp_path / "run", finished)


@pytest.mark.parametrize("option", ["--start", "--shared-inner", "--tied", "--tables-lr", "--source-batch"])
def test_settings_without_an_option(capsys, option):
    with pytest.raises(SystemExit) as stop:
        main([option, *([] if option in ("--tied", "--shared-inner") else ["1"])])
    assert stop.value.code == 2 and option in capsys.readouterr().err


def test_scale_with_no_value(capsys):
    with pytest.raises(SystemExit):
        main(["--scales", "1/0"])
    assert re.search("--scales: must .* '1/0'", capsys.readouterr().err)
