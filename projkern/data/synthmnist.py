"""SynthMNIST: a handwritten digit on a texture that a task identifier describes (paper, appendix C.3).

A task identifier t is uniform in [0, 1]^18. With sc(v) = 2 + 18 v, a(v) = relu(v - 0.3) / 0.7 and
pixel coordinates x, y in [0, 1], the texture of colour channel c in (0, 1, 2) is

    u, v    =  R(2 pi t_0) (x - t_2, y - t_3)
    x~      =  sc(t_1) u + a(t_4) cos(sc(t_6) u) + pi t_{7+c}
    y~      =  sc(t_1) v + a(t_5) cos(sc(t_6) v)
    phase   =  x~                                                   if t_10 is the largest of t_10 .. t_12
               |(x~, y~)|                                           if t_11 is
               10 g t_13 + 2 t_14 with g = cos(x~ / 3) cos(y~ / 3)  if t_12 is
    texture =  clip((0.5 + 1.5 t_{15+c}) cos(phase), -1, 1)

docs/synthmnist.md says which of this is the paper's and which had to be chosen.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..utils.errors import InputError
from ..utils.seeds import seed_of
from .digits import Digits, Split, check_split, load_digits
from .names import TASK_DIM
from .palette import Palette, fit_palette

WARP_THRESHOLD = 0.3  # alpha: no warp below it
COLOR_MIN, COLOR_RANGE = 0.5, 1.5  # beta, gamma
SHIFT = math.pi  # the colour components' largest shift, radians of x~ (our choice)
CANVAS = 32  # a 28x28 digit keeps its size on a 32x32 image, and its proportion on any other


def texture(t: Tensor, size: int) -> Tensor:
    """Textures of task identifiers.

    Args:
        t: (B, 18) float; sampled from [0, 1], but any finite values are meant to work.
        size: S >= 4, height and width in pixels.

    Returns:
        (B, 3, S, S) float32 in [-1, 1], on t's device.

    Raises:
        InputError: another shape of t, or a size below 4.
    """
    _check_tasks(t)
    _check_size(size)
    angle, scale, x0, y0, warp_x, warp_y, warp_scale = t.float()[:, :7, None, None].unbind(1)  # [B, 1, 1]
    shift, color = t.float()[:, 7:10, None, None], t.float()[:, 15:18, None, None]  # [B, 3, 1, 1]
    kind = t[:, 10:13].argmax(1)[:, None, None, None]
    frequency, offset = t.float()[:, 13:15, None, None, None].unbind(1)  # [B, 1, 1, 1]

    axis = (torch.arange(size, device=t.device) + 0.5) / size
    x, y = axis - x0, axis[:, None] - y0  # [B, 1, S], [B, S, 1]
    cos, sin = torch.cos(2 * math.pi * angle), torch.sin(2 * math.pi * angle)
    u, v = cos * x - sin * y, sin * x + cos * y  # [B, S, S]
    x = _scale(scale) * u + _amplitude(warp_x) * torch.cos(_scale(warp_scale) * u)
    y = _scale(scale) * v + _amplitude(warp_y) * torch.cos(_scale(warp_scale) * v)
    x, y = x[:, None] + SHIFT * shift, y[:, None]  # [B, 3, S, S], [B, 1, S, S]

    cells = 10 * torch.cos(x / 3) * torch.cos(y / 3) * frequency + 2 * offset
    phase = torch.where(kind == 0, x, torch.where(kind == 1, torch.hypot(x, y), cells))
    return (torch.cos(phase) * (COLOR_MIN + COLOR_RANGE * color)).clamp(-1, 1)


def _scale(v: Tensor) -> Tensor:
    return 2 + 18 * v


def _amplitude(v: Tensor) -> Tensor:
    return torch.relu(v - WARP_THRESHOLD) / (1 - WARP_THRESHOLD)


def resize_digits(images: Tensor, size: int) -> Tensor:
    """Digits at an image's size: a 28x28 digit fills 28/32 of it, with an equal margin on each side.

    Args:
        images: (n, 28, 28) uint8.
        size: S >= 4.

    Returns:
        (n, S, S) uint8. At S = 32 the original pixels with a margin of two; else resampled (antialiased),
        and darkened where they shrink, so that thin strokes do not turn grey.
    """
    _check_size(size)
    side = round(size * images.shape[-1] / CANVAS)
    side -= (size - side) % 2
    if side != images.shape[-1]:
        gain = max(1.0, images.shape[-1] / side) ** 0.5
        ink = F.interpolate(images[:, None].float(), (side, side), mode="bilinear", antialias=True)[:, 0]
        images = (gain * ink).clamp(max=255).round().to(torch.uint8)
    return F.pad(images, [(size - side) // 2] * 4)


def overlay(images: Tensor, digits: Tensor) -> Tensor:
    """Digits on top of images: white ink, and black paper for one pixel around it, so that it can be read.

    The digit's opacity is the largest ink of the 3x3 neighbourhood; where it is 1, the digit hides the
    texture altogether.

    Args:
        images: (B, 3, S, S) float in [-1, 1].
        digits: (B, S, S) uint8, 0 is paper, 255 is ink.

    Returns:
        (B, 3, S, S) float32 in [-1, 1].
    """
    ink = digits[:, None].float() / 255
    return torch.lerp(images, 2 * ink - 1, F.max_pool2d(ink, 3, stride=1, padding=1))


class SynthMNIST:
    """Batches of SynthMNIST, computed on the fly; a batch is a function of (seed, split, step) alone.

    Task identifiers, digits and flips are drawn on the CPU, so that every device sees the same data (up
    to rounding); images are computed and quantised on ``device``. There is no state: call
    ``batch`` with any step, in any order.

    Args:
        size: S >= 4, height and width in pixels (32 in the paper).
        palette: colours of the tokens.
        digits: of this split; see ``load_digits``.
        seed: integer. The splits' random streams never coincide.
        split: "train" flips each digit horizontally with probability 1/2, "validation" never does.
        batch: B >= 1, images per step.
        examples_per_task: k; B/k task identifiers are drawn and each is used in k consecutive rows, with
            digits drawn independently.
        device: where images are computed and tensors returned.

    Raises:
        InputError: an argument out of its range, or a batch that k does not divide.
    """

    def __init__(
        self,
        size: int,
        palette: Palette,
        digits: Digits,
        seed: int = 0,
        split: Split = "train",
        batch: int = 16,
        examples_per_task: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        _check_size(size)
        check_split(split)
        if batch < 1:
            raise InputError(f"batch must be at least 1; it was {batch}")
        if examples_per_task < 1 or batch % examples_per_task:
            raise InputError(f"examples_per_task must divide the batch, {batch}; it was {examples_per_task}")
        self.size, self.seed, self.split, self.batch_size = size, seed, split, batch
        self.examples_per_task, self.device = examples_per_task, torch.device(device)
        self.palette = palette.to(self.device)
        self.task_dim, self.vocabulary = TASK_DIM, len(palette)
        self._digits = resize_digits(digits.images, size).to(self.device)

    def decode(self, tokens: Tensor) -> Tensor:
        """Images of tokens, by the palette (see ``Palette.decode``)."""
        return self.palette.decode(tokens)

    def batch(self, step: int, t: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Tokens and task identifiers of one step.

        Args:
            step: any integer >= 0.
            t: (B, 18) task identifiers to use in place of the random ones (the digits stay the same).

        Returns:
            tokens (B, S*S) int64 and t (B, 18) float32.
        """
        images, t = self.images(step, t)
        return self.palette.encode(images), t

    def images(self, step: int, t: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As ``batch``, with images before quantisation: (B, 3, S, S) float32 in [-1, 1], and t."""
        random_t, index, flip = self._draw(step)
        t = (random_t if t is None else t).to(self.device, torch.float32)
        if t.shape != random_t.shape:
            raise InputError(f"t must be {tuple(random_t.shape)}; it was {tuple(t.shape)}")
        digits = self._digits[index.to(self.device)]
        digits = torch.where(flip.to(self.device)[:, None, None], digits.flip(-1), digits)
        return overlay(texture(t, self.size), digits), t

    @property
    def positions(self) -> int:
        """T, tokens of an image."""
        return self.size**2

    def tasks(self, step: int) -> Tensor:
        """The task identifiers of ``batch``: (B, 18) float32 in [0, 1)."""
        return self._draw(step)[0].to(self.device)

    def _draw(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(_stream(self.seed, self.split, step))
        k = self.examples_per_task
        t = torch.rand(self.batch_size // k, TASK_DIM, generator=generator).repeat_interleave(k, 0)
        index = torch.randint(len(self._digits), (self.batch_size,), generator=generator)
        flip = torch.rand(self.batch_size, generator=generator) < 0.5
        return t, index, flip & (self.split == "train")


def synthmnist_palette(
    size: int, colors: int = 512, digits: Digits | None = None, seed: int = 0, cache: bool = True
) -> Palette:
    """The palette of SynthMNIST images: k-means over the pixels of training images (512 of them at 32x32).

    Args:
        size: S >= 4, height and width in pixels.
        colors: K >= 2, 512 in the paper.
        digits: training digits; by default scikit-learn's.
        seed: of the images and of k-means.
        cache: keep the result on disk (see ``fit_palette``).

    Returns:
        A ``Palette`` of K colours.

    Raises:
        InputError: ``size`` or ``colors`` out of range.
    """
    _check_size(size)
    digits = load_digits() if digits is None else digits
    grey = Palette(torch.tensor([[-1.0] * 3, [1.0] * 3]))  # images need none, batches do
    count = max(512, (1 << 16) // size**2)
    images, _ = SynthMNIST(size, grey, digits, seed=seed, batch=count).images(0)
    return fit_palette(images, colors, seed=seed, cache=cache)


def _stream(seed: int, split: Split, step: int) -> int:
    """A 32-bit seed (torch's CPU generator uses no more) that no other (split, step) of this seed has."""
    if step < 0:
        raise InputError(f"step must be at least 0; it was {step}")
    number = seed_of(seed, bits=32) + 2 * step + (split == "validation")
    return number * 0x9E3779B1 % 2**32  # an odd factor: one to one, and neighbours land far apart


def _check_tasks(t: Tensor) -> None:
    if t.ndim != 2 or t.shape[1] != TASK_DIM:
        raise InputError(f"t must be (B, {TASK_DIM}); it was {tuple(t.shape)}")


def _check_size(size: int) -> None:
    if size < 4:
        raise InputError(f"size must be at least 4; it was {size}")
