"""Real images as tokens: readers, the VQ-VAE, token folders, the stream over them, the command."""

import io
import json
import shutil
import signal
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from projkern import tokenize
from projkern.data import VQVAE, Palette, SynthMNIST, TokenImages, open_images, subset
from projkern.data.embeddings import read_embeddings
from projkern.data.images import DamagedFile
from projkern.data.vqvae import DECAY, Codebook, usage
from projkern.training import tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")


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


def read_all(images, size, **options):
    parts = list(images.batches(size, **options))
    return [np.concatenate(each) for each in zip(*parts)]


# ---------------------------------------------------------------- images


def test_class_folders(tmp_path):
    pixels = pictures(5, 8)
    for name, image in zip(("b/2.png", "b/10.png", "a/deep/x.bmp", "a/y.PNG", "c/z.png"), pixels):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / name)
    (tmp_path / "a" / "notes.txt").write_text("no image")
    (tmp_path / "empty").mkdir()
    images = open_images(tmp_path)
    assert list(images.names) == ["a/deep/x.bmp", "a/y.PNG", "b/10.png", "b/2.png", "c/z.png"]
    assert images.labels.tolist() == [0, 0, 1, 1, 2] and images.labels.dtype == np.int64
    kept, read = read_all(images, 8, batch=2)
    assert kept.tolist() == [0, 1, 2, 3, 4] and read.dtype == np.uint8
    assert np.array_equal(read, pixels[[2, 3, 1, 0, 4]])
    kept, read = read_all(images, 8, indices=[3, 0])
    assert kept.tolist() == [3, 0] and np.array_equal(read, pixels[[0, 2]])


def test_jpeg_npz(tmp_path):
    pixels = pictures(3, 8)
    grey = Image.fromarray(pixels[0]).convert("L")
    file = io.BytesIO()
    grey.save(file, "JPEG")
    names = np.array(["one.JPEG", "two.JPEG", "three.JPEG"])
    path = pack(tmp_path / "i.npz", [file.getvalue(), encoded(pixels[1]), encoded(pixels[2])], [4, 2, 9], names=names)
    images = open_images(path)
    assert images.labels.tolist() == [4, 2, 9] and images.names == names.tolist()
    _, read = read_all(images, 8)
    assert np.array_equal(read[0, ..., 0], read[0, ..., 2])  # grey became RGB
    assert np.array_equal(read[1:], pixels[1:])


def test_downsampled_imagenet(tmp_path):
    pixels = pictures(7, 8)
    flat = pixels.transpose(0, 3, 1, 2).reshape(7, -1)
    for number, part in ((2, slice(0, 4)), (10, slice(4, 7))):
        labels = list(range(1, 8))[part]
        np.savez(tmp_path / f"batch_{number}.npz", data=flat[part], labels=labels, mean=flat[0])
    for path, wanted in ((tmp_path, list(range(7))), (tmp_path / "batch_10.npz", [4, 5, 6])):
        images = open_images(path)
        assert images.labels.tolist() == wanted
        kept, read = read_all(images, 8, batch=3)
        assert np.array_equal(read, pixels[wanted]) and kept.tolist() == list(range(len(wanted)))
    assert open_images(tmp_path).names[4] == "batch_10.npz:0"
    (tmp_path / "batch_10.npz").write_bytes((tmp_path / "batch_2.npz").read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"batch_10\.npz must be an \.npz file"):
        open_images(tmp_path)


def test_damaged_pixels_found_while_reading(tmp_path):
    path = tmp_path / "b.npz"
    np.savez_compressed(path, data=np.random.default_rng(0).integers(0, 256, (4, 48)).astype(np.uint8), labels=[1] * 4)
    images = open_images(path)
    data = bytearray(path.read_bytes())
    at = data.find(b"data.npy") + 160
    data[at : at + 30] = bytes(30)
    path.write_bytes(data)
    with pytest.raises(DamagedFile, match="b.npz is damaged"):
        read_all(images, 4)


def test_other_sizes_are_cropped_and_resized_with_antialiasing(tmp_path):
    wide = np.zeros((32, 64, 3), np.uint8)
    wide[:, :16], wide[:, 48:] = 255, 255  # outside the central square
    wide[:, 16:48:2] = 200  # stripes that antialiasing turns to grey
    images = open_images(pack(tmp_path / "i.npz", [encoded(wide)], [0]))
    _, read = read_all(images, 8)
    assert read.shape == (1, 8, 8, 3)
    assert (np.abs(read.astype(int)[:, :, 1:-1] - 100) < 12).all()


def test_unreadable_images_are_skipped_and_counted(tmp_path):
    good = encoded(pictures(1, 8)[0])
    files = [good, b"rubbish", good[:-30], b"", good]
    images = open_images(pack(tmp_path / "i.npz", files, range(5)))
    assert images.describe_skipped() == ""
    kept, read = read_all(images, 8, batch=2)
    assert kept.tolist() == [0, 4] and len(read) == 2 and images.skipped == {1, 2, 3}
    assert images.describe_skipped() == (
        f"3 of 5 images of {tmp_path / 'i.npz'} could not be read: i.npz:1, i.npz:2, i.npz:3"
    )


def test_what_holds_no_images(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        open_images(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds neither"):
        open_images(tmp_path / "empty")
    (tmp_path / "rubbish.npz").write_bytes(b"PK\x03\x04rubbish")
    with pytest.raises(ValueError, match=r"rubbish\.npz must be an \.npz file"):
        open_images(tmp_path / "rubbish.npz")
    np.savez(tmp_path / "other.npz", x=[1])
    with pytest.raises(ValueError, match="other.npz must hold labels; it holds x"):
        open_images(tmp_path / "other.npz")
    np.savez(tmp_path / "floats.npz", data=np.zeros((2, 48)), labels=[1, 2])
    with pytest.raises(ValueError, match=r"data \(2, 3 S S\) uint8 .* it was \(2, 48\) float64"):
        open_images(tmp_path / "floats.npz")
    np.savez(tmp_path / "offsets.npz", jpeg=np.zeros(9, np.uint8), offsets=[0, 5, 12], labels=[1, 2])
    with pytest.raises(ValueError, match="offsets that grow"):
        open_images(tmp_path / "offsets.npz")


# ---------------------------------------------------------------- embeddings


def test_embeddings(tmp_path):
    images = open_images(pack(tmp_path / "i.npz", [b""] * 3, [0] * 3, names=np.array(["a.png", "b.png", "c.png"])))
    t = np.arange(12, dtype=np.float16).reshape(3, 4)
    np.save(tmp_path / "t.npy", t)
    np.savez(tmp_path / "t.npz", train=t, val=-t, train_names=["a.png", "b.png", "c.png"])
    for path, split, wanted in (("t.npy", "train", t), ("t.npz", "train", t), ("t.npz", "validation", -t)):
        read = read_embeddings(tmp_path / path, split, images)
        assert read.dtype == np.float32 and np.array_equal(read, wanted)


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({"train": np.ones((4, 2))}, "as many as the train images, 3 in .*i.npz, and in the order of these; .* has 4"),
        ({"train": np.ones((3, 2)), "names": ["a.png", "c.png", "b.png"]}, "has c.png at row 1, where .* have b.png"),
        ({"train": np.ones((3, 2)), "names": ["a.png"]}, "name each of the 3 images once; .* has 1 names"),
        ({"train": np.array([[1.0], [np.inf], [1.0]])}, "must be finite; .* row 1 of train"),
        ({"train": np.ones(3)}, r"\(n, dim\); .* were \(3,\)"),
        ({"val": np.ones((3, 2))}, "holds val and no train"),
    ],
)
def test_embeddings_that_do_not_fit(tmp_path, stored, message):
    images = open_images(pack(tmp_path / "i.npz", [b""] * 3, [0] * 3, names=np.array(["a.png", "b.png", "c.png"])))
    np.savez(tmp_path / "t.npz", **stored)
    with pytest.raises(ValueError, match=message):
        read_embeddings(tmp_path / "t.npz", "train", images)


# ---------------------------------------------------------------- VQ-VAE


@pytest.fixture
def model():
    torch.manual_seed(0)
    return VQVAE(8)


IMAGES = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


def trained_once(model, seed=0):
    return model.losses(IMAGES, torch.Generator().manual_seed(seed))


def test_shapes_are_those_of_appendix_c2(model):
    layers = [layer for layer in (*model.encoder, *model.decoder) if hasattr(layer, "weight")]
    shapes = [(layer.out_channels, layer.kernel_size[0], layer.stride[0]) for layer in layers]
    assert shapes[:3] == [(32, 3, 2), (64, 3, 1), (64, 3, 1)]
    assert shapes[3:] == [(64, 3, 2), (64, 3, 1), (32, 3, 1), (3, 1, 1)]
    trained_once(model)
    tokens = model.encode(IMAGES)
    assert tokens.shape == (3, 16) and tokens.dtype == torch.int64 and 0 <= tokens.min() <= tokens.max() < 8
    assert model.decode(tokens).shape == IMAGES.shape and model.decode(tokens).abs().max() <= 1


def test_tokens_are_the_nearest_codes(model):
    trained_once(model)
    z = model.encoder(IMAGES).movedim(1, -1).double()
    distance = (z[..., None, :] - model.codebook.vectors.double()).square().sum(-1)
    assert torch.equal(model.encode(IMAGES), distance.argmin(-1).flatten(1))


def test_all_codes_start_from_outputs_of_the_first_batch(model):
    outputs = model.encoder(IMAGES).detach().movedim(1, -1).flatten(0, 2)
    model.codebook.revive(outputs, torch.Generator().manual_seed(0))
    taken = (model.codebook.vectors[:, None] == outputs).all(-1)  # [codes, outputs]
    assert bool(taken.any(1).all()) and bool((model.codebook.counts == 48 / 8).all())


def test_only_dead_codes_start_afresh():
    book = Codebook(4)
    outputs = torch.randn(40, 64, generator=torch.Generator().manual_seed(2))
    book.counts[:] = torch.tensor([10.0, 0.51, 0.49, 3.0])  # an even share is 10, and 0.05 of it 0.5
    book.vectors[:], book.sums[:] = 7.0, 70.0
    book.revive(outputs, torch.Generator().manual_seed(0))
    assert book.counts.tolist() == [10.0, pytest.approx(0.51), 10.0, 3.0]
    assert bool((book.vectors[[0, 1, 3]] == 7).all()) and bool((book.sums[[0, 1, 3]] == 70).all())
    assert bool((outputs == book.vectors[2]).all(1).any()) and torch.equal(book.sums[2], 10 * book.vectors[2])


def test_moving_averages_against_a_direct_computation():
    book, generator = Codebook(5), torch.Generator().manual_seed(3)
    book.counts[:] = torch.rand(5, generator=generator) + 1
    book.sums[:] = torch.randn(5, 64, generator=generator)
    counts, sums = book.counts.double().tolist(), book.sums.double().clone()
    for _ in range(3):
        outputs = torch.randn(20, 64, generator=generator)
        tokens = torch.randint(4, (20,), generator=generator)  # code 4 is never chosen
        book.follow(outputs, tokens)
        for k in range(5):
            chosen = outputs[tokens == k].double()
            counts[k] = DECAY * counts[k] + (1 - DECAY) * len(chosen)
            sums[k] = DECAY * sums[k] + (1 - DECAY) * chosen.sum(0)
    assert torch.allclose(book.counts.double(), torch.tensor(counts, dtype=torch.float64))
    expected = sums / torch.tensor(counts)[:, None]
    assert torch.allclose(book.vectors.double(), expected, rtol=1e-5, atol=1e-6)


def test_gradient_passes_straight_through(model):
    """What reaches the encoder's output is the gradient at the codes, plus that of the commitment."""
    trained_once(model)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    held = []
    model.encoder.register_forward_hook(lambda module, inputs, z: z.retain_grad() or held.append(z))
    reconstruction, commitment, tokens = trained_once(model)
    reconstruction.backward(retain_graph=True)
    straight = held[0].grad.clone()
    e = state["codebook.vectors"][tokens].view(3, 4, 4, 64).movedim(-1, 1).requires_grad_()
    F.mse_loss(model.decoder(e), IMAGES).backward()
    assert straight.abs().max() > 0 and torch.allclose(straight, e.grad, rtol=1e-4, atol=1e-9)
    held[0].grad = None
    commitment.backward()
    z = held[0].detach()
    assert torch.allclose(held[0].grad, 2 * (z - e.detach()) / z.numel(), atol=1e-9)
    assert not any(buffer.requires_grad for buffer in model.codebook.buffers())


def test_saved_and_loaded(model, tmp_path):
    trained_once(model)
    model.save(tmp_path / "v.safetensors")
    loaded = VQVAE.load(tmp_path / "v.safetensors")
    assert torch.equal(loaded.encode(IMAGES), model.encode(IMAGES))
    assert [path.name for path in tmp_path.iterdir()] == ["v.safetensors"]
    (tmp_path / "v.safetensors").write_bytes(b"rubbish")
    with pytest.raises(ValueError, match="damaged"):
        VQVAE.load(tmp_path / "v.safetensors")


def test_wrong_shapes(model):
    for shape in ((3, 8, 8), (1, 3, 8, 6), (1, 3, 7, 7), (1, 1, 8, 8)):
        with pytest.raises(ValueError, match=r"images must be \(B, 3, S, S\) with an even S"):
            model.encode(torch.zeros(shape))
    with pytest.raises(ValueError, match="T a square"):
        model.decode(torch.zeros(1, 5, dtype=torch.int64))
    with pytest.raises(ValueError, match="codes must be at least 2; it was 1"):
        VQVAE(1)


def test_usage():
    used, perplexity = usage(torch.tensor([5, 5, 0, 0]))
    assert used == 0.5 and perplexity == pytest.approx(2)


def train(out, steps=7, seed=0):
    return tokenizer.train_tokenizer(
        torch.from_numpy(pictures(20, 8)), out, 16, steps, 4, 1e-3, seed, torch.device("cpu")
    )


def test_resume_is_never_stopped_bit_for_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer, "CHECKPOINT_EVERY", 2)
    whole = train(tmp_path / "whole")
    calls, save = [], tokenizer.checkpoint.save

    def stop_after_two(*arguments):
        save(*arguments)
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(tokenizer.checkpoint, "save", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "stopped")
    assert [path.name for path in (tmp_path / "stopped" / "checkpoint").iterdir()] == ["step-00000004"]
    torch.manual_seed(123)
    resumed = train(tmp_path / "stopped")
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    other = train(tmp_path / "other", seed=1)
    assert not torch.equal(other.codebook.vectors, whole.codebook.vectors)


def test_training_learns(tmp_path):
    pixels = torch.from_numpy(pictures(20, 8))
    images = tokenizer.to_model(pixels, torch.device("cpu"))
    errors = []
    for steps in (1, 150):
        model = tokenizer.train_tokenizer(pixels, tmp_path / str(steps), 16, steps, 8, 3e-3, 0, torch.device("cpu"))
        errors.append(float(F.mse_loss(model.decode(model.encode(images)), images)))
    assert errors[1] < 0.5 * errors[0]


def test_a_loss_that_is_not_finite_is_an_error(tmp_path):
    with pytest.raises(tokenizer.Diverged, match="not finite at step .*lr must be lower; it was 1e"):
        tokenizer.train_tokenizer(
            torch.from_numpy(pictures(4, 8)), tmp_path, 4, 60, 4, 1e30, 0, torch.device("cpu")
        )


# ---------------------------------------------------------------- token folders


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
    """Made by the command. Not to be written to."""
    out = tmp_path_factory.mktemp("tokens") / "out"
    assert tokenize.main(options(collection, out)) == 0
    return out


def test_folder_holds_what_was_asked_for(collection, folder):
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
        order = torch.argsort(data._index(0))  # training images come in a random order
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
        with pytest.raises(ValueError, match=rf"\(4, {stream.task_dim}\)"):
            stream.batch(5, torch.zeros(4, 2))
        with pytest.raises(ValueError, match="step"):
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


def test_validation_stream_is_in_order_and_wraps(folder):
    data = TokenImages(folder, "validation", batch=3, seed=9)
    assert [data._index(step).tolist() for step in range(4)] == [[0, 1, 2], [3, 4, 0], [1, 2, 3], [4, 0, 1]]
    assert data.labels(0).tolist() == [0, 1, 1]  # the first image, unreadable, is not there


def test_stream_errors(folder):
    with pytest.raises(ValueError, match="examples_per_task must be 1.* it was 2"):
        TokenImages(folder, examples_per_task=2)
    with pytest.raises(ValueError, match="batch must be at least 1; it was 0"):
        TokenImages(folder, batch=0)
    with pytest.raises(ValueError, match="split is 'test'"):
        TokenImages(folder, "test")


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: config.pop("counts"), "only begun. To go on: python -m projkern.tokenize --out .* --resume"),
        (lambda config: config.update(version=2), "another version, 2; this projkern reads version 1"),
        (lambda config: config.update(format="projkern run"), "holds something else"),
        (lambda config: config["counts"].update(train=13), r"train.safetensors must hold .*\(13, 16\).*\(12, 16\)"),
    ],
)
def test_folder_that_cannot_be_read(copy, change, message):
    config = json.loads((copy / "config.json").read_text())
    change(config)
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        TokenImages(copy)


def test_damaged_folder(copy, tmp_path):
    with pytest.raises(ValueError, match="holds no tokenised images"):
        TokenImages(tmp_path)
    path = copy / "train.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="train.safetensors is damaged or cut short"):
        TokenImages(copy)
    path.unlink()
    with pytest.raises(ValueError, match="train.safetensors cannot be read"):
        TokenImages(copy)


def test_subset(folder, tmp_path):
    whole = TokenImages(folder, batch=12)
    subset(folder, tmp_path / "high", lambda labels: (labels >= 4) | (torch.arange(len(labels)) % 8 == 0))
    part = TokenImages(tmp_path / "high", batch=6)
    assert part.count == 6 and sorted(part.labels(0).tolist()) == [0, 4, 4, 5, 5, 6]
    subset(folder, tmp_path / "two", [3, 1])
    two = TokenImages(tmp_path / "two", batch=2)
    order, all_rows = torch.argsort(two._index(0)), torch.argsort(whole._index(0))
    for mine, theirs in zip(two.batch(0), whole.batch(0)):
        assert torch.equal(mine[order], theirs[all_rows][[3, 1]])
    held_out = [TokenImages(path, "validation", batch=5).batch(0) for path in (folder, tmp_path / "two")]
    assert all(torch.equal(a, b) for a, b in zip(*held_out))
    with pytest.raises(FileExistsError, match="out must be a new folder"):
        subset(folder, tmp_path / "two", [0])
    for keep in ([], [12], [-1], lambda labels: labels > 100):
        with pytest.raises(ValueError, match="at least one of the 12 training images"):
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
    assert "already holds tokenised images; give --resume to continue them or --overwrite" in capsys.readouterr().err
    assert (copy / "train.safetensors").read_bytes() == before
    assert tokenize.main(options(collection, copy, "--overwrite", "--seed=1")) == 0
    assert (copy / "train.safetensors").read_bytes() != before
    (copy.parent / "thesis").mkdir()
    (copy.parent / "thesis" / "chapter.tex").write_text("")
    assert tokenize.main(options(collection, copy.parent / "thesis", "--overwrite")) == 1
    assert "holds no tokenised images" in capsys.readouterr().err
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
    with pytest.raises(ValueError, match="only begun"):
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
        (["--train=/nowhere"], "there is nothing at /nowhere"),
        (["--encoder=timm:x"], "embeddings or encoder must be given, and not both"),
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
    t = TokenImages(tmp_path / "out", "validation", batch=5).tasks(0)
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
