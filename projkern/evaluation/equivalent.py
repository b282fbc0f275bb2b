"""Equivalent size: the conditional model that would be as good as a projected one.

The losses of the conditional baselines are joined by straight lines over log(parameters), and the size is read off
where these lines have the projected model's loss. On the paper's own figures this agrees with its text: 3.5 to 4.2 on
SynthMNIST ("4 times as many parameters") and 1.6 for P_1/4 on ImageNet; one line through all baselines would give up
to 6.3 on the former, because loss falls ever slower with log(parameters) (docs/evaluation.md).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..utils.errors import InputError

RESAMPLES = 2000
LEVEL = 0.95


class NoFit(InputError):
    """Baselines that no size can be read from."""


@dataclass(frozen=True)
class EquivalentSize:
    """The size of conditional model that a projected model compares to.

    Args:
        parameters: of the conditional model with the same loss.
        times: ``parameters`` over those of the projected model: k.
        interval: of ``times``, 95 %, by resampling the images. None where too many of the resamplings have no fit.
        beyond: "largest" or "smallest" baseline, whichever the loss lies beyond: there the nearest line is extended,
            which is a guess that ``interval`` says nothing about. None between baselines.
    """

    parameters: float
    times: float
    interval: tuple[float, float] | None
    beyond: str | None


def size_of_loss(sizes: Sequence[int], losses: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """Parameters with which a conditional model has a loss.

    Args:
        sizes: (K,) of the baselines, rising; K >= 2.
        losses: (..., K) of the baselines.
        loss: (...) of the model to compare.

    Returns:
        (...) float64; NaN where the losses of the baselines do not fall with their size.
    """
    x = np.log(np.asarray(sizes, dtype=np.float64))
    left = (losses[..., 1:-1] > loss[..., None]).sum(-1)  # the line to take; the outer ones go on for ever
    y_0, y_1 = (np.take_along_axis(losses, (left + k)[..., None], -1)[..., 0] for k in (0, 1))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        size = np.exp(x[left] + (y_0 - loss) / (y_0 - y_1) * (x[left + 1] - x[left]))
    return np.where((np.diff(losses) < 0).all(-1), size, np.nan)


def equivalent_size(
    sizes: Sequence[int], baselines: np.ndarray, projected: np.ndarray, parameters: int, *, seed: int = 0
) -> EquivalentSize:
    """Compare a projected model to conditional ones.

    Args:
        sizes: (K,) parameters of the conditional baselines, rising.
        baselines: (K, N) their losses on each of N images.
        projected: (N,) the projected model's, on the same images.
        parameters: of the projected model.
        seed: of the resampling, which takes the same images for all models.

    Raises:
        NoFit: fewer than two baselines, or a larger one that is no better than a smaller one.
    """
    together = np.concatenate([baselines, projected[None]])  # [K + 1, N]
    rng, count = np.random.default_rng(seed), together.shape[1]

    def resample() -> np.ndarray:
        return np.stack([together[:, rng.integers(count, size=count)].mean(1) for _ in range(RESAMPLES)])

    return read_off(sizes, together.mean(1), resample, parameters)


def read_off(
    sizes: Sequence[int], mean: np.ndarray, resample: Callable[[], np.ndarray], parameters: int
) -> EquivalentSize:
    """The size that goes with mean losses (K + 1,), of the baselines and then the projected model.

    Args:
        sizes: (K,) parameters of the conditional baselines, rising.
        mean: their losses, and last the projected model's.
        resample: gives (R, K + 1), the same of R resamplings, for the interval.
        parameters: of the projected model.

    Raises:
        NoFit: as ``equivalent_size``.
    """
    if len(sizes) < 2:
        raise NoFit(f"it takes at least two conditional baselines; there was {len(sizes)}")

    def read(means: np.ndarray) -> np.ndarray:
        return size_of_loss(sizes, means[..., :-1], means[..., -1])

    size = float(read(mean))
    if np.isnan(size):
        shown = ", ".join(f"{loss:.3f}" for loss in mean[:-1])
        raise NoFit(f"the losses of the conditional baselines must fall with their size; they were {shown}")
    resampled = read(resample())
    # A resampling without a fit may be anything, so it counts against both ends.
    low = np.quantile(np.nan_to_num(resampled, nan=0.0, posinf=np.inf), (1 - LEVEL) / 2, method="lower")
    high = np.quantile(np.nan_to_num(resampled, nan=np.inf, posinf=np.inf), (1 + LEVEL) / 2, method="higher")
    bounded = low > 0 and np.isfinite(high)
    return EquivalentSize(
        size,
        size / parameters,
        (float(low) / parameters, float(high) / parameters) if bounded else None,
        "largest" if mean[-1] < mean[-2] else "smallest" if mean[-1] > mean[0] else None,
    )
