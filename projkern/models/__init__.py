"""The source GPT, its conditional baseline, and the operator that projects it or a transformers model."""

from typing import TYPE_CHECKING

from ..utils.lazy import attach
from .layout import GPTConfig

if TYPE_CHECKING:
    from .gpt import GPT
    from .huggingface.operator import ProjectionOperator, TransformersOperator

__getattr__, __dir__ = attach(
    __name__,
    {
        "GPT": "gpt",
        # Not its own module: the constructor needs the class for transformers models too.
        **dict.fromkeys(("ProjectionOperator", "TransformersOperator"), "huggingface.operator"),
    },
)
