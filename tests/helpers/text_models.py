"""A tiny language model in a folder, with a tokenizer of words and text to train on."""

from __future__ import annotations

import random
from pathlib import Path

import decoders
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast


def tokenizer_of(words, adds_start=True):
    """A tokenizer whose tokens are words, after <s>, </s> and <unk>."""
    vocabulary = {word: i for i, word in enumerate(["<s>", "</s>", "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if adds_start:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


WORDS = [f"w{i}" for i in range(decoders.VOCABULARY - 3)]


def write_model(folder: Path, family: str = "llama", **changes) -> Path:
    """A checkpoint folder of one of ``decoders.FAMILIES``."""
    decoders.decoder(family, **changes).save_pretrained(folder)
    if family != "qwen2":  # its class of tokenizer is of another kind
        tokenizer_of(WORDS).save_pretrained(folder)
    return folder


def write_text(path: Path, words: int = 3000) -> Path:
    """Text in which the next word follows from the one before, three times out of four."""
    rng = random.Random(0)
    number, text = 0, []
    for _ in range(words):
        number = (3 * number + 1) % len(WORDS) if rng.random() < 0.75 else rng.randrange(len(WORDS))
        text.append(WORDS[number])
    path.write_text(" ".join(text), encoding="utf-8")
    return path
