"""Runs on tokenised images, from the training to each command that reads a run."""

import json
import re
import shutil
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image
from token_folder import write_tokens

from projkern import evaluate, explore, sample, train
from projkern.__main__ import main as projkern
from projkern.data import TokenImages
from projkern.models.huggingface import gpt2
from projkern.training import losses
from projkern.training.data import draw_run_tasks
from projkern.training.folder import read_config
from projkern.training.trained import IncompleteRun, TrainedRun
from projkern.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS = (
    *("--n-layer", "1", "--n-embd", "32", "--n-head", "2", "--rank", "2", "--batch-size", "4", "--scales", "1/2"),
    *("--source-steps", "3", "--steps", "3", "--warmup", "1", "--eval-images", "9"),
)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    return write_tokens(tmp_path_factory.mktemp("tokens") / "tokens")


@pytest.fixture(scope="module")
def run(tokens, tmp_path_factory):
    """A trained run with scales 1/2 and 1/4. Not to be written to."""
    out = tmp_path_factory.mktemp("run") / "run"
    assert train.main(["--data", str(tokens), "--out", str(out), *SETTINGS, "--scales", "1/2", "1/4"]) == 0
    return out


def call(command, *arguments):
    return command.main([str(argument) for argument in arguments])


def project(*arguments):
    """By the console script: as a name of the package, ``project`` is the function."""
    return projkern(["project", *map(str, arguments)])


def test_run_read_back_is_what_was_trained(run, tokens):
    trained = TrainedRun.open(run)
    assert trained.palette is None
    assert (trained.config.data.side, trained.config.data.vocab_size, trained.config.data.task_dim) == (4, 16, 3)
    data = TokenImages(tokens, "validation", batch=9)
    summary = json.loads((run / "summary.json").read_text())["models"]
    models = {str(model.name): model for model in trained.models()}
    assert models.keys() == summary.keys() and {"M_1", "M_1/4", "M~_1/4", "P_1/4"} <= models.keys()
    for name, model in models.items():
        assert losses.evaluate(model.predict, data, 9).mean == pytest.approx(summary[name]["loss"], abs=1e-5)


def test_run_keeps_its_tokenizer(run, tokens, tmp_path):
    """Its images can be drawn where the data are not."""
    sequences = torch.randint(16, (2, 16))
    assert torch.equal(TrainedRun.open(run).decode(sequences), TokenImages(tokens).decode(sequences))
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "tokenizer.safetensors").unlink()
    with pytest.raises(IncompleteRun, match="--resume"):
        TrainedRun.open(copy)
    shutil.copy(write_tokens(tmp_path / "others", vocabulary=8) / "tokenizer.safetensors", copy)
    with pytest.raises(InputError, match=r"tokenizer\.safetensors must hold the run's 16 codes; it held 8"):
        TrainedRun.open(copy)


def test_report_speaks_of_tokens(run):
    text = (run / "report.md").read_text()
    assert text.startswith("# Projected models on tokenised images") and "Images 4×4 in 16 codes" in text
    assert "takes the task identifier t in its first position" in text


def assert_model_of(folder, run, t, scale="1/4"):
    """A projected model predicts what the run's operator does for its t."""
    projected = gpt2.load(folder)
    assert projected.palette is None and not (folder / "preprocessor_config.json").exists()
    assert projected.provenance["t"] == t.tolist()
    sequence = torch.randint(16, (2, 16))
    with torch.no_grad():
        expected = TrainedRun.open(run).operator(Fraction(scale))(sequence, t.expand(2, -1))
        torch.testing.assert_close(projected.model(sequence), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("suffix", [".npy", ".csv", ".json"])
def test_project_from_files(run, tmp_path, recwarn, suffix):
    """Of the run's own length, far from [0, 1], where embeddings may well be, and unwarned of."""
    t, file = torch.tensor([[5.0, -4.0, 0.25], [0.5, 1.5, -2.0]]), (tmp_path / "t").with_suffix(suffix)
    if suffix == ".npy":
        np.save(file, t.numpy())
    else:
        file.write_text(json.dumps(t.tolist()) if suffix == ".json" else "5,-4,.25\n.5,1.5,-2\n")
    assert project(run, "--scale", "1/4", "--t", file, "--out", tmp_path / "out") == 0
    for k in range(2):
        assert_model_of(tmp_path / f"out/task-0000{k}", run, t[k])
    assert not [w for w in recwarn if "training range" in str(w.message)]


def test_project_real_images(run, tokens, tmp_path, capsys):
    """--random takes the t of held-out images, each once."""
    assert project(run, "--scale", "1/2", "--random", 9, "--seed", 1, "--out", tmp_path / "out") == 0
    held_out = TokenImages(tokens, "validation", batch=9).tasks(0)
    t = torch.from_numpy(np.load(tmp_path / "out/tasks.npy"))
    assert sorted(t.tolist()) == sorted(held_out.tolist()) and not torch.equal(t, held_out)
    assert_model_of(tmp_path / "out/task-00003", run, t[3], "1/2")
    for count in (0, 10):
        assert project(run, "--scale", "1/2", "--random", count, "--out", tmp_path / "none") == 1
        assert re.search(rf"count must be from 1 to 9.*; it was {count}", capsys.readouterr().err)


def test_drawn_tasks_are_those_of_the_drawn_images(run, tokens):
    t, sequences = draw_run_tasks(TrainedRun.open(run).config.data, 4, seed=3)
    every, tasks = TokenImages(tokens, "validation", batch=9).batch(0)
    which = [(tasks == row).all(1).nonzero().item() for row in t]
    assert torch.equal(sequences, every[which]) and sequences.shape == (4, 16)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("t.json", json.dumps([0.5] * 18), r"t must be \(3,\) or \(n, 3\); .* \(18,\)"),
        ("t.json", json.dumps([1, 2, float("inf")]), "t must be finite; number 2 of task 0 in .* was inf"),
        ("t.json", json.dumps({"angle": 1, "scale": 2, "center_x": 3}), "it names its numbers, which have no names"),
        ("t.csv", "angle,scale,center_x\n1,2,3\n", "its first line must be numbers"),
    ],
)
def test_task_files_that_do_not_fit(run, tmp_path, capsys, name, content, says):
    (tmp_path / name).write_text(content)
    assert project(run, "--scale", "1/4", "--t", tmp_path / name, "--out", tmp_path / "out") == 1
    assert re.search(says, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_samples_beside_the_images_that_t_is_of(run, tmp_path, monkeypatch):
    from projkern.exploration import drawing

    calls = []
    original = drawing.beside_tasks
    monkeypatch.setattr(drawing, "beside_tasks", lambda *arguments: (calls.append(arguments), original(*arguments)))
    assert call(sample, run, "--scale", "1/4", "--random", 2, "--images", 3, "--out", tmp_path / "a.png") == 0
    np.save(tmp_path / "t.npy", np.zeros((2, 3), np.float32))
    assert call(sample, run, "--scale", "1/4", "--t", tmp_path / "t.npy", "--out", tmp_path / "b.png") == 0
    (_, samples, meaning, _), (_, file_samples, no_meaning, _) = calls
    trained = TrainedRun.open(run)
    assert torch.equal(meaning, trained.decode(draw_run_tasks(trained.config.data, 2, 0)[1]))
    assert samples.shape == (2, 3, 3, 8, 8) and file_samples.shape == (2, 1, 3, 8, 8) and no_meaning is None
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width > picture.height


def test_data_that_are_gone(tokens, tmp_path, capsys):
    """What needs the images says so; a t from a file does not."""
    moved, out = shutil.copytree(tokens, tmp_path / "moved"), tmp_path / "run"
    assert call(train, "--data", moved, "--out", out, *SETTINGS, "--no-unconditional") == 0
    shutil.rmtree(moved)
    np.save(tmp_path / "t.npy", np.zeros(3, np.float32))
    assert call(sample, out, "--scale", "1/2", "--t", tmp_path / "t.npy", "--out", tmp_path / "a.png") == 0
    for command, more in ((sample, ("--scale", "1/2", "--random", 1, "--out", tmp_path / "b.png")), (evaluate, ())):
        assert call(command, out, *more) == 1
        assert f"{moved}/config.json must hold tokenised images" in capsys.readouterr().err


def test_sample_of_a_projected_model_says_what_it_lacks(run, tmp_path, capsys):
    np.save(tmp_path / "t.npy", np.zeros(3, np.float32))
    assert project(run, "--scale", "1/4", "--t", tmp_path / "t.npy", "--out", tmp_path / "model") == 0
    assert call(sample, tmp_path / "model", "--out", tmp_path / "x.png") == 1
    assert f"{tmp_path}/model must hold a palette" in capsys.readouterr().err


def test_evaluation(run, tmp_path):
    assert call(evaluate, run, "--out", tmp_path / "out") == 0
    result = json.loads((tmp_path / "out/evaluation.json").read_text())
    summary = json.loads((run / "summary.json").read_text())["models"]
    for name, row in result["models"].items():
        assert row["loss"] == pytest.approx(summary[name]["loss"], abs=1e-5)
        assert len(row["by_position"]) == 16 and "bits_per_dimension" not in row
    assert result["equivalent_size"].keys() == {"P_1/2", "P_1/4"} and result["sweeps"] == {}
    assert result["speed"].keys() == {"M_1", "P_1/2", "P_1/4"}
    report = (tmp_path / "out/report.md").read_text()
    assert "9 held-out images of 4×4 tokens" in report and "A token is a code of the tokenizer" in report
    assert "pixel" not in report and "bits per dimension" not in report


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--sweep", "scale"], "sweep must .*; it was scale"),
        (["--eval-images", "10"], "images must be at most 9.*; it was 10"),
        (["--eval-images", "1"], "images must be at least 2; it was 1"),
    ],
)
def test_what_evaluate_refuses(run, tmp_path, capsys, arguments, says):
    assert call(evaluate, run, "--no-speed", "--out", tmp_path / "out", *arguments) == 1
    assert re.search(says, capsys.readouterr().err)


def test_explore_refuses(run, capsys):
    pytest.importorskip("gradio")
    assert call(explore, run) == 1
    assert "run must" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--mnist", "openml"], "mnist must be left out .*; it was openml"),
        (["--examples-per-task", "2"], "examples_per_task must be 1.*; it was 2"),
        (["--side", "8"], "side must be left out, or be 4 as in .*tokens; it was 8"),
        (["--vocab-size", "8"], "vocab_size must be left out, or be 16 as in"),
        (["--task-dim", "18"], "task_dim must be left out, or be 3 as in"),
        (["--eval-images", "10"], "eval_images must be at most 9.*; it was 10"),
    ],
)
def test_what_train_refuses(tokens, tmp_path, capsys, arguments, says):
    assert call(train, "--data", tokens, "--out", tmp_path / "out", *SETTINGS, *arguments) == 1
    assert re.search(says, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_synthmnist_has_its_own_length_of_t(tmp_path, capsys):
    assert call(train, "--out", tmp_path / "out", *SETTINGS, "--task-dim", "3") == 1
    assert re.search("task_dim must be 18.*; it was 3", capsys.readouterr().err)


def test_data_in_the_run_that_is_to_be_overwritten(run, tmp_path, capsys):
    out = shutil.copytree(run, tmp_path / "run")
    inside = write_tokens(out / "tokens")
    assert call(train, "--data", inside, "--out", out, "--overwrite", *SETTINGS) == 1
    assert "data must not be in" in capsys.readouterr().err
    assert (inside / "config.json").exists()


def test_other_images_are_refused(run, tokens, tmp_path, capsys):
    moved = shutil.copytree(tokens, tmp_path / "moved")
    options = ("--eval-images", 4, "--no-speed", "--out", tmp_path / "evaluation")
    assert call(evaluate, run, "--data", moved, *options) == 0
    content = (moved / "validation.safetensors").read_bytes()
    (moved / "validation.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert call(evaluate, run, "--data", moved, *options, "--overwrite") == 1
    assert "data must be the images that the run began with" in capsys.readouterr().err
    data = TrainedRun.open(run).with_data_at(folder=str(moved)).config.data
    with pytest.raises(InputError, match="data must be the images"):
        draw_run_tasks(data, 1, 0)


def test_resumed_run_is_the_same(tokens, run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    for stage in (copy / "checkpoint").glob("P*"):
        shutil.rmtree(stage)
    assert call(train, "--out", copy, "--resume") == 0
    whole, resumed = (json.loads((folder / "summary.json").read_text())["models"] for folder in (run, copy))
    assert whole == resumed


def start_from(run, data, out, *more):
    steps = ("--source-steps", 0, "--steps", 2, "--batch-size", 4, "--scales", "1/2", "--no-unconditional")
    return call(train, "--source", run, *data, "--out", out, *steps, "--eval-images", 8, *more)


def test_source_of_another_vocabulary(run, tmp_path, capsys):
    others = write_tokens(tmp_path / "others", vocabulary=8)
    assert start_from(run, ("--data", others), tmp_path / "out") == 1
    assert re.search(f"vocab_size must be .* 16 in {run}; it was 8, as in {others}", capsys.readouterr().err)
    larger = write_tokens(tmp_path / "larger", grid=5)
    assert start_from(run, ("--data", larger), tmp_path / "out") == 1
    assert f"it was 5, as in {larger}" in capsys.readouterr().err


def test_source_keeps_its_weights_and_says_what_tokens_mean(run, tokens, tiny_run, tmp_path, capsys):
    note = "Its tokens meant something else"
    assert start_from(run, ("--data", tokens), tmp_path / "same") == 0
    assert note not in capsys.readouterr().out
    state, expected = (TrainedRun.open(folder).source().state_dict() for folder in (tmp_path / "same", run))
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert start_from(run, ("--data", write_tokens(tmp_path / "others", seed=1)), tmp_path / "other") == 0
    assert note in capsys.readouterr().out
    assert start_from(run, (), tmp_path / "digits", "--side", 4, "--vocab-size", 16) == 0  # on SynthMNIST
    assert note in capsys.readouterr().out and TrainedRun.open(tmp_path / "digits").palette is not None
    assert start_from(tiny_run, ("--data", write_tokens(tmp_path / "eight", vocabulary=8)), tmp_path / "back") == 0
    assert note in capsys.readouterr().out


def test_settings_of_tokenised_images_are_stored(run, tokens):
    config = read_config(run)
    assert config == TrainedRun.open(run).config and config.data.folder == str(tokens)
