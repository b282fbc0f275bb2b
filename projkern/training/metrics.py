"""Logged steps: one JSON object a line in metrics.jsonl, and the same in TensorBoard's format."""

import json
import time
import warnings
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from ..utils.errors import InputError
from ..utils.files import write_text


class Metrics:
    """The log of a run. Lines of steps that a resumed stage is about to repeat are dropped."""

    def __init__(self, run: Path) -> None:
        self.path = run / "metrics.jsonl"
        self._events = run / "tensorboard"
        self._writer: SummaryWriter | None = None

    def begin(self, stage: str, unit: str, step: int) -> None:
        """Start logging a stage that has ``step`` steps behind it and counts its data in ``unit``."""
        self.stage, self._unit = stage, unit
        lines = [line for line in read_metrics(self.path) if line["stage"] != self.stage or line["step"] <= step]
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in lines))
        self.close()
        try:
            self._writer = SummaryWriter(str(self._events / stage.replace("/", "-")), purge_step=step + 1)
        except UnicodeEncodeError:
            warnings.warn("TensorBoard's log is left out: the folder's path is not UTF-8, as it needs", stacklevel=2)
        self._lap = time.monotonic()

    def close(self) -> None:
        """Finish TensorBoard's file of the stage."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def lap(self) -> float:
        """Seconds since the last call."""
        now = time.monotonic()
        elapsed, self._lap = now - self._lap, now
        return elapsed

    def log(self, step: int, losses: dict[str, float], grad_norm: float, lr: float, rate: float) -> None:
        """Log the means over the steps since the last line: losses in nats per token, data per second."""
        scalars = {"grad_norm": grad_norm, "lr": lr, f"{self._unit}_per_second": rate}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"stage": self.stage, "step": step, "losses": losses, **scalars}) + "\n")
        if self._writer is None:
            return
        for name, value in ({f"loss/{name}": loss for name, loss in losses.items()} | scalars).items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics file; a last line cut short by an interruption is left out.

    Raises:
        InputError: another line is no JSON.
    """
    try:
        lines = path.read_text("utf-8").split("\n") if path.exists() else []
        return [json.loads(line) for line in lines[:-1]]
    except ValueError as error:
        raise InputError(f"{path} must hold a JSON object a line; it does not: {error}") from error
