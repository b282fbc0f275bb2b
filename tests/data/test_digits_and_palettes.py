"""Where SynthMNIST's digits and colours come from: digit files, palettes and their cache."""

import gzip
import os
from http.client import IncompleteRead
from pathlib import Path

import numpy as np
import pytest
import torch
from mnist_files import idx, random_digits, write_mnist

from projkern.data import Palette, cache_dir, fit_palette, load_digits
from projkern.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread", "own_cache")


# ---------------------------------------------------------------- digits


def test_embedded_digits(digits):
    held_out = load_digits(split="validation")
    assert (len(digits), len(held_out)) == (1438, 359)
    assert digits.images.shape[1:] == held_out.images.shape[1:] == (28, 28)
    assert digits.images.dtype == torch.uint8 and digits.images.max() == 255
    assert set(digits.labels.tolist()) == set(held_out.labels.tolist()) == set(range(10))
    assert not digits.images[:, :4].any() and not digits.images[:, :, -4:].any()  # MNIST's margin
    train = {image.numpy().tobytes() for image in digits.images}
    assert not any(image.numpy().tobytes() in train for image in held_out.images)


@pytest.fixture(params=["plain", "gz"])
def mnist(tmp_path, request):
    """A directory of four small idx files, and what they hold."""
    folder = write_mnist(tmp_path / "mnist")
    if request.param == "gz":
        for path in list(folder.iterdir()):
            Path(f"{path}.gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
    return folder, random_digits()


def test_idx_files(mnist):
    folder, arrays = mnist
    for split, prefix in (("train", "train"), ("validation", "t10k")):
        for source in (folder, str(folder)):
            loaded = load_digits(source, split)
            assert np.array_equal(loaded.images.numpy(), arrays[prefix][0])
            assert np.array_equal(loaded.labels.numpy(), arrays[prefix][1])


@pytest.mark.parametrize("inner", ["", "raw", "MNIST/raw"])
def test_other_names_of_idx_files(mnist, inner, tmp_path):
    """train-images.idx3-ubyte, as some archives have it; the folders that torchvision makes."""
    folder, arrays = mnist
    target = tmp_path / "other" / inner
    target.mkdir(parents=True)
    for path in folder.iterdir():
        path.rename(target / path.name.replace("-idx", ".idx"))
    assert np.array_equal(load_digits(tmp_path / "other", "validation").images.numpy(), arrays["t10k"][0])


def test_missing_idx_file_is_named(mnist):
    folder, _ = mnist
    next(folder.glob("t10k-labels*")).unlink()
    load_digits(folder, "train")
    with pytest.raises(FileNotFoundError, match="t10k-labels-idx1-ubyte"):
        load_digits(folder, "validation")


def test_missing_directory_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_digits(tmp_path / "nowhere")


@pytest.mark.parametrize("keep", [0, 3, 15, 16, 1000, -1])
def test_truncated_idx_file(mnist, keep):
    folder, _ = mnist
    path = next(folder.glob("train-images*"))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match="train-images-idx3-ubyte"):
        load_digits(folder)


@pytest.mark.parametrize("mnist", ["plain"], indirect=True)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: b"\x00\x00\x08\x01" + data[4:], "0x00000803.*0x00000801"),
        (lambda data: b"\x00\x00\x0d\x03" + data[4:], "0x00000d03"),
        (lambda data: data + b"\x00", "must have 5504 bytes"),
        (lambda data: data[:4] + b"\xff\xff\xff\xff" + data[8:], r"has 5504"),
        (lambda data: idx(np.zeros((6, 28, 28))), "7 labels .* has 6"),
        (lambda data: idx(np.zeros((7, 20, 28))), r"was \(7, 20, 28\)"),
    ],
    ids=["labels", "floats", "too long", "huge count", "counts differ", "other size"],
)
def test_wrong_idx_file(mnist, change, message):
    folder, _ = mnist
    path = folder / "train-images-idx3-ubyte"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(InputError, match=message) as error:
        load_digits(folder)
    assert str(path) in str(error.value)


def test_file_that_is_no_gzip(mnist):
    folder, _ = mnist
    for path in folder.glob("train-images*"):
        path.unlink()
    (folder / "train-images-idx3-ubyte.gz").write_bytes(b"<html>not found</html>")
    with pytest.raises(InputError, match=r"train-images-idx3-ubyte\.gz must be .*gzip"):
        load_digits(folder)


def test_openml(monkeypatch):
    pixels, labels = np.zeros((60_003, 784), np.int64), np.array(["7"] * 60_000 + ["1", "2", "3"])
    pixels[60_001, 0] = 200

    def fetch(*arguments, parser, **options):
        assert parser == "liac-arff"  # the others need pandas
        return pixels, labels

    monkeypatch.setattr("sklearn.datasets.fetch_openml", fetch)
    held_out = load_digits("openml", "validation")
    assert held_out.images.shape == (3, 28, 28) and held_out.images[1, 0, 0] == 200
    assert held_out.labels.tolist() == [1, 2, 3]
    assert len(load_digits("openml")) == 60_000


@pytest.mark.parametrize("error", [OSError("no route"), IncompleteRead(b""), ValueError("md5 checksum"), EOFError()])
def test_openml_without_network(monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("sklearn.datasets.fetch_openml", fail)
    with pytest.raises(ConnectionError, match="source .* 'openml'"):
        load_digits("openml")


def test_unknown_split():
    with pytest.raises(InputError, match="split must be one of 'train', 'validation'; it was 'test'"):
        load_digits(split="test")


@pytest.mark.skipif("PROJKERN_MNIST" not in os.environ, reason="PROJKERN_MNIST names no MNIST directory")
def test_real_mnist():
    for split, n, first in (("train", 60_000, 5), ("validation", 10_000, 7)):
        loaded = load_digits(os.environ["PROJKERN_MNIST"], split)
        assert loaded.images.shape == (n, 28, 28) and loaded.labels[0] == first
        assert 33 < loaded.images.float().mean() < 34


# ---------------------------------------------------------------- palette


@pytest.fixture(scope="module")
def palette():
    return Palette(torch.rand(64, 3, generator=torch.Generator().manual_seed(5)) * 2 - 1)


def brute_force(colors, images):
    pixels = images.double().permute(0, 2, 3, 1).reshape(-1, 1, 3)
    return (pixels - colors.double()).square().sum(-1).view(len(images), -1, len(colors))


@pytest.mark.parametrize("kind", ["cube", "clustered", "corners", "repeated", "two"])
def test_encode_finds_the_nearest_colour(kind):
    generator = torch.Generator().manual_seed(3)
    colors = {
        "cube": torch.rand(256, 3, generator=generator) * 2 - 1,
        "clustered": torch.rand(200, 3, generator=generator) ** 4 * 0.1 + 0.5,
        "corners": torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 3),
        "repeated": torch.rand(20, 3, generator=generator).repeat(3, 1),
        "two": torch.tensor([[0.1, 0.1, 0.1], [0.1, 0.1, 0.1 + 1e-3]]),
    }[kind]
    images = torch.rand(2, 3, 40, 40, generator=generator) * 2 - 1
    images[1] = images[1].sign() * (images[1].abs() * 32).round() / 32  # cells' borders, exact ties
    palette, distance = Palette(colors), brute_force(colors, images)
    tokens = palette.encode(images)
    assert tokens.dtype == torch.int64 and tokens.shape == (2, 1600)
    best = distance.min(-1)
    chosen = distance.gather(-1, tokens[..., None])[..., 0]
    assert bool((chosen - best.values <= 1e-6).all())
    clear = (distance < best.values[..., None] + 1e-6).sum(-1) == 1
    assert torch.equal(tokens[clear], best.indices[clear])
    assert torch.equal(palette.encode(palette.decode(tokens)), tokens)


def test_encode_exactly_representable_ties_take_the_first():
    palette = Palette(torch.tensor([[0.5, 0, 0], [-0.5, 0, 0], [0.5, 0, 0]]))
    assert palette.encode(torch.zeros(1, 3, 2, 2)).tolist() == [[0] * 4]


def test_encode_clips_and_keeps_row_order():
    palette = Palette(torch.tensor([[-1.0, -1, -1], [1, 1, 1]]))
    image = torch.full((1, 3, 2, 2), -5.0)
    image[..., 0, 1] = 5.0
    assert palette.encode(image).tolist() == [[0, 1, 0, 0]]
    assert palette.decode(torch.tensor([0, 1, 0, 0])).shape == (3, 2, 2)


def test_encode_more_pixels_than_one_chunk(palette):
    images = torch.rand(3, 3, 160, 160) * 2 - 1
    parts = torch.cat([palette.encode(image[None]) for image in images])
    assert torch.equal(palette.encode(images), parts)


def test_palette_errors():
    with pytest.raises(InputError, match=r"colors must .* \(1, 3\)"):
        Palette(torch.zeros(1, 3))
    with pytest.raises(InputError, match=r"colors must .* \(4, 4\)"):
        Palette(torch.zeros(4, 4))
    for bad in (1.5, float("nan")):
        with pytest.raises(InputError, match="colors must be RGB"):
            Palette(torch.tensor([[0.0, 0, 0], [0, 0, bad]]))
    palette = Palette(torch.eye(3))
    with pytest.raises(InputError, match=r"images must .* \(3, 8, 8\)"):
        palette.encode(torch.zeros(3, 8, 8))
    with pytest.raises(InputError, match=r"tokens must .* \(2, 5\)"):
        palette.decode(torch.zeros(2, 5, dtype=torch.int64))
    with pytest.raises(InputError, match="colors must be from 2 .* was 1"):
        fit_palette(torch.zeros(1, 3, 4, 4), colors=1)
    with pytest.raises(InputError, match="colors must .* 16; it was 17"):
        fit_palette(torch.zeros(1, 3, 4, 4), colors=17)


def test_fit_recovers_clusters_and_is_deterministic():
    centers = torch.tensor([[-0.8, -0.8, -0.8], [0.0, 0.5, -0.5], [0.9, 0.9, 0.9]])
    noise = 0.01 * torch.randn(3000, 3, generator=torch.Generator().manual_seed(0))
    pixels = (centers.repeat(1000, 1) + noise).view(1, 50, 60, 3).permute(0, 3, 1, 2)
    palette = fit_palette(pixels, 3, cache=False)
    assert (palette.colors - centers).abs().max() < 0.01  # darkest first
    assert torch.equal(fit_palette(pixels, 3, cache=False).colors, palette.colors)


def test_palette_is_as_readable_as_any_other_file(tmp_path, palette):
    """To whom else the run's folder is open."""
    (tmp_path / "other").touch()
    palette.save(tmp_path / "palette.npy")
    assert (tmp_path / "palette.npy").stat().st_mode == (tmp_path / "other").stat().st_mode
    assert len(list(tmp_path.iterdir())) == 2


def test_save_and_load(tmp_path, palette):
    palette.save(tmp_path / "deep" / "palette.npy")
    assert torch.equal(Palette.load(tmp_path / "deep" / "palette.npy").colors, palette.colors)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["palette.npy"]  # no temporary left


def test_load_refuses_pickles(tmp_path):
    np.save(tmp_path / "evil.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match=r"evil\.npy must hold a palette"):
        Palette.load(tmp_path / "evil.npy")


# ---------------------------------------------------------------- cache


@pytest.fixture
def fits(monkeypatch):
    """Counts how often k-means runs."""
    from projkern.data import palette as module

    calls, original = [], module._kmeans
    monkeypatch.setattr(module, "_kmeans", lambda *args: calls.append(1) or original(*args))
    return calls


IMAGES = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(2))


def test_cache_is_used_and_keyed_by_content(own_cache, fits):
    first = fit_palette(IMAGES, 4)
    assert torch.equal(fit_palette(IMAGES.clone(), 4).colors, first.colors) and len(fits) == 1
    for changed in ((IMAGES + 1e-3).clamp(-1, 1), IMAGES.flip(0)):
        fit_palette(changed, 4)
    fit_palette(IMAGES, 5)
    fit_palette(IMAGES, 4, seed=1)
    assert len(fits) == 5 and len(list((own_cache / "palettes").iterdir())) == 5
    fit_palette(IMAGES, 4, cache=False)
    assert len(fits) == 6


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY", b"rubbish", "half", "other shape", "nan"])
def test_damaged_cache_is_rebuilt_with_a_warning(own_cache, fits, damage):
    first = fit_palette(IMAGES, 4)
    (path,) = (own_cache / "palettes").iterdir()
    if damage == "half":
        path.write_bytes(path.read_bytes()[:-20])
    elif damage == "other shape":
        Palette(torch.rand(7, 3)).save(path)
    elif damage == "nan":
        np.save(path, np.full((4, 3), np.nan, np.float32))
    else:
        path.write_bytes(damage)
    with pytest.warns(UserWarning, match="rebuilding it"):
        again = fit_palette(IMAGES, 4)
    assert torch.equal(again.colors, first.colors) and len(fits) == 2
    fit_palette(IMAGES, 4)
    assert len(fits) == 2


def test_cache_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PROJKERN_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="cache"):
        assert len(fit_palette(IMAGES, 4)) == 4


def test_cache_dir(monkeypatch, tmp_path):
    assert cache_dir() == tmp_path / "cache"
    monkeypatch.delenv("PROJKERN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "projkern"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path.home() / ".cache" / "projkern"


def test_a_user_without_a_home_has_no_cache(monkeypatch, fits):
    for name in ("PROJKERN_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 2)
    assert cache_dir() is None
    for _ in range(2):
        assert len(fit_palette(IMAGES, 4)) == 4
    assert len(fits) == 2
