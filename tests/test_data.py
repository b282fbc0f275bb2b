"""SynthMNIST (paper, appendix C.3): textures, digits, palettes, batches."""

import gzip
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from projkern.data import (
    TASK_DIM,
    TASK_NAMES,
    Digits,
    Palette,
    SynthMNIST,
    cache_dir,
    fit_palette,
    load_digits,
    overlay,
    synthmnist_palette,
    texture,
)
from projkern.data.figure import gallery
from projkern.data.synthmnist import _stream, resize_digits

SIZE = 16
INDEX = {name: i for i, name in enumerate(TASK_NAMES)}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PROJKERN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def digits():
    return load_digits()


@pytest.fixture(scope="module")
def palette():
    return Palette(torch.rand(64, 3, generator=torch.Generator().manual_seed(5)) * 2 - 1)


def task(kind="stripes", **values):
    """A plain t: no rotation, scale 11, centre in the middle, no warp, no shift, brightness 1."""
    t = torch.zeros(1, TASK_DIM)
    values = {
        "scale": 0.5, "center_x": 0.5, "center_y": 0.5, "color_r": 1 / 3, "color_g": 1 / 3, "color_b": 1 / 3,
        f"class_{kind}": 1.0, **values,
    }  # fmt: skip
    for name, value in values.items():
        t[0, INDEX[name]] = value
    return t


def axes(size=SIZE):
    axis = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    return axis[None, :], axis[:, None]


def close(a, b, atol=2e-5):
    torch.testing.assert_close(a.double(), b.double().expand_as(a), atol=atol, rtol=0)


# ---------------------------------------------------------------- texture, component by component


def slow_texture(t, size):
    """Appendix C.3, one pixel at a time, in float64."""
    t = [float(v) for v in t]
    sc = lambda v: 2 + 18 * v  # noqa: E731
    amplitude = lambda v: max(v - 0.3, 0) / (1 - 0.3)  # noqa: E731
    out = np.zeros((3, size, size))
    for c, i, j in np.ndindex(out.shape):
        x, y = (j + 0.5) / size - t[2], (i + 0.5) / size - t[3]
        angle = 2 * math.pi * t[0]
        u, v = x * math.cos(angle) - y * math.sin(angle), x * math.sin(angle) + y * math.cos(angle)
        x = sc(t[1]) * u + amplitude(t[4]) * math.cos(sc(t[6]) * u) + math.pi * t[7 + c]
        y = sc(t[1]) * v + amplitude(t[5]) * math.cos(sc(t[6]) * v)
        g = math.cos(x / 3) * math.cos(y / 3)
        phase = (x, math.sqrt(x * x + y * y), 10 * g * t[13] + 2 * t[14])[int(np.argmax(t[10:13]))]
        out[c, i, j] = min(max((0.5 + 1.5 * t[15 + c]) * math.cos(phase), -1), 1)
    return torch.from_numpy(out)


def test_texture_equals_a_pixel_by_pixel_computation():
    t = torch.rand(12, TASK_DIM, generator=torch.Generator().manual_seed(1))
    t[6:] = t[6:] * 2 - 0.5  # beyond the training range
    expected = torch.stack([slow_texture(row, 9) for row in t])
    close(texture(t, 9), expected, atol=5e-5)


def test_names_cover_every_component():
    assert len(TASK_NAMES) == len(set(TASK_NAMES)) == TASK_DIM == 18


@pytest.mark.parametrize("name", TASK_NAMES)
def test_each_component_matters_for_its_class_and_only_there(name):
    for kind in ("stripes", "rings", "cells"):
        base = dict(warp_x=0.9, warp_y=0.9, warp_scale=0.2, cells_frequency=0.5, cells_phase=0.3, angle=0.1)
        t = task(kind, **base)
        changed = t.clone()
        changed[0, INDEX[name]] += 1.5 if name.startswith("class_") else 0.17
        matters = not torch.equal(texture(t, SIZE), texture(changed, SIZE))
        if name.startswith("class_"):
            assert matters == (name != f"class_{kind}")
        elif name.startswith("cells_"):
            assert matters == (kind == "cells")
        elif name == "warp_y":
            assert matters == (kind != "stripes")  # stripes know only the transformed x
        else:
            assert matters


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 2.0])
def test_stripes_scale(scale):
    x, _ = axes()
    close(texture(task(scale=scale), SIZE), torch.cos((2 + 18 * scale) * (x - 0.5)))


def test_angle_is_in_turns():
    plain = texture(task(), SIZE)
    close(texture(task(angle=0.25), SIZE), plain.mT)
    close(texture(task(angle=1.0), SIZE), plain, atol=1e-4)
    x, y = axes()
    oblique = 11 * math.sqrt(0.5) * ((x - 0.5) - (y - 0.5))
    close(texture(task(angle=0.125), SIZE), torch.cos(oblique))


def test_center():
    x, y = axes()
    close(texture(task(center_x=0.2), SIZE), torch.cos(11 * (x - 0.2)))
    rings = torch.cos(11 * torch.sqrt((x - 0.2) ** 2 + (y - 0.9) ** 2))
    close(texture(task("rings", center_x=0.2, center_y=0.9), SIZE), rings)
    turned = texture(task("rings", center_x=0.2, center_y=0.9, angle=0.37), SIZE)
    close(turned, rings)  # rotation is about the centre


@pytest.mark.parametrize("amount", [0.0, 0.15, 0.3])
def test_no_warp_up_to_the_threshold(amount):
    for kind in ("stripes", "rings", "cells"):
        t = task(kind, warp_x=amount, warp_y=amount, warp_scale=0.7, cells_frequency=0.4)
        assert torch.equal(texture(t, SIZE), texture(task(kind, cells_frequency=0.4), SIZE))


def test_warp_amplitude_and_frequency():
    x, _ = axes()
    expected = torch.cos(11 * (x - 0.5) + 0.5 * torch.cos((2 + 18 * 0.4) * (x - 0.5)))
    close(texture(task(warp_x=0.65, warp_scale=0.4), SIZE), expected)


def test_shifts_move_one_channel_each():
    x, _ = axes()
    for c, name in enumerate(("shift_r", "shift_g", "shift_b")):
        image = texture(task(**{name: 0.5}), SIZE)[0]
        for channel in range(3):
            shift = math.pi / 2 if channel == c else 0.0
            close(image[channel], torch.cos(11 * (x - 0.5) + shift))


def test_class_is_the_largest_of_three():
    t = task("stripes", class_stripes=0.3, class_rings=0.2, class_cells=0.1)
    assert torch.equal(texture(t, SIZE), texture(task("stripes"), SIZE))
    t[0, INDEX["class_rings"]] = 0.31
    assert torch.equal(texture(t, SIZE), texture(task("rings"), SIZE))
    t[0, INDEX["class_cells"]] = 0.32
    assert torch.equal(texture(t, SIZE), texture(task("cells"), SIZE))


def test_cells():
    x, y = axes()
    g = torch.cos(11 * (x - 0.5) / 3) * torch.cos(11 * (y - 0.5) / 3)
    close(texture(task("cells", cells_frequency=0.7, cells_phase=0.6), SIZE), torch.cos(7 * g + 1.2))


def test_color_multiplies_then_clips():
    x, _ = axes()
    image = texture(task(color_r=0.0, color_g=1.0, color_b=0.2), SIZE)[0]
    for channel, factor in enumerate((0.5, 2.0, 0.8)):
        close(image[channel], (factor * torch.cos(11 * (x - 0.5))).clamp(-1, 1))


def test_texture_range_and_dtype():
    for t in (torch.rand(64, TASK_DIM), torch.rand(4, TASK_DIM, dtype=torch.float64) * 40 - 20):
        image = texture(t, 5)
        assert image.shape == (len(t), 3, 5, 5) and image.dtype == torch.float32
        assert bool((image.abs() <= 1).all())


@pytest.mark.parametrize("shape", [(18,), (2, 17), (2, 18, 1)])
def test_texture_rejects_other_shapes(shape):
    with pytest.raises(ValueError, match=r"t is .*\(B, 18\)"):
        texture(torch.zeros(shape), SIZE)


def test_texture_rejects_small_sizes():
    with pytest.raises(ValueError, match="size is 3"):
        texture(task(), 3)


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


def idx(array):
    header = np.array([0x0800 + array.ndim, *array.shape], ">u4").tobytes()
    return header + array.astype(np.uint8).tobytes()


@pytest.fixture(params=["plain", "gz"])
def mnist(tmp_path, request):
    """A directory of four small idx files, and what they hold."""
    folder, arrays = tmp_path / "mnist", {}
    folder.mkdir()
    rng = np.random.default_rng(0)
    for prefix, n in (("train", 7), ("t10k", 3)):
        arrays[prefix] = rng.integers(0, 256, (n, 28, 28)), rng.integers(0, 10, n)
        for name, array in zip(("images-idx3", "labels-idx1"), arrays[prefix]):
            path = folder / f"{prefix}-{name}-ubyte"
            if request.param == "gz":
                Path(f"{path}.gz").write_bytes(gzip.compress(idx(array)))
            else:
                path.write_bytes(idx(array))
    return folder, arrays


def test_idx_files(mnist):
    folder, arrays = mnist
    for split, prefix in (("train", "train"), ("validation", "t10k")):
        for source in (folder, str(folder)):
            loaded = load_digits(source, split)
            assert np.array_equal(loaded.images.numpy(), arrays[prefix][0])
            assert np.array_equal(loaded.labels.numpy(), arrays[prefix][1])


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
    with pytest.raises(ValueError, match="train-images-idx3-ubyte"):
        load_digits(folder)


@pytest.mark.parametrize("mnist", ["plain"], indirect=True)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: b"\x00\x00\x08\x01" + data[4:], "starts with 0x00000801.*0x00000803"),
        (lambda data: b"\x00\x00\x0d\x03" + data[4:], "starts with 0x00000d03"),
        (lambda data: data + b"\x00", "it must have 5504"),
        (lambda data: data[:4] + b"\xff\xff\xff\xff" + data[8:], r"has 5504 bytes"),
        (lambda data: idx(np.zeros((6, 28, 28))), "has 6 images and .* 7 labels"),
        (lambda data: idx(np.zeros((7, 20, 28))), r"is \(7, 20, 28\)"),
    ],
    ids=["labels", "floats", "too long", "huge count", "counts differ", "other size"],
)
def test_wrong_idx_file(mnist, change, message):
    folder, _ = mnist
    path = folder / "train-images-idx3-ubyte"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=message) as error:
        load_digits(folder)
    assert str(path) in str(error.value)


def test_file_that_is_no_gzip(mnist):
    folder, _ = mnist
    for path in folder.glob("train-images*"):
        path.unlink()
    (folder / "train-images-idx3-ubyte.gz").write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz is truncated or no gzip"):
        load_digits(folder)


def test_openml(monkeypatch):
    pixels, labels = np.zeros((60_003, 784), np.int64), np.array(["7"] * 60_000 + ["1", "2", "3"])
    pixels[60_001, 0] = 200
    monkeypatch.setattr("sklearn.datasets.fetch_openml", lambda *a, **k: (pixels, labels))
    held_out = load_digits("openml", "validation")
    assert held_out.images.shape == (3, 28, 28) and held_out.images[1, 0, 0] == 200
    assert held_out.labels.tolist() == [1, 2, 3]
    assert len(load_digits("openml")) == 60_000


def test_openml_without_network(monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("no route")

    monkeypatch.setattr("sklearn.datasets.fetch_openml", fail)
    with pytest.raises(ConnectionError, match="OpenML cannot be reached"):
        load_digits("openml")


def test_unknown_split():
    with pytest.raises(ValueError, match="split is 'test'; it must be one of 'train', 'validation'"):
        load_digits(split="test")


@pytest.mark.skipif("PROJKERN_MNIST" not in os.environ, reason="PROJKERN_MNIST names no MNIST directory")
def test_real_mnist():
    for split, n, first in (("train", 60_000, 5), ("validation", 10_000, 7)):
        loaded = load_digits(os.environ["PROJKERN_MNIST"], split)
        assert loaded.images.shape == (n, 28, 28) and loaded.labels[0] == first
        assert 33 < loaded.images.float().mean() < 34


def test_digits_keep_their_pixels_at_32_and_shape_elsewhere(digits):
    at_32 = resize_digits(digits.images[:5], 32)
    assert torch.equal(at_32[:, 2:30, 2:30], digits.images[:5]) and at_32.sum() == digits.images[:5].sum()
    for size in (4, 5, 7, 12, 16, 33, 64):
        resized = resize_digits(digits.images[:5], size)
        assert resized.shape == (5, size, size) and resized.dtype == torch.uint8 and resized.max() > 150


def test_overlay_formula():
    background = torch.full((1, 3, 8, 8), 0.25)
    digit = torch.zeros(1, 8, 8, dtype=torch.uint8)
    digit[0, 4, 4] = 255
    out = overlay(background, digit)[0, 0]
    assert out[4, 4] == 1  # ink
    assert out[3, 3] == out[5, 4] == -1  # one pixel of paper around it
    assert bool((out[:3] == 0.25).all()) and bool((out[:, 6:] == 0.25).all())
    assert torch.equal(overlay(background, torch.zeros_like(digit)), background)


# ---------------------------------------------------------------- palette


def brute_force(colors, images):
    pixels = images.double().permute(0, 2, 3, 1).reshape(-1, 1, 3)
    return (pixels - colors.double()).square().sum(-1).view(len(images), -1, len(colors))


@pytest.mark.parametrize("kind", ["cube", "clustered", "corners", "repeated", "two"])
def test_encode_finds_the_nearest_colour(kind):
    generator = torch.Generator().manual_seed(3)
    colors = {
        "cube": torch.rand(512, 3, generator=generator) * 2 - 1,
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
    with pytest.raises(ValueError, match=r"colors is \(1, 3\)"):
        Palette(torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r"colors is \(4, 4\)"):
        Palette(torch.zeros(4, 4))
    for bad in (1.5, float("nan")):
        with pytest.raises(ValueError, match="not finite or leave"):
            Palette(torch.tensor([[0.0, 0, 0], [0, 0, bad]]))
    palette = Palette(torch.eye(3))
    with pytest.raises(ValueError, match=r"images is \(3, 8, 8\)"):
        palette.encode(torch.zeros(3, 8, 8))
    with pytest.raises(ValueError, match=r"tokens is \(2, 5\)"):
        palette.decode(torch.zeros(2, 5, dtype=torch.int64))
    with pytest.raises(ValueError, match="colors is 1; it must be from 2"):
        fit_palette(torch.zeros(1, 3, 4, 4), colors=1)
    with pytest.raises(ValueError, match="to the number of pixels, 16"):
        fit_palette(torch.zeros(1, 3, 4, 4), colors=17)


def test_fit_recovers_clusters_and_is_deterministic():
    centers = torch.tensor([[-0.8, -0.8, -0.8], [0.0, 0.5, -0.5], [0.9, 0.9, 0.9]])
    noise = 0.01 * torch.randn(3000, 3, generator=torch.Generator().manual_seed(0))
    pixels = (centers.repeat(1000, 1) + noise).view(1, 50, 60, 3).permute(0, 3, 1, 2)
    palette = fit_palette(pixels, 3, cache=False)
    close(palette.colors, centers, atol=0.01)  # darkest first
    assert torch.equal(fit_palette(pixels, 3, cache=False).colors, palette.colors)


def test_save_and_load(tmp_path, palette):
    palette.save(tmp_path / "deep" / "palette.npy")
    assert torch.equal(Palette.load(tmp_path / "deep" / "palette.npy").colors, palette.colors)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["palette.npy"]  # no temporary left


def test_load_refuses_pickles(tmp_path):
    np.save(tmp_path / "evil.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"evil\.npy is no palette"):
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


# ---------------------------------------------------------------- batches


def test_batch_shapes_and_ranges(palette, digits):
    tokens, t = SynthMNIST(SIZE, palette, digits, batch=6).batch(0)
    assert tokens.shape == (6, SIZE * SIZE) and tokens.dtype == torch.int64
    assert t.shape == (6, TASK_DIM) and t.dtype == torch.float32
    assert tokens.min() >= 0 and tokens.max() < len(palette)
    assert t.min() >= 0 and t.max() < 1
    images, same_t = SynthMNIST(SIZE, palette, digits, batch=6).images(0)
    assert torch.equal(palette.encode(images), tokens) and torch.equal(same_t, t)
    assert bool((images.abs() <= 1).all())


def test_batches_are_a_function_of_seed_and_step(palette, digits):
    make = lambda **k: SynthMNIST(SIZE, palette, digits, **{"batch": 4, **k})  # noqa: E731
    one, other = make(seed=3), make(seed=3)
    before = torch.get_rng_state()
    forward = [one.batch(step) for step in range(5)]
    backward = [other.batch(step) for step in reversed(range(5))][::-1]
    for (a, s), (b, t) in zip(forward, backward):
        assert torch.equal(a, b) and torch.equal(s, t)
    assert torch.equal(torch.get_rng_state(), before)  # the global stream is left alone
    assert torch.equal(one.tasks(2), forward[2][1])
    seen = [t for _, t in forward] + [make(seed=4).tasks(0), make(seed=3, split="validation").tasks(0)]
    assert len({t.numpy().tobytes() for t in seen}) == len(seen)


def test_random_streams_never_coincide_within_a_seed():
    streams = [_stream(11, split, step) for split in ("train", "validation") for step in range(50_000)]
    assert len(set(streams)) == len(streams) and max(streams) < 2**32


def test_tasks_are_uniform(palette, digits):
    data = SynthMNIST(SIZE, palette, digits, batch=64)
    t = torch.cat([data.tasks(step) for step in range(200)])
    assert (t.mean(0) - 0.5).abs().max() < 0.015 and (t.var(0) - 1 / 12).abs().max() < 0.005


def test_examples_per_task(palette, digits):
    data = SynthMNIST(SIZE, palette, digits, batch=12, examples_per_task=4)
    tokens, t = data.batch(1)
    groups = t.view(3, 4, TASK_DIM)
    assert bool((groups == groups[:, :1]).all()) and len(t.unique(dim=0)) == 3
    assert len(tokens.unique(dim=0)) == 12  # other digits


def test_given_tasks_keep_the_digits(palette, digits):
    data = SynthMNIST(32, palette, digits, batch=3)
    images, t = data.images(0)
    t[:, INDEX["scale"]] = 1.7
    changed, used = data.images(0, t)
    assert torch.equal(used, t)
    ink = (images == 1).all(1) & (changed == 1).all(1)
    assert bool((ink.sum((1, 2)) > 15).all()) and not torch.equal(images, changed)
    with pytest.raises(ValueError, match=r"t is \(2, 18\); it must be \(3, 18\)"):
        data.batch(0, t[:2])


def test_flips_only_in_training(palette):
    """One lopsided digit: where its ink is tells whether it was flipped."""
    image = torch.zeros(1, 28, 28, dtype=torch.uint8)
    image[0, 4:24, 5:9] = 255
    digits, flat = Digits(image, torch.zeros(1, dtype=torch.int64)), torch.zeros(200, TASK_DIM)

    def flipped(split):
        images, _ = SynthMNIST(32, palette, digits, 0, split, 200).images(0, flat)
        left, right = (images[:, 0, 8, 8] == 1), (images[:, 0, 8, 23] == 1)
        assert bool((left ^ right).all())
        return int(right.sum())

    assert flipped("validation") == 0
    assert 70 < flipped("train") < 130


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 3}, "size is 3; it must be at least 4"),
        ({"batch": 0}, "batch is 0"),
        ({"batch": 10, "examples_per_task": 4}, "examples_per_task is 4; it must divide the batch, 10"),
        ({"examples_per_task": 0}, "examples_per_task is 0"),
        ({"split": "test"}, "split is 'test'"),
    ],
)
def test_batch_arguments(palette, digits, change, message):
    with pytest.raises(ValueError, match=message):
        SynthMNIST(**{"size": SIZE, "palette": palette, "digits": digits, **change})


def test_negative_step(palette, digits):
    with pytest.raises(ValueError, match="step is -1"):
        SynthMNIST(SIZE, palette, digits).batch(-1)


def test_palette_of_synthmnist(digits):
    palette = synthmnist_palette(12, 64, digits)
    data = SynthMNIST(12, palette, digits, seed=9, batch=64)
    images, _ = data.images(0)
    error = (palette.decode(palette.encode(images)) - images).square().mean().sqrt()
    assert len(palette) == 64 and error < 0.15
    with pytest.raises(ValueError, match="size is 2"):
        synthmnist_palette(2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_same_data_on_a_gpu(palette, digits):
    (a, s), (b, t) = (SynthMNIST(SIZE, palette, digits, device=d).batch(0) for d in ("cpu", "cuda"))
    assert torch.equal(s, t.cpu()) and (a == b.cpu()).float().mean() > 0.999


def test_gallery(tmp_path, digits):
    gallery(tmp_path / "picture.png", digits, rows_per_class=1, blocks=((12, 0), (12, 8)))
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="blocks has size 20"):
        gallery(tmp_path / "picture.png", digits, blocks=((20, 0),))
