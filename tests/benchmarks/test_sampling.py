"""The benchmark of sampling, at a tiny shape."""

from __future__ import annotations

import functools
import json

import pytest
import torch

import projkern as pk
from projkern.models.decode import Decoder


def test_the_benchmark_measures_what_it_has_verified(tmp_path, monkeypatch, capsys):
    """At a tiny shape: everything is measured, and the tables are written from it."""
    from benchmarks import attention, sampling, sampling_tables

    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)  # those of other tests
    monkeypatch.setattr(sampling, "PAPER", pk.GPTConfig(11, 32, 64, n_layer=1, n_head=8))
    monkeypatch.setattr(sampling, "DEPTHS", (1, 8, 16))
    monkeypatch.setattr(sampling, "TASKS", (1, 5))
    monkeypatch.setattr(attention, "POSITIONS", 32)
    monkeypatch.setattr(attention, "WIDTHS", (8, 16))
    monkeypatch.setattr(attention, "CASES", ((1, 5), (8, 32)))
    monkeypatch.setattr(attention, "SEQUENCES", ((2, 9),))
    monkeypatch.setattr(attention, "measure_one_query", functools.partial(attention.measure_one_query, rounds=1))
    out = tmp_path / "result.json"
    assert sampling.main([str(out), "--rounds", "2"]) == 0
    result = json.loads(out.read_text())
    assert {(row["group"], row["tasks"]) for row in result["forms"]} == {(g, n) for g in (2, 4, 8) for n in (1, 5)}
    assert all(row["auto"] == "materialised" for row in result["forms"] if row["tasks"] <= row["group"] ** 2)
    for table in (sampling_tables.models, sampling_tables.forms, sampling_tables.one_query, sampling_tables.sequences):
        assert table(result).count("\n|") >= 3

    def wrong(decoder, tokens):
        return -decoder_step(decoder, tokens)

    decoder_step = Decoder.step
    monkeypatch.setattr(Decoder, "step", wrong)
    with pytest.raises(AssertionError, match="decoded logits differ"):
        sampling.main([str(tmp_path / "wrong.json"), "--rounds", "2"])
    assert not (tmp_path / "wrong.json").exists()
