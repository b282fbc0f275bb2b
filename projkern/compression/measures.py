"""What is measured of a language model: held-out loss, speed, memory, and text that it writes."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.text import Windows
from ..models.huggingface.causal import evaluating
from ..utils.device import wait_for
from .writing import extend, likeliest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

GENERATED, ROUNDS = 32, 3


@dataclass(frozen=True)
class HeldOut:
    """Loss on the held-out windows, nats per token: the mean, and its standard error over windows."""

    loss: float
    standard_error: float

    def to_json(self) -> dict[str, Any]:
        return {"loss": round(self.loss, 5), "standard_error": round(self.standard_error, 5)}


@torch.no_grad()
def held_out_loss(model: PreTrainedModel, windows: Windows, at_once: int) -> HeldOut:
    """Next-token loss of a model on all held-out windows.

    Args:
        at_once: windows that run through the model together.
    """
    losses: list[float] = []
    with evaluating(model):
        for tokens in windows.held_out_batches(at_once):
            tokens = tokens.to(model.device)
            logits = model(tokens, use_cache=False).logits[:, :-1]
            of_tokens = F.cross_entropy(logits.float().mT, tokens[:, 1:], reduction="none")
            losses += of_tokens.mean(1).tolist()
    values = torch.tensor(losses, dtype=torch.float64)
    return HeldOut(values.mean().item(), values.std().item() / math.sqrt(len(values)))


def measure_speed(
    models: dict[str, PreTrainedModel], tokens: Tensor, stored: torch.dtype
) -> dict[str, dict[str, float]]:
    """Greedy decoding of one sequence by each model in turn: tokens per second, the best of a few rounds.

    Args:
        models: all of one type.
        tokens: (1, T), what is continued.
        stored: type of their files, by which weights and cache are counted.
    """
    best = dict.fromkeys(models, 0.0)
    for _ in range(ROUNDS):
        for name, model in models.items():
            start = time.perf_counter()
            extend(model, tokens, tokens.shape[1] + GENERATED, likeliest)
            wait_for(model.device)
            best[name] = max(best[name], GENERATED / (time.perf_counter() - start))
    return {
        name: {
            "tokens_per_second": round(best[name], 1),
            "weight_bytes": sum(p.numel() for p in model.parameters()) * stored.itemsize,
            "cache_bytes_per_token": _cache_numbers(model) * stored.itemsize,
        }
        for name, model in models.items()
    }


def _cache_numbers(model: PreTrainedModel) -> int:
    """Numbers in the keys and values of one token."""
    config: Any = model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * width)


def write_samples(
    models: dict[str, PreTrainedModel], tokenizer: PreTrainedTokenizerBase, windows: Windows, count: int = 3
) -> list[dict[str, str]]:
    """Continuations of the beginnings of held-out windows, by each model: a row for each, with its "prompt"."""
    length = max(1, min(24, windows.length // 2))
    rows = []
    for tokens in list(windows.held_out_batches(1))[:: max(1, windows.held_out // count)][:count]:
        prompt = tokens[:, :length]
        row = {"prompt": str(tokenizer.decode(prompt[0], skip_special_tokens=True))}
        for name, model in models.items():
            written = extend(model, prompt, length + 48, likeliest)[0, length:]
            row[name] = str(tokenizer.decode(written, skip_special_tokens=True))
        rows.append(row)
    return rows
