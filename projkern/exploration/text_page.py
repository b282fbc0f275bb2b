"""The page of ``python -m projkern.explore`` for a run on tasks of text: a task, a prompt, what each model writes."""

from __future__ import annotations

import html
from collections.abc import Iterator
from typing import Any

import gradio as gr

from ..models.names import SOURCE
from ..models.sampling import Draws
from ..utils.errors import InputError
from .writers import Text, Writers

CSS = """
.gradio-container { max-width: 1200px !important; }
.written h3 { margin: 0 0 4px; font-weight: 600; }
.written h3 span { margin-left: 1em; font-weight: 400; }
.written p { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; min-height: 5em; padding: 8px;
  border: 1px solid var(--border-color-primary); border-radius: 4px; }
.written b { font-weight: 600; }
"""


def build(writers: Writers, seed: int) -> gr.Blocks:
    """The page, not yet served.

    Args:
        writers: the models that it shows.
        seed: of the first draw; each press of the button takes the next one.
    """
    tasks = writers.run.tasks.names
    with gr.Blocks(title="projkern: explore", analytics_enabled=False, fill_width=True) as page:
        gr.HTML(introduction(writers))
        number = gr.State(seed)
        with gr.Row():
            with gr.Column(min_width=300, scale=1):
                task = gr.Dropdown(tasks, value=tasks[0], label="task", elem_id="task")
                sample = gr.Textbox(
                    value="",  # a box without a value sends None
                    label="or a sample of text of a task never seen",
                    lines=4,
                    elem_id="sample",
                    visible=writers.takes_samples,
                )
                prompt = gr.Textbox(value="", label="prompt", elem_id="prompt")
                temperature = gr.Slider(0, 1.5, 0.7, step=0.05, label="temperature", elem_id="temperature", buttons=[])
                button = gr.Button("write", variant="primary")
            with gr.Column(min_width=560, scale=3):
                boxes = [gr.HTML(elem_id=f"text-{i}", elem_classes="written") for i in range(len(writers.names))]

        def show(seed: int, task: str, sample: str, prompt: str, temperature: float) -> Iterator[dict[Any, str]]:
            try:
                t = writers.t(task, sample)
            except InputError as error:
                raise gr.Error(str(error)) from error
            for box, text in zip(boxes, writers.write(t, prompt, Draws(temperature, seed=seed))):
                yield {box: text_html(text, prompt)}

        written: dict[str, Any] = {
            "fn": show,
            "inputs": [number, task, sample, prompt, temperature],
            "outputs": boxes,
            "show_progress": "minimal",
            "trigger_mode": "always_last",
            "concurrency_limit": 1,  # so that what is timed has the machine to itself
        }
        gr.on([page.load, prompt.submit], **written)
        task.input(lambda: "", None, sample, show_progress="hidden").then(**written)  # the task that was chosen counts
        counted = gr.on([button.click], lambda seed: seed + 1, number, number, show_progress="hidden")
        counted.then(**written)
    return page


def introduction(writers: Writers) -> str:
    """The title of the page and its first sentences."""
    return (
        f"<h2>{html.escape(str(writers.run.path))}</h2>Each task has its own small language model, generated from one "
        "source for its t. Choose a task: its model is generated, and writes, beside the conditional model of the same "
        "size and the source."
    )


def text_html(text: Text, prompt: str) -> str:
    """What one model wrote, and its figures."""
    words = [f"{text.parameters:,} parameters"]
    if text.generation_seconds is not None:
        words.append(f"generated in {1e3 * text.generation_seconds:.1f} ms")
    words.append(f"{text.tokens_per_second:,.0f} tokens/s")
    title = "M_1, the source, which knows no task" if text.name == SOURCE else text.name.title
    body = f"<b>{html.escape(prompt)}</b>{html.escape(text.text)}"
    return f'<h3>{title}<span>{", ".join(words)}</span></h3><p dir="auto">{body}</p>'
