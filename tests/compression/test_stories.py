"""On a model that is really pretrained: PROJKERN_STORIES names the folder of stories260K, a Llama of 260 thousand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from projkern.compression.config import CompressConfig
from projkern.compression.measures import held_out_loss
from projkern.compression.start import choose, make_projected, target_sizes
from projkern.compression.training import compression_job
from projkern.compression.writing import write_tokens
from projkern.data.text import Windows, open_tokens
from projkern.models.huggingface.causal import PretrainedFolder
from projkern.training.loop import train
from projkern.training.metrics import Metrics

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif("PROJKERN_STORIES" not in os.environ, reason="PROJKERN_STORIES names no folder of stories260K"),
]
CONFIG = CompressConfig().replace(hidden_size=32, intermediate_size=86, length=128, held_out=64)


@pytest.fixture(scope="module")
def source():
    return PretrainedFolder.open(Path(os.environ["PROJKERN_STORIES"])).load(torch.device("cpu"), torch.float32)


def written(source, folder, tokens):
    write_tokens(source, tokens, 128, 0, folder / "tokens.npy")
    return Windows(open_tokens(folder / "tokens.npy"), 128, 16, 64, 0)


def start(source, windows, config):
    sizes = target_sizes(source.config, config)
    kept, inputs = choose(source, windows, config, sizes)
    return make_projected(source, kept, config, sizes, inputs)


def test_starts_are_ordered(source, tmp_path):
    """The compensated start is nearer to the source than the plain one, selection by activation than by index."""
    windows = written(source, tmp_path, 20_000)
    losses = {
        (importance, how): held_out_loss(
            start(source, windows, CONFIG.replace(importance=importance, start=how)).small, windows, 64
        ).loss
        for importance in ("activation", "index")
        for how in ("compensated", "pruned")
    }
    assert losses["activation", "compensated"] < losses["activation", "pruned"] < losses["index", "pruned"]
    assert held_out_loss(source, windows, 64).loss < 1.5 < losses["activation", "compensated"] - 2


@pytest.mark.slow
def test_projection_is_below_pruning(source, tmp_path):
    """After 150 steps with AdamW by the paper's recipe, by at least 0.025 nats per token."""
    windows = written(source, tmp_path, 330_000)
    plain = CONFIG.replace(optimizer="adamw", distill=0.0, importance="activation", start="pruned", tokens=307_200)
    losses = {}
    for method, exponent in (("prune", -7), ("project", -8)):
        config = plain.replace(method=method, lr=2.0**exponent)
        projected = start(source, windows, config)
        job = compression_job(projected, source, windows, config, torch.float32)
        train(job, tmp_path / method, Metrics(tmp_path))
        projected.materialise()
        losses[method] = held_out_loss(projected.small, windows, 64).loss
    assert losses["project"] < losses["prune"] - 0.025
