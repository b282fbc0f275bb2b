"""The stored results of an experiment, and adding to them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from projkern.utils.files import write_atomically

from .jobs import Job, require_same
from .results import FORMAT, read_experiment


class Store:
    """The results of one experiment at one size, in RESULTS/SIZE/EXPERIMENT.json, which each new one rewrites.

    Args:
        results: folder of all stored results.
        size: "mini", "small" or "paper".
        experiment: such as "table1".
        rows: of the experiment, all seeds: label and job.

    Raises:
        SetUpDiffers: the file holds results of another set-up than the rows'.
        ValueError: it is damaged or of something else.
    """

    def __init__(self, results: Path, size: str, experiment: str, rows: list[tuple[str, Job]]) -> None:
        self.path = results / size / f"{experiment}.json"
        self.rows = {f"{label}/seed-{job.config.seed}": (label, job) for label, job in rows}
        self.document: dict[str, Any] = FORMAT | {"experiment": experiment, "size": size, "results": {}}
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
        found = {job.name: job for key, (_, job) in self.rows.items() if key not in self.document["results"]}
        return list(found.values())

    def add(self, job: Job, result: dict[str, Any]) -> None:
        """Store a result in all rows that the job stands behind and that have none."""
        for key, (label, behind) in self.rows.items():
            if behind.name == job.name:
                self.document["results"].setdefault(key, {"label": label} | result)
        order = {key: n for n, key in enumerate(self.rows)}
        kept = sorted(self.document["results"].items(), key=lambda item: order.get(item[0], len(order)))
        self.document["results"] = dict(kept)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, lambda p: p.write_text(self._text()))

    def _text(self) -> str:
        """JSON with one result a line, so that a difference of two versions shows which results are new."""
        head = json.dumps(self.document | {"results": {}}, indent=2)
        lines = [f"    {json.dumps(key)}: {json.dumps(result)}" for key, result in self.document["results"].items()]
        return head.replace('"results": {}', '"results": {\n' + ",\n".join(lines) + "\n  }") + "\n"
