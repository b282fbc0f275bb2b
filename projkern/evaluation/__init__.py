"""How good a run's models are, and how fast: losses, sweeps of t, equivalent sizes, speed, and the report on them."""
