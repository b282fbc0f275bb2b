"""The training of a projected model, as a job of the training loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..data.text import Windows
from ..training import checkpoint
from ..training.checkpoint import Optimizers
from ..training.distributed import current
from ..training.loop import Job, schedule
from ..training.muon import Muon
from .blocks import Block
from .config import CompressConfig
from .losses import next_token_losses
from .projected import ProjectedModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WEIGHT_DECAY, CLIP, FLOOR = 0.1, 1.0, 0.1
"""As the authors: on everything; the largest norm of the small model's gradient; the end of the cosine."""


def make_optimizers(projected: ProjectedModel, config: CompressConfig, lr: float) -> dict[Block, Optimizers]:
    """Optimizers of each block, so that one can be stepped and freed before the next."""
    return {block: _of_block(projected, block, config, lr) for block in projected.all_blocks()}


def _of_block(projected: ProjectedModel, block: Block, config: CompressConfig, lr: float) -> Optimizers:
    with_muon = config.tuning.optimizer == "muon"
    is_matrix = block.residual.dim() == 3 and not projected.tables & set(block.stack.names)
    by_muon = [block.residual] if with_muon and is_matrix else []
    if by_muon and not block.is_grouped:
        by_muon += block.projections
    rest = [p for p in block.parameters() if all(p is not q for q in by_muon)]
    optimizers: list[torch.optim.Optimizer] = []
    if by_muon:
        optimizers.append(Muon(by_muon, lr=lr, weight_decay=WEIGHT_DECAY))
    if rest:
        optimizers.append(torch.optim.AdamW(rest, lr=lr, weight_decay=WEIGHT_DECAY, fused=True))
    return optimizers


def compression_job(
    projected: ProjectedModel, teacher: PreTrainedModel, windows: Windows, config: CompressConfig, dtype: torch.dtype
) -> Job:
    """The training of a projected model on windows of text, of which each process takes its share.

    Args:
        teacher: the source, for the divergence; it is run where ``distill`` is above 0, and needs no weights elsewhere.
        dtype: of autocast; float32 for none.
    """
    ranks = current()
    ranks.require_same("text", lambda: [windows.batch(0)])
    lr = config.rate(teacher.config.hidden_size, teacher.config.num_hidden_layers)
    optimizers = make_optimizers(projected, config, lr)
    weight, micro = config.tuning.distill, config.micro_batch(teacher.config.vocab_size)
    small, device = projected.small, projected.small.device

    def step_block(block: Block) -> None:
        for optimizer in optimizers[block]:
            optimizer.step()

    def update(step: int) -> tuple[dict[str, Tensor], Tensor]:
        batch = ranks.share(windows.batch(step), 1)
        projected.materialise()
        small.train()
        total = torch.zeros(2, dtype=projected.dtype, device=device)
        for tokens in batch.to(device).split(micro):
            with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
                with torch.no_grad():
                    target = teacher(tokens, use_cache=False).logits if weight > 0 else None
                logits = small(tokens, use_cache=False).logits
            share = len(tokens) / len(batch)
            loss, entropy, divergence = next_token_losses(logits, tokens, target, weight)
            (share * loss).backward()
            total += share * torch.stack([entropy, divergence])
        projected.average_gradients()
        norm = projected.clip_gradients(CLIP)
        projected.backward(step_block)
        losses = {"text": total[0]} | ({"from the source": total[1]} if weight > 0 else {})
        return losses, norm

    all_of_them = [optimizer for of_block in optimizers.values() for optimizer in of_block]
    warmup = max(10, config.steps // 50)
    return Job(
        name="compression",
        steps=config.steps,
        module=projected,
        optimizers=all_of_them,
        rate=lambda step: schedule(step, config.steps, warmup, FLOOR),
        update=update,
        unit="tokens",
        batch_size=config.tuning.batch_size * config.text.length,
        seed=config.run.seed,
        log_every=config.run.log_every,
        checkpoint_every=config.run.checkpoint_every,
        shards=checkpoint.Parts(projected, all_of_them, ranks),
    )
