"""``python -m projkern.reproduce``: run the paper's experiments, and write the page that compares ours with its."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from projkern.utils import command

from .documents import EXPERIMENTS, RESULTS
from .sizes import SIZES

DESCRIPTION = "Run an experiment of the paper (Projectable Models), or resume it, and write the page of all results."
EXPERIMENTS_AND_EXAMPLES = """
experiments:
  table1       SynthMNIST: sources, baselines, projected models, and those of all sizes on one source
  table2       real images as tokens, an encoder's embedding as t
  table3       smaller sources, with more parameters in the operator in return
  table4       transfer between tasks: with an eighth of the images of some classes
  figure4      loss against t_scale in [0, 2] (measured with table1)
  lengths      table1's models after shorter and longer trainings
  generators   the weight generators of appendix B, at equal parameters
  recipes      beyond the paper: one change at a time
  rates        learning rates around those in use; token_rates: those of table2 and table4
  page         only write the page from the stored results

examples:
  python -m projkern.reproduce table1 --mnist DIR                 mini, on every core of the CPU
  python -m projkern.reproduce table1 --mnist DIR --minutes 30    for half an hour; the same command goes on
  python -m projkern.reproduce table2 --collections TRAIN VALIDATION --embeddings FILE
  python -m projkern.reproduce table1 --mnist DIR --size small    on a card
  python -m projkern.reproduce page
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    sizes = "sizes:\n" + "".join(f"  {name:<8}{size.what}\n" for name, size in SIZES.items())
    parser = command.parser("reproduce", DESCRIPTION, sizes + EXPERIMENTS_AND_EXAMPLES)
    parser.add_argument("experiment", choices=[*EXPERIMENTS, "page"])
    parser.add_argument("--size", choices=SIZES, default="mini", help="how large and how long (default: mini)")
    parser.add_argument("--minutes", type=float, metavar="N", help="stop after N minutes, with everything saved")
    parser.add_argument("--seeds", type=int, metavar="N", help="how many of each training (default: the size's)")
    parser.add_argument(
        "--jobs", type=int, metavar="N", help="trainings at a time (default: one a core on a CPU, one on a card)"
    )
    command.add_device(parser)
    parser.add_argument(
        "--mnist", metavar="DIR", default="openml", help="folder of MNIST's four files (default: openml, a download)"
    )
    parser.add_argument(
        "--collections", nargs=2, metavar=("TRAIN", "VALIDATION"), help="images, as projkern.tokenize takes them"
    )
    parser.add_argument("--images", nargs=2, dest="collections", help=argparse.SUPPRESS)  # the former name
    parser.add_argument("--embeddings", metavar="FILE", help="t of each image, as projkern.tokenize takes it")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/reproduction"), help="folder of the trainings (default: %(default)s)"
    )
    parser.add_argument(
        "--results",
        type=Path,
        default=RESULTS,
        help="folder of the stored results; what they hold is not run again (default: %(default)s)",
    )
    return parser


def check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End with status 2 where an option has no meaning."""
    for name in ("minutes", "seeds", "jobs"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            parser.error(f"--{name} must be above 0; it was {value:g}")


def work(options: argparse.Namespace) -> str:
    """Run the experiment, or write the page alone; returns what was written where."""
    from .page.render import write_page
    from .pool import default_workers
    from .reproduce import Options, reproduce

    chosen = Options(
        size=options.size,
        out=options.out,
        results=options.results,
        workers=options.jobs or default_workers(options.device),
        seeds=options.seeds,
        seconds=None if options.minutes is None else 60 * options.minutes,
        mnist=options.mnist,
        collections=options.collections and (options.collections[0], options.collections[1]),
        embeddings=options.embeddings,
        device=options.device,
    )
    if options.experiment == "page":
        write_page(chosen.results, chosen.page)
        return f"Wrote {chosen.page} from {chosen.results}."
    outcome = reproduce(options.experiment, chosen)
    return (
        f"{outcome.added} results added, {outcome.before} were there before. Wrote {outcome.stored} and {chosen.page}."
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    return command.run(parser(), argv, work, lambda options: "The same command goes on.", check)


if __name__ == "__main__":
    sys.exit(main())
