"""What a handful of runs says, and what it does not.

The model, the formulas and how often they err are in `docs/statistics.md`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

LEVEL = 0.05
"""How often a table of equal methods may name one as better; intervals hold 1 − LEVEL."""

SEEDS = 3
"""Fewest runs of a method about which anything is said."""

SPREADS = 3.0
"""Times, up or down, by which the spread of a method differs by far from that of the others."""

REUSE = 10
"""Most runs over which the error of the test images is taken to average out."""

_MOST_IMAGES = 10**6
_NOTHING = 1e-18
"""A variance below which numbers differ by their rounding alone."""


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
        low, high: ends of the interval; nan where nothing is known about its width.
        n: number of shared seeds.
    """

    mean: float
    low: float
    high: float
    n: int

    @property
    def distinct(self) -> bool:
        """Whether the interval leaves out zero, and there are seeds enough to believe it."""
        return self.n >= SEEDS and (self.low > 0 or self.high < 0)

    def __neg__(self) -> Difference:
        return Difference(-self.mean, -self.high, -self.low, self.n)


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Difference:
    """`ours - theirs` over the shared seeds, for values by seed, by themselves.

    The interval is Student's: it assumes that the differences are roughly normal; with two seeds
    it is very wide. For one of several methods in a table see `Comparisons`.
    """
    gaps = _gaps(ours, theirs)
    if not gaps:
        return Difference(math.nan, math.nan, math.nan, 0)
    spread = Spread.of(gaps)
    half = float(stats.t.ppf(1 - LEVEL / 2, spread.n - 1)) * spread.sd / math.sqrt(spread.n)
    return Difference(spread.mean, spread.mean - half, spread.mean + half, spread.n)


def at_cost(costs: Sequence[float], accuracies: Sequence[float], cost: float) -> float:
    """Accuracy after `cost` passes, interpolated on a curve of ascending `costs`.

    nan beyond the end of the curve and before its first point: nothing was measured there.
    """
    if not costs or not costs[0] <= cost <= costs[-1]:
        return math.nan
    return float(np.interp(cost, costs, accuracies))


# The methods of a table -----------------------------------------------------------------------


@dataclass(frozen=True)
class Pool:
    """What the runs of several methods say together about the spread of one run.

    For y = method + seed + e, with e of the same variance everywhere, over the seeds that all the
    methods have.

    Fields:
        methods: whose runs are in it; none where nothing can be said.
        apart: those left out because their spread differs by far.
        sd: of e; nan where nothing can be said.
        freedom: degrees of freedom, (methods − 1) (seeds − 1).
    """

    methods: tuple[str, ...]
    apart: tuple[str, ...]
    sd: float
    freedom: int

    @classmethod
    def of(cls, values: Mapping[str, Mapping[int, float]]) -> Pool:
        """Of values by method and seed; a method with a single value has no spread to give."""
        several = {name: by_seed for name, by_seed in values.items() if len(by_seed) > 1}
        if len(several) < 2:
            return cls((), (), math.nan, 0)
        seeds = sorted(set[int].intersection(*map(set, several.values())))
        if len(seeds) < 2:
            return cls((), (), math.nan, 0)
        names = tuple(several)
        table = np.array([[by_seed[seed] for seed in seeds] for by_seed in several.values()])
        kept = list(range(len(names)))
        while (odd := _odd(_residuals(table[kept]))) is not None:
            del kept[odd]
        inside = table[kept]
        freedom = (len(kept) - 1) * (len(seeds) - 1)
        apart = tuple(name for at, name in enumerate(names) if at not in kept)
        sd = math.sqrt(float(np.square(_residuals(inside)).sum()) / freedom)
        return cls(tuple(names[at] for at in kept), apart, sd, freedom)


class Comparisons:
    """All methods of a table against one of them, so that 95 % holds for the whole row of claims.

    Where all methods are in the pool and have the same seeds, by Dunnett's quantile; elsewhere
    every pair has a width of its own, and Holm's levels.

    Args:
        values: by method and seed; in percent of the test images where `images` is given.
        images: number of test images, below whose own error no interval goes; None for values
            that are no shares of images.
    """

    def __init__(
        self, values: Mapping[str, Mapping[int, float]], images: int | None = None
    ) -> None:
        self.values = values
        self.images = images
        self.pool = Pool.of(values)
        self._families: dict[str, dict[str, Difference]] = {}

    @functools.cached_property
    def best(self) -> str:
        """The method with the highest mean; the first of equals."""
        return max(self.values, key=lambda name: _mean(self.values[name].values()))

    @functools.cached_property
    def _image_variances(self) -> dict[str, float]:
        return {
            name: _image_variance(by_seed.values(), self.images)
            for name, by_seed in self.values.items()
        }

    def lead(self, ours: str, theirs: str) -> Difference:
        """How much better one method is than another one.

        What is said about the best one is said once: its comparisons are one family, whichever
        side it stands on.
        """
        if ours == self.best:
            return -self._family(ours)[theirs]
        return self._family(theirs)[ours]

    def _family(self, control: str) -> dict[str, Difference]:
        """Every other method's lead over `control`."""
        if control not in self._families:
            others = [name for name in self.values if name != control]
            contrasts = {name: self._contrast(name, control) for name in others}
            find = self._dunnett if self._alike else _holm
            self._families[control] = find(contrasts)
        return self._families[control]

    @property
    def _alike(self) -> bool:
        """Whether all differences have the same variance."""
        every = list(self.values.values())
        return self.pool.methods == tuple(self.values) and all(
            each.keys() == every[0].keys() for each in every
        )

    def _contrast(self, ours: str, theirs: str) -> _Contrast:
        gaps = _gaps(self.values[ours], self.values[theirs])
        n = len(gaps)
        if ours in self.pool.methods and theirs in self.pool.methods:
            sd, freedom = math.sqrt(2) * self.pool.sd, self.pool.freedom
        else:
            sd, freedom = Spread.of(gaps).sd, n - 1
        images = math.sqrt(self._image_variances[ours] + self._image_variances[theirs])
        return _Contrast(
            _mean(gaps),
            sd / math.sqrt(n) if n else math.nan,
            freedom,
            images / math.sqrt(min(n, REUSE)) if n else math.nan,
            n,
        )

    def _dunnett(self, contrasts: Mapping[str, _Contrast]) -> dict[str, Difference]:
        seeds = dunnett(len(contrasts), self.pool.freedom)
        images = dunnett(len(contrasts), math.inf)
        return {name: each.within(seeds, images) for name, each in contrasts.items()}


@dataclass(frozen=True)
class _Contrast:
    """A mean difference, its standard error over the seeds, and that of the test images."""

    mean: float
    error: float
    freedom: int
    images: float
    n: int

    @property
    def p(self) -> float:
        """Of a difference this large between equals; 1 where nothing is known."""
        if self.freedom < 1 or not math.isfinite(self.error) or self.mean == 0:
            return 1.0
        by_seeds = 2 * special.stdtr(self.freedom, -_ratio(self.mean, self.error))
        by_images = 2 * special.ndtr(-_ratio(self.mean, self.images))
        return float(max(by_seeds, by_images))

    def at(self, level: float) -> Difference:
        """With the interval of this pair alone, at 1 − level."""
        if self.freedom < 1:
            return Difference(self.mean, math.nan, math.nan, self.n)
        seeds = float(stats.t.ppf(1 - level / 2, self.freedom))
        return self.within(seeds, float(stats.norm.ppf(1 - level / 2)))

    def within(self, seeds: float, images: float) -> Difference:
        """With an interval of so many standard errors: the wider one."""
        half = max(seeds * self.error, images * self.images)
        return Difference(self.mean, self.mean - half, self.mean + half, self.n)


def _holm(contrasts: Mapping[str, _Contrast]) -> dict[str, Difference]:
    """Each interval is drawn at the level at which Holm tests its pair.

    Those that are not told apart share the level at which the testing stops.
    """
    ranked = sorted(contrasts, key=lambda name: contrasts[name].p)
    found: dict[str, Difference] = {}
    level = LEVEL
    stopped = False
    for at, name in enumerate(ranked):
        if not stopped:
            level = LEVEL / (len(ranked) - at)
            stopped = contrasts[name].p > level
        found[name] = contrasts[name].at(level)
    return found


@functools.lru_cache(maxsize=1024)
def dunnett(comparisons: int, freedom: float, level: float = LEVEL) -> float:
    """Two-sided quantile of the largest of several |t| that share a control and a variance.

    The numbers of runs are equal, and so the differences correlate by ½ (Dunnett, 1955):

        P(max |tᵢ| ≤ d) = E_s ∫ φ(z) [Φ(z + √2 d s) − Φ(z − √2 d s)]ᵏ dz,   s² ~ χ²_ν / ν

    Args:
        comparisons: k, at least 1.
        freedom: ν of the common variance, above 0; infinite for a known one.
        level: with which the largest one exceeds the quantile.
    """
    low = float(stats.t.ppf(1 - level / 2, freedom))
    if comparisons == 1:
        return low
    high = float(stats.t.ppf(1 - level / (2 * comparisons), freedom))
    z, weights = np.polynomial.hermite_e.hermegauss(96)
    weights = weights / weights.sum()
    if math.isinf(freedom):
        scales, masses = np.ones(1), np.ones(1)
    else:
        nodes, masses = np.polynomial.legendre.leggauss(160)
        # on the probabilities of s, where every scale has its own weight
        scales = stats.chi.ppf((nodes + 1) / 2, freedom) / math.sqrt(freedom)
        masses = masses / 2

    def excess(d: float) -> float:
        reach = math.sqrt(2) * d * scales[:, None]
        inside = special.ndtr(z + reach) - special.ndtr(z - reach)
        return float(masses @ (inside**comparisons @ weights)) - (1 - level)

    for _ in range(40):  # between the quantile of one comparison and Bonferroni's
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) < 0 else (low, middle)
    return high


# Test images ----------------------------------------------------------------------------------


def images_of(accuracies: Iterable[float]) -> int | None:
    """The least number of images of which all `accuracies`, in percent, are shares.

    That is the number tested on or, where few values are known, a divisor of it: the error that is
    computed from it is never too small: 1 where every accuracy is 0 or 100. None for values that
    are no shares of up to a million.
    """
    known = {accuracy for accuracy in accuracies if math.isfinite(accuracy)}
    found = 1
    for accuracy in known:
        share = Fraction(accuracy / 100).limit_denominator(_MOST_IMAGES)
        found = math.lcm(found, share.denominator)
        if abs(float(share) - accuracy / 100) > 1e-15 or found > _MOST_IMAGES:
            return None
    return found if known else None


def _image_variance(percentages: Collection[float], images: int | None) -> float:
    """Of one accuracy in percent, by the images that happened to be in the test set.

    With two more images, one of them wrong: with none wrong there is an error too.
    """
    if images is None:
        return 0.0
    share = (_mean(percentages) / 100 * images + 1) / (images + 2)
    return 100**2 * share * (1 - share) / images


# Spreads --------------------------------------------------------------------------------------


def _residuals(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """What methods (rows) and seeds (columns) leave unexplained."""
    rows, columns = table.mean(1, keepdims=True), table.mean(0, keepdims=True)
    return table - rows - columns + table.mean()


def _odd(residuals: NDArray[np.float64]) -> int | None:
    """The method whose spread differs the most from that of the others, if it does so by far.

    A method against the mean of the others varies independently of how those vary among
    themselves: the ratio is F with n − 1 and (m − 2) (n − 1) degrees of freedom.
    """
    m, n = residuals.shape
    if m < 3:
        return None
    squares = np.square(residuals).sum(1)
    own = m / (m - 1) * squares
    rest = np.maximum(squares.sum() - own, 0.0)
    between = (m - 2) * (n - 1)
    # the constant is for methods that do not vary at all but for rounding
    ratios = (own / (n - 1) + _NOTHING) / (rest / between + _NOTHING)
    below, above = (each(n - 1, between, ratios) for each in (special.fdtr, special.fdtrc))
    p = 2 * np.minimum(below, above)
    far = (ratios > SPREADS**2) | (ratios < SPREADS**-2)
    p[~far] = 1.0
    odd = int(p.argmin())
    return odd if p[odd] < LEVEL / m else None


def _gaps(ours: Mapping[int, float], theirs: Mapping[int, float]) -> list[float]:
    return [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]


def _mean(values: Collection[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _ratio(mean: float, error: float) -> float:
    return abs(mean) / error if error > 0 else math.inf
