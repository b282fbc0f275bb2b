"""Ending a command as politely by SIGTERM as by Ctrl-C."""

from __future__ import annotations

import signal
from types import FrameType


def terminate_as_interrupt() -> None:
    """From now on SIGTERM raises KeyboardInterrupt in the main thread, also where a shell has had SIGINT ignored."""
    signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
