"""Folders of tokenised images, the stream over them, and the command that writes them."""

import json
import shutil
import signal
import sys

import numpy as np
import pytest
import torch
from image_files import encoded, pack, pictures

from projkern import tokenize
from projkern.data import VQVAE, Palette, SynthMNIST, TokenImages, subset
from projkern.tokenization import training as tokenizer
from projkern.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    """Two collections of little pictures, one unreadable in each, and their embeddings."""
    folder = tmp_path_factory.mktemp("collection")
    rng = np.random.default_rng(0)
    for split, n, bad in (("train", 13, 4), ("validation", 6, 0)):
        files = [encoded(image) for image in pictures(n, 8, seed=n)]
        files[bad] = files[bad][:20]
        pack(folder / f"{split}.npz", files, np.arange(n) // 2)
    t = rng.standard_normal((19, 3)).astype(np.float16)
    np.savez(folder / "t.npz", train=t[:13], val=t[13:])
    return folder


def options(collection, out, *more):
    data = [f"--{split}={collection / split}.npz" for split in ("train", "validation")]
    data.append(f"--embeddings={collection / 't.npz'}")
    return [*data, "--size=8", "--codes=16", "--steps=3", "--batch=4", f"--out={out}", *more]


@pytest.fixture(scope="module")
def folder(collection, tmp_path_factory):
    """Written by the command; tests only read it."""
    out = tmp_path_factory.mktemp("tokens") / "out"
    assert tokenize.main(options(collection, out)) == 0
    return out


def test_what_a_folder_holds(collection, folder):
    assert sorted(path.name for path in folder.iterdir()) == [
        *(".lock", "config.json", "reconstructions.png", "report.md", "tensorboard", "tokenizer.safetensors"),
        *("train.safetensors", "validation.safetensors"),
    ]
    assert len({(folder / name).stat().st_mode for name in ("config.json", "report.md", "train.safetensors")}) == 1
    config = json.loads((folder / "config.json").read_text())
    assert (config["format"], config["version"]) == ("projkern tokens", 1)
    assert (config["image_size"], config["grid"], config["vocabulary"], config["task_dim"]) == (8, 4, 16, 3)
    assert config["counts"] == {"train": 12, "validation": 5} and config["skipped"] == {"train": 1, "validation": 1}
    report = (folder / "report.md").read_text()
    assert "1 of 13 images" in report and "train.npz:4" in report and "PSNR" in report


def test_tokens_tasks_and_labels_stay_aligned(collection, folder):
    """The unreadable images leave no gap: the rest keep their own t and label."""
    stored = np.load(collection / "t.npz")
    for split, key, kept in (("train", "train", [*range(4), *range(5, 13)]), ("validation", "val", range(1, 6))):
        data = TokenImages(folder, split, batch=len(kept))
        tokens, t = data.batch(0)
        order = torch.argsort(data._index(0))  # images come in a random order
        images = tokenizer.to_model(torch.from_numpy(pictures(len(kept) + 1, 8, len(kept) + 1)[list(kept)]), "cpu")
        assert torch.equal(tokens[order], VQVAE.load(folder / "tokenizer.safetensors").encode(images))
        assert np.array_equal(t[order].numpy(), stored[key][list(kept)].astype(np.float32))
        assert data.labels(0)[order].tolist() == [i // 2 for i in kept]


def test_stream_has_the_interface_of_synthmnist(folder, digits):
    data = TokenImages(folder, batch=4)
    mnist = SynthMNIST(8, Palette(torch.eye(3)), digits, batch=4)
    assert (data.size, data.task_dim, data.vocabulary, data.batch_size, data.count) == (4, 3, 16, 4, 12)
    assert (mnist.size, mnist.task_dim, mnist.vocabulary, mnist.batch_size) == (8, 18, 3, 4)
    for stream in (data, mnist):
        tokens, t = stream.batch(5)
        assert tokens.shape == (4, stream.size**2) and tokens.dtype == torch.int64
        assert t.shape == (4, stream.task_dim) and t.dtype == torch.float32
        assert torch.equal(stream.tasks(5), t)
        images = stream.decode(tokens)
        assert images.shape == (4, 3, 8, 8) and images.dtype == torch.float32 and images.abs().max() <= 1
        other = t.double() + 1
        assert torch.equal(stream.batch(5, other)[1], other.float())
        with pytest.raises(InputError, match=rf"\(4, {stream.task_dim}\)"):
            stream.batch(5, torch.zeros(4, 2))
        with pytest.raises(InputError, match="step"):
            stream.batch(-1)
    tokens, t = data.batch(5)
    assert torch.equal(data.batch(5, t + 1)[0], tokens)  # the image's own t is exchanged, the image is not


@pytest.mark.parametrize("batch", [1, 4, 5, 12, 30])
def test_training_stream_is_a_new_permutation_each_epoch(folder, batch):
    data = TokenImages(folder, batch=batch, seed=3)
    steps = -(-36 // batch)
    drawn = torch.cat([data._index(step) for step in range(steps)])[:36].view(3, 12)
    assert all(sorted(epoch.tolist()) == list(range(12)) for epoch in drawn)
    assert len({tuple(epoch.tolist()) for epoch in drawn}) == 3
    alone = TokenImages(folder, batch=batch, seed=3)
    for step in reversed(range(steps)):  # in any order, and by another object
        assert torch.equal(alone._index(step), data._index(step))
    other = TokenImages(folder, batch=12, seed=4)
    assert not torch.equal(other._index(0), drawn[0])


def test_validation_stream_has_one_order_and_wraps(folder):
    data = TokenImages(folder, "validation", batch=3, seed=9)
    seen = torch.cat([data._index(step) for step in range(5)]).tolist()
    assert sorted(seen[:5]) == list(range(5)) and seen == seen[:5] * 3
    assert seen[:5] != list(range(5))  # a collection sorted by class would begin with one class
    assert torch.equal(TokenImages(folder, "validation", batch=15, seed=8)._index(0), torch.tensor(seen))


def test_stream_errors(folder):
    with pytest.raises(InputError, match="examples_per_task must be 1.* it was 2"):
        TokenImages(folder, examples_per_task=2)
    with pytest.raises(InputError, match="batch must be at least 1; it was 0"):
        TokenImages(folder, batch=0)
    with pytest.raises(InputError, match="split must .* was 'test'"):
        TokenImages(folder, "test")


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: config.pop("counts"), "only begun. To go on: python -m projkern.tokenize --out .* --resume"),
        (lambda config: config.update(version=2), "version 1; .* version 2"),
        (lambda config: config.update(format="projkern run"), "tokenised images .* something else"),
        (lambda config: config["counts"].update(train=13), r"train.safetensors must hold .*\(13, 16\).*\(12, 16\)"),
    ],
)
def test_folder_that_cannot_be_read(copy, change, message):
    config = json.loads((copy / "config.json").read_text())
    change(config)
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=message):
        TokenImages(copy)


def test_damaged_folder(copy, tmp_path):
    with pytest.raises(InputError, match="config.json must hold tokenised images"):
        TokenImages(tmp_path)
    path = copy / "train.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match="train.safetensors is damaged or cut short"):
        TokenImages(copy)
    path.unlink()
    with pytest.raises(InputError, match="train.safetensors cannot be read"):
        TokenImages(copy)


def test_subset(folder, tmp_path):
    whole = TokenImages(folder, batch=12)
    subset(folder, tmp_path / "high", lambda labels: (labels >= 4) | (torch.arange(len(labels)) % 8 == 0))
    part = TokenImages(tmp_path / "high", batch=6)
    assert part.count == 6 and sorted(part.labels(0).tolist()) == [0, 4, 4, 5, 5, 6]
    subset(folder, tmp_path / "two", [3, 1])
    two = TokenImages(tmp_path / "two", batch=2)
    order, all_rows = torch.argsort(two._index(0)), torch.argsort(whole._index(0))
    for part_rows, whole_rows in zip(two.batch(0), whole.batch(0)):
        assert torch.equal(part_rows[order], whole_rows[all_rows][[3, 1]])
    held_out = [TokenImages(path, "validation", batch=5).batch(0) for path in (folder, tmp_path / "two")]
    assert all(torch.equal(a, b) for a, b in zip(*held_out))
    with pytest.raises(FileExistsError, match="out must be a new folder"):
        subset(folder, tmp_path / "two", [0])
    for keep in ([], [12], [-1], lambda labels: labels > 100):
        with pytest.raises(InputError, match="at least one of the 12 training images"):
            subset(folder, tmp_path / "none", keep)
    assert not (tmp_path / "none").exists()


# ---------------------------------------------------------------- the command


def test_last_line_says_what_was_written(collection, tmp_path, capsys):
    assert tokenize.main(options(collection, tmp_path / "out")) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[-1].startswith("Wrote 12 training and 5 validation images, each 16 tokens, to ")
    assert str(tmp_path / "out" / "report.md") in shown[-1]
    assert any("1 of 13 images" in line for line in shown)


def test_nothing_is_overwritten_silently(collection, copy, capsys):
    before = (copy / "train.safetensors").read_bytes()
    assert tokenize.main(options(collection, copy)) == 1
    message = capsys.readouterr().err
    assert all(part in message for part in (str(copy), "--resume", "--overwrite"))
    assert (copy / "train.safetensors").read_bytes() == before
    assert tokenize.main(options(collection, copy, "--overwrite", "--seed=1")) == 0
    assert (copy / "train.safetensors").read_bytes() != before
    (copy.parent / "thesis").mkdir()
    (copy.parent / "thesis" / "chapter.tex").write_text("")
    assert tokenize.main(options(collection, copy.parent / "thesis", "--overwrite")) == 1
    assert "config.json must hold tokenised images" in capsys.readouterr().err
    assert (copy.parent / "thesis" / "chapter.tex").exists()


def test_interrupted_command_goes_on_where_it_was(collection, folder, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setattr(tokenizer, "CHECKPOINT_EVERY", 2)
    save = tokenizer.checkpoint.save

    def interrupted(*arguments):
        save(*arguments)
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(tokenizer.checkpoint, "save", interrupted)
        assert tokenize.main(options(collection, out)) == 130
    assert f"To go on: python -m projkern.tokenize --out {out} --resume" in capsys.readouterr().err
    with pytest.raises(InputError, match="only begun"):
        TokenImages(out)
    assert tokenize.main(["--out", str(out), "--resume", "--steps=9"]) == 1
    assert "--steps must be left out with --resume, or be 3" in capsys.readouterr().err
    assert tokenize.main(["--out", str(out), "--resume"]) == 0
    assert tokenize.main(["--out", str(out), "--resume"]) == 0  # there is nothing left to do
    for name in ("tokenizer", "train", "validation"):
        assert (out / f"{name}.safetensors").read_bytes() == (folder / f"{name}.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--size=7"], "size must be even and at least 4; it was 7"),
        (["--device=tpu"], "device must be auto, cpu, cuda or cuda:N; it was tpu"),
        (["--train=/nowhere"], "there is nothing at /nowhere"),
        (["--encoder=timm:x"], "embeddings or encoder, and not both"),
        (["--validation-embeddings=VALIDATION"], "VALIDATION"),
    ],
)
def test_errors_are_one_line_and_leave_nothing(collection, tmp_path, change, message, capsys):
    assert tokenize.main(options(collection, tmp_path / "out", *change)) == 1
    shown = capsys.readouterr().err
    assert message in shown and shown.count("\n") == 1 and not (tmp_path / "out").exists()


def test_misaligned_embeddings_name_both_counts(collection, tmp_path, capsys):
    np.savez(tmp_path / "t.npz", train=np.ones((12, 3)), val=np.ones((6, 3)))
    assert tokenize.main(options(collection, tmp_path / "out", f"--embeddings={tmp_path / 't.npz'}")) == 1
    shown = capsys.readouterr().err
    assert "train images, 13 in" in shown and "has 12" in shown and "in the order of these" in shown


def test_no_readable_image_is_an_error(collection, tmp_path, capsys):
    path = pack(tmp_path / "bad.npz", [b"x"] * 13, range(13))
    assert tokenize.main(options(collection, tmp_path / "out", f"--train={path}")) == 1
    assert "13 of 13 images of" in capsys.readouterr().err.splitlines()[-1]


class Mean(torch.nn.Module):
    def forward(self, images):
        return images.mean((2, 3))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("kind", ["pt", "pt2"])
def test_encoder_in_a_file(collection, folder, tmp_path, kind):
    path = tmp_path / f"encoder.{kind}"
    if kind == "pt":
        torch.jit.script(Mean()).save(path)
    else:
        batch = torch.export.Dim("batch")
        example = torch.zeros(2, 3, 8, 8)
        torch.export.save(torch.export.export(Mean(), (example,), dynamic_shapes=({0: batch},)), path)
    arguments = [option for option in options(collection, tmp_path / "out") if "embeddings" not in option]
    assert tokenize.main([*arguments, f"--encoder={path}"]) == 0
    data = TokenImages(tmp_path / "out", "validation", batch=5)
    t = data.tasks(0)[data._index(0).argsort()]
    assert torch.allclose(t, torch.from_numpy(pictures(6, 8, 6)[1:] / 255).float().mean((1, 2)), atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_unusable_encoders(collection, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    arguments = [option for option in options(collection, tmp_path / "out") if "embeddings" not in option]
    assert tokenize.main([*arguments, "--encoder=timm:resnet50"]) == 1
    assert "pip install timm" in capsys.readouterr().err
    (tmp_path / "encoder.pt").write_bytes(b"rubbish")
    assert tokenize.main([*arguments, f"--encoder={tmp_path / 'encoder.pt'}"]) == 1
    assert "encoder must be timm:NAME, or a file" in capsys.readouterr().err


def test_the_standard_tokenize_is_not_shadowed():
    assert sys.modules["tokenize"] is not tokenize and "projkern" not in str(sys.modules["tokenize"].__file__)
