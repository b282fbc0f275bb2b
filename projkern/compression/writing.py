"""Text that a model writes: as training data, so that no other text is needed, and as samples."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm import tqdm

from ..data.text import open_tokens, save_tokens
from ..models.huggingface.causal import evaluating
from ..utils.errors import InputError
from ..utils.files import write_atomically
from ..utils.seeds import seed_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

AT_ONCE = {"cpu": 64, "cuda": 256}
"""Sequences; each chunk of so many is a file, so that an interruption loses one at most."""


def write_tokens(model: PreTrainedModel, count: int, length: int, seed: int, out: Path) -> None:
    """Have a model write sequences of ``length`` tokens, at temperature 1, each from its first token on.

    Chunk k depends on the seed, k and the kind of device alone; those of an interrupted call are kept.

    Args:
        count: tokens in all, rounded up to whole sequences.
        out: the token file (see ``data.text``).

    Raises:
        InputError: a model that names no first token.
    """
    first = first_token(model)
    parts = out.with_name(f"{out.stem}.parts")
    parts.mkdir(parents=True, exist_ok=True)
    vocabulary = model.config.vocab_size
    sequences, at_once = -(-count // length), AT_ONCE.get(model.device.type, AT_ONCE["cpu"])
    paths = []
    with tqdm(total=sequences * length, desc="writing text", unit=" tokens", unit_scale=True) as progress:
        for start in range(0, sequences, at_once):
            size = min(at_once, sequences - start)
            paths.append(parts / f"{start:09d}-{size}.npy")
            if paths[-1].exists():
                progress.update(size * length)
            else:
                torch.manual_seed(seed_of(seed, "text", start))
                begin = torch.full((size, 1), first)
                ids = extend(model, begin, length, draw, progress.update).flatten().cpu().numpy()
                write_atomically(paths[-1], lambda partial, ids=ids: save_tokens(partial, [ids], vocabulary))  # type: ignore[misc]
    write_atomically(out, lambda partial: save_tokens(partial, map(open_tokens, paths), vocabulary))
    shutil.rmtree(parts)


def first_token(model: PreTrainedModel) -> int:
    """The token that a sequence of a model begins with; raises InputError where it names none."""
    for settings in (model.generation_config, model.config):
        for name in ("bos_token_id", "eos_token_id"):
            value = getattr(settings, name, None)
            if value is not None:
                return int(value[0] if isinstance(value, list) else value)
    raise InputError("generate must be left out, and text given: the model names no token to begin with")


@torch.no_grad()
def extend(
    model: PreTrainedModel,
    tokens: Tensor,
    length: int,
    pick: Callable[[Tensor], Tensor],
    done: Callable[[int], object] = lambda count: None,
) -> Tensor:
    """Continue tokens (B, T) to (B, length), one after another, keys and values kept.

    Args:
        pick: from logits (B, vocabulary) to the next tokens (B, 1).
        done: called with the number of tokens that each step adds.
    """
    tokens = following = tokens.to(model.device)
    past = None
    done(tokens.numel())
    with evaluating(model):
        while tokens.shape[1] < length:
            output = model(following, past_key_values=past, use_cache=True)
            past, following = output.past_key_values, pick(output.logits[:, -1])
            tokens = torch.cat([tokens, following], 1)
            done(len(tokens))
    return tokens


def draw(logits: Tensor) -> Tensor:
    """A token from the predictions as they are."""
    return logits.float().softmax(-1).multinomial(1)


def likeliest(logits: Tensor) -> Tensor:
    return logits.argmax(-1, keepdim=True)
