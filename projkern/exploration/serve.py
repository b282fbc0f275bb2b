"""Serving the page of a run until Ctrl-C."""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..language.folder import is_language_run
from ..language.trained import LanguageRun
from ..training.trained import TrainedRun
from ..utils.device import pick_device
from ..utils.errors import InputError, MissingDependency
from .specimens import Specimens
from .writers import Writers

HOST = "127.0.0.1"  # for this machine's user alone


def serve(run: Path, port: int, samples: int, seed: int, device: str = "auto") -> None:
    """Serve the page of a run; Ctrl-C ends the process with exit status 0.

    Raises:
        MissingDependency: Gradio is not installed.
        InputError: no finished run, no image, a seed out of its range, or a port that cannot be had.
        CheckpointError: the run's checkpoint is damaged.
    """
    with _without_proxies():
        _serve(run, port, samples, seed, device)


def _serve(run: Path, port: int, samples: int, seed: int, device: str) -> None:
    try:
        from . import page, text_page
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise MissingDependency("the page needs Gradio: pip install 'projkern[explore]'") from None
    if not 1 <= port <= 65535:
        raise InputError(f"port must be from 1 to 65535; it was {port}")
    if not 0 <= seed < 2**32:
        raise InputError(f"seed must be at least 0 and below 2^32; it was {seed}")
    if is_language_run(run):
        blocks, css = text_page.build(Writers(LanguageRun.open(run, pick_device(device))), seed), text_page.CSS
    else:
        blocks = page.build(Specimens(TrainedRun.open(run, pick_device(device)), samples), seed)
        css = page.CSS
    try:
        address = page.start(blocks, HOST, port, css)
    except OSError as error:
        raise InputError(f"port must be a free one; it was {port}, which is in use ({error})") from None
    print(f"Serving {run} at {address} (Ctrl-C ends it)", flush=True)
    try:
        threading.Event().wait()
    finally:
        sys.stdout.flush()
        os._exit(0)  # now, and not when a drawing that another thread is at has come to its end


@contextmanager
def _without_proxies() -> Iterator[None]:
    """Have this process use no proxy: Gradio requests its own page, and cannot be imported with a SOCKS proxy."""
    proxies = {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
    for name in proxies:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(proxies)
