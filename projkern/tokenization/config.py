"""The settings of a folder of tokenised images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from ..utils.errors import InputError
from ..utils.settings import require, require_types, setting


@dataclass(frozen=True)
class TokenizeConfig:
    """All that determines a folder's content. Every field is also an option of ``python -m projkern.tokenize``."""

    train: str | None = setting(None, "training images: a folder of class folders, or .npz")
    validation: str | None = setting(None, "validation images, likewise")
    embeddings: str | None = setting(None, "t of each image: .npy (n, dim), or .npz with train and val")
    validation_embeddings: str | None = setting(None, "the same for the validation images; without it --embeddings")
    encoder: str | None = setting(None, "in place of --embeddings: timm:NAME, or a program FILE.pt, FILE.pt2")
    size: int = setting(64, "S: images are S x S pixels and (S/2)^2 tokens")
    codes: int = setting(512, "the vocabulary")
    steps: int = setting(4000, "training steps of the tokenizer")
    batch: int = setting(16, "images a step")
    lr: float = setting(3e-3, "peak learning rate; a cosine to zero")
    seed: int = setting(0, "of the initial weights, and of the images that are drawn")

    def __post_init__(self) -> None:
        require_types(self)
        for name, least in (("codes", 2), ("steps", 1), ("batch", 1), ("seed", 0)):
            require(self, name, getattr(self, name) >= least, f"at least {least}")
        require(self, "size", self.size >= 4 and self.size % 2 == 0, "even and at least 4")
        require(self, "lr", 0 < self.lr < math.inf, "finite and above 0")

    def require_inputs(self) -> None:
        """Raise InputError unless the images are named, and one source of their t."""
        for name in ("train", "validation"):
            if getattr(self, name) is None:
                raise InputError(f"{name} must be the path of the {name} images; it was None")
        if (self.embeddings is None) == (self.encoder is None):
            raise InputError("embeddings or encoder, and not both, must name where t of each image comes from")
        if self.validation_embeddings is not None and self.embeddings is None:
            raise InputError("validation_embeddings must be left out without embeddings")

    @classmethod
    def read(cls, folder: Path) -> TokenizeConfig:
        """The settings of a folder, finished or not; raises InputError where it holds none."""
        from ..data.tokens import read_settings

        try:
            return cls(**read_settings(folder)["settings"])
        except (KeyError, TypeError) as error:
            raise InputError(f"{folder}/config.json cannot be used: {error!r}") from error
