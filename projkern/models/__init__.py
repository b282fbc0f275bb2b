"""The source GPT, its conditional baseline, and the operator that projects it."""

from .gpt import GPT, GPTConfig
from .operator import ProjectionOperator

__all__ = ["GPT", "GPTConfig", "ProjectionOperator"]
