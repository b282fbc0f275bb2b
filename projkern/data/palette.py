"""Colour palettes: k-means clusters of RGB pixels, and images as tokens (paper, section 3.2).

"All 32x32 RGB input images were quantized by separately mapping each pixel into one of 512 discrete
tokens corresponding to one of the color clusters."
"""

from __future__ import annotations

import hashlib
import os
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..utils.errors import InputError
from ..utils.files import home_folder

_CELLS = 32  # the colour cube [-1, 1]^3 is cut into 32^3 cells, each with its list of possible answers
_CHUNK = 1 << 16  # pixels quantised at a time, to bound memory
_FIT_PIXELS = 1 << 16  # k-means sees at most this many pixels
_FORMAT = "projkern-palette-1"  # part of the cache key: change it when fitting changes


class Palette:
    """A list of RGB colours, the meaning of an image's tokens.

    Args:
        colors: (K, 3) float, RGB in [-1, 1], K >= 2. Kept as float32.

    Raises:
        InputError: another shape, or values that are not finite or leave [-1, 1].
    """

    def __init__(self, colors: Tensor) -> None:
        if colors.ndim != 2 or colors.shape[1] != 3 or len(colors) < 2:
            raise InputError(f"colors must be (K, 3) with K >= 2; it was {tuple(colors.shape)}")
        self.colors = colors.detach().to(torch.float32)
        if not bool((self.colors.abs() <= 1).all()):
            raise InputError("colors must be RGB in [-1, 1]; it had values that are not finite or leave this range")
        self._candidates = _cell_candidates(self.colors)  # [cells, C]
        self._rgb = self.colors[self._candidates.long()].mT.contiguous()  # [cells, 3, C]

    def __len__(self) -> int:
        return len(self.colors)

    def to(self, device: torch.device | str) -> Palette:
        """The same palette with its tables on ``device``."""
        copy = object.__new__(Palette)
        for name, table in vars(self).items():
            setattr(copy, name, table.to(device))
        return copy

    def encode(self, images: Tensor) -> Tensor:
        """The nearest colour of each pixel, by Euclidean distance in RGB; of equals, the first.

        The search is exact: each of 32^3 cells of the colour cube lists all colours that are nearest to
        some point of it, and only those are compared.

        Args:
            images: (B, 3, H, W) float on the palette's device, RGB; values beyond [-1, 1] are clipped.

        Returns:
            (B, H*W) int64, tokens in [0, K), row by row from the top left pixel.

        Raises:
            InputError: another shape.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise InputError(f"images must be (B, 3, H, W); it was {tuple(images.shape)}")
        pixels = images.to(torch.float32).clamp(-1, 1).permute(0, 2, 3, 1).reshape(-1, 3)
        tokens = torch.cat([self._nearest(part) for part in pixels.split(_CHUNK)])
        return tokens.view(len(images), -1)

    def _nearest(self, pixels: Tensor) -> Tensor:
        cell = ((pixels + 1) * (_CELLS / 2)).long().clamp(0, _CELLS - 1)  # [pixels, 3]
        cell = (cell[:, 0] * _CELLS + cell[:, 1]) * _CELLS + cell[:, 2]
        distance = (self._rgb.index_select(0, cell) - pixels[:, :, None]).square_().sum(1)  # [pixels, C]
        return self._candidates[cell, distance.argmin(1)].long()

    def decode(self, tokens: Tensor) -> Tensor:
        """Images of tokens.

        Args:
            tokens: (B, S*S) or (S*S,) integer in [0, K), square images row by row.

        Returns:
            (B, 3, S, S) or (3, S, S) float32 in [-1, 1].

        Raises:
            InputError: the last dimension is no square.
            IndexError: a token outside [0, K).
        """
        side = int(tokens.shape[-1] ** 0.5 + 0.5) if tokens.ndim else 0
        if tokens.ndim not in (1, 2) or side * side != tokens.shape[-1]:
            raise InputError(f"tokens must be (B, S*S) or (S*S,); it was {tuple(tokens.shape)}")
        return self.colors[tokens].unflatten(-2, (side, side)).movedim(-1, -3)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the colours as a .npy file, (K, 3) float32, atomically."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")  # another process may write the same cache
        try:
            with temporary.open("wb") as file:
                np.save(file, self.colors.cpu().numpy(), allow_pickle=False)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Palette:
        """Read what ``save`` wrote.

        Raises:
            FileNotFoundError: no such file.
            InputError: the file is damaged or holds something else.
        """
        with open(path, "rb") as file:
            try:
                array = np.load(file, allow_pickle=False)
                return cls(torch.from_numpy(array))
            except (ValueError, EOFError, TypeError, AttributeError, OSError) as error:
                raise InputError(
                    f"{path} must hold a palette, (K, 3) float32 in .npy format; it cannot be used: {error}"
                ) from error


def fit_palette(images: Tensor, colors: int = 512, seed: int = 0, cache: bool = True) -> Palette:
    """Cluster the pixels of images into a palette (k-means in RGB), darkest colour first.

    Deterministic. The result is cached on disk under a hash of the pixels and all settings; a damaged
    cache file is rebuilt with a warning.

    Args:
        images: (B, 3, H, W) float, RGB in [-1, 1]. Of more than 65,536 pixels, that many are drawn.
        colors: K >= 2, at most the number of pixels.
        seed: of the drawing of pixels and of k-means.
        cache: read and write the cache (see ``cache_dir``).

    Returns:
        A ``Palette`` of K colours, on the CPU.

    Raises:
        InputError: ``colors`` out of range, another shape of images, or values that are not finite.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise InputError(f"images must be (B, 3, H, W); it was {tuple(images.shape)}")
    pixels = images.detach().cpu().float().permute(0, 2, 3, 1).reshape(-1, 3)
    if not 2 <= colors <= len(pixels):
        raise InputError(f"colors must be from 2 to the number of pixels, {len(pixels)}; it was {colors}")
    if not bool((pixels.abs() <= 1).all()):
        raise InputError("images must be RGB in [-1, 1]; it had values that are not finite or leave this range")
    if len(pixels) > _FIT_PIXELS:
        generator = torch.Generator().manual_seed(seed)
        pixels = pixels[torch.randperm(len(pixels), generator=generator)[:_FIT_PIXELS]]
    folder = cache_dir() if cache else None
    if folder is None:
        return Palette(_kmeans(pixels, colors, seed))

    key = hashlib.sha256(f"{_FORMAT} {colors} {seed} ".encode() + pixels.numpy().tobytes()).hexdigest()[:32]
    path = folder / "palettes" / f"{key}.npy"
    try:
        palette = Palette.load(path)
        if len(palette) == colors:
            return palette
        warnings.warn(f"{path} holds {len(palette)} colours, not {colors}: rebuilding it", stacklevel=2)
    except FileNotFoundError:
        pass
    except OSError as error:
        warnings.warn(f"the palette cache cannot be read, so the palette is fitted anew: {error}", stacklevel=2)
    except ValueError as error:
        warnings.warn(f"damaged palette cache, rebuilding it: {error}", stacklevel=2)
    palette = Palette(_kmeans(pixels, colors, seed))
    try:
        palette.save(path)
    except OSError as error:
        warnings.warn(f"the palette could not be cached: {error}", stacklevel=2)
    return palette


def cache_dir() -> Path | None:
    """Where projkern caches: $PROJKERN_CACHE, else $XDG_CACHE_HOME/projkern, else ~/.cache/projkern.

    None, and nothing is cached, where these are not set and the user has no home folder.
    """
    if folder := os.environ.get("PROJKERN_CACHE"):
        return Path(folder)
    if folder := os.environ.get("XDG_CACHE_HOME"):
        return Path(folder) / "projkern"
    home = home_folder()
    return None if home is None else home / ".cache" / "projkern"


def _kmeans(pixels: Tensor, colors: int, seed: int) -> Tensor:
    from sklearn.cluster import MiniBatchKMeans

    model = MiniBatchKMeans(colors, random_state=seed, n_init=1, batch_size=8192, max_iter=20)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fewer distinct pixels than colours: repeated colours do no harm
        model.fit(pixels.numpy())
    centers = torch.from_numpy(model.cluster_centers_).float().clamp(-1, 1)
    return centers[centers.sum(1).argsort(stable=True)]


def _cell_candidates(colors: Tensor) -> Tensor:
    """All colours that are nearest to some point of each cell: (32^3, C) int, padded with the first one.

    Let m be a cell's centre, h half its side and n the colour nearest to m. |x - c|^2 - |x - n|^2 is
    linear in x, so its smallest value in the cell is that at m less 2 h |c - n|_1; where it is positive, n
    is nearer than c in the whole cell and c is left out.
    """
    c = colors.detach().cpu().double()
    half = 1 / _CELLS
    axis = torch.arange(_CELLS, dtype=torch.float64) * 2 * half + half - 1
    spread = 2 * half * torch.cdist(c, c, p=1) + 1e-6  # [K, K]; rounding may move a pixel to the next cell
    possible = []
    for centers in torch.cartesian_prod(axis, axis, axis).split(1 << 12):  # in parts, to bound memory
        distance = torch.cdist(centers, c, compute_mode="donot_use_mm_for_euclid_dist").square()  # [cells, K]
        least, nearest = distance.min(1, keepdim=True)
        possible.append(distance - least <= spread[nearest[:, 0]])
    return _lists(torch.cat(possible)).to(colors.device)


def _lists(possible: Tensor) -> Tensor:
    """Columns that are true, row by row: (rows, longest) int32, padded with the first one."""
    count = possible.sum(1)
    cell, color = possible.nonzero(as_tuple=True)
    slot = torch.arange(len(cell)) - (count.cumsum(0) - count)[cell]
    first = possible.int().argmax(1)
    table = first[:, None].repeat(1, int(count.max()))
    table[cell, slot] = color
    return table.to(torch.int32)
