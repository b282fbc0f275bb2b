"""What tests of decoding compare: the logits of a decoder with those of a whole forward."""

from __future__ import annotations

import torch


def decoded(decoder, tokens):
    """The logits (B, T, vocabulary) that a decoder gives when it is fed these tokens."""
    found = [decoder.step(None)]
    found += [decoder.step(tokens[:, i]) for i in range(tokens.shape[1] - 1)]
    return torch.stack(found, 1)


def assert_same(found, expected):
    """Up to what float32 rounds: a few units in the last place of the largest."""
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 2e-5 * expected.abs().max()
