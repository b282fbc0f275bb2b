"""How sure a figure is: spread over seeds, intervals of differences, bootstrap of equivalent sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from projkern.evaluation.equivalent import LEVEL, RESAMPLES, EquivalentSize, read_off
from projkern.utils.errors import InputError, MissingDependency

try:
    from scipy.special import stdtrit
except ImportError as error:
    raise MissingDependency("the page needs SciPy: pip install -e '.[experiments]'") from error

Model = Mapping[str, Any]
"""A model's stored figures: at the least its loss, and ``by_image``, the losses of N held-out images."""


@dataclass(frozen=True)
class Spread:
    """Of one figure over seeds; ``deviation`` is None for one seed."""

    mean: float
    deviation: float | None
    low: float
    high: float
    seeds: int


def spread(values: Sequence[float]) -> Spread:
    """Mean, sample standard deviation and range."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Spread(float(np.mean(values)), deviation, min(values), max(values), len(values))


@dataclass(frozen=True)
class Difference:
    """A mean difference of losses with its 95 % interval.

    Args:
        mean: nats per token.
        error: its standard error.
        freedom: degrees of freedom of ``error`` (Welch and Satterthwaite).
        over_seeds: whether seeds are in it; if not, it is of the choice of images alone.
        by_seed: the differences of seeds that both models have, if there are two or more.
        of_images: variance of the mean by the choice of images, and its degrees of freedom.
    """

    mean: float
    error: float
    freedom: float
    over_seeds: bool
    by_seed: Mapping[int, float]
    of_images: tuple[float, float]

    @property
    def interval(self) -> tuple[float, float]:
        half = float(stdtrit(self.freedom, (1 + LEVEL) / 2)) * self.error
        return self.mean - half, self.mean + half

    def __sub__(self, other: Difference) -> Difference:
        """Of two differences: seeds are paired where they are the same, images count as others."""
        mean, (error, freedom) = self.mean - other.mean, _pooled([self.of_images, other.of_images])
        by_seed: dict[int, float] = {}
        sources = [(d.error**2, d.freedom) for d in (self, other)]
        if self.by_seed and self.by_seed.keys() == other.by_seed.keys():
            by_seed = {seed: self.by_seed[seed] - other.by_seed[seed] for seed in self.by_seed}
            sources = [_over_seeds(list(by_seed.values())), self.of_images, other.of_images]
        both = self.over_seeds and other.over_seeds
        return Difference(mean, *_pooled(sources), both, by_seed, (error**2, freedom))


def difference(a: Mapping[int, Model], b: Mapping[int, Model]) -> Difference:
    """Loss of a minus that of b, by seed, on the same images.

    Images are paired: what makes one hard for both models cancels. So are seeds where both models have the same two
    or more; otherwise the variance over seeds is pooled over both models, and the seeds are taken as independent.

    Raises:
        InputError: their images differ in number.
    """
    x, y = ({seed: np.asarray(model["by_image"], float) for seed, model in models.items()} for models in (a, b))
    counts = {len(losses) for losses in (*x.values(), *y.values())}
    if len(counts) != 1:
        raise InputError(f"by_image must be of the same images for all models; it was of {sorted(counts)}")
    common = sorted(x.keys() & y.keys())
    if len(common) > 1:
        each = np.stack([x[seed] - y[seed] for seed in common])
        by_image = each.mean(0)
        by_seed = dict(zip(common, each.mean(1).tolist()))
        sources = [_over_seeds(list(by_seed.values()))]
    else:
        by_seed = {}
        by_image = np.mean(list(x.values()), 0) - np.mean(list(y.values()), 0)
        sources = []
        freedom = len(x) + len(y) - 2
        if freedom > 0:
            squares = sum(np.var([losses.mean() for losses in side.values()]) * len(side) for side in (x, y))
            sources = [(squares / freedom * (1 / len(x) + 1 / len(y)), freedom)]
    over_seeds = bool(sources)
    of_images = (float(by_image.var(ddof=1)) / len(by_image), len(by_image) - 1)
    return Difference(float(by_image.mean()), *_pooled([*sources, of_images]), over_seeds, by_seed, of_images)


def _over_seeds(values: Sequence[float]) -> tuple[float, float]:
    """Variance of the mean of one value a seed, and its degrees of freedom."""
    return float(np.var(values, ddof=1)) / len(values), len(values) - 1


def _pooled(sources: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Standard error, and degrees of freedom, of a sum of independent errors: (variance, degrees of freedom) each."""
    total = sum(variance for variance, _ in sources)
    below = sum(variance**2 / freedom for variance, freedom in sources)
    return float(total**0.5), float(total**2 / below) if below > 0 else 1.0


def equivalent_size_over_seeds(
    baselines: Sequence[Mapping[int, Model]], projected: Mapping[int, Model], *, seed: int = 0
) -> EquivalentSize:
    """As ``evaluation.equivalent.equivalent_size``, with seeds resampled beside the images.

    Args:
        baselines: the conditional models by seed, the smallest first; each has ``parameters`` too.
        projected: the projected model by seed, on the same images.
        seed: of the resampling, which takes the same images for all models and seeds of each on its own.

    Raises:
        NoFit: fewer than two baselines, or a larger one that is no better than a smaller one.
    """
    sizes = [next(iter(models.values()))["parameters"] for models in baselines]
    parameters = next(iter(projected.values()))["parameters"]
    losses = [np.array([m["by_image"] for m in models.values()], float) for models in (*baselines, projected)]
    mean = np.array([model.mean() for model in losses])
    return read_off(sizes, mean, lambda: np.stack(_resampled(losses, np.random.default_rng(seed)), -1), parameters)


def _resampled(losses: Sequence[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
    """Mean losses (R,) of each model in R resamplings of its seeds and of the images; ``losses`` are (seeds, N)."""

    def weights(count: int) -> np.ndarray:
        return rng.multinomial(count, np.full(count, 1 / count), size=RESAMPLES) / count

    images = weights(losses[0].shape[1])
    return [((images @ model.T) * weights(len(model))).sum(1) for model in losses]
