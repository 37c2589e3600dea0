"""What a handful of runs says, and what it does not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Spread:
    """Mean (nan for no value) and sample standard deviation (nan for one) of `n` values."""

    mean: float
    sd: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        sd = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
        mean = float(np.mean(values)) if values else math.nan
        return cls(mean, sd, len(values))


@dataclass(frozen=True)
class Difference:
    """A mean paired difference with its 95 % confidence interval.

    Fields:
        mean: of the differences, over the seeds that both sides have.
        low, high: ends of the interval, from Student's t; nan for a single seed.
        n: number of shared seeds.
    """

    mean: float
    low: float
    high: float
    n: int

    @property
    def distinct(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Difference:
    """`ours - theirs` over the shared seeds, for values by seed.

    The interval assumes that the differences are roughly normal; with two seeds it is very wide.
    """
    shared = sorted(ours.keys() & theirs.keys())
    gaps = [ours[seed] - theirs[seed] for seed in shared]
    if not gaps:
        return Difference(math.nan, math.nan, math.nan, 0)
    spread = Spread.of(gaps)
    half = float(stats.t.ppf(0.975, spread.n - 1)) * spread.sd / math.sqrt(spread.n)
    return Difference(spread.mean, spread.mean - half, spread.mean + half, spread.n)


def at_cost(costs: Sequence[float], accuracies: Sequence[float], cost: float) -> float:
    """Accuracy after `cost` passes, interpolated on a curve of ascending `costs`.

    nan beyond the end of the curve and before its first point: nothing was measured there.
    """
    if not costs or not costs[0] <= cost <= costs[-1]:
        return math.nan
    return float(np.interp(cost, costs, accuracies))
