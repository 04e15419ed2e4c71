"""Confidence intervals of means over queries, by the bootstrap. Needs no torch."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from indistill.retrieval.evaluation.metrics import Figures

LEVEL = 0.95
RESAMPLES = 2000
SEED = 0


@dataclass(frozen=True)
class Estimate:
    """The mean of a figure over the queries, with the bounds of its 95 % interval."""

    mean: float
    low: float
    high: float


def estimate_means(names: Sequence[str], values: Figures) -> dict[str, Estimate]:
    """Returns the estimate of each column of values (Q, M) by its name; NaN is left out, and NaN alone gives NaN."""
    with np.errstate(invalid="ignore"):
        means = np.nansum(values, axis=0) / np.count_nonzero(~np.isnan(values), axis=0)
    low, high = bootstrap_means(values)
    return {name: Estimate(*map(float, bounds)) for name, *bounds in zip(names, means, low, high, strict=True)}


def bootstrap_means(values: Figures, resamples: int = RESAMPLES, seed: int = SEED) -> tuple[Figures, Figures]:
    """Returns the lower and the upper bounds (M,) of the 95 % intervals of the means of some columns, NaN left out.

    Queries are drawn with replacement, the same ones for all columns, as many as there are; the bounds are percentiles
    of the means.

    Args:
        values: (Q, M), a row for each query.
        resamples: how often queries are drawn.
        seed: of the draws, so that the same figures have the same interval.

    Reference: Efron 1979, "Bootstrap methods"; Efron and Tibshirani 1993, chapter 13 (percentile intervals).
    """
    random = np.random.default_rng(seed)
    count = len(values)
    present = ~np.isnan(values)
    filled = np.where(present, values, 0)
    means = np.empty((resamples, values.shape[1]))
    for row in range(resamples):
        drawn = np.bincount(random.integers(0, count, count), minlength=count)
        with np.errstate(invalid="ignore"):  # where all that was drawn is NaN
            means[row] = (drawn @ filled) / (drawn @ present)
    tail = (1 - LEVEL) / 2
    low, high = np.full((2, values.shape[1]), np.nan)
    some = present.any(axis=0)
    low[some], high[some] = np.nanquantile(means[:, some], (tail, 1 - tail), axis=0)
    return low, high
