"""Drawing sequences from a model, token by token."""

import time
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from ..utils.device import wait_for
from ..utils.errors import InputError
from .decode import Decoder


class Draws(NamedTuple):
    """How tokens are drawn; see ``sample``."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0


class Sampled(NamedTuple):
    """Sequences that were drawn, and how long that took."""

    tokens: Tensor  # (B, T) int64
    seconds: float
    tokens_per_second: float  # of all sequences together


@torch.no_grad()
def sample(
    decoder: Decoder,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Sampled:
    """Draw whole sequences.

    Args:
        decoder: one that has made no step yet.
        temperature: logits are divided by it; 0 takes the likeliest token always.
        top_k: draw from the k likeliest tokens only.
        top_p: draw from the likeliest tokens only, as few as together have at least this probability; after top_k.
        seed: of the draws.
        progress: show a progress bar.

    Raises:
        InputError: an argument out of its range, a decoder that has made steps, or one whose logits are no numbers.
    """
    check_draws(temperature, top_k, top_p)
    if decoder.position:
        raise InputError(f"decoder must be a fresh one; it was at position {decoder.position}")
    generator = torch.Generator(decoder.device).manual_seed(seed)
    drawn: list[Tensor] = []
    began = time.perf_counter()
    for _ in tqdm(range(decoder.positions), unit=" tokens", desc="sample", leave=False, disable=not progress):
        shares = probabilities(decoder.step(drawn[-1] if drawn else None), temperature, top_k, top_p)
        if shares.isnan().any():  # of a model for a t far outside the training range, say
            raise InputError(f"decoder must give finite logits; those of token {len(drawn)} were not")
        drawn.append(torch.multinomial(shares, 1, generator=generator)[:, 0])
    tokens = torch.stack(drawn, dim=1)
    wait_for(decoder.device)
    seconds = time.perf_counter() - began
    return Sampled(tokens, seconds, tokens.numel() / seconds)


def probabilities(logits: Tensor, temperature: float, top_k: int | None, top_p: float | None) -> Tensor:
    """The distribution that tokens are drawn from: logits (B, V) -> (B, V) float32, each row's sum 1."""
    logits = logits.float()
    if temperature == 0:
        top_k, temperature = 1, 1.0
    # The largest becomes 0 first: however small the temperature, it stays finite; but 0 / 0, as float32 has it, is not.
    temperature = max(temperature, torch.finfo(torch.float32).tiny)
    shares = ((logits - logits.amax(-1, keepdim=True)) / temperature).softmax(-1)
    if top_p == 1:
        top_p = None  # the rounding of a cumulated sum would drop the least likely tokens
    if top_k is None and top_p is None:
        return shares
    ranked, order = shares.sort(dim=-1, descending=True, stable=True)
    if top_k is not None:
        ranked[:, top_k:] = 0
    if top_p is not None:
        before = ranked.cumsum(-1) - ranked
        ranked = ranked.where(before < top_p * ranked.sum(-1, keepdim=True), 0)
    return torch.zeros_like(shares).scatter(-1, order, ranked / ranked.sum(-1, keepdim=True))


def check_draws(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Raise InputError where one of them is out of its range."""
    if not 0 <= temperature < float("inf"):
        raise InputError(f"temperature must be a number >= 0; it was {temperature}")
    if top_k is not None and top_k < 1:
        raise InputError(f"top_k must be at least 1; it was {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise InputError(f"top_p must lie in (0, 1]; it was {top_p}")
