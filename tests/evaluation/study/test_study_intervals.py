from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jcv2_plugin.evaluation.study import StudyError
from jcv2_plugin.evaluation.study.base import Interval
from jcv2_plugin.evaluation.study.intervals import mean_over_sets, median_interval, share, subtract


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    draws = [rng.beta(4, 1, size=100) for _ in range(200)]
    found = [mean_over_sets([[dict(zip(map(str, range(100)), values.tolist(), strict=True))]]) for values in draws]
    assert 0.9 <= sum(one.low <= 0.8 <= one.high for one in found) / 200 <= 0.98
    medians = [median_interval(rng.lognormal(size=11).tolist()) for _ in range(500)]
    assert sum(one.low <= 1 <= one.high for one in medians) / 500 >= 0.95


def test_a_query_in_several_draws_is_resampled_as_one() -> None:
    draw = {f"q{n}": float(n % 2) for n in range(50)}
    once, thrice = mean_over_sets([[draw]]), mean_over_sets([[draw, draw, draw]])
    assert thrice == pytest.approx(once)


def test_paired_differences_are_narrower_than_the_figures() -> None:
    rng = np.random.default_rng(1)
    one = {str(n): float(value) for n, value in enumerate(rng.uniform(size=60))}
    other = {key: value - 0.05 for key, value in one.items()}
    gap = mean_over_sets([[subtract(one, other)]])
    assert gap == pytest.approx((0.05, 0.05, 0.05))
    assert mean_over_sets([[one]]).high - mean_over_sets([[one]]).low > 0.1


def test_a_difference_is_of_the_queries_that_both_have() -> None:
    assert mean_over_sets([[subtract({"a": 1.0, "b": 0.0}, {"a": 0.5, "c": 9.0})]]).mean == 0.5


def test_a_share_is_of_means_and_paired() -> None:
    whole = {"a": 0.5, "b": 1.0, "c": 0.25}
    assert share([({name: value / 2 for name, value in whole.items()}, whole)]) == pytest.approx((50, 50, 50))
    found = share([({"a": 1.0, "b": 0.0, "z": 1.0}, {"a": 0.5, "b": 1.0, "y": 1.0})])
    assert found is not None
    assert found == pytest.approx((100 / 1.5, 0, 200))


def test_there_is_no_share_of_what_a_bootstrap_may_miss() -> None:
    assert share([({"a": 1.0, "b": 1.0}, {"a": 0.0, "b": 1.0})]) is None


def test_each_set_counts_the_same() -> None:
    large, small = {str(n): 0.0 for n in range(90)}, {str(n): 1.0 for n in range(10)}
    assert mean_over_sets([[large], [small]]).mean == 0.5


def test_nothing_has_no_mean() -> None:
    for nothing in ([], [{}]):
        with pytest.raises(StudyError, match="no value"):
            mean_over_sets([nothing])
    with pytest.raises(StudyError, match="no value"):
        mean_over_sets([])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=30))
def test_an_interval_holds_its_mean(values: list[float]) -> None:
    found = mean_over_sets([[{str(n): value for n, value in enumerate(values)}]])
    assert min(values) - 1e-9 <= found.low <= found.high <= max(values) + 1e-9
    assert found.mean == pytest.approx(np.mean(values), abs=1e-9)


def test_the_interval_of_a_median() -> None:
    assert median_interval([3.0]) == (3.0, 3.0, 3.0)
    # Of 9 values the second lowest and second highest hold the median with 1 - 2 * (1 + 9) / 2 ** 9 = 96 %.
    assert median_interval([float(n) for n in range(9)]) == (4.0, 1.0, 7.0)
    assert median_interval([float(n) for n in range(8)]) == (3.5, 0.0, 7.0)


def test_as_text() -> None:
    assert Interval(0.12345, 0.1, 0.2).text() == "0.123 [0.100, 0.200]"
    assert Interval(0.1, -0.1, 0.2).text(1, signed=True) == "+0.1 [-0.1, +0.2]"
