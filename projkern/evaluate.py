"""``python -m projkern.evaluate RUN``: losses, equivalent sizes, sweeps of t and speed of a run's models."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from .data import TASK_NAMES
from .evaluation.report import open_folder, write_report
from .evaluation.result import evaluate_run
from .memory import keep_freed_memory
from .signals import terminate_as_interrupt
from .training.checkpoint import CheckpointError
from .training.trained import TrainedRun

EXAMPLES = f"""
components of t:
  {" ".join(TASK_NAMES[:9])}
  {" ".join(TASK_NAMES[9:])}

examples:
  python -m projkern.evaluate runs/mnist                                    what the run was judged on, and Figure 4
  python -m projkern.evaluate runs/mnist --sweep angle warp_x --no-speed    losses against two other components of t
  python -m projkern.evaluate runs/mnist --images 4096 --overwrite          smaller errors
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m projkern.evaluate",
        description="Evaluate every model of a run on the same held-out images.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("run", type=Path, metavar="RUN", help="the run's folder")
    made.add_argument("--images", type=int, metavar="N", help="held-out images (default: as many as the run used)")
    made.add_argument(
        "--sweep",
        nargs="*",
        metavar="NAME",
        help="components of SynthMNIST's t to vary over [0, 2]; none to skip it (default: scale)",
    )
    made.add_argument("--seed", type=int, help="of the images (default: the run's, which gives those that it used)")
    made.add_argument("--out", type=Path, metavar="DIR", help="where results go (default: RUN/evaluation)")
    made.add_argument("--overwrite", action="store_true", help="replace an evaluation in --out")
    made.add_argument("--no-speed", dest="speed", action="store_false", help="do not measure inference")
    return made


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = parser().parse_args(argv)
    terminate_as_interrupt()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        keep_freed_memory()
    try:
        run = TrainedRun.open(options.run, device)
        out = options.out or options.run / "evaluation"
        with open_folder(out, overwrite=options.overwrite):
            result = evaluate_run(
                run,
                run.config.eval_images if options.images is None else options.images,
                seed=run.config.seed if options.seed is None else options.seed,
                sweeps=options.sweep,
                speed=options.speed,
            )
            files = write_report(out, result)
    except KeyboardInterrupt:
        print("\nstopped before the end; to be run anew", file=sys.stderr)
        return 130
    except (ValueError, OSError, CheckpointError, MemoryError) as error:
        print(f"projkern.evaluate: error: {error}", file=sys.stderr)
        return 1
    print(f"\n{files[0].read_text()}\nWrote {', '.join(map(str, files))}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
