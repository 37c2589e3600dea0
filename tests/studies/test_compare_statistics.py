"""Means, spreads, intervals and who is told from whom, against other people's formulas."""

import importlib.util
import itertools
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from flatmin.studies.report.statistics import (
    Comparisons,
    Difference,
    Pool,
    Spread,
    at_cost,
    dunnett,
    images_of,
    paired,
)
from flatmin.studies.report.text import difference, interval, listing, number, points, spread

Values = dict[str, dict[int, float]]

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


@pytest.mark.parametrize(
    ("found", "shown"),
    [
        (Difference(0.3, 0.02, 0.58, 5), "0.30 [0.02, 0.58]"),
        (Difference(-0.3, -0.58, -0.004, 5), "−0.300 [−0.580, −0.004]"),
        (Difference(0.3, -0.03, 0.63, 5), "0.30 [−0.03, 0.63]"),
        (Difference(0.3, 0.0, 0.6, 5), "0.3 [0.0, 0.6]"),
        (Difference(0.3, 1e-9, 0.6, 5), "0.3 [0.0, 0.6]"),
    ],
)
def test_an_end_that_is_not_zero_does_not_read_as_zero(found: Difference, shown: str):
    assert interval(found) == shown


# Several methods ------------------------------------------------------------------------------


def made_up(
    methods: int, seeds: int, *, sd: float = 1.0, number: int = 0, gap: float = 0.0
) -> Values:
    """Methods of one spread over seeds that move all of them; the last is better by `gap`."""
    rng = np.random.default_rng(number)
    table = 80 + rng.normal(0, 3, (1, seeds)) + rng.normal(0, sd, (methods, seeds))
    table[-1] += gap
    return {f"m{at}": dict(enumerate(row)) for at, row in enumerate(table.tolist())}


# C. W. Dunnett, New tables for multiple comparisons with a control, 1964, table II: 5 %, two-sided
DUNNETT = {
    5: (2.57, 3.03, 3.29, 3.48, 3.62),
    10: (2.23, 2.57, 2.76, 2.89, 2.99),
    20: (2.09, 2.38, 2.54, 2.65, 2.73),
    math.inf: (1.96, 2.21, 2.35, 2.44, 2.51),
}


@pytest.mark.parametrize("freedom", DUNNETT)
def test_dunnetts_quantiles_are_those_of_his_table(freedom: float):
    found = [dunnett(comparisons, freedom) for comparisons in range(1, 6)]
    assert found == pytest.approx(DUNNETT[freedom], abs=0.0051)


@pytest.mark.parametrize(("comparisons", "freedom"), [(2, 2), (4, 10), (8, 32)])
def test_dunnetts_quantiles_are_scipys(comparisons: int, freedom: int):
    shape = np.full((comparisons, comparisons), 0.5) + 0.5 * np.eye(comparisons)
    d = np.full(comparisons, dunnett(comparisons, freedom))
    t = stats.multivariate_t(shape=shape, df=freedom, seed=0)
    assert t.cdf(d, lower_limit=-d, maxpts=200_000) == pytest.approx(0.95, abs=5e-4)


def test_the_spread_is_that_of_a_linear_model_with_the_seeds_as_blocks():
    """By least squares on indicators of methods and seeds, as any package would."""
    values = made_up(4, 5)
    y = np.array([value for each in values.values() for value in each.values()])
    method, seed = np.divmod(np.arange(20), 5)
    design = np.hstack([np.eye(4)[method], np.eye(5)[seed][:, 1:]])
    _, rest, rank, _ = np.linalg.lstsq(design, y)
    pool = Pool.of(values)
    assert (pool.freedom, pool.apart) == (20 - rank, ())
    assert pool.freedom == 3 * 4
    assert pool.sd == pytest.approx(math.sqrt(rest[0] / 12))
    lead = Comparisons(values).lead("m1", "m0")
    assert lead.mean == pytest.approx(np.mean(y[5:10] - y[:5]))
    half = dunnett(3, 12) * pool.sd * math.sqrt(2 / 5)
    assert (lead.low, lead.high) == pytest.approx((lead.mean - half, lead.mean + half))


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 1000)), min_size=3, max_size=9))
def test_two_methods_are_students_pairs(pairs: list[tuple[int, int]]):
    a, b = ({seed: float(pair[at]) for seed, pair in enumerate(pairs)} for at in (0, 1))
    found, alone = Comparisons({"a": a, "b": b}).lead("a", "b"), paired(a, b)
    assert (found.low, found.high) == pytest.approx((alone.low, alone.high), abs=1e-6)


def test_no_interval_is_below_the_error_of_the_test_images():
    """Three seeds with one and the same gap: by themselves they would be certain of it."""
    values = {"a": {0: 90.0, 1: 91.0, 2: 92.0}, "b": {0: 89.7, 1: 90.7, 2: 91.7}}
    assert paired(values["a"], values["b"]).low == pytest.approx(0.3)
    lead = Comparisons(values, images=10_000).lead("a", "b")
    # 100 √((0.91·0.09 + 0.907·0.093) / (3·10,000)) = 0.2354, and 1.95996 times that
    assert lead.mean - lead.low == pytest.approx(0.4614, abs=5e-4)
    assert not lead.distinct
    fewer = Comparisons(values, images=360).lead("a", "b")
    assert fewer.high - fewer.mean == pytest.approx(2.43, abs=0.04)


def test_with_nothing_wrong_there_is_an_error_too():
    values = {"a": dict.fromkeys(range(4), 100.0), "b": dict.fromkeys(range(4), 99.0)}
    lead = Comparisons(values, images=100).lead("a", "b")
    assert not lead.distinct


def test_the_images_average_out_over_ten_runs_and_no_further():
    few, many = (
        Comparisons({name: dict.fromkeys(range(n), 90.0) for name in "ab"}, images=1000)
        for n in (10, 40)
    )
    assert few.lead("a", "b").high == pytest.approx(many.lead("a", "b").high)


def test_two_seeds_tell_nothing():
    found = Comparisons(made_up(3, 2, gap=60)).lead("m2", "m0")
    assert found.low > 0
    assert not found.distinct


@pytest.mark.parametrize(("low", "high", "told"), [(0.1, 2, 1), (0.0, 2, 0), (-2, 0.0, 0)])
def test_told_apart_is_what_leaves_out_zero_on_either_side(low: float, high: float, told: int):
    found = Difference((low + high) / 2, low, high, 5)
    assert found.distinct == (-found).distinct == bool(told)


@pytest.mark.parametrize("name", ["wild", "a wild one"])  # whatever the order of the names
def test_a_method_of_another_spread_has_no_part_in_the_others_intervals(name: str):
    calm = made_up(4, 5)
    wild = {seed: value + (-1) ** seed * 30 for seed, value in calm["m0"].items()}
    found, without = Comparisons({name: wild, **calm}), Comparisons(calm)
    assert found.pool.apart == (name,)
    assert found.pool.sd == pytest.approx(without.pool.sd)
    assert found.pool.methods == tuple(calm)
    # all of its own, and at a level of its own: wider than Student's alone
    own, alone = found.lead(name, "m1"), paired(wild, calm["m1"])
    assert own.low <= alone.low
    assert own == Comparisons({**calm, "last": wild}).lead("last", "m1")
    assert not own.distinct


@pytest.mark.parametrize(("methods", "seeds"), [(3, 3), (3, 12), (6, 5), (8, 20)])
def test_another_spread_is_what_the_f_test_says_and_three_times_as_much(methods: int, seeds: int):
    """docs/statistics.md: the first method that leaves the pool, and whether one does."""
    drawn = np.random.default_rng(methods)
    left = 0
    for scale in np.geomspace(0.02, 50, 120):
        table = 0.03 * drawn.normal(size=(methods, seeds))
        table[1] *= scale
        residuals = table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()
        squares = (residuals**2).sum(1) * methods / (methods - 1)
        others = (residuals**2).sum() - squares
        freedom = seeds - 1, (methods - 2) * (seeds - 1)
        ratio = squares / freedom[0] / (others / freedom[1])
        f = stats.f(*freedom)
        p = 2 * np.minimum(f.cdf(ratio), f.sf(ratio))
        p[np.abs(np.log(ratio)) <= np.log(9)] = 1
        most = int(p.argmin())
        expected = f"m{most}" if p[most] < 0.05 / methods else None
        apart = Pool.of({f"m{i}": dict(enumerate(row)) for i, row in enumerate(table)}).apart
        assert (expected in apart) if expected else (apart == ())
        left += bool(expected)
    assert 0 < left < 120


def test_a_method_that_never_varies_has_no_part_either():
    moved = {
        name: {seed: value + 10 * seed for seed, value in by_seed.items()}
        for name, by_seed in made_up(4, 5).items()
    }
    # against seeds that move all others, the one that does not is the odd one out
    stuck = {**moved, "stuck": dict.fromkeys(range(5), 10.0)}
    assert Comparisons(stuck).pool.apart == ("stuck",)


@pytest.mark.parametrize("number", range(8))
def test_unequal_numbers_are_told_apart_as_holm_does(number: int):
    """Rejected is what Holm's adjusted p-values, sorted and made ascending, leave below 5 %."""
    values = made_up(5, 6, number=number, gap=2.0)
    del values["m0"][5], values["m1"][0]
    found = Comparisons(values)
    best, pool = found.best, found.pool
    assert pool.freedom == 4 * 3
    p: dict[str, float] = {}
    for other in values.keys() - {best}:
        seeds = sorted(values[best].keys() & values[other].keys())
        gap = np.mean([values[best][seed] - values[other][seed] for seed in seeds])
        t = gap / (pool.sd * math.sqrt(2 / len(seeds)))
        p[other] = float(2 * stats.t.sf(abs(t), pool.freedom))
    ranked = sorted(p, key=lambda name: p[name])
    adjusted = np.maximum.accumulate([(4 - at) * p[name] for at, name in enumerate(ranked)])
    level, stopped = 0.05, False
    for at, (name, most) in enumerate(zip(ranked, adjusted, strict=True)):
        assert found.lead(best, name).distinct == (most <= 0.05)
        if not stopped:  # the width says as much as the verdict does
            level, stopped = 0.05 / (4 - at), most > 0.05
        seeds = values[best].keys() & values[name].keys()
        error = pool.sd * math.sqrt(2 / len(seeds))
        half = stats.t.ppf(1 - level / 2, pool.freedom) * error
        assert found.lead(best, name).high == pytest.approx(found.lead(best, name).mean + half)


def test_what_is_said_of_two_methods_is_the_same_from_both_sides():
    values = made_up(4, 5, gap=3.0)
    del values["m0"][4]  # so that Holm is at work
    found = Comparisons(values)
    for a in values.keys() - {found.best}:
        assert found.lead(found.best, a) == -found.lead(a, found.best)


def test_the_images_are_counted_by_their_shares():
    assert images_of([100 * right / 360 for right in (353, 300, 271)]) == 360
    assert images_of([100 * right / 10_000 for right in (8123, 9000)]) == 10_000
    assert images_of([90.0, 80.0]) == 10  # a divisor of the true number: never more than there are
    assert images_of([100.0, 0.0, math.nan]) == 1
    assert images_of([math.pi]) is None
    assert images_of([math.nan]) is None
    assert images_of([]) is None


# By simulation --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def verdicts() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "verdicts.py"
    spec = importlib.util.spec_from_file_location("verdicts", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["verdicts"] = module  # where dataclasses look for their names
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("images", "methods", "seeds"), [*itertools.product((360, 10_000), (3, 9), (2, 3, 10))]
)
def test_equal_methods_have_no_winner(verdicts: ModuleType, images: int, methods: int, seeds: int):
    """In 5 % of tables at most; `benchmarks/verdicts.py` is the same with 10,000 of each kind."""
    tables = 200
    for scenario in verdicts.SCENARIOS[:2]:
        found = verdicts.rates(verdicts.Cell(scenario, images, methods, seeds, tables))
        # more than this happens in one of 10,000 tries where 5 % are true
        assert found.winner * tables <= stats.binom.ppf(1 - 1e-4, tables, 0.05)
        assert (found.winner == 0) or seeds > 2


def test_a_better_method_is_found(verdicts: ModuleType):
    better = verdicts.SCENARIOS[-1]
    assert verdicts.rates(verdicts.Cell(better, 10_000, 5, 10, 100)).winner > 0.9
