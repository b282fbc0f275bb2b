"""The GPT and the projection operator: sizes, and that every example gets the model of its own t."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

import projkern as pk
from projkern.models.layout import LINEARS
from projkern.models.operator import project_and_run
from projkern.utils.errors import InputError

CONFIG = pk.GPTConfig(vocab_size=11, n_positions=9, n_embd=32, n_layer=2, n_head=2)


def count(module):
    return sum(p.numel() for p in module.parameters())


def randomise(module, std=0.2):
    """Give every parameter noise, so that nothing hides behind a zero."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * std)


@pytest.fixture
def operator():
    torch.manual_seed(0)
    operator = pk.ProjectionOperator(pk.GPT(CONFIG), 1 / 4, task_dim=3, rank=5)
    randomise(operator)
    randomise(operator.source)
    return operator.eval()


PAPER = pk.GPTConfig(vocab_size=512, n_positions=1024, n_embd=512, n_layer=24, n_head=8)


@pytest.mark.parametrize(("group", "parameters"), [(1, 76_706_816), (2, 19_479_040), (4, 5_020_928), (8, 1_330_816)])
def test_parameters_of_the_papers_models(group, parameters):
    config = dataclasses.replace(PAPER, n_embd=512 // group)
    with torch.device("meta"):
        model = pk.GPT(config)
    assert count(model) - config.n_embd == parameters  # without the start vector


@pytest.mark.parametrize(("group", "own_tables"), [(2, 604_672), (8, 151_168)])
def test_parameters_of_the_papers_operator(group, own_tables):
    with torch.device("meta"):
        operator = pk.ProjectionOperator(pk.GPT(PAPER), 1 / group, task_dim=18, rank=8)
    assert count(operator.generator) == 1_784_064
    assert count(operator) - 512 // group == 1_784_064 + own_tables
    assert round((1_784_064 + own_tables) / 1e6, 2) == {2: 2.39, 8: 1.94}[group]


def test_each_example_runs_the_model_of_its_own_task(operator, backend):
    tokens, t = torch.randint(11, (6, 9)), torch.rand(6, 3)
    models = [operator.generate(row) for row in t]
    for tasks in ([0, 1, 2, 3, 4, 5], [0, 0, 1, 1, 2, 2], [0, 1, 0, 1, 2, 2], [0, 0, 0, 1, 2, 3], [0] * 6):
        logits = operator(tokens, t[tasks])
        alone = torch.cat([models[k](row[None]) for k, row in zip(tasks, tokens)])
        assert torch.allclose(logits, alone, atol=1e-4, rtol=1e-4)


def test_generated_model_is_the_formula(operator):
    t = torch.rand(3)
    small = operator.generate(t)
    p, q = operator.generator.factors(t[None])
    row = col = 0
    for name in LINEARS:
        for layer in range(CONFIG.n_layer):
            W, b = operator.source.weights[name][layer], operator.source.biases[name][layer]
            rows, cols = W.shape
            scaled = p[0, row : row + rows, None] * W * q[0, col : col + cols]
            expected = scaled.view(rows // 4, 4, cols // 4, 4).sum((1, 3))
            assert torch.allclose(small.weights[name][layer], expected, atol=1e-5)
            bias = (p[0, row : row + rows] * b).view(-1, 4).sum(1) + operator.biases[name][layer]
            assert torch.allclose(small.biases[name][layer], bias, atol=1e-5)
            row, col = row + rows, col + cols


def test_generating_leaves_the_random_stream_alone(operator):
    before = torch.get_rng_state()
    operator.generate(torch.rand(3, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.get_rng_state(), before)


def test_generated_model_shares_nothing(operator):
    small = operator.generate(torch.rand(3))
    storages = {p.untyped_storage().data_ptr() for p in (*operator.parameters(), *operator.source.parameters())}
    assert not storages & {p.untyped_storage().data_ptr() for p in small.parameters()}
    assert small.config.n_embd == 8 and not small.training


def test_several_scales_in_one_call_equal_one_by_one():
    torch.manual_seed(0)
    source = pk.GPT(CONFIG)
    operators = [pk.ProjectionOperator(source, 1 / g, task_dim=3) for g in (2, 4, 8)]
    for operator in operators:
        randomise(operator)
    tokens, t = torch.randint(11, (4, 9)), torch.rand(4, 3)
    together = project_and_run(operators, tokens, t)
    for operator, logits in zip(operators, together):
        assert torch.allclose(operator(tokens, t), logits, atol=1e-5)


def test_tables_start_from_the_source_that_is_constant_in_each_group():
    """Of a source whose width only repeats that of a smaller model, the smaller model's tables come back."""
    source = pk.GPT(CONFIG)
    small = pk.GPT(dataclasses.replace(CONFIG, n_embd=8))
    randomise(small)
    with torch.no_grad():
        for large, values in zip(source.tables.parameters(), small.tables.parameters()):
            large.copy_(values.repeat_interleave(4, -1))
    tables = pk.ProjectionOperator(source, 1 / 4, task_dim=3).tables
    for (name, table), values in zip(tables.named_parameters(), small.tables.parameters()):
        scale = 1 if "norm" in name and name.endswith("weight") else 2  # g^1/2: the length of the repeated vector
        assert torch.allclose(table, scale * values, atol=1e-5)


def test_gradients_reach_source_and_operator(operator):
    tokens, t = torch.randint(11, (4, 9)), torch.rand(4, 3)
    operator.train()
    F.cross_entropy(operator(tokens, t).flatten(0, 1), tokens.flatten()).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in operator.parameters())
    used = [*operator.source.weights.values(), *operator.source.biases.values()]
    assert all(p.grad.abs().max() > 0 for p in used)
    assert operator.source.tables.head.grad is None  # the projected model has its own


def test_operator_does_not_own_its_source(operator):
    assert not any(p is s for p in operator.parameters() for s in operator.source.parameters())


@pytest.mark.parametrize("model", ["source", "conditional", "projected"])
def test_no_logit_sees_its_own_token_or_later_ones(operator, model):
    conditional = pk.GPT(dataclasses.replace(CONFIG, task_dim=3)).eval()
    t = torch.rand(1, 3)
    predict = {
        "source": operator.source,
        "conditional": lambda x: conditional(x, t),
        "projected": lambda x: operator(x, t),
    }[model]
    tokens = torch.randint(11, (1, 9))
    changed = tokens.clone()
    changed[0, 4:] = (changed[0, 4:] + 1) % 11
    before, after = predict(tokens), predict(changed)
    assert torch.allclose(before[:, :5], after[:, :5], atol=1e-5)
    assert not torch.allclose(before[:, 5:], after[:, 5:], atol=1e-3)


def test_conditional_model_depends_on_t():
    model = pk.GPT(dataclasses.replace(CONFIG, task_dim=3)).eval()
    tokens = torch.randint(11, (1, 9))
    assert not torch.allclose(model(tokens, torch.zeros(1, 3)), model(tokens, torch.ones(1, 3)))


def test_dropout_only_while_training():
    model = pk.GPT(dataclasses.replace(CONFIG, dropout=0.5))
    tokens = torch.randint(11, (2, 9))
    assert not torch.equal(model(tokens), model(tokens))
    model.eval()
    assert torch.equal(model(tokens), model(tokens))


SOURCE = pk.GPT(CONFIG)
TOKENS = torch.zeros(2, 9, dtype=torch.int64)


@pytest.mark.parametrize(
    ("call", "pattern"),
    [
        (lambda: pk.ProjectionOperator(SOURCE, 0.3, 3), "^scale .* 0.3"),
        (lambda: pk.ProjectionOperator(SOURCE, 2, 3), "^scale .* 2"),
        (lambda: pk.ProjectionOperator(SOURCE, 1 / 3, 3), "^scale .* 1/3"),
        (lambda: pk.ProjectionOperator(SOURCE, 1 / 32, 3), "^scale .* 1/32"),
        (lambda: pk.ProjectionOperator(pk.GPT(dataclasses.replace(CONFIG, task_dim=3)), 1 / 4, 3), "^source .* 3 "),
        (lambda: pk.ProjectionOperator(SOURCE, 1 / 4, 0), "^task_dim .* 0"),
        (lambda: pk.ProjectionOperator(SOURCE, 1 / 4, 3, rank=0), "^rank .* 0"),
        (lambda: pk.ProjectionOperator(SOURCE, 1 / 4, 3)(TOKENS, torch.rand(2, 4)), r"^t .*\(2, 3\).*\(2, 4\)"),
        (lambda: pk.ProjectionOperator(SOURCE, 1 / 4, 3).generate(torch.rand(1, 3)), r"^t .*\(3,\).*\(1, 3\)"),
        (lambda: pk.GPTConfig(11, 9, 30, 2, 4), "^n_embd .* 30"),
        (lambda: pk.GPTConfig(11, 9, 32, 0, 4), "^n_layer .* 0"),
        (lambda: pk.GPTConfig(11, 9, 32, 2, 4, dropout=1.0), r"^dropout .* 1.0"),
        (lambda: SOURCE(TOKENS.float()), "^tokens .*float32"),
        (lambda: pk.ProjectionOperator(SOURCE, 1 / 4, 3)(TOKENS[:0], torch.rand(0, 3)), "^tokens "),
        (lambda: SOURCE(torch.zeros(2, 10, dtype=torch.int64)), "^tokens .* 9 .* 10"),
        (lambda: SOURCE(TOKENS, torch.rand(2, 3)), "^t .*None"),
        (lambda: pk.GPT(dataclasses.replace(CONFIG, task_dim=3))(TOKENS), r"^t .*\(B, 3\).*None"),
    ],
)
def test_bad_input(call, pattern):
    with pytest.raises(InputError, match=pattern):
        call()
