"""Intervals and tests against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sr_bench.statistics import bootstrap, compare, holm


def test_interval_of_the_mean_is_that_of_the_central_limit_theorem() -> None:
    values = np.random.default_rng(1).normal(3.0, 2.0, 400)
    found = bootstrap(values.tolist())
    half = 1.959964 * values.std() / math.sqrt(len(values))  # std of the drawn distribution: divided by n
    assert found.mean == pytest.approx(values.mean(), abs=1e-12)
    assert found.low == pytest.approx(values.mean() - half, abs=0.03 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.03 * half)


def test_interval_of_two_values_is_exact() -> None:
    """The mean of two drawn from {0, 1} is 0, 1/2, 1 with probability 1/4, 1/2, 1/4."""
    found = bootstrap([0.0, 1.0])
    assert (found.low, found.mean, found.high) == (0.0, 0.5, 1.0)
    narrow = bootstrap([0.0, 1.0], level=0.1)
    assert (narrow.low, narrow.high) == (0.5, 0.5)


def test_interval_of_few_values_is_as_wide_as_students() -> None:
    """Of 10 normal values Student's interval is 2.262157 standard errors; without widening it would be 1.86 of them."""
    generator = np.random.default_rng(2)
    halves = []
    for _ in range(40):
        values = generator.normal(size=10)
        found = bootstrap(values.tolist(), resamples=2000)
        halves.append((found.high - found.low) / 2 / (values.std(ddof=1) / math.sqrt(10)))
    assert np.mean(halves) == pytest.approx(2.262157, abs=0.1)
    alone = bootstrap([3.0])
    assert (alone.low, alone.mean, alone.high) == (3.0, 3.0, 3.0)


def test_interval_is_the_same_every_time_and_needs_values() -> None:
    values = np.random.default_rng(0).random(30_000).tolist()  # more than fit into one block of draws
    assert bootstrap(values, resamples=200) == bootstrap(values, resamples=200)
    assert bootstrap(values, resamples=200) != bootstrap(values, resamples=200, seed=1)
    with pytest.raises(ValueError, match="at least one value"):
        bootstrap([])


def test_wilcoxon_of_few_pictures_is_exact() -> None:
    """Six differences of one sign: 2 of the 2^6 equally likely signs are as extreme."""
    first = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    second = [value + 0.1 * index for index, value in enumerate(first, 1)]
    found = compare(first, second, higher_is_better=True)
    assert found.p == pytest.approx(2 / 2**6)
    assert (found.wins, found.ties, found.count) == (6, 0, 6)
    assert found.difference.mean == pytest.approx(0.35)
    turned = compare(first, second, higher_is_better=False)
    assert (turned.wins, turned.p) == (0, found.p)
    assert (found.favours, turned.favours) == ("second", "first")
    mixed = compare(first, [1.1, 1.8, 3.3, 4.0, 5.0, 6.0], higher_is_better=True)
    assert (mixed.wins, mixed.ties) == (2, 3)


def test_equal_pictures_do_not_make_the_test_an_approximation() -> None:
    """Five differences of one sign among 35 pictures: 2 of the 2^5 equally likely signs are as extreme."""
    second = [0.0] * 30 + [0.1, 0.2, 0.3, 0.4, 0.5]
    found = compare([0.0] * 35, second, higher_is_better=True)
    assert found.p == pytest.approx(2 / 2**5)
    assert (found.wins, found.ties, found.count) == (5, 30, 35)


def test_the_test_speaks_for_the_rank_sum_and_not_for_the_mean() -> None:
    """Nineteen of twenty pictures are a little worse, one is very much better."""
    found = compare([0.0] * 20, [-0.1 - 0.001 * index for index in range(19)] + [10.0], higher_is_better=True)
    assert found.difference.mean > 0
    assert found.p < 0.01
    assert found.favours == "first"
    assert compare([0.0, 0.0], [1.0, -1.0], higher_is_better=True).favours == ""


def test_equal_pictures_are_no_difference() -> None:
    found = compare([1.0, 2.0], [1.0, 2.0], higher_is_better=True)
    assert (found.p, found.wins, found.ties, found.difference.mean) == (1.0, 0, 2, 0.0)
    with pytest.raises(ValueError, match="as many values of both, got 1 and 2"):
        compare([1.0], [1.0, 2.0], higher_is_better=True)


def test_holm_keeps_order_and_never_falls() -> None:
    assert holm([0.04, 0.01, 0.03]) == pytest.approx((0.06, 0.03, 0.06))
    assert holm([0.5, 0.6]) == pytest.approx((1.0, 1.0))
    assert holm([]) == ()
