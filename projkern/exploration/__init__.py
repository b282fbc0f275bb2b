"""The page of ``python -m projkern.explore``: what it shows, and how it looks."""
