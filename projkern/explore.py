"""``python -m projkern.explore``: a local page to choose t by hand, and see what the models generated for it make."""

import argparse
import sys
from pathlib import Path

from .utils import command


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command.parser(
        "explore",
        "Serve a local page: sliders for the task identifier t, the texture it means, and samples of the "
        "small models generated for it; of a run on tasks of text a list of the tasks and a prompt. Ctrl-C ends it.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a finished run of python -m projkern.train")
    parser.add_argument("--port", type=int, default=7860, help="port of the page (default: %(default)s)")
    parser.add_argument(
        "--samples", type=int, default=8, metavar="N", help="images that each model draws (default: %(default)s)"
    )
    command.add_former(parser, "--images", "samples")
    command.add_seed(parser, "of the first t and the samples")
    command.add_device(parser)
    return parser


def explore(options: argparse.Namespace) -> str:
    """Serve the page until Ctrl-C."""
    from .exploration.serve import serve

    serve(options.run, options.port, options.samples, options.seed, options.device)
    return "Served."


def main(argv: list[str] | None = None) -> int:
    """Run the command until Ctrl-C; returns its exit status."""
    return command.run(parser(), argv, explore)


if __name__ == "__main__":
    sys.exit(main())
