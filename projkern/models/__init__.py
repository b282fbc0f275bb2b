"""The source GPT, its conditional baseline, and the operator that projects it."""

from .gpt import GPT
from .layout import GPTConfig
from .operator import ProjectionOperator
