"""Weight generators: each kind beside its formula, where each starts, and how many parameters it has."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import projkern as pk
from projkern.models import operator as operator_module
from projkern.models.generators import GENERATORS, group_of, make_generator
from projkern.models.generators.diagonal import DiagonalGenerator
from projkern.models.kinds import STARTS
from projkern.models.layout import LINEARS
from projkern.models.operator import generate_weights, project_and_run
from projkern.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = pk.GPTConfig(vocab_size=11, n_positions=9, n_embd=16, n_layer=2, n_head=2)
G, D, LAYERS = 2, 16, 2
KINDS = list(GENERATORS)
PAGE = Path(__file__).parents[2] / "docs" / "generators.md"


def randomise(module, std=0.3):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * std)
    return module


def make(kind="diagonal", scale=1 / G, **options):
    """A fresh operator on a source without zeros."""
    torch.manual_seed(0)
    return pk.ProjectionOperator(randomise(pk.GPT(CONFIG)), scale, 3, 5, kind, **options).eval()


def mlps(generator, t):
    """o(t) of every stack of MLPs for one t, each (MLPs, outputs): W_o silu(W_i t + b_i) + b_o, one at a time."""
    first, stacks = 0, []
    for W, b in zip(generator.outer_weight, generator.outer_bias):
        stack = []
        for k in range(len(W)):
            rows = slice((first + k) * 5, (first + k + 1) * 5)
            stack.append(W[k] @ F.silu(generator.inner_weight[rows] @ t + generator.inner_bias[rows]) + b[k])
        first += len(W)
        stacks.append(torch.stack(stack))
    return stacks


def member(size):
    """[j // g == i], (size / g, size)."""
    return torch.eye(size // G, dtype=torch.float64).repeat_interleave(G, 1)


def dense(kind, generator, source, t):
    """(W_s, b_s) of every linear operator of every layer for one t, each from its definition."""
    if kind in ("diagonal", "general", "blocks", "low-rank"):
        outputs = mlps(generator, t)
    else:
        eta = t
        if kind == "modular":
            first, _, last = generator.eta
            eta = last.weight @ F.silu(first.weight @ t + first.bias) + last.bias
        theta = iter(generator.theta + generator.S @ eta)
        n = D // G
        shapes = [(3 * n, n), (n, n), (4 * n, n), (n, 4 * n)]
        weights = [torch.stack([next(theta) for _ in range(LAYERS * a * b)]).view(LAYERS, a, b) for a, b in shapes]
        biases = [torch.stack([next(theta) for _ in range(LAYERS * a)]).view(LAYERS, a) for a, _ in shapes]
    for k, name in enumerate(LINEARS):
        for layer in range(LAYERS):
            W, b = source.weights[name][layer], source.biases[name][layer]
            N, M = W.shape
            if kind == "diagonal":
                p, q = outputs[k][layer].split((N, M))
                yield member(N) * p @ W @ (member(M) * q).T, member(N) * p @ b
            elif kind == "general":
                p, q = outputs[k][layer].split((N, M))
                V = generator.V[name][layer].view(N // G, M // G, N, M)
                W_s = torch.einsum("ijkl,k,l,kl->ij", V, p, q, W) + generator.V_bias[name][layer]
                yield W_s, generator.U[name][layer] @ (p * b)
            elif kind == "blocks":
                r, u = outputs[k][layer][: G * G].view(G, G), outputs[k][layer][G * G :]
                W_parts, b_parts = (x.chunk(3) if name == "attn_qkv" else (x,) for x in (W, b))
                W_s = [sum(r[i, j] * rows.chunk(G, 1)[j] for i, rows in enumerate(part.chunk(G)) for j in range(G))
                       for part in W_parts]  # fmt: skip
                yield torch.cat(W_s), torch.cat([sum(u[i] * part.chunk(G)[i] for i in range(G)) for part in b_parts])
            elif kind == "low-rank":
                rank = generator.delta_rank
                L, R = outputs[k][layer].split((rank * N // G, rank * M // G))
                W_s = generator.weights[name][layer] + L.view(-1, rank) @ R.view(rank, -1)
                yield W_s, generator.biases[name][layer]
            else:
                yield weights[k][layer], biases[k][layer]


@pytest.mark.parametrize(("kind", "options"), [*((kind, {}) for kind in KINDS), ("low-rank", {"delta_rank": 3})])
def test_each_kind_is_its_formula(kind, options):
    operator = make(kind, **options)
    generator, source = randomise(operator.generator).double(), operator.source.double()
    t = torch.rand(4, 3, dtype=torch.float64)
    with torch.no_grad():
        generated = generator(source, t)
        assert len(generated.weights) == len(generated.biases) == len(LINEARS) * LAYERS
        for row, task in enumerate(t):
            for W, b, (W_s, b_s) in zip(*generated, dense(kind, generator, source, task)):
                assert W.dtype == torch.float64
                assert torch.allclose(W[row], W_s, atol=1e-12, rtol=1e-12)
                assert torch.allclose(b[row], b_s, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_batch_equals_generated_models(kind):
    operator = randomise(make(kind))
    tokens, t = torch.randint(11, (5, 9)), torch.rand(5, 3)
    for tasks in ([0, 1, 2, 3, 4], [0, 1, 0, 1, 1]):
        logits = operator(tokens, t[tasks])
        alone = torch.cat([operator.generate(t[k])(row[None]) for k, row in zip(tasks, tokens)])
        assert torch.allclose(logits, alone, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(operator(tokens[:1], t[:1]), operator(tokens[:1], t[1:2]), atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_every_parameter(kind):
    operator = randomise(make(kind)).train()
    tokens, t = torch.randint(11, (4, 9)), torch.rand(4, 3)
    source_loss = F.cross_entropy(operator.source(tokens).flatten(0, 1), tokens.flatten())
    loss = F.cross_entropy(operator(tokens, t).flatten(0, 1), tokens.flatten()) + source_loss  # Eq. 2
    alone = torch.autograd.grad(source_loss, [*operator.source.weights.values()], retain_graph=True)
    loss.backward()
    for name, parameter in operator.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    reads_source = kind in ("diagonal", "general", "blocks")
    for weight, grad in zip(operator.source.weights.values(), alone):
        assert torch.equal(weight.grad, grad) != reads_source


@pytest.mark.parametrize("kind", KINDS)
def test_state_dict_round_trip(kind):
    operator = randomise(make(kind))
    other = pk.ProjectionOperator(operator.source, 1 / G, 3, 5, kind).eval()
    tokens, t = torch.randint(11, (3, 9)), torch.rand(3, 3)
    assert not torch.equal(other(tokens, t), operator(tokens, t))
    other.load_state_dict(operator.state_dict())
    assert torch.equal(other(tokens, t), operator(tokens, t))


@pytest.mark.parametrize(
    ("kind", "options"),
    [*((kind, {}) for kind in KINDS), *(("diagonal", {"start": start, "tied": True}) for start in STARTS)],
)
def test_start_does_not_depend_on_t_and_learns_to(kind, options):
    operator = make(kind, **options)
    (generated,) = generate_weights([operator], torch.randn(3, 3))
    for weight in generated.weights:
        assert torch.allclose(weight, weight[:1].expand_as(weight), atol=1e-6)
    tokens, t = torch.randint(11, (4, 9)), torch.randn(4, 3)
    F.cross_entropy(operator(tokens, t).flatten(0, 1), tokens.flatten()).backward()
    with torch.no_grad():
        for parameter in operator.generator.parameters():
            parameter -= 0.1 * parameter.grad.sign()
        (generated,) = generate_weights([operator], torch.randn(2, 3))
    assert all((weight[0] - weight[1]).abs().max() > 1e-4 for weight in generated.weights)


@pytest.mark.parametrize("kind", ["general", "linear", "modular", "low-rank"])
def test_start_is_that_of_the_diagonal_generator(kind):
    t = torch.rand(3)
    started, expected = make(kind).generate(t).state_dict(), make().generate(t).state_dict()
    for name, value in expected.items():
        if "weights" in name or "biases" in name:
            assert torch.allclose(started[name], value, atol=1e-6), name


def pruned(source, keep, keep_inner):
    """The hard-pruned source: rows and columns (and heads) that are expected, W times g^1/2."""
    width = {D: keep, 3 * D: torch.cat([keep, keep + D, keep + 2 * D]), 4 * D: keep_inner}
    for name, values in source.tables.named_parameters():
        yield f"tables.{name}", values[..., keep]
    for name in LINEARS:
        W, b = source.weights[name], source.biases[name]
        rows, cols = (width[size] for size in W.shape[1:])
        yield f"weights.{name}", math.sqrt(G) * W[:, rows][:, :, cols]
        yield f"biases.{name}", b[:, rows]


@pytest.mark.parametrize("tied", [False, True])
def test_one_hot_start_is_hard_pruning(tied):
    operator = make(start="one-hot", tied=tied)
    small = operator.generate(torch.rand(3)).state_dict()
    expected = dict(pruned(operator.source, torch.arange(0, D, G), torch.arange(0, 4 * D, G)))
    assert expected.keys() == small.keys()
    assert all(torch.allclose(small[name], values, atol=1e-6) for name, values in expected.items())


def test_blocks_start_as_the_first_block():
    operator = make("blocks")
    small = operator.generate(torch.rand(3)).state_dict()
    expected = dict(pruned(operator.source, torch.arange(D // G), torch.arange(4 * D // G)))
    assert all(torch.allclose(small[name], values, atol=1e-6) for name, values in expected.items())


def test_starts_of_p_and_q():
    p = {start: torch.cat(make(start=start).generator.factors(torch.rand(1, 3)), 1) for start in STARTS}
    constant = G**-0.25
    assert torch.allclose(p["constant"], torch.tensor(constant))
    assert torch.allclose(p["signs"].abs(), torch.tensor(constant))
    assert abs((p["signs"] > 0).float().mean() - 0.5) < 0.1
    noise = p["noise"] / constant - 1
    assert abs(noise.mean()) < 0.1 and abs(noise.std() - 0.5) < 0.1
    assert torch.allclose(p["one-hot"].unique(), torch.tensor([0, 1, math.sqrt(G)]))


@pytest.mark.parametrize("start", ["signs", "one-hot"])
def test_tied_factors_are_one_vector(start):
    operator = randomise(make(tied=True, start=start))
    p, q = operator.generator.factors(torch.rand(2, 3))
    shapes = CONFIG.linear_shapes()
    rows = dict(zip(LINEARS, p.split([LAYERS * shapes[name][0] for name in LINEARS], 1)))
    cols = dict(zip(LINEARS, q.split([LAYERS * shapes[name][1] for name in LINEARS], 1)))
    stream = rows["attn_out"][:, :D]
    assert not torch.allclose(stream[0], stream[1], atol=1e-3)  # it depends on t
    factor = math.sqrt(G) if start == "one-hot" else 1
    for name in LINEARS:
        side, scale = (rows, 1) if name.endswith("out") else (cols, factor)
        assert torch.allclose(side[name], scale * stream.repeat(1, LAYERS))
        other = (cols if name.endswith("out") else rows)[name]
        assert not torch.allclose(other[:, : other.shape[1] // 2], other[:, other.shape[1] // 2 :], atol=1e-2)


def test_shared_inner_layer():
    generator = randomise(make(shared_inner=True, tied=True)).generator
    assert generator.inner_weight.shape == (5, 3)
    t = torch.rand(4, 3)
    hidden = F.silu(t @ generator.inner_weight.T + generator.inner_bias)
    for outputs, W, b in zip(generator.evaluate(t), generator.outer_weight, generator.outer_bias):
        for mlp in range(len(W)):
            assert torch.allclose(outputs[mlp], hidden @ W[mlp].T + b[mlp], atol=1e-6)


@pytest.mark.parametrize("kind", ["diagonal", "low-rank"])
def test_biases_of_t(kind):
    plain, operator = make(kind), make(kind, bias_of_t=True, t_mean=0.5, t_std=0.3)
    t, tokens = torch.rand(3, 3), torch.randint(11, (3, 9))
    own = {name: tensor for name, tensor in operator.state_dict().items() if not name.startswith("bias_of_t")}
    assert own.keys() == plain.state_dict().keys()
    randomise(operator)
    logits = operator(tokens, t)
    for i in range(3):
        torch.testing.assert_close(operator.generate(t[i])(tokens[i : i + 1])[0], logits[i])
    (with_it,), t_seen = generate_weights([operator], t), (t - 0.5) / 0.3
    stacks = mlps(operator.bias_of_t, t_seen[1])  # [L, n] of each linear operator
    operator.bias_of_t = None
    (without,) = generate_weights([operator], t)
    for b, b_0, of_t in zip(with_it.biases, without.biases, [row for stack in stacks for row in stack]):
        torch.testing.assert_close(b[1] - b_0[1], of_t)


def test_biases_of_t_decode_factored():
    operator = randomise(make(bias_of_t=True))
    t, tokens = torch.rand(2, 3), torch.randint(11, (2, 9))
    for form in ("materialised", "factored"):
        decoder = operator.decoder(t, form=form)
        logits = torch.stack([decoder.step(tokens[:, i - 1] if i else None) for i in range(9)], 1)
        torch.testing.assert_close(logits, operator(tokens, t), atol=1e-5, rtol=1e-5)


def test_normalised_tasks():
    plain, operator = (randomise(make(**options)) for options in ({}, {"t_mean": 0.5, "t_std": 0.25}))
    tokens, t = torch.randint(11, (3, 9)), torch.rand(3, 3)
    operator.load_state_dict(plain.state_dict())
    seen = (t - 0.5) / 0.25
    assert torch.allclose(operator(tokens, t), plain(tokens, seen), atol=1e-6)
    for form in ("materialised", "factored"):
        steps = (o.decoder(x, form=form).step(None) for o, x in ((operator, t), (plain, seen)))
        assert torch.allclose(next(steps), next(steps), atol=1e-6)


def test_defaults_are_the_papers_operator_bit_for_bit():
    """Keys, random draws and p, q as runs that are stored have them."""
    source, L = pk.GPT(CONFIG), LAYERS
    torch.manual_seed(3)
    operator = pk.ProjectionOperator(source, 1 / G, 3, 5)
    torch.manual_seed(3)
    bound, outputs = 1 / math.sqrt(3), [64, 32, 80, 80]
    expected = {
        "inner_weight": torch.empty(4 * L * 5, 3).uniform_(-bound, bound),
        "inner_bias": torch.empty(4 * L * 5).uniform_(-bound, bound),
        **{f"outer_weight.{k}": torch.zeros(L, n, 5) for k, n in enumerate(outputs)},
        **{f"outer_bias.{k}": torch.full((L, n), G**-0.25) for k, n in enumerate(outputs)},
    }
    state = operator.generator.state_dict()
    assert list(state) == list(expected) and all(torch.equal(state[name], value) for name, value in expected.items())
    t, generator = torch.rand(4, 3), randomise(operator.generator)
    hidden = F.silu(F.linear(t, generator.inner_weight, generator.inner_bias)).view(4, 4, L, 5).permute(1, 2, 0, 3)
    outer = zip(hidden, generator.outer_weight, generator.outer_bias, CONFIG.linear_shapes().values())
    parts = [torch.baddbmm(b[:, None], h, W.mT).split(shape, 2) for h, W, b, shape in outer]
    for factor, side in zip(generator.factors(t), zip(*parts)):
        assert torch.equal(factor, torch.cat([x.transpose(0, 1).reshape(4, -1) for x in side], 1))


def test_diagonal_operators_of_one_source_are_projected_in_one_call(monkeypatch):
    source, calls = pk.GPT(CONFIG), []
    original = operator_module.project_factors
    monkeypatch.setattr(operator_module, "project_factors", lambda *a: calls.append(len(a[1])) or original(*a))
    kinds = (2, "diagonal"), (2, "linear"), (4, "diagonal"), (4, "blocks")
    operators = [randomise(pk.ProjectionOperator(source, 1 / g, 3, 5, kind)) for g, kind in kinds]
    tokens, t = torch.randint(11, (3, 9)), torch.rand(3, 3)
    together = project_and_run(operators, tokens, t)
    assert calls == [2]
    for operator, logits in zip(operators, together):
        assert torch.allclose(operator(tokens, t), logits, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_sets_the_dtype_of_the_weights(kind):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (generated,) = generate_weights([make(kind)], torch.rand(2, 3))
    assert {w.dtype for w in generated.weights} == {torch.bfloat16} and {b.dtype for b in generated.biases} == {
        torch.float32
    }


def test_only_the_diagonal_generator_decodes_factored():
    t = torch.rand(9, 3)  # more than g²
    for kind in KINDS:
        operator = randomise(make(kind))
        logits = operator(torch.zeros(9, 1, dtype=torch.int64), t)[:, 0]
        assert torch.allclose(operator.decoder(t).step(None), logits, atol=1e-4, rtol=1e-4)
        if kind != "diagonal":
            with pytest.raises(InputError, match=f"^form .*'{kind}'.*'factored'"):
                operator.decoder(t, form="factored")


def formulas(d, layers, g, task_dim, r, delta_rank=1):
    """Parameters of each kind, as docs/generators.md has them."""
    mlp, theta = r * (task_dim + 1), layers * (12 * d * d // g**2 + 9 * d // g)
    diagonal = layers * (4 * mlp + 16 * d * (r + 1))
    return {
        "diagonal": diagonal,
        "diagonal, shared_inner": mlp + layers * 16 * d * (r + 1),
        "diagonal, tied": (4 * layers + 1) * mlp + (12 * layers + 1) * d * (r + 1),
        "general": diagonal + layers * (42 * d**4 // g**2 + 12 * d**2 // g**2 + 27 * d**2 // g),
        "blocks": 4 * layers * (mlp + (g * g + g) * (r + 1)),
        "linear": theta * (1 + task_dim),
        "modular": theta * (1 + r) + mlp + r * (r + 1),
        "low-rank": theta + layers * (4 * mlp + 16 * d // g * delta_rank * (r + 1)),
    }


def count_parameters(kind, config, scale, task_dim, rank, **options):
    with torch.device("meta"):
        group = group_of(scale, config.n_embd, config.n_head)
        generator = make_generator(kind, pk.GPT(config), group, task_dim, rank, **options)
    return sum(parameter.numel() for parameter in generator.parameters())


@pytest.mark.parametrize(("d", "layers", "g", "r"), [(16, 2, 2, 5), (32, 1, 4, 3)])
def test_parameters_are_the_formulas(d, layers, g, r):
    config = pk.GPTConfig(11, 9, d, layers, 2)
    for name, expected in formulas(d, layers, g, 7, r).items():
        kind, _, option = name.partition(", ")
        assert count_parameters(kind, config, 1 / g, 7, r, **{option: True} if option else {}) == expected, name
    two = formulas(d, layers, g, 7, r, delta_rank=2)["low-rank"]
    assert count_parameters("low-rank", config, 1 / g, 7, r, delta_rank=2) == two


def test_page_has_the_numbers_of_the_formulas():
    rows = re.findall(r"^\| `([a-z, _-]+)` .* ([\d,]+) \|$", PAGE.read_text(), re.MULTILINE)
    assert {kind: int(n.replace(",", "")) for kind, n in rows} == formulas(128, 4, 4, 18, 8)


SOURCE = pk.GPT(CONFIG)


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({"generator": "dense"}, "^generator .*'dense'"),
        ({"generator": "linear", "start": "signs"}, "^options .*'linear'.*none.*'start'"),
        ({"delta_rank": 2}, "^options .*'diagonal'.*start, shared_inner, tied.*'delta_rank'"),
        ({"start": "zero"}, "^start .*constant, noise, signs, one-hot.*'zero'"),
        ({"t_std": 0.0}, "^t_std .* 0.0"),
        ({"t_std": float("inf")}, "^t_std .* inf"),
        ({"t_mean": float("nan")}, "^t_mean .* nan"),
        ({"generator": "low-rank", "delta_rank": 0}, "^delta_rank .* 0"),
    ],
)
def test_bad_options(options, pattern):
    with pytest.raises(InputError, match=pattern):
        pk.ProjectionOperator(SOURCE, 1 / G, 3, **options)


def test_general_generator_refuses_a_large_source():
    with torch.device("meta"):
        source = pk.GPT(pk.GPTConfig(64, 256, 128, 4, 8))
    with pytest.raises(InputError, match="^source .*100,000,000.* 128.* 1/4"):
        make_generator("general", source, 4, 18, 8)


def test_interface_of_the_kinds():
    """Whatever the kind: source and t in, task weights of the small model's shapes out."""
    shapes = pk.GPTConfig(11, 9, D // G, LAYERS, 2).linear_shapes()
    for kind, operator in ((kind, make(kind)) for kind in KINDS):
        generated = operator.generator(operator.source, torch.rand(3, 3))
        expected = [(3, *shapes[name]) for name in LINEARS for _ in range(LAYERS)]
        assert [tuple(w.shape) for w in generated.weights] == expected, kind
        assert [tuple(b.shape) for b in generated.biases] == [shape[:2] for shape in expected], kind
    assert isinstance(make().generator, DiagonalGenerator)
