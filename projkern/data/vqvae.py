"""The VQ-VAE that turns images into tokens (paper, appendix C.2; van den Oord et al., arXiv 1711.00937).

    z = encoder(x)    token = argmin_k |z - e_k|^2    loss = |x - decoder(e)|^2 + beta |z - e|^2

The codes e_k follow the outputs that chose them by exponential moving averages (that paper's appendix A.1):

    N_k <- gamma N_k + (1 - gamma) n_k    m_k <- gamma m_k + (1 - gamma) sum z    e_k = m_k / N_k

docs/tokenizing.md says which of this is the paper's and which had to be chosen.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..utils.errors import InputError
from ..utils.tensors import read_tensors, write_tensors

WIDTH = 64
"""Numbers in a code: the depth of the encoder's last layer."""
BETA = 0.2
"""Weight of the commitment loss (appendix C.2)."""
DECAY = 0.9
"""gamma, of the moving averages."""
DEAD = 0.05
"""A code that has less than this part of an even share of the outputs restarts from one of them."""


class VQVAE(nn.Module):
    """Encoder, codebook and decoder; an image of S x S pixels is (S/2)^2 tokens.

    Args:
        codes: K >= 2, the vocabulary (512 in the paper).

    Raises:
        InputError: fewer codes.
    """

    def __init__(self, codes: int = 512) -> None:
        super().__init__()
        self.codebook = Codebook(codes)
        self.encoder = nn.Sequential(
            *(nn.Conv2d(3, 32, 3, 2, 1), nn.LeakyReLU()),
            *(nn.Conv2d(32, 64, 3, 1, 1), nn.LeakyReLU()),
            *(nn.Conv2d(64, WIDTH, 3, 1, 1), nn.LeakyReLU()),
        )
        self.decoder = nn.Sequential(
            *(nn.ConvTranspose2d(WIDTH, 64, 3, 2, 1, output_padding=1), nn.LeakyReLU()),
            *(nn.ConvTranspose2d(64, 64, 3, 1, 1), nn.LeakyReLU()),
            *(nn.ConvTranspose2d(64, 32, 3, 1, 1), nn.LeakyReLU()),
            nn.ConvTranspose2d(32, 3, 1),
        )

    def losses(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Losses of one training step, which also moves the codes.

        Args:
            images: (B, 3, S, S) float32 in [-1, 1].
            generator: on the CPU; draws the outputs from which dead codes restart.

        Returns:
            Mean squared errors of the reconstruction and of the commitment (before its weight), and tokens
            (B, (S/2)^2) int64.
        """
        z = self.encoder(images)
        outputs = z.detach().movedim(1, -1).flatten(0, 2)  # [B h w, WIDTH]
        self.codebook.revive(outputs, generator)
        tokens = self.codebook.nearest(outputs)
        e = self.codebook.vectors[tokens].view(len(z), *z.shape[2:], WIDTH).movedim(-1, 1)
        self.codebook.follow(outputs, tokens)
        decoded = self.decoder(z + (e - z).detach())  # straight through: the gradient at e is passed on to z
        return F.mse_loss(decoded, images), F.mse_loss(z, e), tokens.view(len(z), -1)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Tokens of images.

        Args:
            images: (B, 3, S, S) float in [-1, 1], S even.

        Returns:
            (B, (S/2)^2) int64 in [0, K), row by row from the top left.

        Raises:
            InputError: another shape.
        """
        if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] != images.shape[3] or images.shape[2] % 2:
            raise InputError(f"images must be (B, 3, S, S) with an even S; it was {tuple(images.shape)}")
        z = self.encoder(images.float())
        return self.codebook.nearest(z.movedim(1, -1).flatten(0, 2)).view(len(images), -1)

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """Images of tokens.

        Args:
            tokens: (B, T) integer in [0, K), T a square.

        Returns:
            (B, 3, 2 sqrt(T), 2 sqrt(T)) float32 in [-1, 1].

        Raises:
            InputError: another shape.
            IndexError: a token outside [0, K).
        """
        side = int(tokens.shape[-1] ** 0.5 + 0.5) if tokens.ndim else 0
        if tokens.ndim != 2 or side * side != tokens.shape[1]:
            raise InputError(f"tokens must be (B, T) with T a square; it was {tuple(tokens.shape)}")
        e = self.codebook.vectors[tokens.long()].unflatten(1, (side, side))
        decoded: Tensor = self.decoder(e.movedim(-1, 1))
        return decoded.clamp(-1, 1)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file, atomically."""
        write_tensors(Path(path), self.state_dict())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> VQVAE:
        """Read what ``save`` wrote, in evaluation mode on the CPU; raises InputError where it is something else."""
        tensors = read_tensors(Path(path))
        try:
            model = cls(len(tensors["codebook.vectors"]))
            model.load_state_dict(tensors)
        except (KeyError, RuntimeError) as error:
            raise InputError(f"{path} must hold a VQ-VAE of appendix C.2; it does not: {error}") from error
        return model.eval().requires_grad_(False)


class Codebook(nn.Module):
    """The codes e_k and the moving averages that they follow; no gradient reaches them.

    Args:
        codes: K >= 2.
    """

    vectors: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(self, codes: int) -> None:
        super().__init__()
        if codes < 2:
            raise InputError(f"codes must be at least 2; it was {codes}")
        self.register_buffer("vectors", torch.zeros(codes, WIDTH))  # e_k
        self.register_buffer("counts", torch.zeros(codes))  # N_k: at 0, all are dead and start from the first batch
        self.register_buffer("sums", torch.zeros(codes, WIDTH))  # m_k

    def nearest(self, outputs: Tensor) -> Tensor:
        """The code next to each output (n, WIDTH): (n,) int64, by Euclidean distance."""
        return torch.addmm(self.vectors.square().sum(1), outputs, self.vectors.T, alpha=-2).argmin(1)

    def revive(self, outputs: Tensor, generator: torch.Generator) -> None:
        """Put each dead code onto one of the outputs (n, WIDTH), drawn at random, with an even share as its count."""
        index = torch.randint(len(outputs), (len(self.counts),), generator=generator).to(outputs.device)
        share = len(outputs) / len(self.counts)
        dead = self.counts < DEAD * share
        starts = outputs[index]
        self.counts[:] = torch.where(dead, share, self.counts)
        self.vectors[:] = torch.where(dead[:, None], starts, self.vectors)
        self.sums[:] = torch.where(dead[:, None], share * starts, self.sums)

    def follow(self, outputs: Tensor, tokens: Tensor) -> None:
        """Move the averages, and with them the codes, towards the outputs (n, WIDTH) that chose them (n,)."""
        histogram = torch.bincount(tokens, minlength=len(self.counts)).to(outputs.dtype)
        total = torch.zeros_like(self.sums).index_add_(0, tokens, outputs)
        self.counts.lerp_(histogram, 1 - DECAY)
        self.sums.lerp_(total, 1 - DECAY)
        self.vectors[:] = self.sums / self.counts[:, None]


def usage(histogram: Tensor) -> tuple[float, float]:
    """How well a codebook is used.

    Args:
        histogram: (K,) how often each code occurs.

    Returns:
        The part of the codes that occur at all, and the perplexity: the exponential of the entropy in nats.
    """
    p = histogram.double() / histogram.sum()
    return float((histogram > 0).double().mean()), float(torch.exp(torch.special.entr(p).sum()))
