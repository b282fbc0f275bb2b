"""The source GPT, its conditional baseline, and the operator that projects it or a transformers model."""

from .gpt import GPT
from .huggingface.operator import TransformersOperator
from .layout import GPTConfig
from .operator import ProjectionOperator

ProjectionOperator.of_transformers = TransformersOperator
