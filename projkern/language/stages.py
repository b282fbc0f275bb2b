"""What a run on tasks of text trains, in order: the source, the small baselines, the projected models."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..models import TransformersOperator
from ..models.huggingface.conditional import ConditionalModel
from ..models.huggingface.grouping import Grouping
from ..models.huggingface.operator import predict
from ..models.names import SOURCE, Kind, ModelName
from ..training.losses import nats_per_token
from ..training.stages import Model, Stage, count
from ..utils.seeds import seed_of
from .config import LanguageConfig
from .projected import ProjectedLosses
from .vectors import TaskVectors

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class TextModel(Model):
    """A model that writes text."""

    standalone: Callable[[Tensor], PreTrainedModel]  # from t (task_dim,), for transformers' ``generate``


TextStage = Stage[TextModel]


@dataclass(frozen=True)
class TaskSpace:
    """What t is to the models: its length, and how they normalise it."""

    task_dim: int
    mean: float
    std: float

    @classmethod
    def of(cls, vectors: TaskVectors) -> TaskSpace:
        """That of a run's tasks."""
        return cls(vectors.values.shape[2], *vectors.moments)


def new_source(config: LanguageConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A Llama with fresh weights, of the run's shape and the tokenizer's vocabulary."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = config.model
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=shape.n_embd,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=shape.n_layer,
            num_attention_heads=shape.n_head,
            head_dim=shape.n_embd // shape.n_head,
            max_position_embeddings=config.tasks.length + 1,  # of a window after its start token
            initializer_range=0.5 / shape.n_embd**0.5,
            bos_token_id=tokenizer.eos_token_id,  # a text begins as after the end of another
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def make_stage(
    name: ModelName, config: LanguageConfig, space: TaskSpace, source: PreTrainedModel, device: torch.device
) -> TextStage:
    """Build a stage; its fresh weights depend on the seed and the name only.

    Args:
        name: one of ``training.stages.names_of(config.operator.scales, config.schedule)``.
        source: of the first stage the model that it trains; of the others the trained one, which is copied.
    """
    torch.manual_seed(seed_of(config.run.seed, name))
    if name == SOURCE:
        return _source(config, source.to(device))  # type: ignore[arg-type]
    assert name.scale is not None
    if name.is_projected:
        return _projected(name, config, space, source, device)
    return _baseline(name, config, space, source, device)


def make_operator(
    source: PreTrainedModel, scale: Fraction, config: LanguageConfig, space: TaskSpace
) -> TransformersOperator:
    """A fresh operator of a run's kind."""
    operator = config.operator
    return TransformersOperator(
        source,
        scale,
        space.task_dim,
        operator.rank,
        shrink_heads=operator.shrink_heads,
        vectors_of_t=operator.vectors_of_t,
        t_mean=space.mean,
        t_std=space.std,
    )


def _source(config: LanguageConfig, model: PreTrainedModel) -> TextStage:
    schedule = config.schedule
    return Stage(
        name=SOURCE,
        steps=schedule.source_steps,
        first_batch=0,
        module=model,
        losses=lambda tokens, t: {str(SOURCE): nats_per_token(predict(model, tokens), tokens)},
        loss_weights={str(SOURCE): 1.0},
        groups=[{"params": list(model.parameters()), "lr": schedule.source_lr}],
        models=[plain_model(SOURCE, model)],
    )


def plain_model(name: ModelName, model: PreTrainedModel) -> TextModel:
    """A model that takes no t."""
    return TextModel(
        name=name,
        predict=lambda tokens, t: predict(model, tokens),
        parameters=count(model),
        takes_task=False,
        standalone=lambda t: model,
    )


def small_model(source: PreTrainedModel, scale: Fraction, config: LanguageConfig) -> PreTrainedModel:
    """A small baseline to start from: with fresh weights, or, where the source was given, with the source's projected.

    So a baseline begins with no less than the projected model does.
    """
    grouping = Grouping.of(source.config, scale, shrink_heads=config.operator.shrink_heads)
    if config.model.source is not None:
        operator = TransformersOperator(source, scale, 1, 1, shrink_heads=config.operator.shrink_heads)
        return operator.generate(torch.zeros(1, device=source.device))
    shape = copy.deepcopy(grouping.config)
    shape.initializer_range *= grouping.group**0.5
    return type(source)(shape)  # type: ignore[arg-type]


def _baseline(
    name: ModelName, config: LanguageConfig, space: TaskSpace, source: PreTrainedModel, device: torch.device
) -> TextStage:
    """Train a small model alone: M_s or M~_s."""
    assert name.scale is not None
    schedule = config.schedule
    small = small_model(source, name.scale, config)
    module: nn.Module = small
    model = plain_model(name, small)
    if name.is_conditional:
        conditional = ConditionalModel(
            small, space.task_dim, config.model.conditioning, t_mean=space.mean, t_std=space.std
        )
        module = conditional
        model = TextModel(
            name=name,
            predict=conditional,
            parameters=count(conditional),
            takes_task=True,
            standalone=conditional.specialised,
        )
    module.to(device)
    return Stage(
        name=name,
        steps=schedule.steps,
        first_batch=schedule.source_steps,
        module=module,
        losses=lambda tokens, t: {str(name): nats_per_token(model.predict(tokens, t), tokens)},
        loss_weights={str(name): 1.0},
        groups=[{"params": list(module.parameters()), "lr": schedule.small_lr}],
        models=[model],
    )


def _projected(
    name: ModelName, config: LanguageConfig, space: TaskSpace, pretrained: PreTrainedModel, device: torch.device
) -> TextStage:
    """Train a projected model and, unless it is frozen, its source: L_P plus w_src L_M1 (paper, Eq. 2)."""
    assert name.scale is not None
    schedule = config.schedule
    source: PreTrainedModel = copy.deepcopy(pretrained).to(device)  # type: ignore[arg-type]
    source.requires_grad_(not schedule.freeze_source)
    operator = make_operator(source, name.scale, config, space).to(device)
    is_only_one = len(config.operator.scales) == 1
    label, source_name = str(name), ModelName(Kind.TUNED_SOURCE, partner=None if is_only_one else name)
    losses = ProjectedLosses(operator, source, schedule, label, str(source_name))
    groups: list[dict[str, object]] = [
        {"params": operator.parameters_of_t(), "lr": schedule.operator_lr},
        {"params": operator.parameters_of_its_own(), "lr": schedule.tables_lr or schedule.operator_lr},
    ]
    modules: dict[str, nn.Module] = {"operator": operator}
    models = [
        TextModel(
            name=name,
            predict=operator,
            parameters=count(operator.small),
            takes_task=True,
            operator_parameters=count(operator),
            standalone=operator.generate,
        )
    ]
    if not schedule.freeze_source:
        groups.insert(0, {"params": list(source.parameters()), "lr": schedule.tuning_lr})
        modules["source"] = source
        models.append(plain_model(source_name, source))
    return Stage(
        name=name,
        steps=schedule.steps,
        first_batch=schedule.source_steps,
        module=nn.ModuleDict(modules),
        losses=losses.losses,
        backward=losses.backward,
        loss_weights=losses.weights,
        groups=groups,
        models=models,
    )
