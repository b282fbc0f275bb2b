"""The stored results of an experiment, and adding to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .documents import Document, read_experiment, write_experiment
from .image_losses import Masks
from .jobs import Job, require_same


class Store:
    """The results of one experiment at one size, in RESULTS/SIZE/EXPERIMENT.json, which each new one rewrites.

    Args:
        results: folder of all stored results.
        size: "mini", "small" or "paper".
        experiment: such as "table1".
        rows: of the experiment, all seeds: label and job.
        masks: of the parts of the held-out images.

    Raises:
        SetUpDiffers: the file holds results of another set-up than the rows'.
        InputError: it is damaged or of something else.
    """

    def __init__(
        self, results: Path, size: str, experiment: str, rows: list[tuple[str, Job]], masks: Masks | None = None
    ) -> None:
        self.path = results / size / f"{experiment}.json"
        self.rows = {f"{label}/seed-{job.seed}": (label, job) for label, job in rows}
        self.masks = masks or {}
        self.document: Document = {"experiment": experiment, "size": size, "results": {}}
        if self.path.exists():
            self.document = read_experiment(self.path)
        for key, (_, job) in self.rows.items():
            if key in self.document["results"]:
                require_same(f"{key} in {self.path}", self.document["results"][key]["settings"], job.settings())

    def count(self) -> int:
        """How many of the rows have a result."""
        return sum(key in self.document["results"] for key in self.rows)

    def missing(self) -> list[Job]:
        """The jobs that have no stored result."""
        jobs = {job.name: job for key, (_, job) in self.rows.items() if key not in self.document["results"]}
        return list(jobs.values())

    def add(self, job: Job, result: dict[str, Any]) -> None:
        """Store a result in all rows that the job stands behind and that have none."""
        for key, (label, row_job) in self.rows.items():
            if row_job.name == job.name:
                self.document["results"].setdefault(key, {"label": label} | result)
        order = {key: n for n, key in enumerate(self.rows)}
        results = sorted(self.document["results"].items(), key=lambda item: order.get(item[0], len(order)))
        self.document["results"] = dict(results)
        write_experiment(self.path, self.document, self.masks)
