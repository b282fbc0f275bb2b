"""Text that a model writes, by transformers' own ``generate``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ..models.huggingface.operator import start_token

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Draws(NamedTuple):
    """How tokens are drawn, as ``generate`` of transformers has it; a temperature of 0 takes the likeliest."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0


@torch.no_grad()
def write(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, tokens: int, draws: Draws, count: int = 1
) -> list[str]:
    """Texts that a model writes after a prompt, without the prompt.

    Args:
        model: a causal language model, in evaluation mode.
        tokenizer: of its text.
        prompt: may be empty; the model's start token comes before it.
        tokens: at most so many are drawn; a text may end before.
        draws: how.
        count: number of texts.
    """
    ids = [start_token(model), *tokenizer(prompt, add_special_tokens=False).input_ids]
    inputs = torch.tensor([ids] * count, device=model.device)
    options: dict[str, Any] = {"do_sample": draws.temperature > 0}
    if draws.temperature > 0:
        options |= {"temperature": draws.temperature, "top_k": draws.top_k or 0, "top_p": draws.top_p or 1.0}
    end = tokenizer.eos_token_id
    with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(draws.seed)
        written: Any = model.generate(  # type: ignore[operator]
            inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=tokens,
            eos_token_id=end,
            pad_token_id=end if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
            **options,
        )
    return [str(tokenizer.decode(row[len(ids) :], skip_special_tokens=True)) for row in written]
