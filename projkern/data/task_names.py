"""The components of SynthMNIST's task identifier; ``synthmnist.py`` has what each means."""

TASK_NAMES = (
    "angle", "scale", "center_x", "center_y", "warp_x", "warp_y", "warp_scale",
    "shift_r", "shift_g", "shift_b", "class_stripes", "class_rings", "class_cells",
    "cells_frequency", "cells_phase", "color_r", "color_g", "color_b",
)  # fmt: skip
TASK_DIM = len(TASK_NAMES)
