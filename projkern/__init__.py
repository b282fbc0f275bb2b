"""projkern: small specialised Transformers, generated from one large one by fused kernels.

W_s = P(t) W_1 Q(t)   (Projectable Models, arXiv 2506.05641)
"""

from .kernels.cost import explain
from .kernels.dispatch import available_backends, use_backend
from .kernels.linear import project_linear
from .kernels.projection import project, project_layers
from .models import GPT, GPTConfig, ProjectionOperator
from .utils.version import __version__

__all__ = [
    "GPT",
    "GPTConfig",
    "ProjectionOperator",
    "__version__",
    "available_backends",
    "explain",
    "project",
    "project_layers",
    "project_linear",
    "use_backend",
]
