"""``python -m projkern.reproduce``: run the paper's experiments, and write the page that compares ours with its."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .reproduction.page.ledger import write_page
from .reproduction.results import EXPERIMENTS
from .reproduction.run import Options, reproduce
from .reproduction.runner import Failed, Stopped, default_workers
from .reproduction.sizes import SIZES
from .signals import terminate_as_interrupt

DESCRIPTION = """\
Run the experiments of the paper (Projectable Models) and go on where they stopped; store each result, and write the
page that compares ours with the paper's.

  table1       SynthMNIST: sources, baselines, projected models, and those of all sizes on one source
  table2       real images as tokens, an encoder's embedding as t
  table3       smaller sources, with more parameters in the operator in return
  table4       transfer between tasks: with an eighth of the images of some classes
  figure4      loss against t_scale in [0, 2] (measured with table1)
  lengths      table1's models after shorter and longer trainings
  generators   the weight generators of appendix B, at equal parameters
  recipes      beyond the paper: one change at a time
  rates        learning rates around those in use; token_rates: those of table2 and table4
  page         only write the page from what is stored
"""
EXAMPLES = """
examples:
  python -m projkern.reproduce table1 --mnist DIR                 mini, on every core of the CPU
  python -m projkern.reproduce table1 --mnist DIR --minutes 30    for half an hour; the same command goes on
  python -m projkern.reproduce table2 --images TRAIN VALIDATION --embeddings FILE
  python -m projkern.reproduce table1 --mnist DIR --size small    on a card
  python -m projkern.reproduce page
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    sizes = "".join(f"  {name:<8}{size.what}\n" for name, size in SIZES.items())
    made = argparse.ArgumentParser(
        prog="python -m projkern.reproduce",
        description=DESCRIPTION,
        epilog="sizes:\n" + sizes + EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("experiment", choices=[*EXPERIMENTS, "page"])
    made.add_argument("--size", choices=SIZES, default="mini", help="how large and how long (default: mini)")
    made.add_argument("--minutes", type=float, metavar="N", help="stop after N minutes, with everything saved")
    made.add_argument("--seeds", type=int, metavar="N", help="how many of each training (default: the size's)")
    made.add_argument(
        "--jobs", type=int, metavar="N", help="trainings at a time (default: one a core on a CPU, one on a card)"
    )
    made.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    made.add_argument(
        "--mnist", metavar="DIR", default="openml", help="folder of MNIST's four files (default: openml, a download)"
    )
    made.add_argument("--images", nargs=2, metavar=("TRAIN", "VALIDATION"), help="as projkern.tokenize takes them")
    made.add_argument("--embeddings", metavar="FILE", help="t of each image, as projkern.tokenize takes it")
    made.add_argument(
        "--out", type=Path, default=Path("runs/reproduction"), help="folder of the trainings (default: %(default)s)"
    )
    made.add_argument(
        "--results",
        type=Path,
        default=Path("docs/reproduction"),
        help="folder of the stored results; what they hold is not run again (default: %(default)s)",
    )
    return made


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    made = parser()
    given = made.parse_args(argv)
    for name in ("minutes", "seeds", "jobs"):
        value = getattr(given, name)
        if value is not None and not value > 0:
            made.error(f"--{name} must be above 0; it was {value:g}")
    terminate_as_interrupt()
    options = Options(
        size=given.size,
        out=given.out,
        results=given.results,
        workers=given.jobs or default_workers(given.device),
        seeds=given.seeds,
        seconds=None if given.minutes is None else 60 * given.minutes,
        mnist=given.mnist,
        images=None if given.images is None else (given.images[0], given.images[1]),
        embeddings=given.embeddings,
        device=given.device,
    )
    try:
        if given.experiment == "page":
            write_page(options.results, options.page)
            print(f"Wrote {options.page} from {options.results}.")
            return 0
        outcome = reproduce(given.experiment, options)
    except (Stopped, KeyboardInterrupt) as stop:
        print(f"\n{str(stop) or 'stopped'}. The same command goes on.", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError, RuntimeError, Failed) as error:
        print(f"projkern.reproduce: error: {error}", file=sys.stderr)
        return 1
    print(
        f"{outcome.added} results added, {outcome.before} were there before. "
        f"Wrote {outcome.stored} and {options.page}."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
