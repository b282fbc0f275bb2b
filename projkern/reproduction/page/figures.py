"""The page's pictures, from the stored JSON."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ...files import write_atomically
from ...training.report import pretty
from ..results import Document, models_of
from .further import by_scale, swept
from .paper import SCALES

STYLES = {"M": ("0.4", ":"), "M~": ("C0", "--"), "P": ("C1", "-"), "P~": ("C2", "-.")}


def draw_figure4(path: Path, document: Document) -> None:
    """Loss against t_scale, one panel for each s as in the paper; bands are the range over seeds."""
    figure = Figure(figsize=(12, 4), layout="constrained")
    axes = figure.subplots(1, len(SCALES) - 1, sharey=True)
    for axis, s in zip(axes, SCALES[1:]):
        for name in swept(document):
            kind, _, rest = name.partition("_")
            if rest.partition(",")[0] != s:
                continue
            at = sorted(by_scale(models_of(document, name)).items())
            values = [value for value, _ in at]
            colour, line = STYLES[kind] if rest == s else (None, (0, (1, 3)))
            (drawn,) = axis.plot(values, [np.mean(x) for _, x in at], color=colour, linestyle=line, label=pretty(name))
            low, high = [min(x) for _, x in at], [max(x) for _, x in at]
            axis.fill_between(values, low, high, color=drawn.get_color(), alpha=0.15, linewidth=0)
        axis.axvline(1, color="black", linewidth=0.6)
        axis.set(title=f"s = {s}", xlabel="t_scale (trained up to 1)")
        axis.grid(alpha=0.3)
        if axis.lines[:-1]:
            axis.legend(fontsize=8, loc="lower right")
    axes[0].set_ylabel("loss, nats per token")
    write_atomically(path, lambda p: figure.savefig(p, dpi=110, format="png"))
