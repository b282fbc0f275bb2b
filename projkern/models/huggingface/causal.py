"""Causal language models of Hugging Face's format: a checkpoint folder in, with what must be refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ...utils.digests import digest, samples
from ...utils.errors import InputError
from ...utils.files import read_object, require_readable
from ...utils.tensors import require_safetensors

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class PretrainedFolder:
    """A folder with a causal language model.

    Args:
        folder: where it lies.
        config: its configuration.
    """

    folder: Path
    config: PreTrainedConfig

    @classmethod
    def open(cls, folder: Path) -> PretrainedFolder:
        """Read the configuration, and see that weights are there.

        Raises:
            InputError: no checkpoint, pickled weights, or code of its own, which is not run.
            OSError: a file that may not be read.
        """
        from transformers import CONFIG_MAPPING, AutoConfig

        settings = read_object(folder / "config.json", "the configuration of a Hugging Face model")
        kind = settings.get("model_type")
        if kind not in CONFIG_MAPPING:
            raise InputError(f"model must be of a class that transformers builds in; {folder} is of {kind}")
        require_safetensors(folder)
        require_readable(folder)
        try:
            return cls(folder, AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False))
        except Exception as error:  # a class refuses its settings in many ways
            raise InputError(f"{folder}/config.json is not one that transformers takes: {_line(error)}") from error

    def digest(self) -> str:
        """Of the files of the weights, of large ones a part that tells them from others."""
        return digest(samples(sorted(self.folder.glob("*.safetensors"))))

    def require_same(self, name: str, expected: str | None) -> None:
        """Raises InputError, which calls the model ``name``, where its digest is not the one that a job began with."""
        if expected is not None and self.digest() != expected:
            raise InputError(f"{name} must be the model that the job began with; in {self.folder} it is another")

    @property
    def dtype(self) -> torch.dtype:
        """Of the stored parameters, as the configuration has it; float32 where it has none."""
        return getattr(self.config, "dtype", None) or torch.float32

    def load(self, device: torch.device, dtype: torch.dtype | None) -> PreTrainedModel:
        """The model, in evaluation mode, frozen.

        Args:
            dtype: of its parameters; None for the stored one.

        Raises:
            InputError: weights that are damaged, incomplete, or of another shape.
        """
        from transformers import AutoModelForCausalLM

        loaded: Any
        try:
            with quiet_transformers():
                loaded = AutoModelForCausalLM.from_pretrained(
                    self.folder,
                    local_files_only=True,
                    trust_remote_code=False,
                    use_safetensors=True,
                    dtype=dtype or "auto",
                    output_loading_info=True,
                )
        except Exception as error:  # of transformers and safetensors, each with types of their own
            raise InputError(f"{self.folder} cannot be loaded: {_line(error)}") from error
        model, loading = loaded
        for kind in ("missing_keys", "mismatched_keys"):
            if loading[kind]:
                raise InputError(f"{self.folder} must hold every parameter; {kind}: {min(map(str, loading[kind]))}")
        frozen: PreTrainedModel = model.to(device).eval().requires_grad_(False)
        return frozen

    def generation_config(self) -> GenerationConfig | None:
        """Its settings of generation; None where it has none of its own."""
        from transformers import GenerationConfig

        is_there = (self.folder / "generation_config.json").exists()
        return GenerationConfig.from_pretrained(self.folder, local_files_only=True) if is_there else None

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The folder's tokenizer.

        Raises:
            InputError: none is there, or it has more tokens than the model.
        """
        from transformers import AutoTokenizer

        try:
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                self.folder, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:
            raise InputError(f"{self.folder} must hold the model's tokenizer: {_line(error)}") from error
        if tokenizer.vocab_size > self.config.vocab_size:  # tokens that were added, for images say, may lie beyond
            most, size = self.config.vocab_size, tokenizer.vocab_size
            raise InputError(f"tokenizer must have at most the model's {most} tokens; it has {size}")
        return tokenizer

    def has_tokenizer(self) -> bool:
        """Whether the folder has files of a tokenizer."""
        names = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
        return any((self.folder / name).exists() for name in names)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """In evaluation mode, whatever the mode before, which is put back."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without transformers' own progress bars."""
    from transformers.utils import logging

    before = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if before:
            logging.enable_progress_bar()


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
