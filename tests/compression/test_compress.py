"""The command: what it leaves, that transformers reads it, that it resumes bit for bit, and what it refuses."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import decoders
import numpy as np
import pytest
import text_models
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import projkern as pk
from projkern.__main__ import main as projkern
from projkern.compression import run as run_module
from projkern.compression.projected import ProjectedModel
from projkern.data.text import Windows
from projkern.training.metrics import read_metrics
from projkern.utils.errors import InputError
from projkern.utils.files import locked

TINY = (
    *("--length", "12", "--batch-size", "4", "--held-out", "8", "--tokens", "480", "--log-every", "2"),
    *("--checkpoint-every", "3", "--micro-batch", "2"),
)
SIZES = ("--hidden-size", "32", "--intermediate-size", "56")

pytestmark = pytest.mark.usefixtures("one_thread")


def compress(*arguments: object) -> int:
    return projkern(["compress", *map(str, arguments)])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return text_models.write_model(tmp_path_factory.mktemp("source") / "llama")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return text_models.write_text(tmp_path_factory.mktemp("text") / "words.txt")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, model, text):
    """A compression that nobody disturbed."""
    out = tmp_path_factory.mktemp("out") / "finished"
    assert compress(model, "--text", text, "--out", out, *TINY, *SIZES) == 0
    return out


def weights(out):
    return load_file(out / "model" / "model.safetensors")


def assert_same_weights(out, other):
    first, second = weights(out), weights(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_what_it_leaves(finished, model, capsys):
    summary = json.loads((finished / "summary.json").read_text())
    source, result = (AutoModelForCausalLM.from_pretrained(folder) for folder in (model, finished / "model"))
    assert summary["source"]["parameters"] == sum(p.numel() for p in source.parameters())
    assert summary["result"]["parameters"] == sum(p.numel() for p in result.parameters())
    assert summary["method"] == "project" and summary["tokens"] == 480 and summary["seconds"] > 0
    assert result.config.head_dim == 16 and result.config.hidden_size == 32
    assert {p.name for p in (finished / "model").iterdir()} >= {
        *("config.json", "generation_config.json", "model.safetensors", "README.md"),
        *("tokenizer.json", "tokenizer_config.json"),
    }
    assert AutoTokenizer.from_pretrained(finished / "model")("w1 w4").input_ids == [0, 4, 7]
    report = (finished / "report.md").read_text()
    for name in ("source", "start", "result"):
        assert f"{summary[name]['loss']:.3f} ± {summary[name]['standard_error']:.3f}" in report
    assert report.count("- result:") == 3
    assert (finished / "curves.png").stat().st_size > 0 and list((finished / "tensorboard").glob("*/events*"))
    assert [line["step"] for line in read_metrics(finished / "metrics.jsonl")] == [2, 4, 6, 8, 10]


def test_losses_are_those_of_the_stored_text(finished, model):
    """Recomputed with transformers alone, from the last windows of the token file."""
    tokens = torch.from_numpy(np.load(finished / "tokens.npy").astype(np.int64))
    held_out = tokens[: len(tokens) // 12 * 12].view(-1, 12)[-8:]
    summary = json.loads((finished / "summary.json").read_text())
    for name, folder in (("source", model), ("result", finished / "model")):
        loss = AutoModelForCausalLM.from_pretrained(folder)(held_out, labels=held_out).loss.item()
        assert summary[name]["loss"] == pytest.approx(loss, abs=1e-4)


def test_all_files_can_be_read_by_whoever_may_read_the_folder(finished):
    modes = {path.stat().st_mode & 0o777 for path in (finished / "model").iterdir()}
    assert modes == {(finished / "config.json").stat().st_mode & 0o777}


@pytest.mark.parametrize("family", decoders.FAMILIES)
def test_families_train_and_are_read_back(family, text, tmp_path, monkeypatch):
    """The logits of the file are those of the module in training, and nothing is missing or unexpected."""
    model = text_models.write_model(tmp_path / "source", family)
    trained = []
    original = ProjectedModel.merge
    monkeypatch.setattr(ProjectedModel, "merge", lambda self, *more: trained.append(self) or original(self, *more))
    training_text = ("--generate", 600) if family == "qwen2" else ("--text", text)
    assert compress(model, *training_text, "--out", tmp_path / "out", *TINY, *SIZES, "--tokens", 144) == 0
    small, loading = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model", output_loading_info=True)
    assert not any(loading.values())
    tokens = torch.arange(24).view(2, 12) + 3
    expected = trained[0](tokens).logits
    assert (small(tokens).logits - expected).abs().max() <= 1e-5 * expected.abs().max()
    prompt = torch.tensor([[1, 5, 7]])
    assert small.generate(prompt, max_new_tokens=4, do_sample=False).shape[1] > prompt.shape[1]


@pytest.mark.parametrize(
    "settings",
    [
        ("--method", "prune"),
        ("--method", "group"),
        ("--block", "8"),
        ("--optimizer", "adamw", "--distill", "0", "--start", "pruned", "--importance", "activation"),
        ("--importance", "index", "--distill", "0.9"),
        ("--layers", "2"),
    ],
)
def test_every_way_learns(model, text, tmp_path, settings):
    assert compress(model, "--text", text, "--out", tmp_path / "out", *TINY, *SIZES, "--tokens", 4800, *settings) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["result"]["loss"] < summary["start"]["loss"] - 0.1


def test_keep_all_is_the_source(model, text, tmp_path):
    """Every number of the file."""
    assert compress(model, "--text", text, "--out", tmp_path / "out", *TINY, "--keep", 1, "--tokens", 0) == 0
    source, result = load_file(model / "model.safetensors"), weights(tmp_path / "out")
    assert source.keys() == result.keys() and all(torch.equal(source[name], result[name]) for name in source)


def test_fewer_layers_keep_those_that_matter(model, text, tmp_path):
    """A layer that changes nothing is dropped; what is left computes the same."""
    source = AutoModelForCausalLM.from_pretrained(model)
    with torch.no_grad():
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            source.model.layers[1].get_submodule(name).weight.zero_()
    shutil.copytree(model, tmp_path / "source")
    source.save_pretrained(tmp_path / "source")
    out = tmp_path / "out"
    assert compress(tmp_path / "source", "--text", text, "--out", out, *TINY, "--layers", 2, "--tokens", 0) == 0
    small = AutoModelForCausalLM.from_pretrained(out / "model")
    assert small.config.num_hidden_layers == 2
    tokens = torch.arange(12)[None]
    assert torch.allclose(small(tokens).logits, source(tokens).logits, atol=1e-5)


def test_layer_types_follow_their_layers(text, tmp_path):
    model = text_models.write_model(tmp_path / "source", "gemma3")
    types = AutoModelForCausalLM.from_pretrained(model).config.layer_types
    assert compress(model, "--text", text, "--out", tmp_path / "out", *TINY, "--layers", 2, "--tokens", 0) == 0
    config = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model").config
    kept = load_file(tmp_path / "out" / "kept.safetensors")["layers"].tolist()
    assert config.layer_types == [types[i] for i in kept]


def test_the_sources_generation_settings_are_kept(model, text, tmp_path):
    shutil.copytree(model, tmp_path / "source")
    path = tmp_path / "source" / "generation_config.json"
    chat = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "eos_token_id": [2, 5]}
    path.write_text(json.dumps(json.loads(path.read_text()) | chat))
    assert compress(tmp_path / "source", "--text", text, "--out", tmp_path / "out", *TINY, *SIZES, "--tokens", 0) == 0
    stored = json.loads((tmp_path / "out" / "model" / "generation_config.json").read_text())
    assert {name: stored[name] for name in chat} == chat


def test_a_matrix_of_zeros_does_not_spoil_the_scores(model, text, tmp_path):
    source = AutoModelForCausalLM.from_pretrained(model)
    with torch.no_grad():
        source.model.layers[1].mlp.down_proj.weight.zero_()
    shutil.copytree(model, tmp_path / "source")
    source.save_pretrained(tmp_path / "source")
    kept = []
    for name, folder in (("zeros", tmp_path / "source"), ("plain", model)):
        out = tmp_path / name
        assert compress(folder, "--text", text, "--out", out, *TINY, *SIZES, "--tokens", 0) == 0
        kept.append(load_file(out / "kept.safetensors")["hidden"].tolist())
    assert len(set(kept[0]) & set(kept[1])) > 24  # of 32


def test_text_that_the_model_writes(model, tmp_path):
    """Neither text nor tokenizer is needed; the same seed writes the same."""
    bare = tmp_path / "bare"
    shutil.copytree(model, bare, ignore=shutil.ignore_patterns("tokenizer*"))
    for name in ("a", "b"):
        assert compress(bare, "--generate", 600, "--out", tmp_path / name, *TINY, *SIZES) == 0
    tokens = np.load(tmp_path / "a" / "tokens.npy")
    assert len(tokens) == 600 and (tokens[::12] == 1).all()  # each window begins with the first token
    assert_same_weights(tmp_path / "a", tmp_path / "b")


def test_the_tokens_of_another_run(finished, model, tmp_path, capsys):
    out = tmp_path / "out"
    assert compress(model, "--text", finished / "tokens.npy", "--out", out, *TINY, *SIZES) == 0
    assert_same_weights(out, finished)
    assert not (out / "tokens.npy").exists()
    np.save(tmp_path / "other.npy", np.full(2000, decoders.VOCABULARY))
    assert compress(model, "--text", tmp_path / "other.npy", "--out", tmp_path / "other", *TINY, *SIZES) == 1
    assert "ids from 0 to 95" in capsys.readouterr().err


def test_in_python(model, finished):
    """The same as the command, in memory; the source stays as it was."""
    source = AutoModelForCausalLM.from_pretrained(model)
    before = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    tokens = torch.from_numpy(np.load(finished / "tokens.npy").astype(np.int64))
    small = pk.compress(
        source, tokens, hidden_size=32, intermediate_size=56,
        length=12, batch_size=4, held_out=8, tokens=480, micro_batch=2,
    )  # fmt: skip
    expected = weights(finished)
    assert all(torch.equal(expected[name], p) for name, p in small.named_parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in source.state_dict().items())
    with pytest.raises(InputError, match="text"):
        pk.compress(source, torch.ones(3, 4))
    with pytest.raises(InputError, match="ids from 0 to 95"):
        pk.compress(source, torch.full((2000,), decoders.VOCABULARY))
    with pytest.raises(InputError, match="device"):
        pk.compress(source, tokens, device="cpu")


def stop_at(monkeypatch, step):
    original = Windows.batch

    def batch(self, k):
        if k == step:
            monkeypatch.setattr(Windows, "batch", original)
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, k)

    monkeypatch.setattr(Windows, "batch", batch)


@pytest.mark.parametrize("step", [3, 8])
def test_ctrl_c_and_resume_is_bit_equal(finished, model, text, tmp_path, monkeypatch, capsys, step):
    out = tmp_path / "run"
    original = run_module.train
    monkeypatch.setattr(run_module, "train", lambda *more: stop_at(monkeypatch, step) or original(*more))
    assert compress(model, "--text", text, "--out", out, *TINY, *SIZES) == 130
    assert f"--out {out} --resume" in capsys.readouterr().err
    monkeypatch.setattr(run_module, "train", original)
    assert compress("--out", out, "--resume") == 0
    assert_same_weights(out, finished)
    results = [json.loads((run / "summary.json").read_text()) for run in (out, finished)]
    assert results[0]["result"] == results[1]["result"] and results[0]["start"] == results[1]["start"]


def in_a_process(*arguments):
    command = [sys.executable, "-m", "projkern.compress", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_killed_at_random_moments_and_resumed_is_bit_equal(model, tmp_path, kills):
    """While it writes text, measures, trains, exports: whatever it was doing."""
    settings = (*TINY, *SIZES, "--tokens", 4800, "--generate", 2400)
    assert compress(model, "--out", tmp_path / "whole", *settings) == 0
    rng, out, ended = random.Random(0), tmp_path / "killed", False
    for _ in range(kills):
        has_begun = (out / "config.json").exists()
        process = in_a_process(*(("--resume",) if has_begun else (model, *settings)), "--out", out)
        while not (out / "config.json").exists():
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 6))
        ended = process.poll() is not None
        process.kill()
        process.wait()
    assert in_a_process("--out", out, "--resume").wait() == 0
    assert_same_weights(out, tmp_path / "whole")
    assert not list(out.glob(".*partial")) or ended


def test_a_source_is_recognised_where_it_lies_now(finished, model, tmp_path, capsys):
    out, moved, other = (
        shutil.copytree(folder, tmp_path / name)
        for folder, name in ((finished, "out"), (model, "moved"), (model, "other"))
    )
    (out / "summary.json").unlink()
    tensors = load_file(other / "model.safetensors")
    tensors["lm_head.weight"] += 1
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    assert compress(other, "--out", out, "--resume") == 1
    assert "model must be the model that the job began with" in capsys.readouterr().err
    assert compress(moved, "--out", out, "--resume") == 0
    assert json.loads((out / "config.json").read_text())["model"] == str(moved)
    assert_same_weights(out, finished)


def test_what_is_there_is_not_overwritten(finished, model, text, tmp_path, capsys):
    again = (model, "--text", text, "--out", finished, *TINY, *SIZES)
    before = (finished / "summary.json").stat().st_mtime_ns
    assert compress(*again) == 1
    assert "--resume" in capsys.readouterr().err
    with locked(finished):
        assert compress(*again, "--overwrite") == 1
        assert "no other process" in capsys.readouterr().err
    assert compress("--out", finished, "--resume") == 0
    assert compress("--out", finished, "--resume", "--method", "prune") == 1
    assert "--method" in capsys.readouterr().err
    assert (finished / "summary.json").stat().st_mtime_ns == before
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    assert compress(model, "--text", text, "--out", copy, *TINY, *SIZES, "--method", "prune", "--overwrite") == 0
    assert json.loads((copy / "summary.json").read_text())["method"] == "prune"


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("--hidden-size", "65"), "hidden_size"),
        (("--hidden-size", "30"), "hidden_size"),
        (("--intermediate-size", "200"), "intermediate_size"),
        (("--layers", "9"), "layers"),
        (("--keep", "2"), "keep"),
        (("--keep", "0.5", "--hidden-size", "32"), "keep"),
        (("--length", "4096", "--tokens", "1M"), "length"),
        (("--batch-size", "500", "--tokens", "10k"), "text must have at least"),
        (("--held-out", "100000"), "text must have at least"),
        (("--method", "shrink"), "method"),
        (("--method", "prune", "--block", "4"), "block"),
        (("--lr", "0"), "lr"),
        (("--distill", "1.5"), "distill"),
        (("--generate", "100"), "generate"),
        (("--tokens", "40"), "tokens"),
        (("--micro-batch", "9"), "micro_batch"),
    ],
)
def test_settings_that_cannot_be(model, text, tmp_path, capsys, arguments, name):
    out = tmp_path / "out"
    assert compress(model, "--text", text, "--out", out, *TINY, *arguments) == 1
    message = capsys.readouterr().err.strip()
    assert name in message.splitlines()[-1] and "Traceback" not in message
    assert not (out / "summary.json").exists()


def test_sources_that_cannot_be(model, text, tmp_path, capsys):
    def refusal(folder, *more):
        assert compress(folder, "--text", text, "--out", tmp_path / "out", *TINY, *more) == 1
        assert not (tmp_path / "out").exists()
        return capsys.readouterr().err.strip().splitlines()[-1]

    def changed(name):
        shutil.copytree(model, tmp_path / name)
        return tmp_path / name

    assert "config.json" in refusal(tmp_path / "nothing")
    (changed("pickled") / "model.safetensors").rename(tmp_path / "pickled" / "pytorch_model.bin")
    assert "pickled" in refusal(tmp_path / "pickled")
    (changed("without") / "tokenizer.json").unlink()
    (tmp_path / "without" / "tokenizer_config.json").unlink()
    assert "tokenizer" in refusal(tmp_path / "without")
    text_models.tokenizer_of([f"w{i}" for i in range(200)]).save_pretrained(changed("other"))
    assert "tokenizer must have at most the model's 96 tokens" in refusal(tmp_path / "other")
    config = json.loads((changed("own") / "config.json").read_text()) | {
        "model_type": "own",
        "auto_map": {"AutoConfig": "x.Y"},
    }
    (tmp_path / "own" / "config.json").write_text(json.dumps(config))
    assert "that transformers builds in" in refusal(tmp_path / "own")
    assert "text" in refusal(model, "--text", tmp_path / "nothing.txt")
    decoders.decoder("mixtral").save_pretrained(tmp_path / "experts")
    assert "experts" in refusal(tmp_path / "experts")
    decoders.decoder("gpt2").save_pretrained(tmp_path / "gpt2")
    assert "width of the heads" in refusal(tmp_path / "gpt2")


def test_weights_that_are_damaged(model, text, tmp_path, capsys):
    shutil.copytree(model, tmp_path / "cut")
    path = tmp_path / "cut" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert compress(tmp_path / "cut", "--text", text, "--out", tmp_path / "out", *TINY, *SIZES) == 1
    assert "cannot be loaded" in capsys.readouterr().err
    shutil.copytree(model, tmp_path / "missing")
    path = tmp_path / "missing" / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.norm.weight"]
    save_file(tensors, path, {"format": "pt"})
    assert compress(tmp_path / "missing", "--text", text, "--out", tmp_path / "out2", *TINY, *SIZES) == 1
    assert "model.norm.weight" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_keeps_the_last_checkpoint(model, text, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    assert compress(model, "--text", text, "--out", out, *TINY, *SIZES, "--lr", "1e30") == 1
    message = capsys.readouterr().err
    assert "not finite" in message and "step-00000000" in message
    assert (out / "checkpoint" / "step-00000000").is_dir() and not (out / "model").exists()


def test_a_full_disk_loses_nothing(finished, model, text, tmp_path, capsys, monkeypatch):
    from projkern.training import checkpoint

    out = tmp_path / "out"
    original = checkpoint.write_tensors

    def full(path, tensors):
        if "step-00000006" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        original(path, tensors)

    monkeypatch.setattr(checkpoint, "write_tensors", full)
    assert compress(model, "--text", text, "--out", out, *TINY, *SIZES) == 1
    assert "No space left" in capsys.readouterr().err
    monkeypatch.setattr(checkpoint, "write_tensors", original)
    assert compress("--out", out, "--resume") == 0
    assert_same_weights(out, finished)


def test_after_text_that_is_too_short_other_settings_can_be_tried(model, text, tmp_path):
    arguments = (model, "--text", text, "--out", tmp_path / "out", *TINY, *SIZES)
    assert compress(*arguments, "--held-out", 100_000) == 1
    assert compress(*arguments) == 0


def test_without_its_checkpoint_a_compression_begins_again(finished, model, text, tmp_path):
    """The compensated start included."""
    out = tmp_path / "out"
    assert compress(model, "--text", text, "--out", out, *TINY, *SIZES, "--lr", "1e30") == 1
    shutil.rmtree(out / "checkpoint")
    settings = json.loads((out / "config.json").read_text())
    settings["tuning"]["lr"] = None
    (out / "config.json").write_text(json.dumps(settings))
    assert compress("--out", out, "--resume") == 0
    assert_same_weights(out, finished)


@pytest.mark.parametrize("arguments", [(), ("--resume",), ("model",), ("model", "--text")])
def test_wrong_command_lines(arguments):
    assert compress(*arguments) == 2


def test_a_checkpoint_in_bfloat16_gives_one(model, text, tmp_path):
    """It is trained in float32 and stored as the source is, in shards or not."""
    source = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    shutil.copytree(model, tmp_path / "source", ignore=shutil.ignore_patterns("model.safetensors"))
    source.save_pretrained(tmp_path / "source", max_shard_size="50KB")
    assert len(list((tmp_path / "source").glob("*.safetensors"))) > 1
    assert compress(tmp_path / "source", "--text", text, "--out", tmp_path / "out", *TINY, *SIZES) == 0
    tensors = weights(tmp_path / "out")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}


def test_qwen2_warns_of_engines_without_its_head_dim(tmp_path):
    model = text_models.write_model(tmp_path / "source", "qwen2")
    assert compress(model, "--generate", 600, "--out", tmp_path / "out", *TINY, *SIZES, "--tokens", 48) == 0
    config = json.loads((tmp_path / "out" / "model" / "config.json").read_text())
    assert config["head_dim"] == 16
    for page in ("report.md", "model/README.md"):
        assert "no head_dim of its own" in (tmp_path / "out" / page).read_text()


def test_the_module_of_the_command_is_the_function():
    code = (
        "import projkern as pk, projkern.compress; from projkern import compress\n"
        "assert pk.compress is projkern.compress is compress and callable(compress)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_input_inside_the_output_is_not_overwritten(model, text, tmp_path, capsys):
    out = tmp_path / "out"
    assert compress(model, "--text", text, "--out", out, *TINY, *SIZES, "--tokens", 0) == 0
    for source, file in ((out / "model", text), (model, out / "tokens.npy")):
        assert compress(source, "--text", file, "--out", out, *TINY, "--overwrite") == 1
        assert "must not be in the folder" in capsys.readouterr().err
        assert (out / "model").exists() and (out / "tokens.npy").exists()
