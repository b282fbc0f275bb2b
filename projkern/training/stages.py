"""What a run trains, in order: the source, the small baselines, the projected models (paper, Sec. 3.3)."""

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from ..models import GPT, GPTConfig, ProjectionOperator
from ..models.decode import Decoder
from ..models.generators import GENERATORS
from ..models.names import SOURCE, Kind, ModelName
from ..models.operator import project_and_run
from ..models.pairs import LayerPairs
from ..utils.seeds import seed_of
from .config import ScheduleConfig, TrainConfig
from .losses import Predict, nats_from, nats_per_token


@dataclass(frozen=True, kw_only=True)
class Model:
    """A trained model as the tables name it."""

    name: ModelName
    predict: Predict
    parameters: int  # of one small model that a user would run
    takes_task: bool  # whether t changes what it predicts
    operator_parameters: int | None = None  # of what generates it


@dataclass(frozen=True, kw_only=True)
class ImageModel(Model):
    """A model that draws images."""

    decoder: Callable[[Tensor], Decoder]  # from t (B, task_dim), a sequence for each row


AnyModel = TypeVar("AnyModel", bound=Model)


@dataclass(frozen=True)
class Stage(Generic[AnyModel]):
    """One training job: what is trained, on which loss, at which learning rates."""

    name: ModelName
    steps: int
    first_batch: int  # index of the data stream's batch that step 0 sees
    module: nn.Module
    losses: Callable[[Tensor, Tensor], dict[str, Tensor]]  # by name in the log; their weighted sum is minimised
    loss_weights: dict[str, float]
    groups: list[dict[str, object]]  # of the optimizer: params, lr
    models: Sequence[AnyModel]
    backward: Callable[[Tensor, Tensor], dict[str, Tensor]] | None = None  # the losses, their gradient taken too


ImageStage = Stage[ImageModel]
Shard = Callable[[GPT, Sequence[ProjectionOperator]], LayerPairs]
"""Shares a source and its operators among the processes."""


def stage_names(config: TrainConfig) -> list[ModelName]:
    """The run's training jobs, in order."""
    return names_of(config.operator.scales, config.schedule)


def names_of(scales: tuple[Fraction, ...], schedule: ScheduleConfig) -> list[ModelName]:
    """The training jobs of a source and small models of these scales, in order."""
    names = [SOURCE]
    for s in scales:
        kinds = [Kind.UNCONDITIONAL] * schedule.unconditional + [Kind.CONDITIONAL]
        names += [ModelName(kind, s) for kind in kinds]
    if schedule.joint:
        return [*names, ModelName(Kind.JOINT)]
    return names + [ModelName(Kind.PROJECTED, s) for s in scales]


def make_stage(
    name: ModelName, config: TrainConfig, device: torch.device, source: GPT | None = None, shard: Shard | None = None
) -> ImageStage:
    """Build a stage with fresh weights that depend on the seed and the name only.

    Args:
        name: one of ``stage_names(config)``.
        source: the pretrained M_1, for the stages that project it; it is copied, then tuned.
        shard: what is trained then, for the stages that train a source; the stage's models, which are whole, are not.
    """
    torch.manual_seed(seed_of(config.run.seed, name))
    if not name.is_projected:
        return _plain(name, config, device, shard)
    assert source is not None
    scales = config.operator.scales if name.scale is None else (name.scale,)
    return _projected(name, config, device, source, scales, shard)


def gpt_config(config: TrainConfig, scale: Fraction, is_conditional: bool = False) -> GPTConfig:
    """The shape of M_s, or of its conditional form M~_s."""
    model = config.model
    shape = GPTConfig(
        vocab_size=config.data.vocab_size,
        n_positions=config.data.positions,
        n_embd=int(model.n_embd * scale),
        n_layer=model.n_layer,
        n_head=model.n_head,
        dropout=model.dropout,
    )
    if not is_conditional:
        return shape
    return dataclasses.replace(
        shape, task_dim=config.data.task_dim, conditioning=model.conditioning, t_mean=model.t_mean, t_std=model.t_std
    )


def make_operator(source: GPT, scale: Fraction, config: TrainConfig) -> ProjectionOperator:
    """A fresh operator of a run's kind."""
    operator = config.operator
    accepted = GENERATORS[operator.generator].options()
    return ProjectionOperator(
        source,
        scale,
        config.data.task_dim,
        operator.rank,
        operator.generator,
        t_mean=config.model.t_mean,
        t_std=config.model.t_std,
        bias_of_t=operator.bias_of_t,
        **{name: value for name, value in operator.generator_options().items() if name in accepted},
    )


def count(model: nn.Module) -> int:
    """Parameters of a model."""
    return sum(p.numel() for p in model.parameters())


def count_of(config: GPTConfig) -> int:
    """Parameters of a GPT of this shape."""
    with torch.device("meta"):
        return count(GPT(config))


def divergence(name: str) -> str:
    """What a log calls the distillation loss of a projected model."""
    return f"divergence of {name} from the source"


def _plain(name: ModelName, config: TrainConfig, device: torch.device, shard: Shard | None) -> ImageStage:
    """Train a GPT alone: the source, M_s or M~_s."""
    is_source, is_conditional = name == SOURCE, name.is_conditional
    assert name.scale is not None
    model = GPT(gpt_config(config, name.scale, is_conditional)).to(device)
    pairs = shard(model, []) if shard is not None else None

    def predict(tokens: Tensor, t: Tensor) -> Tensor:
        return model(tokens, t if is_conditional else None)

    def decoder(t: Tensor) -> Decoder:
        return model.decoder(len(t), t if is_conditional else None)

    def losses(tokens: Tensor, t: Tensor) -> dict[str, Tensor]:
        logits = predict(tokens, t) if pairs is None else pairs(tokens, t, len(tokens))[0]
        return {str(name): nats_per_token(logits, tokens)}

    module, schedule = model if pairs is None else pairs, config.schedule
    return Stage(
        name=name,
        steps=schedule.source_steps if is_source else schedule.steps,
        first_batch=0 if is_source else schedule.source_steps,
        module=module,
        losses=losses,
        loss_weights={str(name): 1.0},
        groups=[{"params": list(module.parameters()), "lr": schedule.source_lr if is_source else schedule.small_lr}],
        models=[
            ImageModel(name=name, predict=predict, decoder=decoder, parameters=count(model), takes_task=is_conditional)
        ],
    )


def _projected(
    name: ModelName,
    config: TrainConfig,
    device: torch.device,
    pretrained: GPT,
    scales: tuple[Fraction, ...],
    shard: Shard | None,
) -> ImageStage:
    """Co-train projected models and their source: sum of L_P, plus w_src L_M1 (paper, Eq. 2)."""
    schedule = config.schedule
    source = GPT(pretrained.config).to(device)
    source.load_state_dict(pretrained.state_dict())
    operators = [make_operator(source, s, config).to(device) for s in scales]
    pairs = shard(source, operators) if shard is not None else None
    whole = nn.ModuleDict({"source": source, "operators": nn.ModuleList(operators)})
    names = [ModelName(Kind.PROJECTED if len(scales) == 1 else Kind.JOINT, s) for s in scales]
    is_only_one = schedule.joint or len(config.operator.scales) == 1
    source_name = ModelName(Kind.TUNED_SOURCE, partner=None if is_only_one else name)
    labels, source_label = list(map(str, names)), str(source_name)

    def run(tokens: Tensor, t: Tensor, source_rows: int) -> tuple[Tensor | None, list[Tensor]]:
        is_teacher = schedule.w_src == 0
        if pairs is not None:
            logits: tuple[Tensor | None, list[Tensor]] = pairs(tokens, t, source_rows, is_teacher)
            return logits
        projected = project_and_run(operators, tokens, t)
        with torch.no_grad() if is_teacher else nullcontext():
            return source(tokens[:source_rows]) if source_rows else None, projected

    def losses(tokens: Tensor, t: Tensor) -> dict[str, Tensor]:
        size = len(tokens) * (schedule.source_batch or schedule.batch_size) // schedule.batch_size
        teacher, projected = run(tokens, t, len(tokens) if schedule.distill > 0 else size * (schedule.w_src > 0))
        parts = {label: nats_per_token(logits, tokens) for label, logits in zip(labels, projected)}
        if teacher is not None and schedule.w_src > 0:
            parts[source_label] = nats_per_token(teacher[:size], tokens[:size])
        if teacher is not None and schedule.distill > 0:
            parts |= {divergence(label): nats_from(teacher, logits) for label, logits in zip(labels, projected)}
        return parts

    models = [
        # The form is named, so that a run's samples are the same each time (see ProjectionOperator.decoder).
        ImageModel(
            name=model_name,
            predict=operator,
            decoder=partial(operator.decoder, form="materialised"),
            parameters=count_of(operator.config),
            takes_task=True,
            operator_parameters=count(operator),
        )
        for model_name, operator in zip(names, operators)
    ]
    tuned = ImageModel(
        name=source_name,
        predict=lambda tokens, t: source(tokens),
        decoder=lambda t: source.decoder(len(t)),
        parameters=count(source),
        takes_task=False,
    )
    source_parameters = list(source.parameters()) if pairs is None else pairs.source_parameters()
    return Stage(
        name=name,
        steps=schedule.steps,
        first_batch=schedule.source_steps,
        module=whole if pairs is None else pairs,
        losses=losses,
        loss_weights=dict.fromkeys(labels, 1.0)
        | {source_label: schedule.w_src}
        | dict.fromkeys(map(divergence, labels), schedule.distill),
        groups=[
            {"params": source_parameters, "lr": schedule.tuning_lr},
            {"params": [p for o in operators for p in o.parameters_of_t()], "lr": schedule.operator_lr},
            {
                "params": [p for o in operators for p in o.parameters_of_its_own()],
                "lr": schedule.tables_lr or schedule.operator_lr,
            },
        ],
        models=[*models, tuned],
    )
