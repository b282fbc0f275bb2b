"""Training runs: settings, stages, the loop, checkpoints and reports."""
