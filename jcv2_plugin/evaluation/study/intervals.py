"""Means with 95% bootstrap intervals over queries."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jcv2_plugin.evaluation.study.base import StudyError

FEW = 20
"""Below this number of queries, a bootstrap says too little about other queries to draw a conclusion."""
RESAMPLES = 1000
_ENDS = (0.025, 0.975)
METHOD = (
    f"Intervals hold 95 % of {RESAMPLES:,} bootstrap means. A bootstrap draws the queries anew with replacement, each "
    "with all its values from the draws it is in; over several sets it does so within each and averages the sets."
)

Samples = Mapping[str, float]
"""Values of a measure by query id."""


class Interval(NamedTuple):
    """A mean and the ends of its interval."""

    mean: float
    low: float
    high: float

    def text(self, digits: int = 3, *, signed: bool = False) -> str:
        """Format the interval as ``0.912 [0.891, 0.930]``."""
        sign = "+" if signed else ""
        return f"{self.mean:{sign}.{digits}f} [{self.low:{sign}.{digits}f}, {self.high:{sign}.{digits}f}]"


def interval(draws: Sequence[Samples], seed: int = 0) -> Interval:
    """Return the mean over all queries of all draws.

    Args:
        draws: Values by query id, for each draw. A query in several draws counts in each of them, and is resampled as
            one.
        seed: Random seed of the bootstrap.

    Raises:
        StudyError: If there are no values.
    """
    return mean_over_sets([draws], seed)


def difference(draws: Sequence[tuple[Samples, Samples]], seed: int = 0) -> Interval:
    """Return the mean of paired differences, first minus second, over the queries in both."""
    return interval([subtract(one, other) for one, other in draws], seed)


def share(draws: Sequence[tuple[Samples, Samples]], seed: int = 0) -> Interval | None:
    """Return the mean of the first as a percentage of that of the second, over the queries in both.

    Both are resampled together.

    Args:
        draws: Pairs of samples, as for :func:`difference`.
        seed: Random seed of the bootstrap.

    Returns:
        The percentage, or None if so few of the second values are above 0 that a bootstrap can miss all of them.
    """
    parts, _ = _by_query([{query: value for query, value in one.items() if query in other} for one, other in draws])
    wholes, _ = _by_query([{query: other[query] for query in one if query in other} for one, other in draws])
    weights = _weights(len(wholes), np.random.default_rng(seed))
    resampled = weights @ wholes
    if not resampled.all():
        return None
    low, high = np.quantile(100 * (weights @ parts) / resampled, _ENDS)
    return Interval(float(100 * parts.sum() / wholes.sum()), float(low), float(high))


def subtract(one: Samples, other: Samples) -> dict[str, float]:
    """Return the differences by query, for the queries in both."""
    return {query: value - other[query] for query, value in one.items() if query in other}


def mean_over_sets(sets: Iterable[Sequence[Samples]], seed: int = 0) -> Interval:
    """Return the mean over sets, all with the same weight, of their means over queries; see :func:`interval`."""
    rng = np.random.default_rng(seed)
    means: list[float] = []
    resampled: list[NDArray[np.float64]] = []
    for draws in sets:
        sums, counts = _by_query(draws)
        means.append(float(sums.sum() / counts.sum()))
        weights = _weights(len(sums), rng)
        resampled.append((weights @ sums) / (weights @ counts))
    if not means:
        raise StudyError("There is no value to take the mean of.")
    low, high = np.quantile(np.mean(resampled, axis=0), _ENDS)
    return Interval(math.fsum(means) / len(means), float(low), float(high))


def median_interval(values: Sequence[float]) -> Interval:
    """Return the median with a 95% confidence interval; with fewer than six values, the lowest and highest value.

    The interval makes no assumption about the distribution: the probability that at most k of n values lie below the
    true median is that of at most k heads in n coin flips.
    """
    ordered = sorted(values)
    number, cut = len(ordered), 0
    while cut < number // 2 and 2 * sum(math.comb(number, heads) for heads in range(cut + 2)) <= 0.05 * 2**number:
        cut += 1
    return Interval(median(ordered), ordered[cut], ordered[number - 1 - cut])


def _weights(number: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return how often each bootstrap sample draws each query."""
    return rng.multinomial(number, np.full(number, 1 / number), size=RESAMPLES)


def _by_query(draws: Sequence[Samples]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    values: dict[str, list[float]] = {}
    for samples in draws:
        for query, value in samples.items():
            values.setdefault(query, []).append(value)
    if not values:
        raise StudyError("There is no value to take the mean of.")
    return np.array([math.fsum(own) for own in values.values()]), np.array([float(len(own)) for own in values.values()])
