"""The baseline without t: one small model for all tasks, then a copy of it fine-tuned for each task by itself."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from tqdm import tqdm

from projkern.language.trained import LanguageRun, open_texts
from projkern.models.huggingface.operator import predict
from projkern.training.loop import schedule
from projkern.training.losses import evaluate, nats_per_token

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def fine_tune(
    run: LanguageRun, small: PreTrainedModel, steps: int, rate: float, adapter_rank: int | None
) -> list[float]:
    """Fine-tune a copy for each task in turn; returns their held-out losses, nats per token.

    Args:
        run: whose tasks they are.
        small: the model that all copies start from.
        steps: of each copy, with the run's batches, all of one task.
        rate: peak learning rate.
        adapter_rank: of LoRA on every matrix; None to tune all parameters.
    """
    losses = []
    for name, values in tqdm(list(zip(run.tasks.trained, run.vectors.values)), desc="fine-tuning", unit=" tasks"):
        training, held_out = (
            open_texts(run.path, run.config, run.tasks, [name], values[None], split, run.device)
            for split in ("train", "validation")
        )
        model = _with_adapters(copy.deepcopy(small), adapter_rank)
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = rate * schedule(step, steps, 10)
            tokens, _ = training.batch(step)
            nats_per_token(predict(model, tokens), tokens).backward()
            nn.utils.clip_grad_norm_(parameters, run.config.schedule.clip)
            optimizer.step()
            optimizer.zero_grad()
        losses.append(evaluate(lambda tokens, t, m=model: predict(m, tokens), held_out, held_out.count).mean)  # type: ignore[misc]
    return losses


def _with_adapters(model: PreTrainedModel, rank: int | None) -> Any:
    """The model, all of whose parameters are tuned, or only LoRA's of this rank."""
    if rank is None:
        return model.requires_grad_(True)
    from peft import LoraConfig, get_peft_model

    names = sorted(set(_matrices(model)))
    return get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names)).get_base_model()


def _matrices(model: PreTrainedModel) -> Iterator[str]:
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name.split(".")[-1] != "lm_head":
            yield name.split(".")[-1]
