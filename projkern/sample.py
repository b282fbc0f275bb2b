"""``python -m projkern.sample``: images drawn by a trained run's models or by one generated model."""

import argparse
import sys
from pathlib import Path

from .utils import command

EXAMPLES = """
examples:
  python -m projkern.sample runs/quick --scale 1/4 --random 8          one image for each of eight random tasks
  python -m projkern.sample runs/quick --scale 1/4 --t task.json --images 8 --top-p 0.9
  python -m projkern.sample model --images 8 --temperature 0.8         of what projkern.project wrote
"""


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
    """Draw images as the options say, and write the picture."""
    from .exploration.drawing import Draws, draw, require_new_picture
    from .utils.device import pick_device

    require_new_picture(options.out, options.overwrite)
    drawing = draw(
        options.path,
        pick_device(options.device),
        Draws(options.temperature, options.top_k, options.top_p, options.seed),
        images=options.images,
        scale=options.scale,
        tasks=options.random if options.t is None else options.t,
        form=options.form,
    )
    drawing.write(options.out)
    count, sampled = drawing.images.shape[:2].numel(), drawing.sampled
    return (
        f"Wrote {count} image{'' if count == 1 else 's'} to {options.out}: "
        f"{sampled.tokens_per_second:,.0f} tokens per second, {sampled.seconds:.1f} s."
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    return command.run(parser(), argv, sample, lambda options: "Nothing was written")


if __name__ == "__main__":
    sys.exit(main())
