"""projkern: small specialised Transformers, generated from one large one by fused kernels.

W_s = P(t) W_1 Q(t)   (Projectable Models, arXiv 2506.05641)
"""

from .functional import project, project_layers
from .kernels.backends import available_backends, use_backend
from .models import GPT, GPTConfig, ProjectionOperator

__version__ = "0.1.0"
__all__ = [
    "GPT",
    "GPTConfig",
    "ProjectionOperator",
    "available_backends",
    "project",
    "project_layers",
    "use_backend",
]
