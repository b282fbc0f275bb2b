"""Text as tokens: documents, the token file, and windows as functions of (seed, step)."""

import gzip

import numpy as np
import pytest
import torch
from text_models import tokenizer_of

from projkern.data import text
from projkern.data.text import Windows, open_tokens, read_pieces, save_tokens, tokenise
from projkern.utils.errors import InputError


@pytest.fixture
def files(tmp_path):
    plain, packed = tmp_path / "a.txt", tmp_path / "b.txt.gz"
    plain.write_text("a b\nc\n\n \na\n", encoding="utf-8")
    packed.write_bytes(gzip.compress(b"c c"))
    return [plain, packed]


def test_documents(files):
    assert list(read_pieces(files[0], at_blank_lines=False)) == [(True, "a b\nc\n\n \na\n")]
    assert list(read_pieces(files[0], at_blank_lines=True)) == [(True, "a b\nc"), (True, "a")]
    assert list(read_pieces(files[1], at_blank_lines=True)) == [(True, "c c")]


def test_a_file_of_ids_grows_behind_its_header(tmp_path):
    parts = [np.arange(10**k) % 7 for k in range(6)]
    assert save_tokens(tmp_path / "tokens.npy", parts, 7) == 111_111
    assert np.array_equal(open_tokens(tmp_path / "tokens.npy", 7), np.concatenate(parts))
    with pytest.raises(InputError, match="ids from 0 to 5"):
        open_tokens(tmp_path / "tokens.npy", 6)
    np.save(tmp_path / "other.npy", np.ones((2, 3)))
    with pytest.raises(InputError, match="token ids"):
        open_tokens(tmp_path / "other.npy")


@pytest.mark.parametrize(
    ("adds_start", "at_blank_lines", "expected"),
    [
        (True, True, [0, 3, 4, 5, 0, 3, 0, 5, 5]),
        (True, False, [0, 3, 4, 5, 3, 0, 5, 5]),
        (False, True, [3, 4, 5, 1, 3, 1, 5, 5, 1]),
        (False, False, [3, 4, 5, 3, 1, 5, 5, 1]),
    ],
)
@pytest.mark.parametrize("piece", [2, 1 << 20])
def test_every_document_begins_or_ends(files, tmp_path, monkeypatch, adds_start, at_blank_lines, expected, piece):
    """However long documents are cut for the tokenizer."""
    monkeypatch.setattr(text, "PIECE", piece)
    out = tmp_path / "tokens.npy"
    count = tokenise(files, tokenizer_of("abc", adds_start), 6, out, at_blank_lines=at_blank_lines)
    assert open_tokens(out).tolist() == expected and count == len(expected)
    assert open_tokens(out).dtype == np.uint16 and isinstance(open_tokens(out), np.memmap)


def test_large_vocabularies_have_wide_ids(files, tmp_path):
    tokenise(files, tokenizer_of("abc"), 1 << 17, tmp_path / "tokens.npy", at_blank_lines=False)
    assert open_tokens(tmp_path / "tokens.npy").dtype == np.uint32


@pytest.mark.parametrize(
    ("content", "vocab_size", "message"),
    [(b"\xff\xfe\x80", 6, "UTF-8"), (b"", 6, "held none"), (b"a b c", 5, "the id 5")],
)
def test_text_that_cannot_be_used(tmp_path, content, vocab_size, message):
    path, out = tmp_path / "text.txt", tmp_path / "tokens.npy"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        tokenise([path], tokenizer_of("abc", adds_start=False), vocab_size, out, at_blank_lines=True)
    assert not out.exists()


@pytest.mark.parametrize("name", ["missing.txt", "cut.txt.gz", "none.txt.gz"])
def test_files_that_cannot_be_read(tmp_path, name):
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(b"abc" * 1000)[:-8])
    (tmp_path / "none.txt.gz").write_bytes(b"abc")
    with pytest.raises(InputError, match=name):
        tokenise([tmp_path / name], tokenizer_of("abc"), 6, tmp_path / "tokens.npy", at_blank_lines=False)


def windows(count=25, **settings):
    values = {"length": 2, "batch_size": 3, "held_out": 2, "seed": 0} | settings
    return Windows(np.arange(count), **values)


def test_an_epoch_has_every_window_once():
    stream = windows(count=25)  # 12 windows and a rest, 10 of them for training
    first = torch.cat([stream.batch(step) for step in range(10)])
    assert first.shape == (30, 2)
    assert (first[:, 1] - first[:, 0] == 1).all()
    epochs = [first[i : i + 10, 0] for i in (0, 10, 20)]
    for epoch in epochs:
        assert epoch.sort().values.tolist() == list(range(0, 20, 2))
    assert not torch.equal(epochs[0], epochs[1])
    assert torch.cat(list(stream.held_out_batches(1))).tolist() == [[20, 21], [22, 23]]


def test_a_batch_depends_on_seed_and_step_alone():
    stream = windows()
    later = stream.batch(7)
    stream.batch(0)
    assert torch.equal(stream.batch(7), later) and torch.equal(windows().batch(7), later)
    assert not torch.equal(windows(seed=1).batch(7), later)


def test_a_tenth_is_held_out():
    assert [windows(count=2 * n, held_out=None).held_out for n in (10, 50, 10_000)] == [2, 5, 256]


def test_text_that_is_too_short():
    with pytest.raises(InputError, match="at least 10 tokens.*it has 9"):
        windows(count=9)
