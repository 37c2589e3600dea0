"""Means, spreads, paired intervals and readings at equal cost."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from flatmin.studies.report.statistics import Difference, Spread, at_cost, paired
from flatmin.studies.report.text import difference, listing, number, points, spread

values = st.lists(st.floats(0, 100), min_size=2, max_size=8)


def test_a_paired_interval_by_hand():
    # differences 1, 2 and 3: mean 2, sd 1, and Student's t of 2 degrees of freedom is 4.302653
    found = paired({0: 81.0, 1: 92.0, 2: 73.0}, {0: 80.0, 1: 90.0, 2: 70.0})
    assert found.mean == pytest.approx(2.0)
    assert found.high - 2.0 == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert 2.0 - found.low == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert not found.distinct


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 1000)), min_size=3, max_size=9))
def test_a_paired_interval_is_scipys(pairs: list[tuple[int, int]]):
    ours, theirs = ([float(pair[i]) for pair in pairs] for i in (0, 1))
    found = paired(dict(enumerate(ours)), dict(enumerate(theirs)))
    gaps = np.subtract(ours, theirs)
    if gaps.std() == 0:
        assert found.low == found.high == found.mean
        return
    expected = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_only_shared_seeds_are_compared():
    found = paired({0: 10.0, 1: 20.0, 7: 99.0}, {1: 19.0, 0: 9.0, 5: 0.0})
    assert (found.mean, found.n) == (1.0, 2)
    assert paired({0: 1.0}, {1: 1.0}).n == 0


def test_one_seed_has_no_interval_and_is_never_distinct():
    found = paired({3: 90.0}, {3: 10.0})
    assert found.mean == 80.0
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert not found.distinct


def test_equal_runs_are_not_distinct():
    assert not paired({0: 5.0, 1: 6.0}, {0: 5.0, 1: 6.0}).distinct


def test_the_spread_is_the_samples():
    assert Spread.of([1.0, 3.0]) == Spread(2.0, math.sqrt(2.0), 2)
    assert math.isnan(Spread.of([4.0]).sd)


@given(values)
def test_a_mean_lies_among_its_values(found: list[float]):
    assert min(found) - 1e-9 <= Spread.of(found).mean <= max(found) + 1e-9


def test_accuracy_at_a_cost_is_read_off_the_curve():
    curve = [2.0, 4.0, 6.0], [10.0, 30.0, 80.0]
    assert at_cost(*curve, 4.0) == 30.0
    assert at_cost(*curve, 5.0) == 55.0
    assert at_cost(*curve, 6.0) == 80.0


@pytest.mark.parametrize("cost", [1.9, 6.1])
def test_nothing_is_read_where_nothing_was_measured(cost: float):
    assert math.isnan(at_cost([2.0, 4.0, 6.0], [10.0, 30.0, 80.0], cost))
    assert math.isnan(at_cost([], [], cost))


def test_numbers_are_written_for_readers():
    assert number(-1.234) == "−1.23"
    assert number(None) == number(math.nan) == "–"
    assert spread(Spread(92.25, 0.449, 5)) == "92.2 ± 0.4"
    assert spread(Spread(92.25, math.nan, 1)) == "92.2"
    assert difference(Difference(3.14, -0.5, 6.7, 3)) == "+3.1 [−0.5, 6.7]"
    assert difference(Difference(-3.14, math.nan, math.nan, 1)) == "−3.1"
    assert difference(None) == difference(paired({}, {})) == "–"
    assert points(Difference(3.14, 2.0, 4.2, 3)) == "3.1 points [2.0, 4.2]"
    assert listing(["a"]) == "a"
    assert listing(["a", "b", "c"]) == "a, b and c"
