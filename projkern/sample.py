"""``python -m projkern.sample``: images or text from a trained run's models or from one generated model."""

import argparse
import sys
from pathlib import Path

from .utils import command

EXAMPLES = """
examples:
  python -m projkern.sample runs/quick --scale 1/4 --random 8          one image for each of eight random tasks
  python -m projkern.sample runs/quick --scale 1/4 --t task.json --images 8 --top-p 0.9
  python -m projkern.sample model --images 8 --temperature 0.8         of what projkern.project wrote
  python -m projkern.sample runs/languages --task de --prompt "Die "   text, of a run on tasks of text
  python -m projkern.sample runs/texts --like sample.txt --texts 3     of a task never seen, from a sample of its text
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command.parser(
        "sample",
        "Draw images, each for its own task, into one picture beside what the tasks mean; or let a task's language "
        "model write text.",
        EXAMPLES,
    )
    parser.add_argument("path", type=Path, help="folder of a trained run, or of a model that projkern.project wrote")
    run = parser.add_argument_group("of a run")
    command.add_text_tasks(command.add_scale_and_tasks(run, required=False), several=False)
    run.add_argument(
        "--form",
        choices=("auto", "materialised", "factored"),
        help="whether to write each task's weights, or read the source at each token (default: auto, by measured time)",
    )
    images = parser.add_argument_group("of images")
    images.add_argument("--images", type=int, metavar="N", help="images of each task (default: 1; of a model: 8)")
    images.add_argument("--out", type=Path, help="the picture (default: samples.png)")
    images.add_argument("--overwrite", action="store_true", help="replace --out if it is there")
    text = parser.add_argument_group("of text")
    text.add_argument("--prompt", metavar="TEXT", help="what the text begins with (default: nothing)")
    text.add_argument("--tokens", type=int, metavar="N", help="at most so many (default: 200)")
    text.add_argument("--texts", type=int, metavar="N", help="number of texts (default: 1)")
    parser.add_argument("--temperature", type=float, default=1.0, help="0 takes the likeliest token (default: 1)")
    parser.add_argument("--top-k", type=int, metavar="K", help="draw from the K likeliest tokens")
    parser.add_argument("--top-p", type=float, metavar="P", help="draw from the likeliest tokens, of probability P")
    command.add_seed(parser, "of the draws and of --random")
    command.add_device(parser)
    return parser


def sample(options: argparse.Namespace) -> str:
    """Draw images into a picture, or write text; returns the last line."""
    from .language.sampling import writes_text

    command.require_folder("path", options.path)
    return _write_text(options) if writes_text(options.path) else _draw_images(options)


def _draw_images(options: argparse.Namespace) -> str:
    from .exploration.drawing import draw, require_new_picture
    from .models.sampling import Draws
    from .utils.device import pick_device

    command.refuse(options, ("task", "like", "prompt", "tokens", "texts"), "left out for images")
    out = options.out or Path("samples.png")
    require_new_picture(out, options.overwrite)
    drawing = draw(
        options.path,
        pick_device(options.device),
        Draws(options.temperature, options.top_k, options.top_p, options.seed),
        images=options.images,
        scale=options.scale,
        tasks=options.random if options.t is None else options.t,
        form=options.form,
    )
    drawing.write(out)
    count, sampled = drawing.images.shape[:2].numel(), drawing.sampled
    return (
        f"Wrote {count} image{'' if count == 1 else 's'} to {out}: "
        f"{sampled.tokens_per_second:,.0f} tokens per second, {sampled.seconds:.1f} s."
    )


def _write_text(options: argparse.Namespace) -> str:
    from .language.sampling import printable, write_from
    from .models.sampling import Draws
    from .utils.device import pick_device

    command.refuse(options, ("random", "images", "form", "out", "overwrite"), "left out for text")
    written = write_from(
        options.path,
        pick_device(options.device),
        Draws(options.temperature, options.top_k, options.top_p, options.seed),
        prompt=options.prompt or "",
        tokens=200 if options.tokens is None else options.tokens,
        count=1 if options.texts is None else options.texts,
        scale=options.scale,
        task=options.task,
        like=options.like,
        vectors=options.t,
    )
    for text in written.texts:
        print(f"{printable((options.prompt or '') + text)}\n")
    return f"{written.parameters:,} parameters; {written.tokens_per_second:,.0f} tokens per second."


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    return command.run(parser(), argv, sample, lambda options: "Nothing was written")


if __name__ == "__main__":
    sys.exit(main())
