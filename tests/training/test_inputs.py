"""What a run reads beside its settings: named by absolute paths, recognised by digests, refused where it is another."""

from __future__ import annotations

import json
import shutil

import pytest
from mnist_files import write_mnist

from projkern import evaluate, train
from projkern.compression.config import CompressConfig
from projkern.language.config import LanguageConfig
from projkern.training import data
from projkern.training.config import TrainConfig
from projkern.training.folder import read_config
from projkern.training.presets import new_config
from projkern.training.source import source_of
from projkern.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread", "own_cache")


def summary(run):
    return json.loads((run / "summary.json").read_text("utf-8"))["models"]


def interrupt(run):
    shutil.rmtree(run / "checkpoint" / "P_1-4")


def test_a_run_keeps_its_images_wherever_it_goes_on(tmp_path, monkeypatch, capsys, tiny_settings):
    """Three folders have images under the same relative name, those of the second are others."""
    first, other, moved = (
        write_mnist(tmp_path / name / "digits", seed) for name, seed in (("a", 0), ("b", 1), ("c", 0))
    )
    run = tmp_path / "run"
    monkeypatch.chdir(first.parent)
    assert train.main(["--mnist", "digits", "--out", "../run", "--scales", "1/4", *tiny_settings]) == 0
    whole = summary(run)
    assert read_config(run).data.mnist == str(first)

    monkeypatch.chdir(other.parent)
    interrupt(run)
    assert train.main(["--out", "../run", "--resume", "--mnist", "digits"]) == 1
    assert "mnist must be the images that the run began with" in capsys.readouterr().err
    assert train.main(["--out", "../run", "--resume"]) == 0 and summary(run) == whole

    shutil.rmtree(first)
    data._digits.cache_clear()  # of this process
    assert evaluate.main([str(run), "--no-speed", "--sweep"]) == 1
    assert evaluate.main([str(run), "--no-speed", "--sweep", "--mnist", "digits"]) == 1
    assert "mnist must be the images that the run began with" in capsys.readouterr().err
    assert evaluate.main([str(run), "--no-speed", "--sweep", "--data", "digits"]) == 1
    assert "folder must be left out" in capsys.readouterr().err
    assert evaluate.main([str(run), "--no-speed", "--sweep", "--mnist", "../c/digits"]) == 0
    assert read_config(run).data.mnist == str(first)
    interrupt(run)
    assert train.main(["--out", "../run", "--resume", "--mnist", "../c/digits"]) == 0 and summary(run) == whole
    assert read_config(run).data.mnist == str(moved)


def test_scikit_learns_digits_have_no_place(tiny_run, capsys):
    assert evaluate.main([str(tiny_run), "--mnist", "digits"]) == 1
    assert "mnist must be left out" in capsys.readouterr().err


def test_another_source_is_refused(tiny_run):
    config = new_config("quick", {"source": str(tiny_run), "side": 4, "vocab_size": 8})
    digest = source_of(config).digest
    assert source_of(config.replace(source_digest=digest)).digest == digest
    with pytest.raises(InputError, match="source must be the model that the run began with"):
        source_of(config.replace(source_digest="0" * 16))


@pytest.mark.parametrize("kind", [TrainConfig, LanguageConfig, CompressConfig])
def test_settings_of_before_have_no_digests(kind):
    values = kind().to_json()
    for section in (values, *(value for value in values.values() if isinstance(value, dict))):
        for name in kind.ADDED:
            section.pop(name, None)
    assert kind.from_json(values) == kind()
