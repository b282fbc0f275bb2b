"""Tables 2 and 4 of the paper on tiny images, from files of images to the page."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny_reproduction as tiny
import torch
from image_files import encoded, pack, pictures

from experiments import pool, sizes, step_cost
from experiments.documents import read_experiment
from experiments.measures import by_part
from experiments.plans import SCALES
from experiments.token_parts import PARTS, masks
from projkern import reproduce
from projkern.data import TokenImages
from projkern.training.config import TrainConfig
from projkern.training.data import with_settings_of_data

pytestmark = pytest.mark.usefixtures("one_thread")

MINI = Path("out/mini")
PAGE = Path("docs/reproduction.md")
OPTIONS = ["--out", "out", "--results", "experiments/results", "--device", "cpu", "--jobs", "1"]
IMAGES = ["--collections", "train.npz", "validation.npz", "--embeddings", "t.npz"]
COUNTS = {"train": 21, "validation": 9}
BAD = {"train": 4, "validation": 0}
"""Indices of the unreadable images."""


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    """Images of three classes and their embeddings; the size mini is tiny, and jobs run in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(step_cost, "WARM_UP", 1)
    monkeypatch.setattr(step_cost, "STEPS", 1)
    monkeypatch.setattr(pool, "ProcessPoolExecutor", tiny.Here)
    monkeypatch.setitem(sizes.SIZES, "mini", tiny.TINY)
    for split, n in COUNTS.items():
        files = [encoded(image) for image in pictures(n, 8, seed=n)]
        files[BAD[split]] = files[BAD[split]][:20]
        pack(f"{split}.npz", files, np.arange(n) % 3)
    embed(**{split: n for split, n in COUNTS.items()})


def embed(train, validation, **names):
    t = np.random.default_rng(0).standard_normal((train + validation, 3)).astype(np.float32)
    np.savez("t.npz", train=t[:train], val=t[train:], **names)


def run(experiment, *arguments):
    return reproduce.main([experiment, *OPTIONS, *arguments])


def stored(experiment):
    return read_experiment(Path(f"experiments/results/mini/{experiment}.json"))["results"]


def error_of(capsys, *arguments):
    """The one line that the command says where it must not succeed."""
    capsys.readouterr()
    assert run(*arguments) == 1
    said = capsys.readouterr().err
    assert "Traceback" not in said and said.count("error: ") == 1
    assert not Path("experiments/results").exists() and not list(Path("out").rglob("job.json"))
    return said.partition("error: ")[2].strip()


def test_tables_2_and_4(capsys, tmp_path):
    assert run("table2", *IMAGES) == 0
    printed = capsys.readouterr().out
    assert "1 of 21 images of train.npz could not be read: train.npz:4" in printed
    assert "1 of 9 images of validation.npz could not be read: validation.npz:0" in printed
    report = json.loads((MINI / "tokens" / "config.json").read_text())
    assert report["skipped"] == {"train": 1, "validation": 1} and report["counts"] == {"train": 20, "validation": 8}
    labels = ["M_1", "P_1/2", "M~_1/2", "P_1/4", "M~_1/4", "P_1/8", "M~_1/8", "M~_1"]
    labels += [f"M~_{s}, all steps" for s in SCALES] + [f"P_{s}, default recipe" for s in SCALES]
    assert [result["label"] for result in stored("table2").values()] == labels
    settings = stored("table2")["P_1/2/seed-0"]["settings"]
    assert settings["folder"].startswith("tokens ") and settings["distill"] == 0
    # t is normalised by what the images bring, whichever the recipe.
    brought = with_settings_of_data({"folder": str(MINI / "tokens")})
    ours = stored("table2")["P_1/2, default recipe/seed-0"]["settings"]
    assert {(s["t_mean"], s["t_std"]) for s in (settings, ours)} == {(brought["t_mean"], brought["t_std"])}
    assert 0 < brought["t_std"] != TrainConfig().model.t_std and ours["distill"] == TrainConfig().schedule.distill > 0
    assert (settings["side"], settings["vocab_size"], settings["task_dim"], settings["steps"]) == (4, 16, 3, 3)

    for split in COUNTS:  # the images have served
        Path(f"{split}.npz").unlink()
    assert run("table4") == 0
    labels = [label for rows in PARTS for label in rows.split("; ")]
    results = {result["label"]: result for result in stored("table4").values()}
    assert list(results) == labels
    assert results["all, halves"]["models"] == results["all, mod 2"]["models"]
    assert results["1/8 and 1, halves"]["models"] != results["1/8 and 1, mod 2"]["models"]
    parts = {label: result["settings"]["folder"].rpartition(" ")[0] for label, result in results.items()}
    assert parts["all, halves"] == "tokens" and parts["1/8, mod 2"] == "tokens, an eighth"
    assert parts["1/8 and 1, halves"] == "tokens, an eighth of the first half"
    counts = {part: TokenImages(MINI / part, "train").count for part in set(parts.values())}
    assert counts["tokens, an eighth"] == 3 and counts["tokens"] == 20  # of three classes one image each

    text = "".join(path.read_text() for path in (*Path("experiments").rglob("*.json"), *Path("out").rglob("job.json")))
    assert str(tmp_path) not in text and "out" not in {Path(r["settings"]["folder"]).parts[0] for r in results.values()}
    assert f"{results['all, halves']['models']['P_1/2']['by_part']['halves, C1']['loss']:.3f}" in PAGE.read_text()

    # Other images behind the same names are another set-up, whichever folder of trainings is given.
    before = Path("experiments/results/mini/table4.json").read_text()
    shutil.rmtree("out")
    for split, n in COUNTS.items():
        pack(f"{split}.npz", [encoded(image) for image in pictures(n, 8, seed=n + 1)], np.arange(n) % 3)
    assert run("table4", *IMAGES) == 1
    said = capsys.readouterr().err
    assert "table4.json holds a result of another set-up (folder = tokens" in said
    assert Path("experiments/results/mini/table4.json").read_text() == before


def test_masks_of_table_4():
    """Classes 0 ... 4 of 9, 1, 8, 16 and 3 images: an eighth of them, rounded up, are 2, 1, 1, 2 and 1."""
    counts = (9, 1, 8, 16, 3)
    labels = torch.tensor([label for label, n in enumerate(counts) for _ in range(n)])
    first = {0, 1, 9, 10, 18, 19, 34}
    rest = {0: set(range(9)), 1: {9}, 2: set(range(10, 18)), 3: set(range(18, 34)), 4: {34, 35, 36}}
    found = {part: set(mask.nonzero()[:, 0].tolist()) for part, mask in masks(labels).items()}
    assert found["an eighth"] == first
    assert found["an eighth of the first half"] == first | rest[2] | rest[3] | rest[4]  # C1 is 0 and 1
    assert found["an eighth of the even classes"] == first | rest[1] | rest[3]


def test_held_out_losses_are_split_as_the_training_images_are(tmp_path):
    from token_folder import write_tokens

    write_tokens(tmp_path / "tokens", train=24, validation=6)  # labels 0 1 2 3 0 1 of four classes
    data = TokenImages(tmp_path / "tokens", "validation", batch=6)
    losses = 1.0 + data.labels(0)
    found = by_part(losses, data)
    assert sorted(found["halves, C1"]["by_image"]) == [1, 1, 2, 2] and found["halves, C2"]["loss"] == 3.5
    assert sorted(found["mod 2, C1"]["by_image"]) == [1, 1, 3] and sorted(found["mod 2, C2"]["by_image"]) == [2, 2, 4]


def test_no_readable_image(capsys):
    for split, n in COUNTS.items():
        pack(f"{split}.npz", [b"no image"] * n, np.arange(n) % 3)
    said = error_of(capsys, "table2", *IMAGES)
    assert said.startswith("train must hold images that can be read; 21 of 21 images of train.npz could not be read")


def test_embeddings_that_do_not_fit(capsys):
    embed(train=20, validation=9)
    said = error_of(capsys, "table2", *IMAGES)
    assert "embeddings must be as many as the train images, 21 in train.npz" in said and said.endswith("t.npz has 20")
    names = [f"train.npz:{i}" for i in range(21)]
    embed(**COUNTS, train_names=names[1:] + names[:1], val_names=[f"validation.npz:{i}" for i in range(9)])
    said = error_of(capsys, "table2", *IMAGES)
    assert "embeddings must be in the order of the images; t.npz has train.npz:1 at row 0" in said


@pytest.mark.parametrize("given", [IMAGES[:3], IMAGES[3:], []])
def test_images_come_with_their_embeddings(given, capsys):
    said = error_of(capsys, "table4", *given)
    assert said.startswith("collections and embeddings must be given")
