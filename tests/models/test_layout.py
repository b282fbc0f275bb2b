"""The layout: its records, and that names and initial weights are, bit for bit, those of runs already stored."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import projkern as pk
from projkern.models.generators import GENERATORS
from projkern.models.layout import CONDITIONINGS, LINEARS, NORMS

L, D, G, RANK, TASK_DIM = 2, 16, 2, 5, 3
SHAPE = {"vocab_size": 11, "n_positions": 9, "n_embd": D, "n_layer": L, "n_head": 2}
SHAPES = {"attn_qkv": (48, 16), "attn_out": (16, 16), "mlp_in": (64, 16), "mlp_out": (16, 64)}
NORMS_OF_A_LAYER = ("norm_1", "norm_2")


def test_linears_are_those_of_stored_runs_in_their_order():
    assert list(pk.GPTConfig(**SHAPE).linear_shapes().items()) == list(SHAPES.items())
    assert [linear.name for linear in LINEARS.values()] == list(LINEARS)
    assert [name for name, linear in LINEARS.items() if linear.writes_stream] == ["attn_out", "mlp_out"]
    assert {name: linear.row_blocks for name, linear in LINEARS.items()} == dict.fromkeys(SHAPES, 1) | {"attn_qkv": 3}


def test_one_side_of_every_linear_is_the_stream():
    assert all((linear.rows if linear.writes_stream else linear.cols) == 1 for linear in LINEARS.values())


def test_norms_are_all_norms_of_the_tables():
    parameters = dict(pk.GPT(pk.GPTConfig(**SHAPE)).tables.named_parameters())
    names = [name for norm in NORMS for name in (norm.weight, norm.bias)]
    assert names == [name for name in parameters if "norm" in name]
    for norm in NORMS:
        assert parameters[norm.weight].shape == parameters[norm.bias].shape == ((L, D) if norm.is_in_layers else (D,))


def drawn_gpt(task_dim, conditioning):
    """The state dict of a fresh GPT, drawn here in the order of before."""
    d = D
    state = {
        "tables.token_embedding": torch.randn(11, d) * 0.02,
        "tables.position_embedding": torch.randn(9, d) * 0.02,
    }
    if task_dim is None:
        state["tables.start"] = torch.randn(d) * 0.02
    else:
        start = nn.Linear(task_dim, d)
        state |= {f"tables.start_of_task.{name}": values for name, values in start.state_dict().items()}
    for norm in NORMS_OF_A_LAYER:
        state |= {f"tables.{norm}_weight": torch.ones(L, d), f"tables.{norm}_bias": torch.zeros(L, d)}
    state |= {"tables.final_norm_weight": torch.ones(d), "tables.final_norm_bias": torch.zeros(d)}
    state["tables.head"] = torch.randn(11, d) * 0.02
    for name, (rows, cols) in SHAPES.items():
        std = 0.5 / math.sqrt(cols) / (math.sqrt(2 * L) if name in ("attn_out", "mlp_out") else 1)
        state[f"weights.{name}"] = torch.randn(L, rows, cols) * std
        state[f"biases.{name}"] = torch.zeros(L, rows)
    mlps = {"first": {}, "every": {"offset": d}, "norms": {"offset": d, "norms": 2 * (2 * L + 1) * d}}[conditioning]
    for mlp, outputs in mlps.items():
        nn.Linear(64, outputs)  # the last layer is drawn first, then set to zero
        inner = nn.Linear(task_dim, 64)
        state |= {f"conditioning.{mlp}.0.{name}": values for name, values in inner.state_dict().items()}
        state |= {f"conditioning.{mlp}.2.weight": torch.zeros(outputs, 64)}
        state |= {f"conditioning.{mlp}.2.bias": torch.zeros(outputs)}
    return state


def assert_same_bits(state, expected):
    assert state.keys() == expected.keys()
    for name, values in expected.items():
        assert torch.equal(state[name], values), name


@pytest.mark.parametrize("form", [None, *CONDITIONINGS])
def test_initial_weights_of_a_gpt(form):
    task_dim, conditioning = (None, "first") if form is None else (TASK_DIM, form)
    torch.manual_seed(0)
    model = pk.GPT(pk.GPTConfig(**SHAPE, task_dim=task_dim, conditioning=conditioning))
    torch.manual_seed(0)
    assert_same_bits(model.state_dict(), drawn_gpt(task_dim, conditioning))


def drawn_mlps(heads, shared_inner=False):
    """The parameters of MLPs of t: (number, outputs) of each stack."""
    bound = 1 / math.sqrt(TASK_DIM)
    hidden = RANK * (1 if shared_inner else sum(count for count, _ in heads))
    state = {
        "inner_weight": torch.empty(hidden, TASK_DIM).uniform_(-bound, bound),
        "inner_bias": torch.empty(hidden).uniform_(-bound, bound),
    }
    state |= {f"outer_weight.{k}": torch.zeros(*head, RANK) for k, head in enumerate(heads)}
    return state | {f"outer_bias.{k}": torch.zeros(*head) for k, head in enumerate(heads)}


def initial_factor(start, *shape):
    if start == "one-hot":
        return torch.tensor([1.0, 0.0]).repeat(*shape[:-1], shape[-1] // G)
    p = torch.full(shape, G**-0.25)
    if start == "noise":
        p *= 1 + 0.5 * torch.randn(shape)
    return p * (2.0 * torch.randint(2, shape) - 1) if start == "signs" else p


def drawn_diagonal(start="constant", shared_inner=False, tied=False):
    widths = {"attn_qkv": 48, "attn_out": 16, "mlp_in": 64, "mlp_out": 64}  # the sides that are not the stream
    q_to_p = math.sqrt(G) if start == "one-hot" else 1
    if not tied:
        state = drawn_mlps([(L, rows + cols) for rows, cols in SHAPES.values()], shared_inner)
        for k, (rows, cols) in enumerate(SHAPES.values()):
            state[f"outer_bias.{k}"] = initial_factor(start, L, rows + cols)
            state[f"outer_bias.{k}"][:, rows:] *= q_to_p
        return state
    state = drawn_mlps([*((L, width) for width in widths.values()), (1, D)], shared_inner)
    for k, (name, width) in enumerate(widths.items()):
        state[f"outer_bias.{k}"] = initial_factor(start, L, width)
        state[f"outer_bias.{k}"] *= q_to_p if name in ("attn_out", "mlp_out") else 1
    return state | {"outer_bias.4": initial_factor(start, 1, D)}


def drawn_general():
    state = drawn_mlps([(L, rows + cols) for rows, cols in SHAPES.values()])
    maps = {}
    for k, (name, (rows, cols)) in enumerate(SHAPES.items()):
        state[f"outer_bias.{k}"] = torch.full((L, rows + cols), G**-0.25)
        sums = [torch.eye(size // G).repeat_interleave(G, 1) for size in (rows, cols)]
        maps[name] = torch.kron(*sums), torch.zeros(rows // G, cols // G), sums[0]
    for k, part in enumerate(("V", "V_bias", "U")):
        state |= {f"{part}.{name}": values[k].repeat(L, 1, 1) for name, values in maps.items()}
    return state


def drawn_blocks():
    state = drawn_mlps([(L, G * G + G)] * 4)
    for k in range(4):
        state[f"outer_bias.{k}"][:, 0], state[f"outer_bias.{k}"][:, G * G] = math.sqrt(G), 1
    return state


def merged(source):
    """The source under p = q = g^-1/4: weights and biases by name."""
    weights = {k: W.unflatten(2, (-1, G)).sum(3).unflatten(1, (-1, G)).sum(2) * G**-0.5 for k, W in source[0].items()}
    return weights, {k: b.unflatten(1, (-1, G)).sum(2) * G**-0.25 for k, b in source[1].items()}


def drawn_additive(source, kind):
    theta = torch.cat([values.flatten() for part in merged(source) for values in part.values()])
    if kind == "linear":
        return {"theta": theta, "S": torch.zeros(len(theta), TASK_DIM)}
    eta = nn.Sequential(nn.Linear(TASK_DIM, RANK), nn.SiLU(), nn.Linear(RANK, RANK)).state_dict()
    own = {"theta": theta, "S": torch.zeros(len(theta), RANK)}
    return own | {f"eta.{name}": values for name, values in eta.items()}


def drawn_low_rank(source, delta_rank=1):
    weights, biases = merged(source)
    sizes = [(rows // G, cols // G) for rows, cols in SHAPES.values()]
    state = drawn_mlps([(L, delta_rank * (n + m)) for n, m in sizes])
    for k, (n, m) in enumerate(sizes):
        state[f"outer_bias.{k}"][:, delta_rank * n :].normal_(std=m**-0.5)
    state |= {f"weights.{name}": W for name, W in weights.items()}
    return state | {f"biases.{name}": b for name, b in biases.items()}


CASES = [
    *(
        ("diagonal", {"start": start, "tied": tied})
        for start in ("constant", "noise", "signs")
        for tied in (False, True)
    ),
    *(("diagonal", {"start": "one-hot", "tied": tied, "shared_inner": True}) for tied in (False, True)),
    *(("low-rank", {"delta_rank": rank}) for rank in (1, 3)),
    *((kind, {}) for kind in ("general", "blocks", "linear", "modular")),
]


@pytest.mark.parametrize(("kind", "options"), CASES)
def test_initial_weights_of_an_operator(kind, options):
    source = pk.GPT(pk.GPTConfig(**SHAPE))
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    tables = source.tables.state_dict()
    source_weights = dict(source.weights), dict(source.biases)
    torch.manual_seed(0)
    state = pk.ProjectionOperator(source, 1 / G, TASK_DIM, RANK, kind, **options).state_dict()
    torch.manual_seed(0)
    drawn = {
        "diagonal": lambda: drawn_diagonal(**options),
        "general": drawn_general,
        "blocks": drawn_blocks,
        "linear": lambda: drawn_additive(source_weights, "linear"),
        "modular": lambda: drawn_additive(source_weights, "modular"),
        "low-rank": lambda: drawn_low_rank(source_weights, **options),
    }[kind]
    expected = {f"generator.{name}": values for name, values in drawn().items()}
    coordinates = (
        slice(0, D // G) if kind == "blocks" else slice(0, None, G) if options.get("start") == "one-hot" else None
    )
    for name, values in tables.items():
        groups = values.unflatten(-1, (-1, G))
        is_scale = name in ("norm_1_weight", "norm_2_weight", "final_norm_weight")
        projected = groups.mean(-1) if is_scale else groups.sum(-1) * G**-0.5
        expected[f"tables.{name}"] = projected if coordinates is None else values[..., coordinates]
    expected |= {f"biases.{name}": torch.zeros(L, rows // G) for name, (rows, _) in SHAPES.items()}
    assert_same_bits(state, expected)


def test_every_kind_of_generator_is_among_the_cases():
    assert {kind for kind, _ in CASES} == set(GENERATORS)
