"""The page's pictures, from the stored JSON."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from projkern.models.names import with_tildes
from projkern.utils.files import write_atomically

from ..documents import Document, models_of
from .further import by_scale, swept
from .paper import SCALES

STYLES = {"M": ("0.4", ":"), "M~": ("C0", "--"), "P": ("C1", "-"), "P~": ("C2", "-.")}
FURTHER = {
    "M~, all steps": ("C0", ":"),
    "M~, norms": ("C4", "--"),
    "M~, norms, all steps": ("C4", ":"),
    "M~, every position": ("C5", "--"),
    "P, default recipe": ("C3", "-"),
}
"""Colours and lines of what goes beyond the paper."""


def draw_figure4(path: Path, document: Document) -> None:
    """Loss against t_scale, one panel for each s as in the paper; bands are the range over seeds."""
    figure = Figure(figsize=(13, 5), layout="constrained")
    axes = figure.subplots(1, len(SCALES) - 1, sharey=True)
    handles: dict[str, Line2D] = {}
    for axis, s in zip(axes, SCALES[1:]):
        for name in swept(document):
            kind, _, rest = name.partition("_")
            if rest.partition(",")[0] != s:
                continue
            at = sorted(by_scale(models_of(document, name)).items())
            values = [value for value, _ in at]
            form = kind + rest.removeprefix(s)
            colour, line = (STYLES | FURTHER)[form]
            (drawn,) = axis.plot(values, [np.mean(x) for _, x in at], color=colour, linestyle=line)
            handles.setdefault(with_tildes(f"{kind}_s{rest.removeprefix(s)}"), drawn)
            low, high = [min(x) for _, x in at], [max(x) for _, x in at]
            axis.fill_between(values, low, high, color=colour, alpha=0.15, linewidth=0)
        axis.axvline(1, color="black", linewidth=0.6)
        axis.set(title=f"s = {s}", xlabel="t_scale (trained up to 1)")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("loss, nats per token")
    if handles:
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5, fontsize=9)
    metadata = {"Description": fingerprint(document)}
    write_atomically(path, lambda partial: figure.savefig(partial, dpi=110, format="png", metadata=metadata))


def fingerprint(document: Document) -> str:
    """Of all that is drawn, which the picture carries so that it can be held against the results."""
    drawn = {name: by_scale(models_of(document, name)) for name in swept(document)}
    return hashlib.sha256(json.dumps(drawn, sort_keys=True).encode()).hexdigest()
