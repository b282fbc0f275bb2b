"""How commands begin and end: exit status, signals, and what is printed where."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from projkern.utils import command
from projkern.utils.command import Interrupted
from projkern.utils.errors import InputError, MissingDependency, ProjkernError


@pytest.fixture(autouse=True)
def own_signals(monkeypatch):
    """The handlers and the environment of before, whatever a command sets."""
    monkeypatch.delenv("PROJKERN_DEBUG", raising=False)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def run(work, *argv, **options):
    parser = command.parser("verb", "A verb.")
    parser.add_argument("--count", type=int, default=3)
    return command.run(parser, list(argv), work, **options)


def failing(error):
    def work(options):
        raise error

    return work


def test_success_prints_the_last_line(capsys):
    assert run(lambda options: f"Wrote {options.count} files.", "--count", "7") == 0
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("Wrote 7 files.\n", "")


def test_arguments_of_the_process(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["verb", "--count", "5"])
    assert command.run(command.parser("verb", "A verb."), [], lambda options: "none") == 0
    parser = command.parser("verb", "A verb.")
    parser.add_argument("--count")
    assert command.run(parser, None, lambda options: options.count) == 0
    assert capsys.readouterr().out == "none\n5\n"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (InputError("size must be at least 4; it was 3"), "size must be at least 4; it was 3"),
        (MissingDependency("timm: pip install timm"), "timm: pip install timm"),
        (ProjkernError("of another kind"), "of another kind"),
        (FileNotFoundError(2, "No such file or directory", "x.json"), "[Errno 2] No such file or directory: 'x.json'"),
        (MemoryError(), "MemoryError"),
        (InputError("first line\nsecond line"), "first line second line"),
    ],
)
def test_errors_are_one_line(capsys, error, line):
    assert run(failing(error)) == 1
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", f"projkern.verb: error: {line}\n")


def test_debug_shows_the_traceback_too(monkeypatch, capsys):
    monkeypatch.setenv("PROJKERN_DEBUG", "1")
    assert run(failing(InputError("size must be 4"))) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback (most recent call last)") and "in work" in shown
    assert shown.endswith("projkern.verb: error: size must be 4\n")


@pytest.mark.parametrize("debug", ["", "0"])
def test_debug_is_off_unless_1(monkeypatch, capsys, debug):
    monkeypatch.setenv("PROJKERN_DEBUG", debug)
    assert run(failing(InputError("size must be 4"))) == 1
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("error", [ValueError, TypeError, KeyError, RuntimeError, AssertionError, ImportError])
def test_a_bug_keeps_its_traceback(capsys, error):
    with pytest.raises(error, match="a bug"):
        run(failing(error("a bug")))
    assert capsys.readouterr().err == ""


def test_without_docstrings_nothing_is_begun(monkeypatch, capsys):
    monkeypatch.setattr(sys, "flags", SimpleNamespace(optimize=2))
    assert run(failing(AssertionError("the work was begun"))) == 1
    assert "python -OO must be left out" in capsys.readouterr().err


def test_a_wrong_command_line(capsys):
    with pytest.raises(SystemExit) as stop:
        run(lambda options: "", "--count", "three")
    assert stop.value.code == 2 and "--count" in capsys.readouterr().err


def test_check_completes_or_refuses_the_options(capsys):
    def check(parser, options):
        if options.count > 3:
            parser.error("--count must be at most 3")
        options.count = 2

    assert run(lambda options: str(options.count), check=check) == 0
    assert capsys.readouterr().out == "2\n"
    with pytest.raises(SystemExit) as stop:
        run(failing(AssertionError("the work was begun")), "--count", "4", check=check)
    assert stop.value.code == 2 and "--count must be at most 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("stop", "first"), [(KeyboardInterrupt(), "stopped"), (Interrupted("stopped at step 3"), "stopped at step 3")]
)
def test_interruption(capsys, stop, first):
    assert run(failing(stop)) == 130
    assert capsys.readouterr().err == f"\n{first}\n"
    assert run(failing(stop), when_stopped=lambda options: f"To go on: --count {options.count}") == 130
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", f"\n{first}. To go on: --count 3\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_are_interruptions(capsys, number):
    def work(options):
        os.kill(os.getpid(), number)
        return "not stopped"

    signal.signal(signal.SIGINT, signal.default_int_handler)
    assert run(work) == 130
    assert capsys.readouterr().out == ""


PROGRAM = """
import sys, time
from projkern.utils import command

def work(options):
    print("ready", flush=True)
    time.sleep(60)
    return "not stopped"

sys.exit(command.run(command.parser("verb", "A verb."), [], work, lambda options: "saved"))
"""


def test_sigterm_ends_a_process_that_ignores_sigint():
    """As shells have the commands that they run in the background do."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "\nstopped. saved\n")


def parsed(add, *argv, **options):
    parser = command.parser("verb", "A verb.")
    add(parser, **options)
    return vars(parser.parse_args(list(argv)))


def refuses(capsys, name, add, *argv, **options):
    with pytest.raises(SystemExit) as stop:
        parsed(add, *argv, **options)
    return stop.value.code == 2 and name in capsys.readouterr().err


def test_state(capsys):
    words = {"resume": "go on", "overwrite": "start again"}
    assert parsed(command.add_state, **words) == {"resume": False, "overwrite": False}
    assert parsed(command.add_state, "--resume", **words)["resume"]
    assert refuses(capsys, "--overwrite", command.add_state, "--resume", "--overwrite", **words)


def test_device_and_seed(capsys):
    assert parsed(command.add_device) == {"device": "auto"}
    assert parsed(command.add_seed, help="of it") == {"seed": 0}
    assert parsed(command.add_seed, "--seed", str(2**63 - 1), help="of it") == {"seed": 2**63 - 1}
    for text in ("-1", "1.5", "one", str(2**63)):
        assert refuses(capsys, "--seed", command.add_seed, f"--seed={text}", help="of it")


def test_scale_and_tasks(capsys):
    values = parsed(command.add_scale_and_tasks, "--scale", "1/4", "--random", "3", required=True)
    assert (values["scale"].denominator, values["random"], values["t"]) == (4, 3, None)
    assert parsed(command.add_scale_and_tasks, required=False) == {"scale": None, "t": None, "random": None}
    for argv, name in (([], "--scale"), (["--scale=1/4"], "--t"), (["--scale=1/4", "--t=x", "--random=1"], "--random")):
        assert refuses(capsys, name, command.add_scale_and_tasks, *argv, required=True)
