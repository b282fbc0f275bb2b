"""Compression by several processes: one result, whoever began it; each stores its own part."""

from __future__ import annotations

import re
import shutil
import signal
import time

import pytest
import text_models
import torch
from ranks import script, torchrun
from safetensors.torch import load_file

from projkern.__main__ import main as projkern
from projkern.compression.shares import owners, stacks_of
from projkern.models.huggingface.axes import Axis
from projkern.training import checkpoint
from projkern.training.metrics import read_metrics
from projkern.utils.files import read_object

SETTINGS = (
    *("--length", 12, "--batch-size", 4, "--held-out", 8, "--log-every", 2, "--checkpoint-every", 50),
    *("--hidden-size", 32, "--intermediate-size", 56, "--tokens", 48 * 30),
)


def losses_of(out):
    return read_object(out / "summary.json", "a summary")["result"]["loss"]


def test_a_stopped_compression_goes_on_with_any_number_of_ranks(tmp_path):
    """Begun by two, which store a part each."""
    model = text_models.write_model(tmp_path / "model")
    text = text_models.write_text(tmp_path / "words.txt")
    stopped = tmp_path / "stopped"
    process = torchrun(2, "-m", "projkern.compress", model, "--text", text, "--out", stopped, *SETTINGS)
    log, deadline = stopped / "metrics.jsonl", time.monotonic() + 100
    while not (log.exists() and read_metrics(log)):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0 and re.search(r"stopped at step \d+ of 30 of compression", output), output
    last = checkpoint.latest(stopped / "checkpoint")
    parts = [load_file(last / f"model-{number:05}-of-00002.safetensors") for number in (1, 2)]
    assert not parts[0].keys() & parts[1].keys()
    for ranks in (1, 4):
        shutil.copytree(stopped, tmp_path / f"by-{ranks}")
    assert projkern(["compress", "--out", str(tmp_path / "by-1"), "--resume"]) == 0
    status, output = script("rank_verbs.py", 4, "compress", "--out", tmp_path / "by-4", "--resume", timeout=120)
    assert status == 0 and output.count("tokens of training") == 1, output
    assert losses_of(tmp_path / "by-4") == pytest.approx(losses_of(tmp_path / "by-1"), abs=1e-5)
    models = [load_file(tmp_path / f"by-{ranks}" / "model" / "model.safetensors") for ranks in (1, 4)]
    for name, weight in models[0].items():
        torch.testing.assert_close(models[1][name], weight, atol=1e-4, rtol=0)


def test_stacks_are_shared_by_size():
    residual = Axis(True)
    shapes = {"table": (100, 8), **{f"layers.{i}.{kind}": (8, 8) for i in range(3) for kind in ("q", "o")}}
    axes = {name: (None, residual) if name == "table" else (residual, residual) for name in shapes}
    stacks = stacks_of(shapes, axes)
    assert stacks == [["table"], [f"layers.{i}.q" for i in range(3)], [f"layers.{i}.o" for i in range(3)]]
    assert owners(stacks, shapes, 1) == [0, 0, 0]
    assert owners(stacks, shapes, 2) == [0, 1, 1]
    assert owners(stacks, shapes, 4) == [0, 1, 2]
