"""Runs on tasks of text through every verb: trained, resumed, projected, sampled, evaluated, and what is refused."""

import json
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import transformers as hf
from safetensors.torch import save_file
from task_texts import NAMES, SETTINGS, text_of, write_folder, write_lines
from text_models import write_model

from projkern import evaluate, sample, train
from projkern.evaluation.texts import evaluate_texts
from projkern.language import sampling
from projkern.language.config import LanguageConfig
from projkern.language.run import run as train_run
from projkern.language.trained import LanguageRun
from projkern.models.huggingface.operator import predict
from projkern.training.losses import evaluate as evaluate_losses
from projkern.utils.errors import InputError

MODELS = ["M_1", "M_1/2", "M~_1/2", "P_1/2", "source after co-training"]


def verb(name, *arguments, capsys=None):
    """A command's exit status, and what it printed."""
    import importlib

    module = {"train": train, "sample": sample, "evaluate": evaluate}.get(name)
    main = module.main if module is not None else importlib.import_module("projkern.__main__").main
    status = main([*([name] if module is None else []), *map(str, arguments)])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("texts") / "tasks")


@pytest.fixture(scope="module")
def named(tasks, tmp_path_factory):
    """A run whose t is the name of the task."""
    out = tmp_path_factory.mktemp("named") / "run"
    train_run(out, SETTINGS.replace(tasks=str(tasks)))
    return out


@pytest.fixture(scope="module")
def read(tasks, tmp_path_factory):
    """A run whose t comes from the source, and that leaves a task out."""
    out = tmp_path_factory.mktemp("read") / "run"
    train_run(out, SETTINGS.replace(tasks=str(tasks), t="source", task_dim=3, held_out_tasks=("red",)))
    return out


def test_a_run_and_its_files(named):
    summary = json.loads((named / "summary.json").read_text())
    assert list(summary["models"]) == MODELS and summary["tasks"] == list(NAMES)
    for name, row in summary["models"].items():
        assert np.mean(row["by_task"]) == pytest.approx(row["loss"], abs=1e-4)
        assert ("loss_with_another_t" in row) == (name in ("M~_1/2", "P_1/2"))
    assert all(ratio == pytest.approx(1, abs=0.01) for ratio in summary["bytes_per_token"].values())  # bytes
    report = (named / "report.md").read_text()
    assert "| blue |" in report and "M̃_1/2" in report and (named / "curves.png").exists()


def test_training_lowers_every_loss(tasks, tmp_path):
    summary = train_run(tmp_path / "run", SETTINGS.replace(tasks=str(tasks), source_steps=60, steps=60))
    uniform = np.log(259)
    assert all(row["loss"] < uniform - 1 for row in summary["models"].values())
    projected = summary["models"]["P_1/2"]
    assert projected["loss_with_another_t"] > projected["loss"] + 0.05  # it uses its t


def test_json_lines_are_the_same_tasks(named, tmp_path):
    path = write_lines(tmp_path / "tasks.jsonl")
    summary = train_run(tmp_path / "run", SETTINGS.replace(tasks=str(path), source_steps=0, steps=0))
    assert summary["tasks"] == list(NAMES)


def test_models_are_generated_checked_and_ordinary(named, tmp_path, capsys):
    status, out, _ = verb("project", named, "--task", "blue", "red", "--out", tmp_path / "models", capsys=capsys)
    assert status == 0 and "Wrote and checked 2 models" in out
    run = LanguageRun.open(named)
    operator = run.operator(None)
    for name in ("blue", "red"):
        folder = tmp_path / "models" / name
        loaded = hf.AutoModelForCausalLM.from_pretrained(folder)
        tokenizer = hf.AutoTokenizer.from_pretrained(folder)
        tokens = torch.tensor([tokenizer("deb leb", add_special_tokens=False).input_ids])
        with torch.no_grad():
            expected = operator(tokens, run.t_of(name)[None])
            torch.testing.assert_close(predict(loaded, tokens), expected, atol=1e-5, rtol=1e-5)
        generated = operator.generate(run.t_of(name))
        generated.save_pretrained(tmp_path / "saved")  # the bytes are those of transformers' own way
        weights, settings = "model.safetensors", "generation_config.json"
        assert (folder / weights).read_bytes() == (tmp_path / "saved" / weights).read_bytes()
        assert (folder / settings).read_text() == (tmp_path / "saved" / settings).read_text()
        assert loaded.config.to_dict() | {"_name_or_path": "", "projkern": {}} == (
            hf.AutoConfig.from_pretrained(tmp_path / "saved").to_dict() | {"_name_or_path": "", "projkern": {}}
        )
        assert loaded.config.projkern["task"] == name and f"the task {name}" in (folder / "README.md").read_text()
    status, _, err = verb("project", named, "--task", "blue", "--out", tmp_path / "models" / "blue", capsys=capsys)
    assert status == 1 and "--resume" in err and "--overwrite" in err
    shutil.rmtree(tmp_path / "models" / "red")
    arguments = (named, "--task", "blue", "red", "--out", tmp_path / "models", "--resume")
    assert "checked 1 model in" in verb("project", *arguments, capsys=capsys)[1]
    status, _, err = verb(
        "project", named, "--task", "red", "--out", tmp_path / "models" / "blue", "--resume", capsys=capsys
    )
    assert status == 1 and "this run and task" in err


def test_text_is_sampled_from_runs_and_models(named, tmp_path, capsys):
    options = ("--tokens", 12, "--texts", 2, "--seed", 3, "--prompt", "blue")
    status, first, _ = verb("sample", named, "--task", "blue", *options, capsys=capsys)
    assert status == 0 and "parameters" in first.splitlines()[-1]
    assert verb("project", named, "--task", "blue", "--out", tmp_path / "model", capsys=capsys)[0] == 0
    _, again, _ = verb("sample", tmp_path / "model", *options, capsys=capsys)
    assert texts_in(again) == texts_in(first) and len(set(texts_in(first))) == 2
    assert all(text.startswith("blue") for text in texts_in(first))
    greedy = [verb("sample", named, "--task", "red", "--temperature", 0, "--seed", s, capsys=capsys)[1] for s in (0, 1)]
    assert texts_in(greedy[0]) == texts_in(greedy[1])
    status, _, err = verb("sample", named, "--task", "blue", "--prompt", "x" * 16, capsys=capsys)
    assert status == 1 and "prompt must have fewer than the model's 16 tokens; it has 16" in err


def texts_in(printed):
    """The texts that the verb sample printed, each before an empty line."""
    return printed.rpartition("\n\n")[0].split("\n\n")


def test_a_continuation_keeps_its_first_space(tmp_path):
    tokenizer = hf.AutoTokenizer.from_pretrained(write_model(tmp_path / "model"))
    ids = [0, *tokenizer("w1 w2", add_special_tokens=False).input_ids]
    row = [*ids, *tokenizer("w3 w4", add_special_tokens=False).input_ids]
    assert sampling._continuation(tokenizer, ids, row) == " w3 w4"
    assert sampling.printable("a\x1b[1mb\n") == "a\ufffd[1mb\n"


def test_evaluation_by_task(named, tmp_path, capsys):
    status, out, _ = verb("evaluate", named, "--eval-windows", 3, "--out", tmp_path / "evaluation", capsys=capsys)
    assert status == 0 and "## By task" in out
    result = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    assert list(result["models"]) == MODELS
    matrix = np.array(result["matrices"]["P_1/2"])
    assert matrix.shape == (4, 4)
    run = LanguageRun.open(named)
    data = run.texts("validation", 4)
    tokens = torch.cat([data.batch(step)[0] for step in range(1)])  # 16 windows, 4 of each task
    with torch.no_grad():
        logits = run.operator(None)(tokens, run.t_of("green").expand(16, -1))
    loss = torch.nn.functional.cross_entropy(logits.mT, tokens, reduction="none").view(4, -1).mean(1)
    np.testing.assert_allclose(matrix[1], loss.numpy(), atol=1e-4)
    assert {p.name for p in (tmp_path / "evaluation").glob("*.png")} == {"by_task.png", "matrix.png"}


def test_a_task_never_seen_from_a_sample_of_its_text(read, tmp_path, capsys):
    summary = json.loads((read / "summary.json").read_text())
    row = summary["held_out_tasks"]["red"]
    assert row["nearest"] in ("blue", "green", "white")
    assert set(row["P_1/2"]) == {"loss", "loss_with_nearest_t"} and set(row["M_1/2"]) == {"loss"}
    assert "red" not in summary["tasks"]
    like = tmp_path / "red.txt"
    like.write_text(text_of("red", 400))
    run = LanguageRun.open(read)
    distances = {name: (run.t_like(like.read_text()) - run.t_of(name)).norm().item() for name in NAMES}
    assert min(distances, key=distances.get) == "red"
    assert verb("project", read, "--like", like, "--out", tmp_path / "model", capsys=capsys)[0] == 0
    assert hf.AutoModelForCausalLM.from_pretrained(tmp_path / "model").config.projkern["task"] == "red.txt"
    assert verb("sample", read, "--like", like, "--tokens", 4, capsys=capsys)[0] == 0
    assert "Tasks that training left out" in (read / "report.md").read_text()
    result = evaluate_texts(run, 3)
    data = run.held_out_texts(3)
    assert data.windows == 3
    losses = evaluate_losses(run.operator(None), data, 3)
    assert result["held_out_tasks"]["red"]["P_1/2"]["loss"] == pytest.approx(losses.mean, abs=1e-4)
    like.write_text("too short")
    status, _, err = verb("project", read, "--like", like, "--out", tmp_path / "other", capsys=capsys)
    assert status == 1 and "at least 16 tokens; it has 9" in err


def test_a_vector_for_each_task_from_a_file(tasks, tmp_path):
    vectors = np.random.default_rng(0).normal(3, 2, (4, 5)).astype(np.float32)
    np.save(tmp_path / "t.npy", vectors)
    np.savetxt(tmp_path / "t.csv", vectors, delimiter=",")
    for name in ("t.npy", "t.csv"):
        out = tmp_path / name.replace(".", "-")
        train_run(out, SETTINGS.replace(tasks=str(tasks), t=str(tmp_path / name), source_steps=0, steps=0))
        run = LanguageRun.open(out)
        np.testing.assert_allclose(run.t_of("green").numpy(), vectors[1], rtol=1e-5)
        operator = run.operator(None)
        assert operator.t_mean == pytest.approx(vectors.mean(), rel=1e-5)
    np.save(tmp_path / "t.npy", vectors[:3])
    with pytest.raises(InputError, match="a row for each of the 4 tasks"):
        train_run(tmp_path / "other", SETTINGS.replace(tasks=str(tasks), t=str(tmp_path / "t.npy")))
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("is_frozen", [False, True])
def test_a_pretrained_source(tmp_path, is_frozen, capsys):
    source = write_model(tmp_path / "source")
    folder = tmp_path / "tasks"
    folder.mkdir()
    for number, name in enumerate(("a", "b")):
        words = np.random.default_rng(number).integers(number * 40, number * 40 + 40, 800)
        (folder / f"{name}.txt").write_text(" ".join(f"w{w}" for w in words))
    before = hf.AutoModelForCausalLM.from_pretrained(source).state_dict()
    config = SETTINGS.replace(
        tasks=str(folder), source=str(source), source_steps=0, freeze_source=is_frozen, shrink_heads=False
    )
    summary = train_run(tmp_path / "run", config)
    assert ("source after co-training" in summary["models"]) != is_frozen
    run = LanguageRun.open(tmp_path / "run")
    assert all(torch.equal(w, before[name]) for name, w in run.source.state_dict().items())
    tuned = run.operator(None).source.state_dict()
    assert all(torch.equal(w, before[name]) for name, w in tuned.items()) == is_frozen
    assert verb("project", tmp_path / "run", "--task", "a", "--out", tmp_path / "a", capsys=capsys)[0] == 0
    loaded = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    assert isinstance(loaded, hf.LlamaForCausalLM) and loaded.config.head_dim == 16
    assert hf.AutoTokenizer.from_pretrained(tmp_path / "a").decode([5]) == "w2"
    assert len({path.stat().st_mode for path in (tmp_path / "a").iterdir()}) == 1
    shutil.rmtree(tmp_path / "run" / "checkpoint")
    save_file({name: w + 1 for name, w in before.items()}, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="source must be the model that the job began with"):
        train_run(tmp_path / "run", config, resume=True)


def test_killed_and_resumed_it_is_the_same_run(tasks, named, tmp_path):
    out = tmp_path / "run"
    options = [f"--{name.replace('_', '-')}={value}" for name, value in _changes().items()]
    command = [sys.executable, "-m", "projkern.train", "--out", str(out)]
    texts = shutil.copytree(tasks, tmp_path / "tasks")
    start = [*command, "--preset", "tiny", "--tasks", str(texts), *options, "--checkpoint-every=1"]
    process = subprocess.Popen(start, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    while process.poll() is None and not list(out.glob("checkpoint/P_1-2/step-*")):
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    assert process.returncode == 130, err
    assert "step-00000004" not in {path.name for path in out.glob("checkpoint/P_1-2/*")}
    shutil.rmtree(texts)  # the run no longer needs them
    subprocess.run([*command, "--resume"], check=True, capture_output=True)
    summaries = [json.loads((folder / "summary.json").read_text())["models"] for folder in (named, out)]
    assert summaries[0] == summaries[1]


def _changes():
    default, flat = LanguageConfig.from_json(SETTINGS.to_json()).flat(), {}
    from projkern.language.presets import TINY

    for name, value in TINY.flat().items():
        if default[name] != value:
            flat[name] = default[name]
    return flat


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"held_out_tasks": ("pink",), "t": "source"}, "held_out_tasks must be among"),
        ({"held_out_tasks": ("red", "green", "blue"), "t": "source"}, "at least two"),
        ({"length": 400}, "at least 4000 tokens each"),
        ({"t": "source", "task_dim": 1000}, "task_dim must be at most"),
        ({"n_embd": 24, "n_head": 8}, "divide the width of a head"),
        ({"n_embd": 16, "n_head": 8}, "whole pairs"),
    ],
)
def test_settings_that_do_not_fit(tasks, tmp_path, changes, words):
    with pytest.raises(InputError, match=words):
        train_run(tmp_path / "run", SETTINGS.replace(tasks=str(tasks), **changes))
    assert not (tmp_path / "run" / "config.json").exists()  # other settings can be tried


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"held_out_tasks": ("a",)}, "held_out_tasks"),
        ({"held_out_tasks": ("a", "a"), "t": "source"}, "held_out_tasks"),
        ({"task_dim": 4}, "task_dim"),
        ({"joint": True}, "joint"),
        ({"examples_per_task": 3}, "examples_per_task"),
        ({"eval_windows": 1}, "eval_windows"),
    ],
)
def test_settings_that_contradict_each_other(settings, name):
    with pytest.raises(InputError, match=f"^{name} must be"):
        LanguageConfig().replace(**settings)


def test_options_of_the_other_kind_are_refused(tasks, named, tmp_path, capsys):
    out = tmp_path / "run"
    status, _, err = verb("train", "--tasks", tasks, "--side", 8, "--out", out, capsys=capsys)
    assert status == 1 and "--side must be left out with --tasks" in err
    status, _, err = verb("train", "--length", 8, "--out", out, capsys=capsys)
    assert status == 1 and "--length must be given with --tasks only" in err
    with pytest.raises(SystemExit):
        verb("train", "--tasks", tasks, "--preset", "debug", "--out", out, capsys=capsys)
    for arguments, words in (
        (("--random", 2), "--random must be left out"),
        (("--t", __file__), "t must be a .json"),
        (("--task", "pink"), "one of blue, green, red, white"),
        (("--like", __file__), "like must be left out"),
        (("--task", "red", "red"), "each task once"),
    ):
        status, _, err = verb("project", named, *arguments, "--out", out, capsys=capsys)
        assert status == 1 and words in err
    assert not out.exists()
    status, _, err = verb("evaluate", named, "--sweep", "angle", capsys=capsys)
    assert status == 1 and "--sweep must be left out" in err
    status, _, err = verb("sample", named, capsys=capsys)
    assert status == 1 and "--task, --like or --t" in err
    status, _, err = verb("train", "--tasks", tasks, "--source", "x", "--n-layer", 3, "--out", out, capsys=capsys)
    assert status == 1 and "n_layer must be left out with source" in err
    for command in (("sample", "nowhere", "--task", "a"), ("project", "nowhere", "--task", "a", "--out", "x")):
        status, _, err = verb(*command, capsys=capsys)
        assert status == 1 and "must be a folder that exists; it was nowhere" in err


def test_settings_survive_their_file():
    config = SETTINGS.replace(t="source", held_out_tasks=("a", "b"), freeze_source=True)
    assert LanguageConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    values = config.to_json()
    del values["operator"]["rank"]
    for broken in ({"tasks": {}}, values):
        with pytest.raises(InputError, match="settings"):
            LanguageConfig.from_json(broken)
