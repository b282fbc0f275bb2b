"""The command that draws images: what it writes, and what it refuses."""

from __future__ import annotations

import json
import os
import re

import numpy as np
import pytest
import torch
from PIL import Image

from projkern import sample as command
from projkern.train import main as train
from projkern.utils.pictures import beside_tasks


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained run, tiny, with two scales."""
    os.environ["PROJKERN_CACHE"] = str(tmp_path_factory.getbasetemp() / "cache")
    out = tmp_path_factory.mktemp("runs") / "run"
    settings = "--side 6 --vocab-size 8 --n-layer 1 --n-embd 32 --source-steps 3 --steps 3 --batch-size 4"
    settings += " --eval-images 4 --warmup 1 --scales 1/2 1/4"
    assert train(["--out", str(out), *settings.split()]) == 0
    return out


def draw(*arguments):
    return command.main([str(argument) for argument in arguments])


def test_samples_of_random_tasks(run, tmp_path, capsys):
    out = tmp_path / "eight.png"
    assert draw(run, "--scale", "1/4", "--random", 8, "--out", out) == 0
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert re.fullmatch(rf"Wrote 8 images to {out}: [\d,]+ tokens per second, [\d.]+ s\.", last)
    with Image.open(out) as picture:
        assert picture.format == "PNG" and picture.width > 900 and picture.height > 250  # four pairs across, two down
        assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 100
    assert [path.name for path in tmp_path.iterdir()] == ["eight.png"]


def test_the_seed_decides_the_picture(run, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert draw(run, "--scale", "1/2", "--random", 2, "--seed", seed, "--out", tmp_path / f"{name}.png") == 0
    a, b, c = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in "abc")
    assert np.array_equal(a, b) and not np.array_equal(a, c)


def test_samples_of_one_task(run, tmp_path):
    (tmp_path / "t.json").write_text(json.dumps([0.5] * 18))
    out = tmp_path / "one.png"
    draws = ("--temperature", 0.7, "--top-k", 3, "--top-p", 0.9, "--form", "factored")
    assert draw(run, "--scale", "1/4", "--t", tmp_path / "t.json", "--images", 3, *draws, "--out", out) == 0
    with Image.open(out) as picture:
        assert 2 < picture.width / picture.height < 4  # a texture and three samples in a line


def test_samples_of_a_generated_model(run, tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    from projkern.__main__ import main

    model = tmp_path / "model"
    (tmp_path / "t.json").write_text(json.dumps([0.5] * 18))
    assert main(["project", str(run), "--scale", "1/4", "--t", str(tmp_path / "t.json"), "--out", str(model)]) == 0
    monkeypatch.chdir(tmp_path)
    assert draw(model, "--images", 2) == 0
    with Image.open("samples.png") as picture:
        assert picture.width > picture.height
    assert draw(model, "--scale", "1/4", "--overwrite") == 1


def test_a_picture_is_replaced_only_when_asked(run, tmp_path, capsys):
    out = tmp_path / "there.png"
    out.write_text("mine")
    assert draw(run, "--scale", "1/4", "--random", 1, "--out", out) == 1
    assert "--overwrite" in capsys.readouterr().err and out.read_text() == "mine"
    assert draw(run, "--scale", "1/4", "--random", 1, "--out", out, "--overwrite") == 0
    assert out.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        (["--random", "2"], "--scale .*1/2, 1/4"),
        (["--scale", "1/4"], "--t or --random"),
        (["--scale", "1/3", "--random", "2"], "scale .*1/2, 1/4.* 1/3"),
        (["--scale", "1/4", "--random", "0"], "count .* 0"),
        (["--scale", "1/4", "--random", "1", "--images", "0"], "--images .* 0"),
        (["--scale", "1/4", "--random", "1", "--temperature", "-1"], "temperature .* -1"),
        (["--scale", "1/4", "--t", "nowhere.json"], ".*nowhere.json"),
        (["--scale", "1/4", "--random", "1", "--out", "nowhere/out.png"], "--out .*nowhere/out.png"),
    ],
)
def test_what_the_command_refuses(run, tmp_path, monkeypatch, capsys, arguments, pattern):
    monkeypatch.chdir(tmp_path)
    assert draw(run, *arguments) == 1
    assert re.match(f"projkern.sample: error: {pattern}", capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:.*leave the training range")
def test_a_task_whose_model_gives_no_numbers(run, tmp_path, capsys):
    (tmp_path / "huge.json").write_text(json.dumps([1e38] * 18))
    assert draw(run, "--scale", "1/4", "--t", tmp_path / "huge.json", "--out", tmp_path / "x.png") == 1
    assert re.search("error: decoder .*token 0 ", capsys.readouterr().err)
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize("seed", ["-1", str(2**63), "1.5"])
def test_seeds_are_checked(run, capsys, seed):
    with pytest.raises(SystemExit):
        draw(run, "--scale", "1/4", "--random", "1", "--seed", seed)
    assert re.search(f"argument --seed: .*'{seed}'", capsys.readouterr().err)


def test_a_folder_that_holds_nothing(tmp_path, capsys):
    (tmp_path / "config.json").write_text("5")
    assert draw(tmp_path, "--scale", "1/4", "--random", 1, "--out", tmp_path / "x.png") == 1
    assert f"error: {tmp_path}/config.json" in capsys.readouterr().err
    (tmp_path / "config.json").unlink()
    assert draw(tmp_path, "--scale", "1/4", "--random", 1, "--out", tmp_path / "x.png") == 1
    assert f"error: {tmp_path}/config.json" in capsys.readouterr().err


@pytest.mark.parametrize(("tasks", "each", "ratio"), [(1, 1, 1.4), (8, 1, 2.8), (3, 12, 1.3), (2, 3, 4.9)])
def test_a_picture_has_the_shape_of_what_it_shows(tmp_path, tasks, each, ratio):
    images = torch.rand(tasks, each, 3, 6, 6) * 2 - 1
    beside_tasks(tmp_path / "p.png", images, images[:, 0], "title")
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.width / picture.height == pytest.approx(ratio, rel=0.2)
