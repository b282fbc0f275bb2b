"""``python -m projkern.project``: from a trained run and task identifiers to standalone small models."""

from __future__ import annotations

import argparse
import sys
from fractions import Fraction
from pathlib import Path

from .functional import project
from .options import add_scale_and_tasks, seed
from .projecting import WrongModel, digest, project_tasks
from .signals import terminate_as_interrupt
from .training.checkpoint import CheckpointError
from .training.data import draw_run_tasks, read_run_tasks
from .training.trained import TrainedRun

EXAMPLES = """
examples:
  python -m projkern.project runs/quick --scale 1/4 --t task.json --out model
  python -m projkern.project runs/quick --scale 1/4 --t tasks.csv --out models --resume
  python -m projkern.project runs/quick --scale 1/4 --random 1000 --out models
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m projkern.project",
        description="Write a standalone model for each task, in Hugging Face's GPT-2 format, read back and checked.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("run", type=Path, help="folder of a trained run")
    add_scale_and_tasks(made, required=True)
    made.add_argument("--seed", type=seed, default=0, help="of --random (default: 0)")
    made.add_argument("--out", type=Path, required=True, help="the model's folder; for many tasks the folder of theirs")
    made.add_argument("--onnx", action="store_true", help="also write model.onnx, checked in onnxruntime")
    state = made.add_mutually_exclusive_group()
    state.add_argument("--resume", action="store_true", help="go on with what is missing in --out")
    state.add_argument("--overwrite", action="store_true", help="replace the models in --out")
    return made


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = parser().parse_args(argv)
    terminate_as_interrupt()
    try:
        count = make(options.run, options.scale, options)
    except KeyboardInterrupt:
        print(f"\nstopped. To go on: the same command with --resume ({options.out})", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError, CheckpointError, WrongModel, MemoryError) as error:
        print(f"projkern.project: error: {error}", file=sys.stderr)
        return 1
    print(f"Wrote and checked {count} model{'' if count == 1 else 's'} in {options.out}.")
    return 0


def make(path: Path, s: Fraction, options: argparse.Namespace) -> int:
    """Read what the options name, and write the models; returns how many were made."""
    run = TrainedRun.open(path)
    operator = run.operator(s)
    if options.t is not None:
        t = read_run_tasks(run.config, options.t)
    else:
        t, _ = draw_run_tasks(run.config, options.random, options.seed)
    return project_tasks(
        operator,
        t,
        options.out,
        origin={
            "run": path.resolve().name,
            "scale": str(s),
            "step": run.config.steps,
            "digest": digest(operator),
        },
        palette=run.palette,
        with_onnx=options.onnx,
        resume=options.resume,
        overwrite=options.overwrite,
    )


if __name__ == "__main__":
    sys.exit(main())
else:
    # This module has the name of the function that the package exports. Whoever imports it, as ``import
    # projkern.project`` does, binds that name on the package to what is in sys.modules: let that be the function.
    sys.modules[__name__] = project  # type: ignore[assignment]
