"""Means with 95% bootstrap intervals over queries."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from statistics import median

import numpy as np
from numpy.typing import NDArray

from jcv2_plugin.evaluation.study.base import Interval, Samples, StudyError

FEW = 20
"""Below this number of queries, a bootstrap says too little about other queries to draw a conclusion."""
RESAMPLES = 1000
METHOD = (
    f"Intervals hold 95 % of {RESAMPLES:,} bootstrap means. Each bootstrap draws the queries with replacement. A query "
    "that is in several draws is taken with all its values. With several sets, each is resampled, and the sets are "
    "averaged."
)
Array = NDArray[np.float64]


def interval(draws: Sequence[Samples]) -> Interval:
    """Return the mean over all queries of all draws, each a dict of values by query id."""
    return mean_over_sets([draws])


def share(draws: Sequence[tuple[Samples, Samples]]) -> Interval | None:
    """Return the mean of the first as a percentage of that of the second, over the queries in both, resampled together.

    If so few of the second values are above 0 that a bootstrap can miss all of them, the result is None.
    """
    parts, _ = _by_query([{query: own[query] for query in own if query in other} for own, other in draws])
    wholes, _ = _by_query([{query: other[query] for query in own if query in other} for own, other in draws])
    (weights,) = _weights((len(wholes),))
    if not (weights @ wholes).all():
        return None
    return _interval(float(100 * parts.sum() / wholes.sum()), 100 * (weights @ parts) / (weights @ wholes))


def subtract(one: Samples, other: Samples) -> dict[str, float]:
    """Return the differences by query, for the queries in both."""
    return {query: value - other[query] for query, value in one.items() if query in other}


def mean_over_sets(sets: Iterable[Sequence[Samples]]) -> Interval:
    """Return the mean over sets, all with the same weight, of their means over the queries of all draws.

    A query in several draws counts in each of them, and is resampled as one. No values at all are a ``StudyError``.
    """
    parts = [_by_query(draws) for draws in sets]
    if not parts:
        raise StudyError("There is no value to take the mean of.")
    weights = _weights(tuple(len(sums) for sums, _ in parts))
    resampled = [(own @ sums) / (own @ counts) for own, (sums, counts) in zip(weights, parts, strict=True)]
    means = [float(sums.sum() / counts.sum()) for sums, counts in parts]
    return _interval(math.fsum(means) / len(means), np.mean(resampled, axis=0))


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


def _interval(mean: float, resampled: Array) -> Interval:
    low, high = np.quantile(resampled, (0.025, 0.975))
    return Interval(mean, float(low), float(high))


@lru_cache(maxsize=4)
def _weights(numbers: tuple[int, ...]) -> list[NDArray[np.int64]]:
    """Return how often each bootstrap sample draws each query, for sets with these numbers of queries."""
    rng = np.random.default_rng(0)
    return [rng.multinomial(number, np.full(number, 1 / number), size=RESAMPLES) for number in numbers]


def _by_query(draws: Sequence[Samples]) -> tuple[Array, Array]:
    """Return the sum and the number of each query's values."""
    values: dict[str, list[float]] = {}
    for samples in draws:
        for query, value in samples.items():
            values.setdefault(query, []).append(value)
    if not values:
        raise StudyError("There is no value to take the mean of.")
    return np.array([math.fsum(own) for own in values.values()]), np.array([float(len(own)) for own in values.values()])
