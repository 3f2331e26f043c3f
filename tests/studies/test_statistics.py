"""Intervals over seeds and power laws, against tables, closed forms and exact data."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cola_cli.studies.statistics import intervals, power_law, student_t


@pytest.mark.parametrize(
    ("freedom", "expected"), [(1, 12.706), (2, 4.303), (4, 2.776), (10, 2.228), (120, 1.980)]
)
def test_students_t_is_that_of_the_printed_tables(freedom: int, expected: float) -> None:
    assert student_t(freedom) == pytest.approx(expected, abs=6e-4)


def test_students_t_with_one_and_two_degrees_is_the_closed_form() -> None:
    assert student_t(1) == pytest.approx(math.tan(0.475 * math.pi), rel=1e-6)
    assert student_t(2) == pytest.approx(0.95 * math.sqrt(2 / (1 - 0.95**2)), rel=1e-6)


def test_an_interval_takes_its_deviation_from_the_whole_curve() -> None:
    found = intervals([[1.0, 3.0], [10.0, 14.0]], log=False)
    deviation = math.sqrt((2 + 8) / 2)  # squared distances over the two degrees of freedom
    half = student_t(2) * deviation / math.sqrt(2)
    for one, mean in zip(found, (2.0, 12.0), strict=True):
        assert (one.mean, one.count) == (mean, 2)
        assert one.low == pytest.approx(mean - half)
        assert one.high == pytest.approx(mean + half)


def test_of_what_multiplies_the_mean_is_geometric() -> None:
    (one,) = intervals([[2.0, 8.0]], log=True)
    assert one.mean == pytest.approx(4.0)
    assert one.low is not None
    assert one.high is not None
    assert one.low * one.high == pytest.approx(16.0)


def test_a_share_has_no_interval_beyond_0_and_1() -> None:
    ends = [(one.low, one.high) for one in intervals([[0.1, 0.3], [0.9, 0.9]], False, share=True)]
    assert ends[0][0] == 0.0
    assert ends[1][1] == 1.0
    assert 0.3 < ends[0][1] < 1.0  # type: ignore[operator]


def test_a_single_seed_has_no_interval() -> None:
    assert [one.low for one in intervals([[1.0], [2.0]], log=False)] == [None, None]


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    random = np.random.default_rng(0)
    truths = np.array([1.0, 2.0, 5.0, 9.0])
    draws = truths[:, None] + 0.3 * random.standard_normal((2000, 4, 2))
    hits = [
        one.low <= truth <= one.high  # type: ignore[operator]
        for sample in draws
        for one, truth in zip(intervals(sample.tolist(), log=False), truths, strict=True)
    ]
    assert np.mean(hits) == pytest.approx(0.95, abs=0.01)


def test_a_power_law_through_exact_data_is_that_law() -> None:
    x = [1e12, 3e12, 1e13, 5e13]
    law = power_law(x, [70.0 * value**-0.08 for value in x])
    assert law is not None
    assert law.coefficient == pytest.approx(70.0)
    assert law.exponent == pytest.approx(-0.08)
    assert law.r_squared == pytest.approx(1.0)
    assert law.high is not None
    assert law.high - law.exponent < 1e-6


def test_a_power_law_through_noisy_data_is_the_least_squares_line_of_the_logarithms() -> None:
    random = np.random.default_rng(1)
    x = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
    values = 3 * x**0.5 * np.exp(0.1 * random.standard_normal(5))
    law = power_law(list(x), list(values))
    (slope, constant), covariance = np.polyfit(np.log(x), np.log(values), 1, cov=True)
    assert law is not None
    assert law.exponent == pytest.approx(slope)
    assert law.coefficient == pytest.approx(math.exp(constant))
    assert law.low is not None
    # polyfit's covariance is scaled by the same n - 2 degrees of freedom
    assert law.exponent - law.low == pytest.approx(student_t(3) * math.sqrt(covariance[0, 0]))


@pytest.mark.parametrize(
    ("x", "values"),
    [([1.0, 2.0], [1.0, 2.0]), ([1.0, 1.0, 2.0], [1.0, 1.0, 1.0]), ([1.0, 2.0, 3.0], [1.0, 0.0, 2.0])],
)  # fmt: skip
def test_where_no_power_law_can_be_told_there_is_none(x: list[float], values: list[float]) -> None:
    assert power_law(x, values) is None
