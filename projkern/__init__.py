"""projkern: small specialised Transformers, generated from one large one by fused kernels.

W_s = P(t) W_1 Q(t)   (Projectable Models, arXiv 2506.05641)
"""

from .cost import explain
from .functional import project, project_layers
from .kernels.backends import available_backends, use_backend
from .linear import project_linear
from .models import GPT, GPTConfig, ProjectionOperator

__version__ = "0.1.0"
__all__ = [
    "GPT",
    "GPTConfig",
    "ProjectionOperator",
    "available_backends",
    "explain",
    "project",
    "project_layers",
    "project_linear",
    "use_backend",
]
