"""Words that settings share with the data, and that need no torch."""

OPENML = "openml"
"""The digits that are downloaded."""
TASK_NAMES = (
    "angle", "scale", "center_x", "center_y", "warp_x", "warp_y", "warp_scale",
    "shift_r", "shift_g", "shift_b", "class_stripes", "class_rings", "class_cells",
    "cells_frequency", "cells_phase", "color_r", "color_g", "color_b",
)  # fmt: skip
"""The components of SynthMNIST's task identifier; ``synthmnist.py`` has what each means."""
TASK_DIM = len(TASK_NAMES)
