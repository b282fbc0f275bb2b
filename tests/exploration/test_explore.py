"""The page to move t by hand: what it shows, and that it works in a real browser."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import socket
import sys

import numpy as np
import pytest
import torch
from browsing import served, watched_page
from PIL import Image
from safetensors.torch import load_file, save_file

from projkern import explore
from projkern.data import TASK_NAMES, read_tasks, texture
from projkern.exploration.specimens import Specimens, texture_class
from projkern.models.names import Kind, ModelName
from projkern.models.sampling import sample
from projkern.train import main as train
from projkern.training.trained import TrainedRun

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=["one source for each", "joint"])
def run(request, tmp_path_factory, tiny_settings):
    folder = tmp_path_factory.mktemp("explore") / "run"
    joint = ["--joint"] if request.param == "joint" else []
    shape = ["--side", "8", "--scales", "1/2", "1/4"]
    assert train(["--out", str(folder), *tiny_settings, *shape, *joint]) == 0
    for path in folder.glob("checkpoint/P*/*/model.safetensors"):
        make_t_matter(path)
    return folder


def make_t_matter(checkpoint):
    """Give an operator that has hardly been trained random generators, and its small models opinions."""
    weights = load_file(checkpoint)
    torch.manual_seed(0)
    for name, weight in weights.items():
        if name.startswith("operators") and (("generator" in name and "weight" in name) or name.endswith("head")):
            weight.normal_()
    save_file(weights, checkpoint)


@pytest.fixture(scope="module")
def specimens(run):
    return Specimens(TrainedRun.open(run), samples=3)


def test_specimens_are_the_models_of_their_t(specimens):
    """Names, sizes and pictures are those of the run's operators; each depends on t and on the seed."""
    run = specimens.run
    summary = json.loads((run.path / "summary.json").read_text())["models"]
    t = torch.rand(18, generator=torch.Generator().manual_seed(0))
    moved = t.clone()
    moved[1] = 1 - t[1]
    drawn, again, of_moved, of_seed = (
        list(specimens.draw(t, seed)) for t, seed in ((t, 0), (t, 0), (moved, 0), (t, 1))
    )
    assert [one.name for one in drawn] == list(specimens.names)
    kind = Kind.JOINT if run.config.schedule.joint else Kind.PROJECTED
    for scale, one, same, *others in zip(run.config.operator.scales, drawn, again, of_moved, of_seed):
        assert one.name == ModelName(kind, scale)
        assert one.parameters == summary[str(one.name)]["parameters"]
        assert one.generation_seconds > 0 and one.tokens_per_second > 0
        assert one.images.shape == (3, 3, 8, 8)
        assert torch.equal(one.images, same.images)
        for other in others:
            assert not torch.equal(one.images, other.images)
        tokens = sample(run.operator(scale).generate(t).decoder(3), seed=0, progress=False).tokens
        assert torch.equal(one.images, run.palette.decode(tokens))


def test_texture_is_that_of_t(specimens):
    t = torch.rand(18)
    shown = specimens.texture(t)
    assert torch.equal(shown, texture(t[None], 8)[0])
    t[TASK_NAMES.index("color_r")] += 0.5
    assert not torch.equal(specimens.texture(t), shown)


@pytest.mark.parametrize(
    "values, kind",
    [([0.1, 0.2, 0.3], "cells"), ([0.1, 0.3, 0.2], "rings"), ([0.3, 0.3, 0.3], "stripes"), ([0.1, 0.3, 0.3], "rings")],
)
def test_texture_class(values, kind):
    t = torch.rand(18)
    t[10:13] = torch.tensor(values)
    assert texture_class(t) == f"class_{kind}"


def test_sliders_are_the_components_of_t_in_their_order(page):
    assert tuple(name for group in page.GROUPS.values() for name in group) == TASK_NAMES


def test_what_is_copied_is_what_is_shown(page, tmp_path):
    values = page.random_values(5)
    assert all(value == round(value, 2) and 0 <= value <= 1 for value in values)
    (tmp_path / "t.json").write_text(page.json_of(values))
    assert torch.equal(read_tasks(tmp_path / "t.json"), page.task_of(values))


def test_picture_holds_every_pixel(page):
    image = torch.rand(3, 8, 8) * 2 - 1
    encoded = page.data_address(image).removeprefix("data:image/png;base64,")
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))))
    assert np.abs(pixels / 127.5 - 1 - image.movedim(0, -1).numpy()).max() < 0.5 / 127


def test_words_beside_the_pictures(page, specimens):
    t = torch.rand(18)
    t[10:13] = torch.tensor([0.2, 0.75, 0.5])
    assert "rings, the class with the largest value (0.75)" in page.texture_html(specimens, t)
    one, *_ = specimens.draw(t, 0)
    shown = page.specimen_html(one)
    assert f"{one.parameters:,} parameters, generated in " in shown and shown.count("<img") == 3


def test_errors_of_the_command(page, run, tmp_path, capsys):
    def error(*arguments):
        assert explore.main([str(a) for a in arguments]) == 1
        return capsys.readouterr().err

    unfinished = tmp_path / "run"
    shutil.copytree(run, unfinished)
    for stage in (unfinished / "checkpoint").glob("P*"):
        shutil.rmtree(stage)
    assert f"error: {tmp_path / 'nowhere'}/config.json" in error(tmp_path / "nowhere")
    assert re.search(f"error: {unfinished} .* step 0 of 4", error(unfinished))
    assert re.search("error: samples .* 0$", error(run, "--samples", 0).strip())
    assert re.search("error: port .* 65536$", error(run, "--port", 65536).strip())
    assert re.search(f"error: seed .* {2**32}$", error(run, "--seed", 2**32).strip())
    with pytest.raises(SystemExit):
        error(run, "--seed", -1)
    assert "argument --seed: " in capsys.readouterr().err
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert re.search(f"error: port .* {port}", error(run, "--port", port))


def test_without_gradio(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "projkern.exploration.page", raising=False)
    monkeypatch.delattr("projkern.exploration.page", raising=False)
    assert explore.main([str(tmp_path)]) == 1
    assert "pip install 'projkern[explore]'" in capsys.readouterr().err


@pytest.fixture
def address(page, run):
    with served(run, "--samples", "8") as address:
        yield address


@pytest.mark.parametrize("run", ["joint"], indirect=True)
def test_a_slider_moved_in_a_browser(browser, address):
    """Texture and samples change, nothing goes wrong, and nothing is asked of another machine."""
    shown, trouble = watched_page(browser, address)

    def pictures(box):
        return [image.get_attribute("src") for image in shown.locator(f"#{box} img").all()]

    boxes = ["texture", "samples-0", "samples-1"]

    def act_and_wait_for_change(act, changing):
        before = [(box, pictures(box)) for box in changing]
        act()
        for box, sources in before:
            shown.wait_for_function(
                "([box, old]) => [...document.querySelectorAll(`#${box} img`)].some((img, i) => img.src != old[i])",
                arg=[box, sources],
            )

    shown.goto(address)
    for box in boxes:
        shown.wait_for_selector(f"#{box} img")
    assert [len(pictures(box)) for box in boxes] == [1, 8, 8]
    assert shown.locator("input[type=range]").count() == 18

    def move():
        shown.locator("#scale input[type=range]").press("End")

    act_and_wait_for_change(move, boxes)
    texture_before = pictures("texture")
    number = shown.locator("#scale input[type=number]")
    act_and_wait_for_change(lambda: number.fill(""), boxes)  # on the way to another number
    act_and_wait_for_change(lambda: number.fill("7"), boxes)
    assert pictures("texture") == texture_before
    act_and_wait_for_change(shown.get_by_role("button", name="new samples").click, boxes[1:])
    assert pictures("texture") == texture_before
    act_and_wait_for_change(shown.get_by_role("button", name="random t").click, boxes)
    assert 0 < float(number.input_value()) < 1
    assert "parameters, generated in" in shown.inner_text("#samples-1")
    assert trouble == []
