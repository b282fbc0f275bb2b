"""Sources that come from elsewhere: another run's M_1, a GPT-2 or an ImageGPT folder."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file

import projkern as pk
from projkern.data import Palette
from projkern.models.huggingface import gpt2
from projkern.train import main
from projkern.training.folder import read_config
from projkern.training.source import read_source
from projkern.training.trained import TrainedRun
from projkern.utils.files import Format
from projkern.utils.settings import fields_of

MORE = (
    *("--eval-images", "8", "--steps", "4", "--warmup", "1", "--batch-size", "4", "--checkpoint-every", "2"),
    *("--log-every", "1", "--no-unconditional", "--scales", "1/4"),
)
SHAPE = {"n_layer": 2, "n_head": 4, "n_embd": 32}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("PROJKERN_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def train(out, source, *arguments, steps=0):
    return main(["--out", str(out), "--source", str(source), "--source-steps", str(steps), *MORE, *arguments])


@pytest.fixture
def folder(tmp_path):
    """A GPT-2 of 8 colours and 49 positions."""
    torch.manual_seed(0)
    model = pk.GPT(pk.GPTConfig(vocab_size=8, n_positions=49, **SHAPE))
    gpt2.save(model, tmp_path / "gpt2", Palette(torch.linspace(-1, 1, 24).view(8, 3)))
    return tmp_path / "gpt2"


def test_from_gpt2_with_its_shape_and_palette(folder, tmp_path):
    assert train(tmp_path / "run", folder, "--side", "6", "--vocab-size", "8") == 0
    run, source = TrainedRun.open(tmp_path / "run"), gpt2.load(folder)
    model = run.config.model
    assert (model.n_layer, model.n_head, model.n_embd) == (2, 4, 32)
    assert torch.equal(run.palette.colors, source.palette.colors)
    state, expected = run.source().state_dict(), source.model.state_dict()  # after no step
    expected["tables.position_embedding"] = expected["tables.position_embedding"][:36]
    assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_from_another_run(folder, tmp_path):
    assert train(tmp_path / "first", folder, "--side", "6", "--vocab-size", "8", steps=3) == 0
    first = TrainedRun.open(tmp_path / "first")
    assert train(tmp_path / "second", tmp_path / "first", "--side", "6", "--vocab-size", "8", "--scales", "1/2") == 0
    second = TrainedRun.open(tmp_path / "second")
    state, expected = second.source().state_dict(), first.source().state_dict()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert torch.equal(second.palette.colors, first.palette.colors)


def test_from_imagegpt(tmp_path, capsys):
    torch.manual_seed(0)
    config = transformers.ImageGPTConfig(vocab_size=9, n_positions=36, **SHAPE)
    transformers.ImageGPTForCausalImageModeling(config).save_pretrained(tmp_path / "image")
    colors = torch.linspace(-1, 1, 24).view(8, 3)
    (tmp_path / "image/preprocessor_config.json").write_text(json.dumps({"clusters": colors.tolist()}))
    assert train(tmp_path / "run", tmp_path / "image", "--side", "6", "--vocab-size", "8", steps=2) == 0
    assert "The norms divided by the root mean square" in capsys.readouterr().out
    assert torch.equal(TrainedRun.open(tmp_path / "run").palette.colors, colors)


def test_once_begun_the_folder_is_not_needed(folder, tmp_path):
    arguments = ("--side", "6", "--vocab-size", "8")
    assert train(tmp_path / "whole", folder, *arguments, steps=3) == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    for stage in ("M~_1-4", "P_1-4"):
        shutil.rmtree(tmp_path / "resumed/checkpoint" / stage)
    folder.rename(tmp_path / "elsewhere")
    assert main(["--out", str(tmp_path / "resumed"), "--resume"]) == 0
    for path in (tmp_path / "whole/checkpoint").glob("*/step-*/model.safetensors"):
        state = load_file(tmp_path / "resumed" / path.relative_to(tmp_path / "whole"))
        assert all(torch.equal(tensor, state[name]) for name, tensor in load_file(path).items())


def test_a_source_is_not_overwritten(folder, tmp_path, capsys):
    assert train(tmp_path / "run", folder, "--side", "6", "--vocab-size", "8") == 0
    shutil.copytree(folder, tmp_path / "run/model")
    for source in (tmp_path / "run", tmp_path / "run/model"):
        assert train(tmp_path / "run", source, "--side", "6", "--vocab-size", "8", "--overwrite") == 1
        assert re.search(f"error: source must not .*{tmp_path}/run", capsys.readouterr().err)
        assert TrainedRun.open(tmp_path / "run").source()


def test_runs_from_before_sources_are_read(folder, tmp_path):
    assert train(tmp_path / "run", folder, "--side", "6", "--vocab-size", "8") == 0
    path = tmp_path / "run/config.json"
    config = read_config(tmp_path / "run")
    values = {f.metadata["former"] or f.name: config.flat()[f.name] for _, f in fields_of(config)}
    assert values.pop("source") == str(folder)
    path.write_text(json.dumps(Format("projkern run", 1, "").head | values | {"scales": ["1/4"]}))
    assert read_config(tmp_path / "run") == config.replace(source=None)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--side 6 --vocab-size 9", "vocab_size must be .* 8 in {folder}; it was 9"),
        ("--side 8 --vocab-size 8", "side must .* 49 in {folder}; it was 8"),
        ("--vocab-size 8 --n-embd 64", "n_embd must .* 32 as in the source {folder}; it was 64"),
        ("--vocab-size 8 --scales 1/16", "scales must .* 4 heads .*; it was 1/16"),
    ],
)
def test_sources_that_do_not_fit(folder, tmp_path, capsys, arguments, says):
    assert train(tmp_path / "run", folder, *arguments.split()) == 1
    assert re.search(says.format(folder=folder), capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_folders_without_a_source(folder, tmp_path, capsys):
    assert train(tmp_path / "run", tmp_path / "none", "--vocab-size", "8") == 1
    assert re.search(f"error: source must be .*; it was {tmp_path}/none", capsys.readouterr().err)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert train(tmp_path / "run", folder, "--vocab-size", "8") == 1
    assert "pytorch_model.bin" in capsys.readouterr().err
    assert train(tmp_path / "run", folder, "--out", str(tmp_path / "run"), "--resume") == 1


def test_source_of_another_type_is_read_as_float32(folder, tmp_path):
    model = read_source(folder).model.to(torch.bfloat16)
    gpt2.save(model, tmp_path / "half")
    assert train(tmp_path / "run", tmp_path / "half", "--side", "6", "--vocab-size", "8") == 0
    state = TrainedRun.open(tmp_path / "run").source().state_dict()
    assert all(tensor.dtype == torch.float32 for tensor in state.values())
    assert torch.equal(state["weights.mlp_in"], model.weights["mlp_in"].float())
