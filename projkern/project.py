"""``python -m projkern.project``: from a trained run and task identifiers to standalone small models."""

import argparse
import sys
from pathlib import Path

from .kernels.projection import project
from .utils import command

EXAMPLES = """
examples:
  python -m projkern.project runs/quick --scale 1/4 --t task.json --out model
  python -m projkern.project runs/quick --scale 1/4 --t tasks.csv --out models --resume
  python -m projkern.project runs/quick --scale 1/4 --random 1000 --out models
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command.parser(
        "project",
        "Write a standalone model for each task, in Hugging Face's GPT-2 format, read back and checked.",
        EXAMPLES,
    )
    parser.add_argument("run", type=Path, help="folder of a trained run")
    command.add_scale_and_tasks(parser, required=True)
    command.add_seed(parser, "of --random")
    parser.add_argument("--out", type=Path, required=True, help="the model's folder; of many tasks, the folder of all")
    parser.add_argument("--onnx", action="store_true", help="also write model.onnx, checked in onnxruntime")
    command.add_device(parser, default="cpu")
    command.add_state(parser, "go on with what is missing in --out", "replace the models in --out")
    return parser


def write_models(options: argparse.Namespace) -> str:
    """Generate, write and check the models of the tasks."""
    from .export.tasks import project_tasks
    from .training.data import draw_run_tasks, read_run_tasks
    from .training.trained import TrainedRun
    from .utils.device import pick_device

    run = TrainedRun.open(options.run, pick_device(options.device))
    operator = run.operator(options.scale)
    if options.t is not None:
        t = read_run_tasks(run.config.data, options.t)
    else:
        t, _ = draw_run_tasks(run.config.data, options.random, options.seed)
    count = project_tasks(
        operator,
        t,
        options.out,
        origin={"run": options.run.resolve().name, "scale": str(options.scale), "step": run.config.schedule.steps},
        palette=run.palette,
        with_onnx=options.onnx,
        resume=options.resume,
        overwrite=options.overwrite,
    )
    return f"Wrote and checked {count} model{'' if count == 1 else 's'} in {options.out}."


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    return command.run(
        parser(), argv, write_models, lambda options: f"To go on: the same command with --resume ({options.out})"
    )


if __name__ == "__main__":
    sys.exit(main())
else:
    # This module has the name of the function that the package exports. ``import projkern.project`` binds that name on
    # the package to the object in sys.modules: let that be the function.
    sys.modules[__name__] = project  # type: ignore[assignment]
