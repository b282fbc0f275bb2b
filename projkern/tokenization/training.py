"""Training of the VQ-VAE that turns images into tokens (paper, appendix C.2)."""

from pathlib import Path

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from ..data.vqvae import BETA, VQVAE, usage
from ..training import checkpoint
from ..training.loop import Diverged, schedule
from ..utils.seeds import seed_of

WARMUP, LOG_EVERY, CHECKPOINT_EVERY = 50, 50, 250  # steps


def train_tokenizer(
    pixels: Tensor, out: Path, codes: int, steps: int, batch: int, lr: float, seed: int, device: torch.device
) -> VQVAE:
    """Train a VQ-VAE, from its last checkpoint if ``out`` has one, and leave a checkpoint of the last step.

    Step k's images, and the outputs from which dead codes restart, are functions of (seed, k) alone, so that a
    resumed training continues as if it had never stopped.

    Args:
        pixels: (n, S, S, 3) uint8.
        out: folder that gets ``checkpoint/`` and ``tensorboard/``.
        codes: K, the vocabulary.
        steps: updates in all.
        batch: images a step, drawn with replacement.
        lr: peak learning rate of Adam; linear warm-up, then a cosine to zero.
        seed: of the initial weights and of what is drawn.
        device: where to train.

    Returns:
        The model, in evaluation mode.

    Raises:
        Diverged: a loss that is not finite; the last good checkpoint is kept.
        CheckpointError: a checkpoint that cannot be read or written.
    """
    torch.manual_seed(seed)
    model = VQVAE(codes).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    folder, start = out / "checkpoint", 0
    if last := checkpoint.latest(folder):
        start, _ = checkpoint.load(last, model, [optimizer])
    histogram = torch.zeros(codes, dtype=torch.int64, device=device)
    progress = tqdm(range(start, steps), desc="tokenizer", initial=start, total=steps, unit=" steps")
    with SummaryWriter(str(out / "tensorboard"), purge_step=start + 1) as log:
        for step in progress:
            for group in optimizer.param_groups:
                group["lr"] = lr * schedule(step, steps, WARMUP)
            generator = _generator(seed, step)
            index = torch.randint(len(pixels), (batch,), generator=generator)
            reconstruction, commitment, tokens = model.losses(to_model(pixels[index], device), generator)
            (reconstruction + BETA * commitment).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            histogram += torch.bincount(tokens.flatten(), minlength=codes)
            done = step + 1
            is_last = done == steps
            if done % LOG_EVERY == 0 or done % CHECKPOINT_EVERY == 0 or is_last:
                if not bool((reconstruction + commitment).isfinite()):
                    raise Diverged(f"the tokenizer's loss is not finite at step {done}; lr must be lower; it was {lr}")
                share, perplexity = usage(histogram)
                log.add_scalar("reconstruction", reconstruction.item(), done)
                log.add_scalar("commitment", commitment.item(), done)
                log.add_scalar("usage", share, done)
                log.add_scalar("perplexity", perplexity, done)
                progress.set_postfix(loss=f"{reconstruction.item():.4f}", codes_used=f"{share:.0%}", refresh=False)
                histogram.zero_()
            if done % CHECKPOINT_EVERY == 0 or is_last:
                checkpoint.save(folder, done, 0.0, model, [optimizer])
    return model.eval().requires_grad_(False)


def to_model(pixels: Tensor, device: torch.device) -> Tensor:
    """Pixels as the model takes them: (b, S, S, 3) uint8 -> (b, 3, S, S) float32 in [-1, 1]."""
    return pixels.to(device).movedim(-1, 1).float() / 127.5 - 1


def _generator(seed: int, step: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed_of(seed, step, bits=32))
