"""What the projected form's kernels serve: for their launchers, for the operators and for the cost model alike."""

import torch

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

MAX_GROUP = 16
"""Loops over a row group are unrolled, and a column group lies in one tile."""

TOKEN_TILE = 64
"""Most tokens of one task that share a tile of W_s."""


def why_not_served(weight_dtype: torch.dtype, dtype: torch.dtype, row_group: int, col_group: int) -> str | None:
    """Why the projected form has no kernels for these arguments; None if it has."""
    for name, actual in (("weight", weight_dtype), ("x", dtype)):
        if actual not in DTYPES:
            return f"its {name} is float32, bfloat16 or float16; it was {actual}"
    if max(row_group, col_group) > MAX_GROUP:
        return f"its groups are at most {MAX_GROUP}; they were {row_group} and {col_group}"
    return None
