"""Operators under torch.compile, torch.export and torch.func, with distinct tasks given."""

from __future__ import annotations

import pytest
import torch
from decoders import decoder
from torch import nn
from torch.func import functional_call, grad, vmap

import projkern as pk
from projkern.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")


class Pair(nn.Module):
    """A source and an operator, as one program."""

    def __init__(self, source, operator):
        super().__init__()
        self.source, self.operator = source, operator

    def forward(self, tokens, t):
        return self.operator(tokens, t, distinct=True)


@pytest.fixture(params=["gpt", "llama"])
def pair(request):
    torch.manual_seed(0)
    if request.param == "gpt":
        source = pk.GPT(pk.GPTConfig(vocab_size=11, n_positions=6, n_embd=16, n_layer=1, n_head=2))
        operator = pk.ProjectionOperator(source, 1 / 2, task_dim=3, rank=2, bias_of_t=True)
    else:
        source = decoder("llama")
        operator = pk.ProjectionOperator(source, 1 / 2, task_dim=3, rank=2, vectors_of_t=True)
    pair = Pair(source, operator)
    with torch.no_grad():
        for p in pair.parameters():
            p += 0.1 * torch.randn_like(p)
    return pair.eval()


def batch(tasks=2, each=2):
    r = torch.Generator().manual_seed(tasks)
    return torch.randint(11, (tasks * each, 6), generator=r), torch.rand(tasks, 3, generator=r)


def close(a, b):
    return torch.allclose(a, b, rtol=1e-4, atol=1e-5)


def test_distinct_tasks_are_those_of_the_examples(pair):
    tokens, t = batch()
    assert close(pair(tokens, t), pair.operator(tokens, t.repeat_interleave(2, 0)))
    for wrong in (t[:0], t[0], t[:, :2], torch.rand(3, 3)):
        with pytest.raises(InputError, match=r"t must be \(U, 3\) with a U that divides the 4 examples"):
            pair(tokens, wrong)


def test_one_graph(pair):
    if not isinstance(pair.source, pk.GPT):
        pytest.skip("it takes a quarter of a minute, and most of the graph is transformers' own")
    tokens, t = batch()
    torch._dynamo.reset()
    compiled = torch.compile(pair, fullgraph=True, backend="eager")
    parameters = list(pair.parameters())
    found = torch.autograd.grad(compiled(tokens, t).sin().sum(), parameters, allow_unused=True)
    for a, b in zip(found, torch.autograd.grad(pair(tokens, t).sin().sum(), parameters, allow_unused=True)):
        assert (a is None) == (b is None) and (a is None or close(a, b))


def test_an_exported_program_is_whole(pair):
    """Both modules' parameters are its own; that of a GPT takes any number of tasks."""
    arguments, shapes, other = batch(), None, batch()
    if isinstance(pair.source, pk.GPT):
        U = torch.export.Dim("U", min=2, max=64)
        shapes, other = {"tokens": {0: 2 * U}, "t": {0: U}}, batch(tasks=5)
    program = torch.export.export(pair, arguments, dynamic_shapes=shapes, strict=False)
    assert program.state_dict.keys() >= {name for name, _ in pair.named_parameters()}
    assert close(program.module()(*other), pair(*other))


def test_gradients_of_each_example(pair):
    tokens, t = batch(each=1)
    parameters = dict(pair.operator.named_parameters())

    def loss(parameters, tokens, t):
        return functional_call(pair.operator, parameters, (tokens[None], t[None]), {"distinct": True}).sum()

    found = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, tokens, t)
    for k in range(len(t)):
        for name, expected in grad(loss)(parameters, tokens[k], t[k]).items():
            assert close(found[name][k], expected), name
