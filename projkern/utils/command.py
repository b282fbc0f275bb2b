"""How every command begins and ends: its options, its exit status, its signals, and errors in one line.

Exit status: 0 done; 1 an error, reported in one line; 2 a wrong command line; 130 stopped by Ctrl-C, SIGTERM or SIGHUP.
``ProjkernError`` and errors of the system and of memory are reported in one line; with PROJKERN_DEBUG=1 their traceback
is shown too. Whatever else is raised is a bug and ends with its traceback.
"""

import argparse
import os
import signal
import sys
import textwrap
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from . import streams
from .errors import InputError, ProjkernError
from .settings import scale


class Interrupted(Exception):
    """Ctrl-C, SIGTERM or SIGHUP, after the work so far was saved; the message says how far it came."""


def parser(verb: str, description: str, epilog: str = "") -> argparse.ArgumentParser:
    """The command line of ``python -m projkern.VERB``; line breaks in ``epilog`` are kept."""
    return argparse.ArgumentParser(
        prog=f"python -m projkern.{verb}",
        description=textwrap.fill(description, 79),
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def run(
    parser: argparse.ArgumentParser,
    argv: list[str] | None,
    work: Callable[[argparse.Namespace], str],
    when_stopped: Callable[[argparse.Namespace], str] = lambda options: "",
    check: Callable[[argparse.ArgumentParser, argparse.Namespace], None] = lambda parser, options: None,
) -> int:
    """Run a command.

    Args:
        parser: of its options.
        argv: the words of the command line; None for those of the process.
        work: does the command's work; returns the last line, which says what was written where.
        when_stopped: what to say after an interruption: what is saved, and how to go on.
        check: completes the options, and ends by ``parser.error`` where they contradict each other.

    Returns:
        The exit status.
    """
    with streams.outlived() as output, _stopped_by_signals():
        status = _run(parser, argv, work, when_stopped, check)
        if status == 0 and (lost := output.error()):
            print(f"{_name(parser)}: error: done, but its last lines cannot be printed: {lost}", file=sys.stderr)
            return 1
        return status


def _run(
    parser: argparse.ArgumentParser,
    argv: list[str] | None,
    work: Callable[[argparse.Namespace], str],
    when_stopped: Callable[[argparse.Namespace], str],
    check: Callable[[argparse.ArgumentParser, argparse.Namespace], None],
) -> int:
    options = parser.parse_args(argv)
    check(parser, options)
    try:
        if sys.flags.optimize > 1:
            raise InputError("python -OO must be left out, or be -O: transformers reads docstrings")
        print(work(options))
    except (Interrupted, KeyboardInterrupt) as stop:
        parts = [str(stop) or "stopped", when_stopped(options)]
        print("\n" + ". ".join(part for part in parts if part), file=sys.stderr)
        return 130
    except _expected_errors() as error:
        if os.environ.get("PROJKERN_DEBUG") == "1":
            traceback.print_exc()
        message = " ".join(str(error).split("\n")) or type(error).__name__
        print(f"{_name(parser)}: error: {message}", file=sys.stderr)
        return 1
    return 0


def _name(parser: argparse.ArgumentParser) -> str:
    return parser.prog.removeprefix("python -m ")


def _expected_errors() -> tuple[type[Exception], ...]:
    """Errors that are told in one line, those of a card's memory included, once torch has been imported."""
    of_torch = [sys.modules["torch"].OutOfMemoryError] if "torch" in sys.modules else []
    return (ProjkernError, OSError, MemoryError, *of_torch)


def stop_signals() -> list[signal.Signals]:
    """Signals that ask for an end: Ctrl-C, SIGTERM, and SIGHUP unless it is ignored, as nohup has it."""
    hang_up = getattr(signal, "SIGHUP", None)
    heeded = [] if hang_up is None or signal.getsignal(hang_up) == signal.SIG_IGN else [hang_up]
    return [signal.SIGINT, signal.SIGTERM, *heeded]


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """A block in which SIGTERM and SIGHUP raise KeyboardInterrupt in the main thread, whatever a shell does of SIGINT.

    In another thread, which can set no handler, the block runs with those of its program.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [number for number in stop_signals() if number != signal.SIGINT]
    previous = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            if handler is not None:  # else not set by Python
                signal.signal(number, handler)


def add_state(to: argparse.ArgumentParser, resume: str, overwrite: str) -> None:
    """Add --resume and --overwrite, which exclude each other."""
    state = to.add_mutually_exclusive_group()
    state.add_argument("--resume", action="store_true", help=resume)
    state.add_argument("--overwrite", action="store_true", help=overwrite)


def add_device(to: argparse.ArgumentParser, default: str = "auto") -> None:
    """Add --device, which ``utils.device`` reads."""
    help = "auto, cpu, cuda or cuda:N (default: %(default)s)"
    to.add_argument("--device", default=default, metavar="NAME", help=help)


def add_former(to: argparse.ArgumentParser, former: str, name: str) -> None:
    """Keep an earlier option understood, as another name of the setting ``name`` and without a line in the help."""
    to.add_argument(former, type=int, dest=name, default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def add_seed(to: argparse.ArgumentParser, help: str) -> None:
    """Add --seed, 0 by default."""
    to.add_argument("--seed", type=seed, default=0, metavar="N", help=f"{help} (default: 0)")


def add_scale_and_tasks(
    to: argparse.ArgumentParser | argparse._ArgumentGroup, *, required: bool
) -> argparse._MutuallyExclusiveGroup:
    """Add --scale, and --t or --random: which small models of a run are meant. Returns the group of the latter."""
    to.add_argument("--scale", type=scale, metavar="1/G", help="scale s, one that the run has (default: its only one)")
    tasks = to.add_mutually_exclusive_group(required=required)
    tasks.add_argument("--t", type=Path, metavar="FILE", help="task identifiers, .json, .npy or .csv")
    tasks.add_argument("--random", type=int, metavar="N", help="N random tasks; of tokenised images, held-out ones")
    return tasks


def add_text_tasks(to: argparse._MutuallyExclusiveGroup, *, several: bool) -> None:
    """Add --task and --like: which small models of a run on tasks of text are meant."""
    many = {"nargs": "+"} if several else {}
    to.add_argument("--task", metavar="NAME", help="of a run on tasks of text: the name of a task", **many)  # type: ignore[arg-type]
    to.add_argument(
        "--like", type=Path, metavar="FILE", help="the same, of t from the source: a sample of a task's text"
    )


def refuse(options: argparse.Namespace, names: tuple[str, ...], requirement: str) -> None:
    """Raise InputError where one of these options was given."""
    for name in names:
        value = getattr(options, name)
        if value is not None and value is not False:
            shown = " ".join(map(str, value)) if isinstance(value, list) else value
            raise InputError(f"--{name.replace('_', '-')} must be {requirement}; it was {shown}")


def require_folder(name: str, path: Path) -> None:
    """Raise InputError where a folder that a command reads is not there."""
    if not path.is_dir():
        raise InputError(f"{name} must be a folder that exists; it was {path}")


def seed(text: str) -> int:
    """A seed on the command line."""
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"must be a whole number below 2^63; it was {text!r}")
    return int(text)
