"""Comparing the logits of a decoder with those of a whole forward."""

from __future__ import annotations

import torch


def decoded(decoder, tokens):
    """The logits (B, T, vocabulary) that a decoder gives when it is fed these tokens."""
    steps = [decoder.step(None)]
    steps += [decoder.step(tokens[:, i]) for i in range(tokens.shape[1] - 1)]
    return torch.stack(steps, 1)


def assert_same(logits, expected):
    """Up to the rounding of float32: a few units in the last place of the largest."""
    assert logits.shape == expected.shape
    assert (logits - expected).abs().max() <= 2e-5 * expected.abs().max()
