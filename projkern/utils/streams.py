"""Standard output and error that a run outlives: no line of text is worth a training.

A reader that went away, a closed terminal, a full disk or pipe, and a stream that was never open take text and raise
nothing. What a stream's encoding does not have is written as an escape.
"""

import io
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

PATIENCE = 1.0
"""Seconds that a line on standard error waits for a reader that does not read: it may be progress alone."""
_PIECE = select.PIPE_BUF // 10
"""Characters that are at most what a pipe takes at once if it takes anything; an escape has up to ten bytes."""


class _Outlived(io.TextIOWrapper):
    """A stream of the process whose writes never raise; each is passed on at once.

    Args:
        stream: the process's own.
        patience: seconds to wait for a reader; None for as long as it takes.
    """

    def __init__(self, stream: io.TextIOWrapper, patience: float | None) -> None:
        stream.flush()
        self._number = os.dup(stream.fileno())
        super().__init__(
            io.BufferedWriter(io.FileIO(self._number, "wb")), encoding=stream.encoding, errors="backslashreplace"
        )
        self._patience = self._wait = patience
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        """Write a text, or drop what nobody takes."""
        for start in range(0, len(text), _PIECE):
            try:
                if not select.select((), (self._number,), (), self._wait)[1]:
                    self._wait = 0.0  # from now on nobody waits until someone reads
                    break
                self._wait = self._patience
                super().write(text[start : start + _PIECE])
                super().flush()
            except OSError as error:
                self._give_up(error)
        return len(text)

    def _give_up(self, error: OSError) -> None:
        """Have the null device take what comes, and what could not be written."""
        self.error = error
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self._number)
        os.close(null)
        with suppress(OSError):
            super().flush()


class Output:
    """What became of the text on standard output."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def error(self) -> OSError | None:
        """Why some of it is lost; None where nothing is, or its reader wanted no more."""
        error = self._stream.error if isinstance(self._stream, _Outlived) else None
        return None if isinstance(error, BrokenPipeError) else error


@contextmanager
def outlived() -> Iterator[Output]:
    """A block that the streams of the process cannot end. Streams that a caller has put in their place stay as are."""
    _open_missing()
    previous = sys.stdout, sys.stderr
    sys.stdout = _outlived(sys.stdout, sys.__stdout__, None)
    sys.stderr = _outlived(sys.stderr, sys.__stderr__, PATIENCE)
    try:
        yield Output(sys.stdout)
    finally:
        sys.stdout, sys.stderr = previous  # those of the block stay open: loggers may hold them


def _open_missing() -> None:
    """Open the null device for closed streams, so that no file gets their numbers, which native code writes to."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _outlived(stream: TextIO | None, own: TextIO | None, patience: float | None) -> TextIO:
    if stream is None:  # it was closed as the process began, and its number may be another file's by now
        return open(os.devnull, "w", encoding="utf-8", errors="backslashreplace")
    if stream is not own or not isinstance(stream, io.TextIOWrapper):
        return stream
    return _Outlived(stream, patience)
