"""``python -m projkern.project``: from a trained run and task identifiers to standalone small models."""

import argparse
import sys
from pathlib import Path

from .utils import command

EXAMPLES = """
examples:
  python -m projkern.project runs/quick --scale 1/4 --t task.json --out model
  python -m projkern.project runs/quick --scale 1/4 --t tasks.csv --out models --resume
  python -m projkern.project runs/quick --scale 1/4 --random 1000 --out models

  of a run on tasks of text:
  python -m projkern.project runs/languages --task de --out german
  python -m projkern.project runs/languages --task de fr ja --out models
  python -m projkern.project runs/texts --like sample.txt --out model    a task never seen, from a sample of its text
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command.parser(
        "project", "Write a standalone model for each task, in Hugging Face's format, read back and checked.", EXAMPLES
    )
    parser.add_argument("run", type=Path, help="folder of a trained run")
    tasks = command.add_scale_and_tasks(parser, required=True)
    command.add_text_tasks(tasks, several=True)
    command.add_seed(parser, "of --random")
    parser.add_argument("--out", type=Path, required=True, help="the model's folder; of many tasks, the folder of all")
    parser.add_argument("--onnx", action="store_true", help="also write model.onnx, checked in onnxruntime (of images)")
    command.add_device(parser, default="cpu")
    command.add_state(parser, "go on with what is missing in --out", "replace the models in --out")
    return parser


def write_models(options: argparse.Namespace) -> str:
    """Generate, write and check the models of the tasks."""
    from .language.folder import is_language_run

    command.require_folder("run", options.run)
    count = _write_language(options) if is_language_run(options.run) else _write_images(options)
    return f"Wrote and checked {count} model{'' if count == 1 else 's'} in {options.out}."


def _write_images(options: argparse.Namespace) -> int:
    from .export.tasks import project_tasks
    from .training.data import draw_run_tasks, read_run_tasks
    from .training.trained import TrainedRun, choose_scale
    from .utils.device import pick_device

    command.refuse(options, ("task", "like"), "left out for a run on images")
    run = TrainedRun.open(options.run, pick_device(options.device))
    scale = choose_scale(options.scale, run.config.operator.scales, options.run)
    operator = run.operator(scale)
    if options.t is not None:
        t = read_run_tasks(run.config.data, options.t)
    else:
        t, _ = draw_run_tasks(run.config.data, options.random, options.seed)
    return project_tasks(
        operator,
        t,
        options.out,
        origin={"run": options.run.resolve().name, "scale": str(scale), "step": run.config.schedule.steps},
        palette=run.palette,
        with_onnx=options.onnx,
        resume=options.resume,
        overwrite=options.overwrite,
    )


def _write_language(options: argparse.Namespace) -> int:
    from .language.export import write_models
    from .language.trained import LanguageRun
    from .training.trained import choose_scale
    from .utils.device import pick_device

    command.refuse(options, ("random", "onnx"), "left out for a run on tasks of text")
    run = LanguageRun.open(options.run, pick_device(options.device))
    scale = choose_scale(options.scale, run.config.operator.scales, options.run)
    return write_models(
        run.stored_operator(scale),
        run.chosen(options.task, options.like, options.t),
        options.out,
        run.tokenizer,
        origin={"run": options.run.resolve().name, "scale": str(scale), "step": run.config.schedule.steps},
        resume=options.resume,
        overwrite=options.overwrite,
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    return command.run(
        parser(), argv, write_models, lambda options: f"To go on: the same command with --resume ({options.out})"
    )


if __name__ == "__main__":
    sys.exit(main())
else:
    from .kernels.projection import project

    # This module has the name of the function that the package exports. ``import projkern.project`` binds that name on
    # the package to the object in sys.modules: let that be the function.
    sys.modules[__name__] = project  # type: ignore[assignment]
