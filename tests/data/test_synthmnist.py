"""SynthMNIST (paper, appendix C.3): textures, overlay and batches."""

import math

import numpy as np
import pytest
import torch

from projkern.data import TASK_DIM, TASK_NAMES, Digits, Palette, SynthMNIST, overlay, synthmnist_palette, texture
from projkern.data.synthmnist import _stream, resize_digits
from projkern.utils.errors import InputError

SIZE = 16
INDEX = {name: i for i, name in enumerate(TASK_NAMES)}


pytestmark = pytest.mark.usefixtures("one_thread", "own_cache")


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
    with pytest.raises(InputError, match=r"t must be \(B, 18\)"):
        texture(torch.zeros(shape), SIZE)


def test_texture_rejects_small_sizes():
    with pytest.raises(InputError, match="size must .* was 3"):
        texture(task(), 3)


# ---------------------------------------------------------------- digits on textures


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
    with pytest.raises(InputError, match=r"t must be \(3, 18\); it was \(2, 18\)"):
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
        ({"size": 3}, "size must be at least 4; it was 3"),
        ({"batch": 0}, "batch must .* was 0"),
        ({"batch": 10, "examples_per_task": 4}, "examples_per_task must divide the batch, 10; it was 4"),
        ({"examples_per_task": 0}, "examples_per_task must .* was 0"),
        ({"split": "test"}, "split must .* was 'test'"),
    ],
)
def test_batch_arguments(palette, digits, change, message):
    with pytest.raises(InputError, match=message):
        SynthMNIST(**{"size": SIZE, "palette": palette, "digits": digits, **change})


def test_negative_step(palette, digits):
    with pytest.raises(InputError, match="step must .* was -1"):
        SynthMNIST(SIZE, palette, digits).batch(-1)


def test_palette_of_synthmnist(digits):
    palette = synthmnist_palette(12, 64, digits)
    data = SynthMNIST(12, palette, digits, seed=9, batch=64)
    images, _ = data.images(0)
    error = (palette.decode(palette.encode(images)) - images).square().mean().sqrt()
    assert len(palette) == 64 and error < 0.15
    with pytest.raises(InputError, match="size must .* was 2"):
        synthmnist_palette(2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_same_data_on_a_gpu(palette, digits):
    (a, s), (b, t) = (SynthMNIST(SIZE, palette, digits, device=d).batch(0) for d in ("cpu", "cuda"))
    assert torch.equal(s, t.cpu()) and (a == b.cpu()).float().mean() > 0.999
