"""What settings may name: known without torch, hence apart from the generators."""

KINDS = ("diagonal", "general", "blocks", "linear", "modular", "low-rank")
"""The kinds of weight generators, the keys of ``projkern.models.generators.GENERATORS``."""

STARTS = ("constant", "noise", "signs", "one-hot")
"""Initial values of p and q of the diagonal generator."""
