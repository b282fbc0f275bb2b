"""Layer pairs run a source and its operators a layer at a time, with the results of ``GPT`` and ``project_and_run``."""

from __future__ import annotations

import copy

import pytest
import torch

from projkern.models import GPT, GPTConfig, ProjectionOperator
from projkern.models.operator import project_and_run
from projkern.models.pairs import LayerPairs, named_parts
from projkern.utils.errors import InputError

CONFIG = GPTConfig(vocab_size=7, n_positions=5, n_embd=16, n_layer=3, n_head=2)


@pytest.fixture
def source():
    torch.manual_seed(0)
    return GPT(CONFIG).double()


@pytest.fixture
def operators(source):
    made = [ProjectionOperator(source, 1 / g, 3, rank=2, bias_of_t=True, t_mean=0.5).double() for g in (2, 4)]
    with torch.no_grad():
        for p in (p for operator in made for p in operator.parameters_of_t()):
            p.add_(torch.randn_like(p) * 0.3)
    return made


def pairs_of(source, operators):
    parts = {name: tensor.clone() for name, tensor in named_parts(source, operators).items()}
    pairs = LayerPairs(copy.deepcopy(source), copy.deepcopy(operators)).double()
    pairs.load_state_dict(parts)
    return pairs


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [0, 0, 1, 1], [0, 1, 0, 0]])
def test_layer_pairs_predict_as_whole_models_do(order, source, operators):
    pairs = pairs_of(source, operators)
    tokens, t = torch.randint(7, (4, 5)), torch.rand(4, 3)[order].double()
    teacher, projected = pairs(tokens, t, 4)
    expected = [source(tokens), *project_and_run(operators, tokens, t)]
    for logits, reference in zip([teacher, *projected], expected):
        torch.testing.assert_close(logits, reference, atol=1e-13, rtol=0)
    torch.testing.assert_close(pairs(tokens, t, 2)[0], teacher[:2], atol=1e-13, rtol=0)
    assert pairs(tokens, t, 0)[0] is None
    alone, none = pairs_of(source, [])(tokens, t, 4)
    assert torch.equal(alone, teacher) and none == []


def test_parts_are_views_of_the_whole(source, operators):
    for tensor in named_parts(source, operators).values():
        tensor.zero_()
    assert not any(p.any() for module in (source, *operators) for p in module.parameters())


def test_bad_input(source, operators):
    pairs = pairs_of(source, operators)
    with pytest.raises(InputError, match="tokens"):
        pairs(torch.randint(7, (4, 6)), torch.rand(4, 3), 4)
    with pytest.raises(InputError, match="t must be"):
        pairs(torch.randint(7, (4, 5)), torch.rand(4, 2), 4)
