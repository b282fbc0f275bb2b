"""``python -m projkern.evaluate RUN``: losses, equivalent sizes, sweeps of t and speed of a run's models."""

import argparse
import sys
from pathlib import Path

from .data.names import TASK_NAMES
from .utils import command

EXAMPLES = f"""
components of t:
  {" ".join(TASK_NAMES[:9])}
  {" ".join(TASK_NAMES[9:])}

examples:
  python -m projkern.evaluate runs/mnist                                    on the run's own images, and Figure 4
  python -m projkern.evaluate runs/mnist --sweep angle warp_x --no-speed    losses against two other components of t
  python -m projkern.evaluate runs/mnist --eval-images 4096 --overwrite     smaller errors
  python -m projkern.evaluate runs/languages                                by task, and each task's model on all text
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command.parser("evaluate", "Evaluate every model of a run on the same held-out images or text.", EXAMPLES)
    parser.add_argument("run", type=Path, metavar="RUN", help="the run's folder")
    parser.add_argument(
        "--eval-images", type=int, metavar="N", help="held-out images (default: as many as the run used)"
    )
    command.add_former(parser, "--images", "eval_images")
    parser.add_argument(
        "--eval-windows", type=int, metavar="N", help="of a run on tasks of text: held-out windows of each task"
    )
    parser.add_argument(
        "--sweep",
        nargs="*",
        metavar="NAME",
        help="components of SynthMNIST's t to vary over [0, 2]; none to skip it (default: scale)",
    )
    parser.add_argument("--mnist", metavar="DIR", help="where the run's MNIST lies now (default: where it lay)")
    parser.add_argument("--data", metavar="DIR", help="where the run's tokenised images lie now, likewise")
    parser.add_argument("--seed", type=int, help="of the images (default: the run's, which gives those that it used)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the results (default: RUN/evaluation)")
    parser.add_argument("--overwrite", action="store_true", help="replace an evaluation in --out")
    parser.add_argument("--no-speed", action="store_true", help="do not measure inference")
    command.add_device(parser)
    return parser


def evaluate(options: argparse.Namespace) -> str:
    """Evaluate the run, and write the report; returns it, with the files that were written."""
    from .language.folder import is_language_run

    command.require_folder("run", options.run)
    return _evaluate_texts(options) if is_language_run(options.run) else _evaluate_images(options)


def _evaluate_texts(options: argparse.Namespace) -> str:
    from .evaluation.report import open_folder
    from .evaluation.texts import evaluate_texts
    from .evaluation.texts_report import write_report
    from .language.trained import LanguageRun
    from .utils.device import pick_device

    command.refuse(
        options, ("eval_images", "sweep", "mnist", "data", "seed", "no_speed"), "left out for a run on tasks of text"
    )
    run = LanguageRun.open(options.run, pick_device(options.device))
    out = options.out or options.run / "evaluation"
    windows = run.config.run.eval_windows if options.eval_windows is None else options.eval_windows
    with open_folder(out, overwrite=options.overwrite):
        files = write_report(out, evaluate_texts(run, windows))
    return f"\n{files[0].read_text('utf-8')}\nWrote {', '.join(map(str, files))}."


def _evaluate_images(options: argparse.Namespace) -> str:
    from .evaluation.report import losses_table, open_folder, write_report
    from .evaluation.result import evaluate_run
    from .training.trained import TrainedRun
    from .utils.device import pick_device

    command.refuse(options, ("eval_windows",), "left out for a run on images")
    run = TrainedRun.open(options.run, pick_device(options.device))
    run = run.with_data_at(mnist=options.mnist, folder=options.data)
    out = options.out or options.run / "evaluation"
    with open_folder(out, overwrite=options.overwrite):
        result = evaluate_run(
            run,
            run.config.run.eval_images if options.eval_images is None else options.eval_images,
            seed=run.config.run.seed if options.seed is None else options.seed,
            sweeps=options.sweep,
            speed=not options.no_speed,
            when_losses=lambda result: print(f"\n{losses_table(result)}\n", flush=True),
        )
        files = write_report(out, result)
    return f"\n{files[0].read_text('utf-8')}\nWrote {', '.join(map(str, files))}."


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    return command.run(parser(), argv, evaluate, lambda options: "The evaluation has to be run again")


if __name__ == "__main__":
    sys.exit(main())
