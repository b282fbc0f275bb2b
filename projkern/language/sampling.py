"""Text that a task's model writes, by transformers' own ``generate``."""

from __future__ import annotations

import time
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ..models.huggingface.causal import PretrainedFolder
from ..models.huggingface.operator import positions_of, start_token
from ..models.sampling import Draws, check_draws
from ..training.stages import count as count_parameters
from ..utils.device import wait_for
from ..utils.errors import InputError
from ..utils.files import SETTINGS, read_object
from .folder import is_language_run
from .trained import LanguageRun

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Written(NamedTuple):
    """Texts that were written, without their prompt."""

    texts: list[str]
    tokens_per_second: float  # of all texts together
    parameters: int  # of the model


def writes_text(folder: Path) -> bool:
    """Whether a folder holds a run on tasks of text, or a model with a tokenizer of text."""
    if is_language_run(folder):
        return True
    try:
        is_model = "model_type" in read_object(folder / SETTINGS, "a model")
    except InputError:
        return False
    return is_model and (folder / "tokenizer_config.json").exists()


def write_from(
    folder: Path,
    device: torch.device,
    draws: Draws,
    *,
    prompt: str = "",
    tokens: int = 200,
    count: int = 1,
    scale: Fraction | None = None,
    task: str | None = None,
    like: Path | None = None,
    vectors: Path | None = None,
) -> Written:
    """Texts of the model that a run generates for a task, or of a standalone model.

    Args:
        folder: of a run on tasks of text, or of a model.
        device: where to compute.
        draws: how tokens are drawn.
        prompt: what the text begins with.
        tokens: at most so many are drawn; a text may end before.
        count: number of texts.
        scale: one that the run has. This and the following are for runs alone.
        task: the name of a task.
        like: a file with a sample of a task's text.
        vectors: a file with one t.

    Raises:
        InputError: no such run, model or task, or an argument that it does not take.
    """
    for name, value in (("tokens", tokens), ("texts", count)):
        if value < 1:
            raise InputError(f"{name} must be at least 1; it was {value}")
    if is_language_run(folder):
        if task is None and like is None and vectors is None:
            raise InputError("--task, --like or --t must be given for a run on tasks of text")
        run = LanguageRun.open(folder, device)
        chosen = run.chosen([task] if task is not None else None, like, vectors)
        if len(chosen) > 1:
            raise InputError(f"t must be one task identifier; {vectors} has {len(chosen)}")
        return write(run.operator(scale).generate(chosen[0].t), run.tokenizer, draws, prompt, tokens, count)
    of_runs = {"scale": scale, "task": task, "like": like, "t": vectors}
    unused = [name for name, value in of_runs.items() if value is not None]
    if unused:
        raise InputError(f"{unused[0]} must be left out for a model, which is of one task already")
    model = PretrainedFolder.open(folder)
    return write(model.load(device, None), model.tokenizer(), draws, prompt, tokens, count)


@torch.no_grad()
def write(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    draws: Draws,
    prompt: str = "",
    tokens: int = 200,
    count: int = 1,
) -> Written:
    """Texts that a model writes after a prompt; its start token comes first.

    Args:
        model: a causal language model, in evaluation mode.
        tokenizer: of its text.
        draws: how tokens are drawn.
        prompt: may be empty.
        tokens: at most so many are drawn; a text may end before, and ends where the model's positions do.
        count: number of texts.

    Raises:
        InputError: a draw out of its range, or a prompt that leaves no position.
    """
    from transformers import GenerationConfig

    check_draws(*draws[:3])
    ids = [start_token(model), *tokenizer(prompt, add_special_tokens=False).input_ids]
    positions = positions_of(model)
    if len(ids) >= positions:
        raise InputError(f"prompt must have fewer than the model's {positions - 1} tokens; it has {len(ids) - 1}")
    tokens = min(tokens, positions - len(ids))
    inputs = torch.tensor([ids] * count, device=model.device)
    end = tokenizer.eos_token_id
    settings = GenerationConfig(  # and none of the model's own, so that models compare
        max_new_tokens=tokens,
        eos_token_id=end,
        pad_token_id=end if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        do_sample=draws.temperature > 0,
    )
    if draws.temperature > 0:
        settings.update(temperature=draws.temperature, top_k=draws.top_k or 0, top_p=draws.top_p or 1.0)
    began = time.perf_counter()
    with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(draws.seed)
        written: Any = model.generate(  # type: ignore[operator]
            inputs, attention_mask=torch.ones_like(inputs), generation_config=settings
        )
    wait_for(model.device)
    rate = (written.shape[1] - len(ids)) * count / (time.perf_counter() - began)
    return Written([_continuation(tokenizer, ids, row.tolist()) for row in written], rate, count_parameters(model))


def _continuation(tokenizer: PreTrainedTokenizerBase, ids: list[int], row: list[int]) -> str:
    """What a text has after its prompt: decoded with it, because some tokenizers drop a space at a beginning."""
    prompt, whole = (str(tokenizer.decode(part[1:], skip_special_tokens=True)) for part in (ids, row))
    if whole.startswith(prompt):
        return whole[len(prompt) :]
    return str(tokenizer.decode(row[len(ids) :], skip_special_tokens=True))


def printable(text: str) -> str:
    """A text for a terminal: without control characters, which a model of bytes may write."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)
