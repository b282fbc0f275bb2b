"""``python -m projkern.sample``: images drawn from a trained run's models or from one generated model."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .utils import command
from .utils.errors import InputError

EXAMPLES = """
examples:
  python -m projkern.sample runs/quick --scale 1/4 --random 8          one image for each of eight random tasks
  python -m projkern.sample runs/quick --scale 1/4 --t task.json --images 8 --top-p 0.9
  python -m projkern.sample model --images 8 --temperature 0.8         of what projkern.project wrote
"""
OF_A_RUN = ("scale", "t", "random", "form")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command.parser(
        "sample", "Draw images, each for its own task, into one picture beside what the tasks mean.", EXAMPLES
    )
    parser.add_argument("path", type=Path, help="folder of a trained run, or of a model in GPT-2's format")
    run = parser.add_argument_group("of a run")
    command.add_scale_and_tasks(run, required=False)
    run.add_argument(
        "--form",
        choices=("auto", "materialised", "factored"),
        help="whether to write each task's weights, or read the source at each token (default: auto, by measured time)",
    )
    parser.add_argument("--images", type=int, metavar="N", help="images of each task (default: 1; of a model: 8)")
    parser.add_argument("--temperature", type=float, default=1.0, help="0 takes the likeliest colour (default: 1)")
    parser.add_argument("--top-k", type=int, metavar="K", help="draw from the K likeliest colours")
    parser.add_argument("--top-p", type=float, metavar="P", help="draw from the likeliest colours, of probability P")
    command.add_seed(parser, "of the draws and of --random")
    command.add_device(parser)
    parser.add_argument("--out", type=Path, default=Path("samples.png"), help="the picture (default: samples.png)")
    parser.add_argument("--overwrite", action="store_true", help="replace --out if it is there")
    return parser


def sample(options: argparse.Namespace) -> str:
    """Draw what the options ask for, and write the picture."""
    from .exploration.drawing import Draws, draw_from_model, draw_from_run, is_standalone
    from .models.sampling import check_draws
    from .utils.device import pick_device
    from .utils.pictures import beside_tasks

    check_draws(options.temperature, options.top_k, options.top_p)
    require_new_picture(options)
    device, draws = pick_device(options.device), Draws(options.temperature, options.top_k, options.top_p, options.seed)
    title = options.path.resolve().name
    if is_standalone(options.path):
        given = [f"--{name}" for name in OF_A_RUN if getattr(options, name) is not None]
        if given:
            raise InputError(f"{', '.join(given)} must be left out for a model, which is of one task already")
        drawing = draw_from_model(options.path, device, draws, options.images or 8)
    else:
        tasks = options.random if options.t is None else options.t
        form, each = options.form or "auto", options.images or 1
        drawing = draw_from_run(options.path, device, draws, scale=options.scale, tasks=tasks, each=each, form=form)
        title += f", s = {options.scale}"
    beside_tasks(options.out, drawing.images, drawing.meaning, title)
    count = drawing.images.shape[:2].numel()
    return (
        f"Wrote {count} image{'' if count == 1 else 's'} to {options.out}: "
        f"{drawing.sampled.tokens_per_second:,.0f} tokens per second, {drawing.sampled.seconds:.1f} s."
    )


def require_new_picture(options: argparse.Namespace) -> None:
    """Raise for what would fail after the drawing, before it."""
    if options.images is not None and options.images < 1:
        raise InputError(f"--images must be at least 1; it was {options.images}")
    if options.out.exists() and not options.overwrite:
        raise FileExistsError(f"{options.out} exists; give --overwrite to replace it, or another --out")
    if not options.out.parent.is_dir() or options.out.is_dir():
        raise InputError(f"--out must be a file in a folder that exists; it was {options.out}")


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    return command.run(parser(), argv, sample, lambda options: "Nothing was written")


if __name__ == "__main__":
    sys.exit(main())
