"""What a run trains, in order: the source, the small baselines, the projected models (paper, Sec. 3.3)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models import GPT, GPTConfig, ProjectionOperator
from ..models.decode import Decoder
from ..models.operator import project_and_run
from .config import SOURCE_NAME, TrainConfig

Predict = Callable[[Tensor, Tensor], Tensor]  # tokens (B, T), t (B, 18) -> logits (B, T, vocabulary)


@dataclass(frozen=True)
class Model:
    """A trained model as the tables name it."""

    name: str
    predict: Predict
    decoder: Callable[[Tensor], Decoder]  # from t (B, 18), a sequence for each row
    parameters: int  # of one small model that a user would run
    takes_task: bool  # whether t changes what it predicts
    operator_parameters: int | None = None  # of what generates it


@dataclass(frozen=True)
class Stage:
    """One training job: what is trained, on which loss, at which learning rates."""

    name: str
    steps: int
    first_batch: int  # index of the data stream's batch that step 0 sees
    module: nn.Module
    losses: Callable[[Tensor, Tensor], dict[str, Tensor]]  # by model; their weighted sum is minimised
    loss_weights: dict[str, float]
    groups: list[dict[str, object]]  # of the optimizer: params, lr
    models: list[Model]


def nats_per_token(logits: Tensor, tokens: Tensor) -> Tensor:
    """Mean loss of next-token prediction, nats per token; every token is a target (paper, Sec. 3)."""
    return F.cross_entropy(logits.float().flatten(0, 1), tokens.flatten())


def stage_names(config: TrainConfig) -> list[str]:
    """The run's training jobs, in order."""
    names = [SOURCE_NAME]
    for s in config.scales:
        names += [f"M_{s}"] * config.unconditional + [f"M~_{s}"]
    return names + (["P~"] if config.joint else [f"P_{s}" for s in config.scales])


def make_stage(name: str, config: TrainConfig, device: torch.device, source: GPT | None = None) -> Stage:
    """Build a stage with fresh weights that depend on the seed and the name only.

    Args:
        name: one of ``stage_names(config)``.
        source: the pretrained M_1, for the stages that project it; it is copied, then tuned.
    """
    torch.manual_seed(int.from_bytes(hashlib.blake2b(f"{config.seed} {name}".encode(), digest_size=7).digest(), "big"))
    kind, _, scale = name.partition("_")
    if kind.startswith("P"):
        assert source is not None
        scales = config.scales if config.joint else (Fraction(scale),)
        return _projected(name, config, device, source, scales)
    conditional = kind == "M~"
    model = GPT(gpt_config(config, Fraction(scale), conditional)).to(device)

    def predict(tokens: Tensor, t: Tensor) -> Tensor:
        return model(tokens, t if conditional else None)

    def decoder(t: Tensor) -> Decoder:
        return model.decoder(len(t), t if conditional else None)

    is_source = name == SOURCE_NAME
    return Stage(
        name=name,
        steps=config.source_steps if is_source else config.steps,
        first_batch=0 if is_source else config.source_steps,
        module=model,
        losses=lambda tokens, t: {name: nats_per_token(predict(tokens, t), tokens)},
        loss_weights={name: 1.0},
        groups=[{"params": list(model.parameters()), "lr": config.source_lr if is_source else config.small_lr}],
        models=[Model(name, predict, decoder, count(model), conditional)],
    )


def gpt_config(config: TrainConfig, scale: Fraction, conditional: bool = False) -> GPTConfig:
    """The shape of M_s, or of its conditional form M~_s."""
    return GPTConfig(
        vocab_size=config.colors,
        n_positions=config.image_size**2,
        n_embd=int(config.n_embd * scale),
        n_layer=config.n_layer,
        n_head=config.n_head,
        dropout=config.dropout,
        **_told(config) if conditional else {},
    )


def _told(config: TrainConfig) -> dict[str, Any]:
    """How a conditional model takes t."""
    return {name: getattr(config, name) for name in ("task_dim", "conditioning", "t_mean", "t_std")}


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def count_of(config: GPTConfig) -> int:
    """Parameters of a GPT of this shape."""
    with torch.device("meta"):
        return count(GPT(config))


def make_operator(source: GPT, scale: Fraction, config: TrainConfig) -> ProjectionOperator:
    """A fresh operator of a run's kind."""
    options = {name: getattr(config, name) for name in ("t_mean", "t_std", "bias_of_t")}
    if config.generator == "diagonal":
        options |= {name: getattr(config, name) for name in ("start", "shared_inner", "tied")}
    return ProjectionOperator(source, scale, config.task_dim, config.rank, config.generator, **options)


def _of_t(operator: ProjectionOperator) -> list[nn.Parameter]:
    """The parameters of an operator's functions of t: all but its tables and biases."""
    functions = (operator.generator, operator.bias_of_t)
    return [p for module in functions if module is not None for p in module.parameters()]


def divergence(name: str) -> str:
    """What a log calls the distillation loss of a projected model."""
    return f"divergence of {name} from the source"


def nats_from(teacher: Tensor, logits: Tensor) -> Tensor:
    """Kullback-Leibler divergence of predictions from a teacher's, which they do not train, nats per token."""
    wanted, got = (F.log_softmax(x.float().flatten(0, 1), -1) for x in (teacher.detach(), logits))
    return F.kl_div(got, wanted, reduction="batchmean", log_target=True)


def _projected(
    name: str, config: TrainConfig, device: torch.device, pretrained: GPT, scales: tuple[Fraction, ...]
) -> Stage:
    """Co-train projected models and their source: sum of L_P, plus w_src L_M1 (paper, Eq. 2)."""
    source = GPT(pretrained.config).to(device)
    source.load_state_dict(pretrained.state_dict())
    operators = [make_operator(source, s, config).to(device) for s in scales]
    module = nn.ModuleDict({"source": source, "operators": nn.ModuleList(operators)})
    names = [f"P_{s}" for s in scales] if len(scales) == 1 else [f"P~_{s}" for s in scales]
    lone = config.joint or len(config.scales) == 1
    source_name = "source after co-training" + ("" if lone else f" with {name}")

    def losses(tokens: Tensor, t: Tensor) -> dict[str, Tensor]:
        projected = project_and_run(operators, tokens, t)
        parts = {n: nats_per_token(logits, tokens) for n, logits in zip(names, projected)}
        if config.w_src > 0 or config.distill > 0:
            count = config.source_batch or len(tokens)
            own = source(tokens if config.distill > 0 else tokens[:count])
            if config.w_src > 0:
                parts[source_name] = nats_per_token(own[:count], tokens[:count])
            if config.distill > 0:
                parts |= {divergence(n): nats_from(own, logits) for n, logits in zip(names, projected)}
        return parts

    models = [
        # The form is named, so that a run's samples are the same each time (see ProjectionOperator.decoder).
        Model(
            n,
            operator,
            partial(operator.decoder, form="materialised"),
            count_of(operator.config),
            takes_task=True,
            operator_parameters=count(operator),
        )
        for n, operator in zip(names, operators)
    ]
    return Stage(
        name=name,
        steps=config.steps,
        first_batch=config.source_steps,
        module=module,
        losses=losses,
        loss_weights=dict.fromkeys(names, 1.0)
        | {source_name: config.w_src}
        | dict.fromkeys(map(divergence, names), config.distill),
        groups=[
            {"params": list(source.parameters()), "lr": config.tuning_lr},
            {"params": [p for o in operators for p in _of_t(o)], "lr": config.operator_lr},
            {
                "params": [p for o in operators for p in (*o.tables.parameters(), *o.biases.parameters())],
                "lr": config.tables_lr or config.operator_lr,
            },
        ],
        models=[
            *models,
            Model(
                source_name,
                lambda tokens, t: source(tokens),
                lambda t: source.decoder(len(t)),
                count(source),
                False,
            ),
        ],
    )
