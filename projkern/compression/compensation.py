"""The compensated start: what is dropped is predicted from what is kept, by least squares, and folded into P.

    x_dropped ~ C x_kept    hence    W x ~ (W_kept + W_dropped C) x_kept,    P_in = [1; C] in place of [1; 0]

C comes from the second moments of a linear layer's input over a few batches. Ours, not the paper's.
"""

import torch
from torch import Tensor

RIDGE = 1e-3
"""Of the mean diagonal of the kept coordinates' moments."""


def predict_dropped(moments: Tensor, kept: Tensor, dropped: Tensor) -> Tensor:
    """C^T (dropped, kept), float32: dropped coordinates from kept ones by least squares with a ridge.

    Args:
        moments: (size, size), sum of x x^T.
        kept, dropped: indices.
    """
    rows = moments[kept]
    gram = rows[:, kept].double()
    gram.diagonal().add_(RIDGE * gram.diagonal().mean().clamp(min=torch.finfo(torch.float64).tiny))
    return torch.linalg.solve(gram, rows[:, dropped].double()).mT.float()
