"""projkern: small specialised Transformers, generated from one large one by fused kernels.

W_s = P(t) W_1 Q(t)        a small model for each task (Projectable Models, arXiv 2506.05641)
W_C = P_out W P_in + A     one smaller model (Projected Compression, arXiv 2506.22255)
"""

from typing import TYPE_CHECKING

from .utils.lazy import attach
from .utils.version import __version__

if TYPE_CHECKING:
    from .compression.api import compress
    from .compression.plan import Plan as CompressionPlan
    from .compression.projected import ProjectedModel
    from .kernels.cost import explain
    from .kernels.dispatch import available_backends, use_backend
    from .kernels.linear import project_linear
    from .kernels.projection import project, project_layers
    from .models import GPT, GPTConfig, ProjectionOperator

__all__ = [
    "GPT",
    "CompressionPlan",
    "GPTConfig",
    "ProjectedModel",
    "ProjectionOperator",
    "__version__",
    "available_backends",
    "compress",
    "explain",
    "project",
    "project_layers",
    "project_linear",
    "use_backend",
]

__getattr__, __dir__ = attach(
    __name__,
    {
        "GPT": "models",
        "CompressionPlan": "compression.plan:Plan",
        "GPTConfig": "models",
        "ProjectedModel": "compression.projected",
        "ProjectionOperator": "models",
        "available_backends": "kernels.dispatch",
        "compress": "compression.api",
        "explain": "kernels.cost",
        "project": "kernels.projection",
        "project_layers": "kernels.projection",
        "project_linear": "kernels.linear",
        "use_backend": "kernels.dispatch",
    },
)
