"""Little pictures, and files that hold them."""

import io

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image


def pictures(n, size, seed=0):
    """Smooth images (n, size, size, 3) uint8, all different."""
    coarse = torch.rand(n, 3, 3, 3, generator=torch.Generator().manual_seed(seed))
    smooth = F.interpolate(coarse, (size, size), mode="bilinear").movedim(1, -1)
    return (255 * smooth).round().to(torch.uint8).numpy()


def encoded(pixels, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def pack(path, files, labels, **more):
    """The .npz of image files end to end."""
    offsets = np.cumsum([0, *map(len, files)])
    jpeg = np.frombuffer(b"".join(files), np.uint8)
    np.savez(path, jpeg=jpeg, offsets=offsets, labels=np.array(labels, np.int16), **more)
    return path
