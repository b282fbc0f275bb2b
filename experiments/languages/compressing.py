"""The baseline without t that starts from the source: Projected Compression of it, on the same windows of text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from projkern.compression.config import CompressConfig
from projkern.compression.run import run as compress
from projkern.data.text import save_tokens
from projkern.language.config import LanguageConfig
from projkern.language.trained import LanguageRun
from projkern.models.huggingface.causal import PretrainedFolder
from projkern.models.huggingface.operator import start_token, with_start
from projkern.utils.files import SETTINGS, new_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def compressed(base: LanguageRun, config: LanguageConfig, rate: float, folder: Path) -> tuple[PreTrainedModel, float]:
    """The source of a run, compressed to the size of its small models; heads stay as wide as they are.

    Args:
        base: the run.
        config: its settings, with the steps and the batches that other models have.
        rate: peak learning rate.
        folder: of the compression, which goes on where it left off.

    Returns:
        The small model, and the seconds of its training.
    """
    model, tokens = folder / "source", folder / "windows.npy"
    scale, schedule = config.operator.scales[0], config.schedule
    length = config.tasks.length + 1  # each window begins with the start token, as for all other models
    if not tokens.exists():
        with new_folder(model, replace=True) as partial:
            base.source.save_pretrained(partial)
            base.tokenizer.save_pretrained(partial)
        training, held_out = base.texts("train"), base.texts("validation")
        steps = range(schedule.source_steps, schedule.source_steps + schedule.steps)
        batches = [training.batch(step)[0] for step in steps]
        whole = range(-(-held_out.count // held_out.batch_size))
        batches.append(torch.cat([held_out.batch(step)[0] for step in whole])[: held_out.count])
        start = start_token(base.source)
        rows = (with_start(torch.cat([b, b[:, -1:]], 1), start).numpy().astype(np.uint32).ravel() for b in batches)
        save_tokens(tokens, rows, base.source.config.vocab_size)
    settings = CompressConfig().replace(
        model=str(model),
        text=(str(tokens),),
        hidden_size=int(base.source.config.hidden_size * scale),
        intermediate_size=int(base.source.config.intermediate_size * scale),
        length=length,
        batch_size=schedule.batch_size,
        tokens=schedule.steps * schedule.batch_size * length,
        held_out=base.texts("validation").count,
        lr=rate,
        seed=config.run.seed,
    )
    out = folder / f"rate-{rate:g}"
    summary = compress(out, settings, resume=(out / SETTINGS).exists())
    small = PretrainedFolder.open(out / "model").load(base.device, torch.float32)
    return small, float(summary["seconds"])
