"""Stored results: the losses of each image beside the JSON, results of before, settings under former names."""

from __future__ import annotations

import json

import numpy as np
import pytest

from experiments import documents, image_losses
from experiments.documents import FIGURES, KEYS, read_experiment, write_experiment
from experiments.image_losses import put_back, take_out
from experiments.jobs import SetUpDiffers, require_same
from experiments.settings import as_json, complete
from projkern.training.presets import QUICK
from projkern.utils.errors import InputError

MASKS = {"halves, C1": np.array([True, False, True, False]), "halves, C2": np.array([False, True, False, True])}


def losses(seed):
    return np.random.default_rng(seed).uniform(0, 7, 4).round(4).tolist()


def result(label, seed, by_image):
    row = dict.fromkeys(FIGURES, 1.0) | {"by_image": by_image}
    row["by_part"] = {
        name: {"loss": 1.0, "by_image": np.array(by_image)[mask].tolist()} for name, mask in MASKS.items()
    }
    return dict.fromkeys(KEYS, 1.0) | {"label": label, "seed": seed, "settings": {"seed": seed}, "models": {label: row}}


def document(*results):
    named = {f"{r['label']}/seed-{r['seed']}": r for r in results}
    return {"experiment": "table4", "size": "mini", "results": named}


@pytest.fixture
def two():
    """Results of which two share their losses."""
    return document(result("M_1", 0, losses(0)), result("M_1", 1, losses(1)), result("P_1/2", 0, losses(0)))


def test_what_is_written_is_read(two, tmp_path):
    path = tmp_path / "mini" / "table4.json"
    write_experiment(path, two, MASKS)
    assert json.dumps(read_experiment(path)) == json.dumps(two)
    with np.load(path.with_suffix(".npz"), allow_pickle=False) as arrays:
        assert arrays["losses_4"].shape == (4, 2, 4), "of each part and of each list, once"
    rows = json.loads(path.read_text())["results"]
    names = [
        rows[key]["models"][label]["by_image"] for key, label in (("M_1/seed-0", "M_1"), ("P_1/2/seed-0", "P_1/2"))
    ]
    assert names[0] == names[1] and isinstance(names[0], str)
    assert rows["M_1/seed-1"]["models"]["M_1"]["by_part"]["halves, C2"]["by_image"] == "halves, C2"


def test_masks_outlast_a_writer_that_does_not_know_them(two, tmp_path):
    path = tmp_path / "table4.json"
    write_experiment(path, two, MASKS)
    size = path.with_suffix(".npz").stat().st_size
    write_experiment(path, read_experiment(path), {})
    assert read_experiment(path) == two and path.with_suffix(".npz").stat().st_size == size


def test_losses_of_a_part_that_are_not_the_wholes_are_kept():
    stored = {"P_1/2": {"by_image": losses(0), "by_part": {"halves, C1": {"by_image": losses(1)[:2]}}}}
    assert put_back(*take_out(stored, MASKS)) == stored
    assert put_back(*take_out(stored, {})) == stored


def test_other_decimals_are_refused():
    for wrong in (0.12345, float("nan")):
        with pytest.raises(InputError, match="by_image"):
            take_out({"by_image": [0.1, wrong]}, {})


def test_stopped_between_the_two_files_nothing_is_lost(two, tmp_path, monkeypatch):
    path = tmp_path / "table4.json"
    first = document(two["results"]["M_1/seed-0"])
    write_experiment(path, first, MASKS)
    with monkeypatch.context() as patch:
        patch.setattr(documents, "write_text", lambda *_: (_ for _ in ()).throw(OSError("full")))
        with pytest.raises(OSError, match="full"):
            write_experiment(path, two, MASKS)
    assert read_experiment(path) == first
    with monkeypatch.context() as patch:
        patch.setattr(image_losses.np, "savez_compressed", lambda *_, **__: (_ for _ in ()).throw(OSError("full")))
        with pytest.raises(OSError, match="full"):
            write_experiment(path, two, MASKS)
    assert read_experiment(path) == first
    write_experiment(path, two, MASKS)
    assert read_experiment(path) == two


@pytest.mark.parametrize("damage", [lambda p: p.unlink(), lambda p: p.write_bytes(p.read_bytes()[:60])])
def test_damaged_losses_are_named(damage, two, tmp_path):
    path = tmp_path / "table4.json"
    write_experiment(path, two, MASKS)
    damage(path.with_suffix(".npz"))
    with pytest.raises(InputError, match="table4"):
        read_experiment(path)


def test_version_1_holds_its_losses_itself(two, tmp_path):
    path = tmp_path / "table4.json"
    path.write_text(json.dumps({"format": "projkern reproduction", "version": 1} | two))
    assert read_experiment(path) == two


def test_settings_of_before_are_understood():
    """Other names, and gaps where a setting came later; the source's too."""
    today = as_json(QUICK.replace(t_mean=0.0, t_std=1.0, distill=0.0, bias_of_t=False)) | {"stage": "P_1/4"}
    former = {"side": "image_size", "vocab_size": "colors", "folder": "data"}
    before = {former.get(name, name): value for name, value in today.items() if name not in ("distill", "tied")}
    assert before["image_size"] == 16 and complete(before) == complete(today) == today
    require_same("here", before | {"source": before}, today | {"source": today})
    with pytest.raises(SetUpDiffers, match=r"here .*side = 8 there and 16 here"):
        require_same("here", before | {"image_size": 8}, today)
    with pytest.raises(SetUpDiffers, match="source"):
        require_same("here", before | {"source": before | {"colors": 8}}, today | {"source": today})
