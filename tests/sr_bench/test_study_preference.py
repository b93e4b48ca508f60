"""The mathematics of preference studies against closed forms."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from sr_bench.study.preference import luce_strengths, resamples, share, strengths, wilson


def full(count: int) -> np.ndarray:
    return np.ones((1, count), bool)


def centred(values: list[float]) -> np.ndarray:
    logs = np.log(values)
    return logs - logs.mean()


@pytest.mark.parametrize(("a", "b"), [(3, 1), (10, 70), (5, 5)])
def test_two_methods_differ_by_the_log_odds(a: int, b: int) -> None:
    theta = luce_strengths(np.array([[a, b]]), full(2), prior=0)
    assert theta[0] - theta[1] == pytest.approx(math.log(a / b))
    theta = luce_strengths(np.array([[a, b]]), full(2))
    assert theta[0] - theta[1] == pytest.approx(math.log((a + 0.5) / (b + 0.5)))


def test_strengths_of_complete_sets_are_log_votes() -> None:
    theta = luce_strengths(np.array([[1, 2, 40, 8, 300]]), full(5), prior=0)
    assert theta == pytest.approx(centred([1, 2, 40, 8, 300]), abs=1e-8)


def test_counts_in_proportion_to_the_strengths_give_them_back_from_any_sets() -> None:
    weights = np.array([1.0, 2.0, 3.0, 6.0])
    sets = np.array([[i in chosen for i in range(4)] for k in (2, 3) for chosen in itertools.combinations(range(4), k)])
    asked = np.arange(1, len(sets) + 1)[:, None]
    votes = 1e4 * asked * sets * weights / (sets * weights).sum(axis=1, keepdims=True)
    assert luce_strengths(votes, sets, prior=0) == pytest.approx(centred([1, 2, 3, 6]), abs=1e-6)


def test_simulated_choices_show_the_strengths_they_were_drawn_from() -> None:
    rng, true = np.random.default_rng(0), np.array([0.8, 0.1, -0.2, -0.7])
    sets = np.array([[i in pair for i in range(4)] for pair in itertools.combinations(range(4), 2)])
    weights = sets * np.exp(true)
    votes = np.array([rng.multinomial(3000, row / row.sum()) for row in weights])
    assert luce_strengths(votes, sets) == pytest.approx(true - true.mean(), abs=0.06)


@pytest.mark.parametrize("votes", [[[5, 0]], [[5, 3, 0]], [[0, 0, 9]]])
def test_a_method_that_never_wins_has_a_finite_strength_only_with_a_prior(votes: list[list[int]]) -> None:
    counts = np.array(votes)
    with pytest.raises(ValueError, match="set a prior"):
        luce_strengths(counts, full(counts.shape[1]), prior=0)
    assert luce_strengths(counts, full(counts.shape[1])) == pytest.approx(centred(list(counts[0] + 0.5)))


def test_methods_that_never_meet_cannot_be_ordered_without_a_prior() -> None:
    sets = np.array([[True, True, False, False], [False, False, True, True]])
    with pytest.raises(ValueError, match="set a prior"):
        luce_strengths(np.array([[2, 3, 0, 0], [0, 0, 4, 1]]), sets, prior=0)


def test_wilson_has_its_textbook_values() -> None:
    assert wilson(0.5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson(0.0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(1.0, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)


def test_resamples_take_as_many_people_as_there_are() -> None:
    draws = resamples(7, 50, seed=1)
    assert draws.shape == (50, 7)
    assert (draws.sum(axis=1) == 7).all()
    assert np.array_equal(draws, resamples(7, 50, seed=1))
    assert not np.array_equal(draws, resamples(7, 50, seed=2))


def test_the_interval_counts_people_not_answers() -> None:
    """Forty people who answer 25 times alike are forty trials, not a thousand."""
    of = np.full(40, 25)
    won = np.where(np.arange(40) < 12, 25, 0)
    found = share(won, of, resamples(40, 4000))
    error = 1.96 * math.sqrt(0.3 * 0.7 / 40)
    assert (found.won, found.of, found.value) == (300, 1000, 0.3)
    assert found.low == pytest.approx(0.3 - error, abs=0.02)
    assert found.high == pytest.approx(0.3 + error, abs=0.02)


def test_about_95_of_100_intervals_hold_the_truth() -> None:
    rng, hits = np.random.default_rng(3), 0
    for seed in range(200):
        taste = rng.beta(2, 3, size=50)  # mean 0.4, different for every person
        found = share(rng.binomial(10, taste), np.full(50, 10), resamples(50, 300, seed))
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= 0.4 <= found.high
    assert 0.9 <= hits / 200 <= 0.99


def test_one_person_and_people_who_agree_have_wilson_intervals() -> None:
    one = share(np.array([3]), np.array([10]), resamples(1, 10))
    assert (one.low, one.high) == pytest.approx(wilson(0.3, 10))
    two = share(np.array([0, 3]), np.array([0, 10]), resamples(2, 10))
    assert (two.low, two.high) == pytest.approx(wilson(0.3, 10))
    alike = share(np.zeros(8, np.int64), np.full(8, 100), resamples(8, 100))
    assert (alike.low, alike.high) == pytest.approx(wilson(0.0, 8))


def test_nothing_asked_is_no_share() -> None:
    nothing = share(np.zeros(3, np.int64), np.zeros(3, np.int64), resamples(3, 10))
    assert (nothing.value, nothing.low, nothing.high, nothing.of) == (None, None, None, 0)


def test_strengths_take_their_interval_from_people() -> None:
    draws = resamples(30, 300)
    votes = np.zeros((30, 1, 2), np.int64)
    votes[:20, 0, 0] = votes[20:, 0, 1] = 10
    better, worse = strengths(votes, full(2), draws)
    counts = draws @ votes[:, 0, :] + 0.5
    low, high = np.quantile(0.5 * np.log(counts[:, 0] / counts[:, 1]), (0.025, 0.975))
    assert better.value == pytest.approx(0.5 * math.log(200.5 / 100.5))
    assert (better.low, better.high) == pytest.approx((low, high), abs=1e-6)
    assert worse.value == pytest.approx(-(better.value or 0))
    (alone, _) = strengths(votes[:1], full(2), resamples(1, 10))
    assert alone.value is not None
    assert (alone.low, alone.high) == (None, None)


def test_a_method_that_never_or_always_wins_has_no_interval_of_its_strength() -> None:
    draws = resamples(10, 200)
    votes = np.zeros((10, 1, 3), np.int64)
    votes[:, 0, 0] = 5
    votes[:5, 0, 0] = 6  # so that resamples differ
    assert [one.low for one in strengths(votes, full(3), draws)] == [None] * 3
    votes[:5, 0] = (1, 4, 0)  # now two share the votes and one has none
    first, second, never = strengths(votes, full(3), draws)
    assert first.low is not None
    assert second.high is not None
    assert (never.low, never.high) == (None, None)
    assert never.value == pytest.approx(centred([30.5, 20.5, 0.5])[2])


def test_an_edge_that_comes_from_the_prior_is_no_edge() -> None:
    """Two of ten people ever chose it: without both, as in a tenth of the resamples, nobody has."""
    votes = np.zeros((10, 1, 3), np.int64)
    votes[:, 0] = (6, 4, 0)
    votes[::2, 0] = (4, 6, 0)
    votes[:2, 0] = (0, 0, 10)
    first, _, rare = strengths(votes, full(3), resamples(10, 400))
    assert first.low is not None
    assert (rare.low, rare.high) == (None, None)


def test_people_who_all_agree_give_no_interval_of_strength() -> None:
    votes = np.tile(np.array([6, 3, 1]), (8, 1, 1))
    found = strengths(votes, full(3), resamples(8, 100))
    assert [(one.low, one.high) for one in found] == [(None, None)] * 3
    assert [one.value for one in found] == pytest.approx(centred([48.5, 24.5, 8.5]), abs=1e-6)
