"""Operators, sources and baselines cast to other types, and copied."""

from __future__ import annotations

import copy
import io
import itertools

import pytest
import torch
from decoders import decoder
from oracle import relative_error
from torch import nn
from torch.optim.swa_utils import AveragedModel

import projkern as pk
from projkern.models.generators import GENERATORS
from projkern.models.huggingface.conditional import ConditionalModel
from projkern.models.layout import CONDITIONINGS
from projkern.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")

F32, BF16, F16, F64 = torch.float32, torch.bfloat16, torch.float16, torch.float64
TOLERANCE = {F32: 1e-5, BF16: 20 * torch.finfo(BF16).eps, F16: 20 * torch.finfo(F16).eps, F64: 1e-12}
CONFIG = pk.GPTConfig(vocab_size=11, n_positions=6, n_embd=16, n_layer=2, n_head=2)
KINDS = [*GENERATORS, "llama", "gpt2"]


def make(kind: str) -> tuple[nn.Module, pk.ProjectionOperator]:
    """A source and an operator on it, away from their start, where nothing depends on t."""
    torch.manual_seed(0)
    if kind in GENERATORS:
        source = pk.GPT(CONFIG)
        operator = pk.ProjectionOperator(source, 1 / 2, task_dim=3, rank=2, generator=kind, bias_of_t=True)
    else:
        source = decoder(kind)
        operator = pk.ProjectionOperator(source, 1 / 2, task_dim=3, rank=2, vectors_of_t=True)
    for module in (source, operator):
        with torch.no_grad():
            for p in module.parameters():
                p += 0.1 * torch.randn_like(p)
    return source.eval(), operator.eval()


def batch():
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(11, (4, 6), generator=generator)
    return tokens, torch.rand(4, 3, generator=generator, dtype=F64).float()


@pytest.mark.parametrize("kind", KINDS)
def test_types_of_source_and_operator(kind):
    """Any two of float32 and the half precisions, or float64 for both; t of any type."""
    tokens, t = batch()
    for source_dtype, own_dtype in [*itertools.product((F32, BF16, F16), repeat=2), (F64, F64)]:
        source, operator = make(kind)
        source.to(source_dtype)
        operator.to(own_dtype)
        exact = copy.deepcopy(nn.ModuleList([source, operator])).double()[1]
        expected = exact(tokens, t)
        tolerance = max(TOLERANCE[source_dtype], TOLERANCE[own_dtype])
        logits = operator(tokens, t.to(own_dtype) if own_dtype == F64 else t)
        assert logits.dtype == operator.dtype == own_dtype
        assert relative_error(logits.double(), expected) <= tolerance, (source_dtype, own_dtype)
        logits.sum().backward()
        assert all(p.grad.dtype == p.dtype for p in operator.parameters() if p.grad is not None)
        reads_source = kind not in ("linear", "modular", "low-rank")
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in source.parameters()) == reads_source
        small = operator.generate(t[0])
        assert {p.dtype for p in small.parameters()} == {own_dtype}
        if kind in GENERATORS:
            assert relative_error(small(tokens[:1]).double(), expected[:1]) <= tolerance
            assert operator.decoder(t).step(None).dtype == own_dtype
    with torch.autocast("cpu", dtype=BF16):
        assert make(kind)[1](tokens, t).dtype == BF16


@pytest.mark.parametrize("kind", ["diagonal", "low-rank", "llama"])
def test_double_precision_is_of_both(kind):
    tokens, t = batch()
    for cast in (0, 1):
        pair = make(kind)
        pair[cast].double()
        operator = pair[1]
        calls = [(operator, (tokens, t)), (operator.generate, (t[0],))]
        for call, arguments in calls + [(operator.decoder, (t,))] * (kind in GENERATORS):
            with pytest.raises(TypeError, match=r"operator and source must both be in float64 .*float(32|64).*\.to\("):
                call(*arguments)


@pytest.mark.parametrize("kind", KINDS)
def test_t_lies_where_the_operator_does(kind):
    tokens, t = batch()
    source, operator = make(kind)
    source.to("meta")
    operator.to("meta")
    calls = [(operator, (tokens, t)), (operator.generate, (t[0],))]
    for call, arguments in calls + [(operator.decoder, (t,))] * (kind in GENERATORS):
        with pytest.raises(InputError, match="t must be on the device of the operator, meta; it was on cpu"):
            call(*arguments)


@pytest.mark.parametrize("kind", KINDS)
def test_an_operator_takes_the_precision_of_its_source(kind):
    """Float32 at the least, whatever torch's default type is."""
    tokens, t = batch()
    options = {"generator": kind, "bias_of_t": True} if kind in GENERATORS else {"vectors_of_t": True}
    try:
        for default, source_dtype in itertools.product((F32, F64), (F32, BF16, F64)):
            torch.set_default_dtype(F32)
            source, _ = make(kind)
            source.to(source_dtype)
            torch.set_default_dtype(default)
            operator = pk.ProjectionOperator(source, 1 / 2, task_dim=3, rank=2, **options)
            own = torch.promote_types(source_dtype, F32)
            assert {p.dtype for p in operator.parameters()} == {own}
            assert operator(tokens, t).dtype == own
    finally:
        torch.set_default_dtype(F32)


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_types_of_conditional_models(conditioning):
    tokens, t = batch()
    for dtype, t_dtype in itertools.product((BF16, F16, F64), (F32, BF16, F64)):
        config = pk.GPTConfig(**{**vars(CONFIG), "task_dim": 3, "conditioning": conditioning, "t_mean": 0.5})
        model = pk.GPT(config).to(dtype)
        assert model(tokens, t.to(t_dtype)).dtype == model.decoder(4, t.to(t_dtype)).step(None).dtype == dtype
        model = ConditionalModel(decoder("llama"), 3, conditioning).to(dtype)
        assert model(tokens, t.to(t_dtype)).dtype == dtype
        assert ConditionalModel(decoder("llama").to(dtype), 3, conditioning)(tokens, t).dtype == dtype


def generated(operator, t):
    return torch.cat([p.flatten() for p in operator.generate(t).parameters()])


@pytest.mark.parametrize("kind", ["diagonal", "blocks", "llama"])
def test_a_copy_uses_the_same_source(kind):
    source, operator = make(kind)
    t = batch()[1][0]
    copied = copy.deepcopy(operator)
    assert type(copied) is type(operator) and copied.source is source
    assert not {p.data_ptr() for p in copied.parameters()} & {p.data_ptr() for p in operator.parameters()}
    before = generated(copied, t)
    with torch.no_grad():
        for p in operator.parameters():
            p.zero_()
    assert torch.equal(generated(copied, t), before)
    with torch.no_grad():
        for p in source.parameters():
            p.mul_(2)
    assert not torch.equal(generated(copied, t), before)
    assert copy.deepcopy(copied).source is source


@pytest.mark.parametrize("order", [1, -1], ids=["source first", "operator first"])
@pytest.mark.parametrize("kind", ["diagonal", "llama"])
def test_what_is_copied_together_stays_together(kind, order):
    pair = nn.ModuleList(make(kind)[::order])
    source, operator = copy.deepcopy(copy.deepcopy(pair))[::order]
    assert operator.source is source and source is not pair[::order][0]
    stored = io.BytesIO()
    torch.save(copy.deepcopy(pair), stored)
    stored.seek(0)
    source, operator = torch.load(stored, weights_only=False)[::order]
    assert operator.source is source
    t = batch()[1][0]
    assert torch.equal(generated(operator, t), generated(pair[::order][1], t))


@pytest.mark.parametrize("order", [1, -1], ids=["source first", "operator first"])
@pytest.mark.parametrize("kind", ["diagonal", "llama"])
def test_averages_of_source_and_operator(kind, order):
    """The average of two states of a pair generates what their mean parameters do."""
    t = batch()[1][0]
    pair = nn.ModuleList(make(kind)[::order])
    averaged = AveragedModel(pair)
    averaged.update_parameters(pair)
    first = [p.detach().clone() for p in pair.parameters()]
    with torch.no_grad():
        for p in pair.parameters():
            p += 0.1 * torch.randn_like(p)
        averaged.update_parameters(pair)
        changed = generated(averaged.module[::order][1], t)
        for p, before in zip(pair.parameters(), first):
            p.lerp_(before, 0.5)
    assert relative_error(changed, generated(pair[::order][1], t).double()) <= 1e-5
