"""Text as token ids: files tokenised once into a memory-mapped array, and the stream of windows over it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..utils.errors import InputError
from ..utils.files import open_text, write_atomically
from ..utils.seeds import seed_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PIECE = 1 << 20
"""Characters of a long document that are read and tokenised at a time; pieces end after a line."""
_PIECES_AT_ONCE = 16

Piece = tuple[bool, str]
"""A part of a document, and whether it is the first."""


def read_pieces(path: Path | str, *, at_blank_lines: bool) -> Iterator[Piece]:
    """The documents of a text file, plain or .gz, in pieces: the whole file, or what blank lines separate.

    Args:
        path: of the file; or a text itself, which is one document.

    Raises:
        InputError: a file that cannot be read, or is not UTF-8.
    """
    if isinstance(path, str):
        yield from ((start == 0, path[start : start + PIECE]) for start in range(0, len(path), PIECE))
        return
    try:
        with open_text(path) as file:
            if not at_blank_lines:
                is_first = True
                while piece := file.read(PIECE) + file.readline():
                    yield is_first, piece
                    is_first = False
                return
            for is_blank, lines in itertools.groupby(file, lambda line: not line.strip()):
                if not is_blank:
                    yield True, "".join(lines).rstrip("\n")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError(f"text must be UTF-8 files, plain or .gz; {path} cannot be read: {error}") from error


def tokenise(
    files: Sequence[Path | str], tokenizer: PreTrainedTokenizerBase, vocab_size: int, out: Path, *, at_blank_lines: bool
) -> int:
    """Write the tokens of text files, or of texts, one after another, to ``out`` (.npy, (n,) uint16 or uint32).

    Each document gets the special tokens that the tokenizer adds; where it adds none, its end-of-text token follows.

    Args:
        vocab_size: of the model; an id beyond it is refused.
        at_blank_lines: whether a blank line ends a document; else the end of a file does.

    Returns:
        n.

    Raises:
        InputError: no text, a file that cannot be read, or a tokenizer of another vocabulary.
        OSError: ``out`` cannot be written.
    """

    def parts() -> Iterator[np.ndarray]:
        for ids in _token_lists(files, tokenizer, at_blank_lines):
            if ids and max(ids) >= vocab_size:
                raise InputError(
                    f"tokenizer must be the model's, of at most {vocab_size} tokens; it gave the id {max(ids)}"
                )
            yield np.array(ids, np.uint32)

    def write(partial: Path) -> None:
        if save_tokens(partial, parts(), vocab_size) == 0:
            raise InputError(f"text must hold text; {', '.join(str(file)[:80] for file in files)} held none")

    write_atomically(out, write)
    return len(open_tokens(out))


def save_tokens(path: Path, parts: Iterable[np.ndarray], vocab_size: int) -> int:
    """Write arrays of ids end to end as one .npy file, each as it comes; returns how many ids there are."""
    kind = np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)
    count = 0
    with path.open("wb") as file:
        _write_header(file, kind, count)
        for part in parts:
            file.write(part.astype(kind).tobytes())
            count += len(part)
        file.seek(0)
        _write_header(file, kind, count)  # as long as the first one: NumPy leaves room for the count to grow
    return count


def _write_header(file: BinaryIO, kind: np.dtype[Any], count: int) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(file, header)


def open_tokens(path: Path, vocab_size: int | None = None) -> np.ndarray:
    """The ids of a token file (n,), mapped into memory.

    Raises:
        InputError: a file that is damaged or holds something else, or ids beyond ``vocab_size``.
    """
    try:
        tokens: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} must hold token ids; it cannot be read: {error}") from error
    check_tokens(tokens, vocab_size, str(path))
    return tokens


def check_tokens(tokens: np.ndarray, vocab_size: int | None, name: str = "text") -> None:
    """Raises InputError where an array holds something else than token ids (n,) below ``vocab_size``."""
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise InputError(f"{name} must hold token ids (n,); it holds {tokens.dtype} {tokens.shape}")
    if vocab_size is not None and len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocab_size:
        raise InputError(f"{name} must hold ids from 0 to {vocab_size - 1}; it holds up to {tokens.max()}")


def _token_lists(
    files: Sequence[Path | str], tokenizer: PreTrainedTokenizerBase, at_blank_lines: bool
) -> Iterator[list[int]]:
    added, end = tokenizer("").input_ids, tokenizer.eos_token_id
    ends_texts = added in ([], [end])  # so that the end of a text follows its last piece, not its first
    ending = [end] if ends_texts and end is not None else []
    with tqdm(desc="tokenising", unit=" tokens", unit_scale=True, leave=False) as progress:
        for path in files:
            pieces = read_pieces(path, at_blank_lines=at_blank_lines)
            has_begun = False
            while batch := list(itertools.islice(pieces, _PIECES_AT_ONCE)):
                for is_first, ids in _encode(tokenizer, batch, with_special=not ends_texts):
                    if is_first and has_begun:
                        yield ending
                    has_begun = True
                    progress.update(len(ids))
                    yield ids
            if has_begun:
                yield ending


def _encode(
    tokenizer: PreTrainedTokenizerBase, pieces: Sequence[Piece], *, with_special: bool
) -> Iterator[tuple[bool, list[int]]]:
    """The ids of each piece; the tokenizer adds its special tokens to first pieces only, where it adds any."""
    ids: dict[bool, Iterator[list[int]]] = {}
    for first in (True, False):
        texts = [text for is_first, text in pieces if is_first == first]
        encoded = tokenizer(texts, add_special_tokens=with_special and first, verbose=False).input_ids if texts else []
        ids[first] = iter(encoded)
    for is_first, _ in pieces:
        yield is_first, next(ids[is_first])


class Windows:
    """Windows of T tokens, in the order of the text; the last ones are held out.

    Training goes through all others once, in random order, then again in another. Step k's batch depends on the seed
    and k alone.

    Args:
        tokens: (n,) ids.
        length: T.
        batch_size: B, windows of a training batch.
        held_out: windows at the end of the text that training never sees; None for a tenth of them, 2 to 256.
        seed: of the order.

    Raises:
        InputError: text that is too short for one batch and the held-out windows.
    """

    def __init__(self, tokens: np.ndarray, length: int, batch_size: int, held_out: int | None, seed: int) -> None:
        if held_out is None:
            held_out = min(256, max(2, len(tokens) // length // 10))
        self.length, self.batch_size, self.held_out, self.seed = length, batch_size, held_out, seed
        self._tokens = tokens
        self._epoch = -1, np.empty(0, np.int64)  # the last one used, and its order
        self.count = len(tokens) // length - held_out
        if self.count < batch_size:
            raise InputError(
                f"text must have at least {(held_out + batch_size) * length} tokens, for {held_out} held-out windows "
                f"and a batch of {batch_size}, each of {length}; it has {len(tokens)}"
            )

    def batch(self, step: int) -> Tensor:
        """Tokens (B, T) int64 of a training step."""
        places = range(step * self.batch_size, (step + 1) * self.batch_size)
        return self._windows([self._order(i // self.count)[i % self.count] for i in places])

    def held_out_batches(self, size: int) -> Iterator[Tensor]:
        """The held-out windows, in batches (<= size, T)."""
        for start in range(0, self.held_out, size):
            yield self._windows([self.count + i for i in range(start, min(start + size, self.held_out))])

    def _windows(self, indices: Sequence[int]) -> Tensor:
        rows = [self._tokens[i * self.length : (i + 1) * self.length] for i in indices]
        return torch.from_numpy(np.stack(rows).astype(np.int64))

    def _order(self, epoch: int) -> np.ndarray:
        if self._epoch[0] != epoch:
            order = np.random.default_rng(seed_of(self.seed, "order", epoch)).permutation(self.count)
            self._epoch = epoch, order
        return self._epoch[1]
