"""Streams that nobody reads, that are full or closed, or whose encoding lacks a character end no command."""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import contextmanager

import pytest

from projkern.utils import command, streams

TEXT = "M̃_1/4 ± 0.1 " + os.fsdecode(b"r\xfcn")
ESCAPED = b"M\\u0303_1/4 \\xb1 0.1 r\\udcfcn\n"


@contextmanager
def own_stream(monkeypatch, name, number):
    """A file descriptor as the process's standard output or error, in ASCII as of the locale C."""
    with os.fdopen(number, "w", encoding="ascii") as stream:
        for attribute in (name, f"__{name}__"):
            monkeypatch.setattr(sys, attribute, stream)
        yield
        monkeypatch.undo()


def full_pipe():
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        while os.write(writer, b"x" * 4096):
            pass
    except BlockingIOError:
        return reader, writer


def run(work=lambda options: TEXT):
    return command.run(command.parser("verb", "A verb."), [], work)


def test_what_the_encoding_lacks_is_escaped(monkeypatch):
    reader, writer = os.pipe()
    with own_stream(monkeypatch, "stdout", writer):
        assert run() == 0
    assert os.read(reader, 1000) == ESCAPED
    os.close(reader)


def test_a_reader_that_went_away(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    done = []
    with own_stream(monkeypatch, "stdout", writer):
        assert run(lambda options: print(TEXT, flush=True) or done.append(1) or TEXT) == 0
    assert done


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_a_full_disk_is_told_after_the_work(monkeypatch, capsys):
    with own_stream(monkeypatch, "stdout", os.open("/dev/full", os.O_WRONLY)):
        assert run(lambda options: print(TEXT, flush=True) or TEXT) == 1
    assert "verb: error: done, but its last lines cannot be printed: [Errno 28]" in capsys.readouterr().err


@pytest.mark.parametrize("is_blocking", [True, False])
def test_progress_does_not_wait_for_a_reader(monkeypatch, is_blocking):
    reader, writer = full_pipe()
    os.set_blocking(writer, is_blocking)
    monkeypatch.setattr(streams, "PATIENCE", 0.01)
    with own_stream(monkeypatch, "stderr", writer):
        assert run(lambda options: print(TEXT * 1000, file=sys.stderr) or TEXT) == 0
        assert run(lambda options: sys.stderr.write("x" * 100_000) and TEXT) == 0
    os.close(reader)


def test_output_waits_for_a_reader(monkeypatch):
    """Text that a program makes of a pipe is all there, also where the pipe was set not to block."""
    reader, writer = full_pipe()
    parts = []

    def read():
        while part := os.read(reader, 1 << 16):
            parts.append(part)

    thread = threading.Thread(target=read)
    with own_stream(monkeypatch, "stdout", writer):
        threading.Timer(0.1, thread.start).start()
        assert run(lambda options: "y" * 200_000) == 0
    thread.join()
    os.close(reader)
    assert b"".join(parts).lstrip(b"x") == b"y" * 200_000 + b"\n"


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_no_stream_at_all(monkeypatch, name):
    """As after ``2>&-``."""
    for attribute in (name, f"__{name}__"):
        monkeypatch.setattr(sys, attribute, None)
    assert run(lambda options: print(TEXT, file=sys.stderr) or sys.stderr.flush() or TEXT) == 0
    assert getattr(sys, name) is None


def test_closed_descriptors_are_opened():
    """Else the next file gets the number of standard error, which native code writes to."""
    kept = os.dup(2)
    os.close(2)
    try:
        run()
        assert os.fstat(2).st_rdev == os.stat(os.devnull).st_rdev
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def test_streams_of_a_caller_stay(capsys):
    own = sys.stdout, sys.stderr
    assert run(lambda options: str((sys.stdout, sys.stderr) == own)) == 0
    assert capsys.readouterr().out == "True\n" and (sys.stdout, sys.stderr) == own


def test_in_a_thread(capsys):
    """Where no handler of signals can be set: a notebook's server, say."""
    statuses = []
    thread = threading.Thread(target=lambda: statuses.append(run(lambda options: "M̃_1/4")))
    thread.start()
    thread.join()
    assert statuses == [0] and capsys.readouterr().out == "M̃_1/4\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_handlers_are_put_back(number):
    before = signal.getsignal(number)
    assert run(lambda options: str(os.kill(os.getpid(), number))) == 130
    assert signal.getsignal(number) == before


def test_what_nohup_ignores_is_ignored(monkeypatch, capsys):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert run(lambda options: str(os.kill(os.getpid(), signal.SIGHUP))) == 0
        assert signal.SIGHUP not in command.stop_signals()
    finally:
        signal.signal(signal.SIGHUP, before)
