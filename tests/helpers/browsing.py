"""The page of ``python -m projkern.explore``, served as a user starts it, and shown in a browser that is watched."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ports import free_port


@contextmanager
def served(run: Path, *options: str) -> Iterator[str]:
    """The address of a run's page, whatever proxies the user has; Ctrl-C ends it with status 0."""
    command = [sys.executable, "-m", "projkern.explore", str(run), "--port", str(free_port()), *options]
    proxies = {"ALL_PROXY": "socks5://127.0.0.1:1", "http_proxy": "http://127.0.0.1:1"}
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | proxies
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert server.stdout is not None
    try:
        line = server.stdout.readline()
        assert line.startswith(f"Serving {run} at http://127.0.0.1:")
        yield line.split(" at ")[1].split()[0]
        server.send_signal(signal.SIGINT)
        assert server.wait(10) == 0
    finally:
        server.kill()
        server.communicate()


def watched_page(browser: Any, address: str) -> tuple[Any, list[str]]:
    """A new page, and a list that fills with whatever goes wrong on it, or is asked of another machine."""
    shown, trouble = browser.new_page(), []
    shown.on("console", lambda said: said.type in ("error", "warning") and trouble.append(said.text))
    shown.on("pageerror", lambda error: trouble.append(str(error)))
    shown.on("response", lambda answer: answer.status >= 400 and trouble.append(f"{answer.status} {answer.url}"))
    shown.on("request", lambda asked: asked.url.startswith((address, "data:")) or trouble.append(asked.url))
    # Gradio's page closes the stream of answers by itself once it has them all.
    shown.on("requestfailed", lambda asked: "/queue/data" in asked.url or trouble.append(asked.url))
    shown.set_default_timeout(60_000)
    return shown, trouble
