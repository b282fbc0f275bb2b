"""The page of ``python -m projkern.explore``: sliders for t, and beside them what t means to a trained run."""

import base64
import html
import io
import json
from collections.abc import Iterator
from typing import Any

import gradio as gr
import torch
from PIL import Image
from torch import Tensor

from ..data import TASK_NAMES, random_tasks
from .specimens import Specimen, Specimens, texture_class

GROUPS = {
    "Geometry": {"angle": "angle", "scale": "scale", "center_x": "centre x", "center_y": "centre y"},
    "Warp, none below 0.3": {"warp_x": "along x", "warp_y": "along y", "warp_scale": "frequency"},
    "Shift of a colour component": {"shift_r": "red", "shift_g": "green", "shift_b": "blue"},
    "Class: the largest of the three wins": {
        "class_stripes": "stripes",
        "class_rings": "rings",
        "class_cells": "cells",
    },
    "Cells, of no effect on the other classes": {"cells_frequency": "frequency", "cells_phase": "phase"},
    "Contrast of a colour component": {"color_r": "red", "color_g": "green", "color_b": "blue"},
}
"""The sliders: title of the group -> component of t -> label. In the order of ``TASK_NAMES``."""

# A number typed beside a slider is not held to its range before the typing is over, and may be missing.
WITHIN = "values.map(v => Math.min(Math.max(v ?? 0, 0), 1))"

# Pictures that are being replaced are dimmed, those that come at once are not.
CSS = """
.gradio-container { max-width: 1500px !important; }
.sliders { gap: 10px; }
.sliders input[type=number] { width: 4em; padding-inline: 2px; }
.title { margin-bottom: -8px; font-weight: 600; }
.pictures h3 { margin: 0 0 6px; font-weight: 600; }
.pictures h3 span { margin-left: 1em; font-weight: 400; }
.pictures div div { display: flex; flex-wrap: wrap; gap: 6px; }
.pictures .pending { transition: opacity 0.2s 0.3s; }
.pictures img { image-rendering: pixelated; width: 152px; height: 152px; margin: 0;
  outline: 1px solid var(--border-color-primary); }
"""


def build(specimens: Specimens, seed: int) -> gr.Blocks:
    """The page, not yet served.

    Args:
        specimens: the models that it shows.
        seed: of the first t and the first samples; each press of a button takes the next one.
    """
    values = dict(zip(TASK_NAMES, random_values(seed)))
    sliders = []
    with gr.Blocks(title="projkern: explore", analytics_enabled=False, fill_width=True) as page:
        gr.HTML(introduction(specimens))
        number = gr.State(seed)
        with gr.Row():
            with gr.Column(min_width=560, elem_classes="sliders"):
                for title, labels in GROUPS.items():
                    gr.HTML(title, elem_classes="title")
                    with gr.Row():
                        for name, label in labels.items():
                            sliders.append(
                                gr.Slider(
                                    0, 1, values[name], step=0.01, label=label, elem_id=name, min_width=120, buttons=[]
                                )
                            )
            with gr.Column(min_width=560):
                with gr.Row():
                    random_t = gr.Button("random t", variant="primary")
                    new_samples = gr.Button("new samples")
                texture_box = gr.HTML(elem_id="texture", elem_classes="pictures")
                boxes = [gr.HTML(elem_id=f"samples-{i}", elem_classes="pictures") for i in range(len(specimens.names))]
                with gr.Accordion("this t as JSON", open=False):
                    code = gr.Code(language="json", show_label=False)

        def show_task(*values: float) -> tuple[str, str]:
            return texture_html(specimens, task_of(values)), json_of(values)

        def show_samples(seed: int, *values: float) -> Iterator[dict[Any, str]]:
            for box, specimen in zip(boxes, specimens.draw(task_of(values), seed)):
                yield {box: specimen_html(specimen)}

        # A moving slider requests more pictures than can be drawn: of those that wait, only the last is drawn.
        live: dict[str, Any] = {"trigger_mode": "always_last", "show_progress": "minimal"}
        task: dict[str, Any] = {
            "fn": show_task,
            "inputs": sliders,
            "outputs": [texture_box, code],
            "js": f"(...values) => {WITHIN}",
            **live,
        }
        # One drawing at a time, so that what is timed has the machine to itself.
        samples: dict[str, Any] = {
            "fn": show_samples,
            "inputs": [number, *sliders],
            "outputs": boxes,
            "js": f"(seed, ...values) => [seed, ...{WITHIN}]",
            "concurrency_limit": 1,
            **live,
        }
        moved = [page.load, *(slider.input for slider in sliders)]
        gr.on(moved, **task)
        gr.on(moved, **samples)
        count: dict[str, Any] = {
            "fn": lambda seed: seed + 1,
            "inputs": number,
            "outputs": number,
            "show_progress": "hidden",
        }
        new_samples.click(**count).then(**samples)
        replaced = random_t.click(**count).then(random_values, number, sliders, show_progress="hidden")
        replaced.then(**task)
        replaced.then(**samples)
    return page


def start(page: gr.Blocks, host: str, port: int, css: str) -> str:
    """Serve a page with its style in the background; returns its address. OSError: the port cannot be had."""
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=True,
        share=False,
        quiet=True,
        ssr_mode=False,
        run_history=False,
        footer_links=[],
        css=css,
        theme=gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
    )
    return address


def random_values(seed: int) -> list[float]:
    """A random t as the sliders can hold it: 18 numbers in [0, 1], in hundredths."""
    return [round(v, 2) for v in random_tasks(1, seed)[0].tolist()]


def task_of(values: Any) -> Tensor:
    """The sliders' 18 values as t: (18,) float32."""
    return torch.tensor(values, dtype=torch.float32)


def json_of(values: Any) -> str:
    """t as ``projkern.data.read_tasks`` reads it."""
    return json.dumps(dict(zip(TASK_NAMES, values)), indent=1)


def introduction(specimens: Specimens) -> str:
    """The title of the page and its first sentences."""
    return (
        f"<h2>{html.escape(str(specimens.run.path))}</h2>Each task identifier t has its own small model, generated "
        "from one large source. Move a slider: the model of exactly that t is generated, at each scale, and draws."
    )


def texture_html(specimens: Specimens, t: Tensor) -> str:
    """The texture of t, and why it is of its class."""
    kind = texture_class(t)
    words = f"{kind.removeprefix('class_')}, the class with the largest value ({t[TASK_NAMES.index(kind)]:.2f})"
    return section("The texture that t means", words, [specimens.texture(t)])


def specimen_html(specimen: Specimen) -> str:
    """The samples of one model, and its figures."""
    words = (
        f"{specimen.parameters:,} parameters, generated in {1e3 * specimen.generation_seconds:.1f} ms, "
        f"drawn at {specimen.tokens_per_second:,.0f} tokens/s"
    )
    return section(specimen.name.title, words, list(specimen.images))


def section(title: str, words: str, images: list[Tensor]) -> str:
    """A title, a line of words and pictures."""
    pictures = "".join(f'<img alt="{title}" src="{data_address(image)}">' for image in images)
    return f"<h3>{title}<span>{words}</span></h3><div>{pictures}</div>"


def data_address(image: Tensor) -> str:
    """An image (3, S, S) in [-1, 1] as a PNG in a data: address, one pixel a pixel; the page's style enlarges it."""
    pixels = ((image + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).movedim(0, -1).cpu().numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
