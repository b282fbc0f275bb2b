"""Arguments of other types than those asked for: models and operators name the one that is wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import projkern as pk

SHAPE = {"vocab_size": 11, "n_positions": 6, "n_embd": 16, "n_layer": 1, "n_head": 2}
ODD = [True, "4", 3.5, [], {}, [[1.0]], np.ones((4, 3)), torch.float32, object(), torch.ones(4, 3).to_sparse()]
ODD += [torch.ones(4, 3, dtype=torch.complex64), torch.ones(2), 1j, float("nan"), -1]


def models():
    torch.manual_seed(0)
    source = pk.GPT(pk.GPTConfig(**SHAPE))
    conditional = pk.GPT(pk.GPTConfig(**SHAPE, task_dim=3))
    return source, conditional, pk.ProjectionOperator(source, 1 / 2, task_dim=3)


def refuses(name, call, odd):
    for value in odd:
        with pytest.raises((TypeError, ValueError), match=rf"^{name} must"):
            call(value)


def test_calls():
    source, conditional, operator = models()
    tokens, t = torch.zeros(4, 6, dtype=torch.int64), torch.rand(4, 3)
    refuses("tokens", source, [None, *ODD, tokens + 11, tokens - 1, tokens.int()])
    refuses("tokens", lambda value: operator(value, t), [None, *ODD])
    refuses("t", lambda value: operator(tokens, value), [None, *ODD])
    refuses("t", lambda value: operator(tokens, value, distinct=True), [None, *ODD])
    refuses("t", lambda value: conditional(tokens, value), [None, *ODD])
    refuses("t", operator.generate, [None, *ODD])
    refuses("t", operator.decoder, [None, *ODD])
    refuses("batch", source.decoder, [None, *ODD])
    decoder = source.decoder(4)
    decoder.step(None)
    refuses("tokens", decoder.step, [None, *ODD, tokens[:, 0] + 11])


@pytest.mark.parametrize("name", [*SHAPE, "t_mean", "dropout"])
def test_shapes(name):
    odd = ODD if name in SHAPE else ["4", [], 1j, float("nan")]
    refuses(name, lambda value: pk.GPTConfig(**{**SHAPE, name: value}), odd)


def test_operators():
    source, _, _ = models()

    def make(name):
        return lambda value: pk.ProjectionOperator(**{"source": source, "scale": 1 / 2, "task_dim": 3, name: value})

    refuses("source", make("source"), [None, *ODD])
    for name in ("task_dim", "rank"):
        refuses(name, make(name), [None, *ODD])
    for name in ("scale", "t_mean", "t_std"):
        refuses(name, make(name), [None, "4", [], {}, object(), float("nan")])
    refuses("generator", make("generator"), [None, *ODD])


def test_numbers_of_numpy():
    config = pk.GPTConfig(**{name: np.int64(value) for name, value in SHAPE.items()})
    operator = pk.ProjectionOperator(pk.GPT(config), np.float64(0.5), task_dim=np.int32(3), rank=np.int64(2))
    assert operator(torch.zeros(2, 6, dtype=torch.int64), torch.rand(2, 3)).shape == (2, 6, 11)
