"""What the paper reports (Zhmoginov, Lee, Sandler: Projectable Models, arXiv:2506.05641). Losses are nats per token."""

from __future__ import annotations

SCALES = ("1", "1/2", "1/4", "1/8")

PARAMETERS = {"1": 76_706_816, "1/2": 19_479_040, "1/4": 5_020_928, "1/8": 1_330_816}
"""Of M_s: the paper's 76.7M, 19.5M, 5M and 1.3M (section 3.2) in full, as its shapes give them."""

SOURCE_MEAN = "source after co-training, mean over P_s"

TABLE_1 = {
    "M_1": 0.45,
    "M_1/2": 0.51,
    "M_1/4": 0.62,
    "M_1/8": 0.82,
    "M~_1": 0.39,
    "M~_1/2": 0.46,
    "M~_1/4": 0.58,
    "M~_1/8": 0.78,
    "P_1/2": 0.39,
    "P_1/4": 0.47,
    "P_1/8": 0.57,
    "P~_1/2": 0.39,
    "P~_1/4": 0.45,
    "P~_1/8": 0.57,
    SOURCE_MEAN: 0.44,
    "source after co-training": 0.46,
}
"""SynthMNIST. Its caption: the source's cell beside P_s is the mean over s."""

TABLE_2 = {
    "M~_1": 2.176,
    "M~_1/2": 2.211,
    "M~_1/4": 2.264,
    "M~_1/8": 2.332,
    "P_1/2": 2.210,
    "P_1/4": 2.246,
    "P_1/8": 2.297,
}
"""ImageNet at 64×64, validation set; errors about 0.001 (M~_s) and 0.002 (P_s)."""

TABLE_3 = {
    "P_1/4 from M_1, r = 8": 0.47,
    "P_1/4 from M_1/2, r = 8": 0.50,
    "P_1/4 from M_1/2, r = 16": 0.49,
    "P_1/8 from M_1, r = 8": 0.57,
    "P_1/8 from M_1/2, r = 8": 0.59,
    "P_1/8 from M_1/2, r = 16": 0.57,
    "P_1/8 from M_1/4, r = 8": 0.71,
    "P_1/8 from M_1/4, r = 16": 0.70,
    "P_1/8 from M_1/4, r = 32": 0.67,
}
"""SynthMNIST, training losses (appendix D.1)."""

TABLE_4 = {
    "all, halves": {"C1": 2.382, "C2": 2.040},
    "1/8, halves": {"C1": 2.395, "C2": 2.052},
    "1/8 and 1, halves": {"C1": 2.392, "C2": 2.045},
    "all, mod 2": {"C1": 2.221, "C2": 2.201},
    "1/8, mod 2": {"C1": 2.233, "C2": 2.214},
    "1/8 and 1, mod 2": {"C1": 2.225, "C2": 2.206},
}
"""P_1/2 on ImageNet's validation set; error about 0.002 (appendix D.2)."""

TIMES = {
    "table1": {"P_1/2": "about 4", "P_1/4": "about 4", "P_1/8": "about 4"},
    "table2": {"P_1/4": "1.6", "P_1/8": "2.5"},
}
"""Equivalent sizes in its words (section 3.3.2)."""

LABELS = {
    "table1": [name for name in TABLE_1 if not name.startswith(("source", "P~"))] + ["P~"],
    "table2": list(TABLE_2),
    "table3": list(TABLE_3),
    "table4": list(TABLE_4),
    "figure4": [f"{kind}_{s}" for kind in ("M~", "P") for s in SCALES[1:]],
    "generators": ["diagonal"],
    "recipes": ["paper's"],
}
"""The trainings of each experiment that are the paper's own; others go beyond it."""
