"""What a stage minimises, and which learning rate reaches which parameter."""

from __future__ import annotations

import copy
from fractions import Fraction

import pytest
import torch
from torch.nn import functional as F

import projkern as pk
from projkern.models.kinds import STARTS
from projkern.models.names import SOURCE, Kind, ModelName
from projkern.training.losses import nats_from, nats_per_token
from projkern.training.presets import PLAIN, QUICK
from projkern.training.stages import divergence, gpt_config, make_operator, make_stage
from projkern.training.steps import forward_backward_step, make_optimizer
from projkern.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = QUICK.replace(**PLAIN, side=4, vocab_size=7, n_layer=1, n_head=2, n_embd=16, rank=2, batch_size=4)
CPU = torch.device("cpu")
P, TUNED = "P_1/4", "source after co-training"


def projected(**changes):
    """The stage of P_1/4, on a source that predicts something and an operator that depends on t."""
    config = CONFIG.replace(**changes)
    source = make_stage(SOURCE, config, CPU).module
    name = ModelName(Kind.JOINT) if config.schedule.joint else ModelName.parse(P)
    stage = make_stage(name, config, CPU, source)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in stage.module.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return stage


def batch(seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(7, (4, 16), generator=generator), torch.rand(4, 18, generator=generator)


def gradients(module, loss):
    names, parameters = zip(*module.named_parameters())
    values = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {name: torch.zeros(()) if g is None else g for name, g in zip(names, values)}


@pytest.mark.parametrize("start", STARTS)
def test_a_run_s_operator_and_baseline_are_as_its_settings_say(start):
    options = {"start": start, "t_mean": 0.5, "t_std": 0.3, "shared_inner": True, "tied": True, "bias_of_t": True}
    config = CONFIG.replace(task_dim=5, conditioning="norms", **options)
    source, operators = pk.GPT(gpt_config(config, Fraction(1))), []
    for make in (
        lambda: make_operator(source, Fraction(1, 2), config),
        lambda: pk.ProjectionOperator(source, 1 / 2, task_dim=5, rank=2, **options),
    ):
        torch.manual_seed(0)
        operators.append(make())
    state, expected = (operator.state_dict() for operator in operators)
    assert state.keys() == expected.keys() and all(torch.equal(state[name], expected[name]) for name in state)
    assert (operators[0].t_mean, operators[0].t_std) == (0.5, 0.3)
    shape = {"vocab_size": 7, "n_positions": 16, "n_embd": 8, "n_layer": 1, "n_head": 2}
    conditional = {"task_dim": 5, "conditioning": "norms", "t_mean": 0.5, "t_std": 0.3}
    assert gpt_config(config, Fraction(1, 2), is_conditional=True) == pk.GPTConfig(**shape, **conditional)
    assert gpt_config(config, Fraction(1, 2)) == pk.GPTConfig(**shape)


def test_divergence_is_kullback_leibler_s():
    teacher, logits = torch.randn(2, 3, 7, requires_grad=True), torch.randn(2, 3, 7, requires_grad=True)
    p, q = teacher.softmax(-1), logits.softmax(-1)
    divergence = nats_from(teacher, logits)
    torch.testing.assert_close(divergence, (p * (p / q).log()).sum(-1).mean())
    assert nats_from(logits, logits).abs() < 1e-6
    assert torch.autograd.grad(divergence, (teacher, logits), allow_unused=True)[0] is None


def test_distillation_trains_the_source_as_what_is_projected_only():
    """As it would from a teacher that is another model with the same weights."""
    stage, (tokens, t) = projected(distill=0.5), batch()
    source, operator = stage.module["source"], stage.module["operators"][0]
    actual = gradients(source, stage.losses(tokens, t)[divergence(P)])
    teacher = copy.deepcopy(source).requires_grad_(False)
    expected = gradients(source, nats_from(teacher(tokens), operator(tokens, t)))
    for name, gradient in expected.items():
        assert torch.equal(actual[name], gradient), name
        assert name.startswith(("weights", "biases")) == bool(gradient.any())


def test_all_losses_and_their_weights():
    stage, (tokens, t) = projected(w_src=0.25, distill=0.5), batch()
    source, operator = stage.module["source"], stage.module["operators"][0]
    losses = stage.losses(tokens, t)
    assert stage.loss_weights == {P: 1.0, TUNED: 0.25, divergence(P): 0.5}
    own, small = source(tokens), operator(tokens, t)
    assert losses.keys() == stage.loss_weights.keys()
    torch.testing.assert_close(losses[P], nats_per_token(small, tokens))
    torch.testing.assert_close(losses[TUNED], F.cross_entropy(own.flatten(0, 1), tokens.flatten()))
    torch.testing.assert_close(losses[divergence(P)], nats_from(own, small))


def test_step_minimises_the_weighted_sum():
    stage, (tokens, t) = projected(w_src=0.25, distill=0.5), batch()
    losses = stage.losses(tokens, t)
    expected = gradients(stage.module, losses[P] + 0.25 * losses[TUNED] + 0.5 * losses[divergence(P)])
    optimizer = torch.optim.SGD(stage.module.parameters(), lr=1.0)
    before = {name: p.detach().clone() for name, p in stage.module.named_parameters()}
    forward_backward_step(stage, tokens, t, optimizer, torch.float32, clip=1e9)
    for name, parameter in stage.module.named_parameters():
        torch.testing.assert_close(before[name] - parameter, expected[name].expand_as(parameter), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "names"),
    [({"w_src": 0.0}, {P}), ({"w_src": 0.0, "distill": 1.0}, {P, divergence(P)}), ({"w_src": 0.5}, {P, TUNED})],
)
def test_what_has_no_weight_is_not_computed(changes, names):
    assert projected(**changes).losses(*batch()).keys() == names


@pytest.mark.parametrize("distill", [0.0, 1.0])
def test_source_batch_is_of_the_first_images(distill):
    stage, (tokens, t) = projected(source_batch=2, distill=distill), batch()
    source = stage.module["source"]
    losses = stage.losses(tokens, t)
    torch.testing.assert_close(losses[TUNED], nats_per_token(source(tokens[:2]), tokens[:2]))
    others = torch.cat([tokens[:2], batch(seed=2)[0][2:]])
    changed = stage.losses(others, t)
    torch.testing.assert_close(changed[TUNED], losses[TUNED])
    for name in losses.keys() - {TUNED}:  # the projected model, and the divergence from the source, see all
        assert (changed[name] - losses[name]).abs() > 1e-3, name


def test_source_batch_beyond_the_batch():
    with pytest.raises(InputError, match="source_batch must be .* 4; it was 5"):
        CONFIG.replace(source_batch=5)


@pytest.mark.parametrize("kind", ["diagonal", "modular"])
@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("tables_lr", [None, 0.5])
def test_learning_rates_reach_their_parts(tables_lr, joint, kind):
    """Each parameter once: tables and biases at tables_lr, all functions of t at operator_lr, the source at its own."""
    stage = projected(
        **{"tables_lr": tables_lr, "operator_lr": 0.25, "tuning_lr": 0.125, "joint": joint, "bias_of_t": True},
        generator=kind,
        scales=(Fraction(1, 2), Fraction(1, 4)) if joint else (Fraction(1, 4),),
    )
    rates = {}
    for group in make_optimizer(stage, CONFIG.schedule).param_groups:
        for parameter in group["params"]:
            assert id(parameter) not in rates
            rates[id(parameter)] = group["lr"]
    of_operators = 0
    for name, parameter in stage.module.named_parameters():
        part = name.split(".")[0 if name.startswith("source") else 2]
        expected = {"source": 0.125, "tables": tables_lr or 0.25, "biases": tables_lr or 0.25}.get(part, 0.25)
        assert rates.pop(id(parameter)) == expected, name
        of_operators += part in ("generator", "bias_of_t")
    assert not rates and of_operators >= 4 * (1 + joint)
