"""The extreme eigenvalues of a symmetric operator, with residuals, copies included."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor

from flatmin.analysis.lanczos import Array, Basis, Products, could_hide, ordered
from flatmin.engine import check


@dataclass(frozen=True)
class Eigenvalues:
    """What `eigenvalues` has found.

    Fields:
        values: in descending order of signed value.
        vectors: of unit length, one a column, (parameters, k).
        residuals: `‖H v - λ v‖`: an eigenvalue of H lies within this distance of each value.
        products: how many were taken.
        converged: whether every residual is within the tolerance.
        copies_excluded: whether a further copy of a value found, which would displace the last of
            them, would have shown itself with a probability of 99 %.
        asymmetry: by how much the products were not those of one symmetric matrix, relatively.
        interrupted: whether Ctrl-C ended the search.
    """

    values: Array
    vectors: Tensor
    residuals: Array
    products: int
    converged: bool
    copies_excluded: bool
    asymmetry: float = 0.0
    interrupted: bool = False

    def __str__(self) -> str:
        rows = [f"{v:14.6g} ± {r:.1e}" for v, r in zip(self.values, self.residuals, strict=True)]
        state = "interrupted" if self.interrupted else "converged" if self.converged else "open"
        copies = "excluded" if self.copies_excluded else "possible"
        rows.append(f"{state} after {self.products} products; further copies {copies}")
        return "\n".join(rows)


def eigenvalues(
    H: Any,
    k: int = 5,
    which: Literal["LM", "LA", "SA"] = "LM",
    tol: float = 1e-3,
    *,
    most: int = 60,
    seed: int = 0,
) -> Eigenvalues:
    """The `k` extreme eigenvalues of a symmetric operator and their vectors.

    Lanczos with full reorthogonalisation, until `‖H v - λ v‖ ≤ tol |λ|` for each. Then a second
    random start, orthogonal to all so far, looks for copies of what was found, which one start
    cannot see: three products more where the wanted values stand out.

    Args:
        H: an operator of this package, any scipy `LinearOperator` or a matrix.
        k: how many, from 1 to the number of parameters; default 5.
        which: "LM" (default) the largest by magnitude, "LA" the largest, "SA" the smallest. They
            are sorted by signed value, descending, in any case.
        tol: residual against magnitude; default 1e-3. In float32 less than 1e-5 is out of reach.
        most: most products to take; default 60. A spectrum in which nothing stands out needs them.
        seed: of the random starts; default 0.

    Returns:
        values with residuals and vectors. If they have not converged, or after Ctrl-C, it is what
        was reached, and a warning says by how much it missed.

    Cost: `k` + 10 products or so for networks; memory for as many vectors as products.

    Raises:
        TypeError: `H` is no operator.
        ValueError: `k` is more than there are parameters, or another argument out of range.

    Reference: Parlett, The Symmetric Eigenvalue Problem, 1980; Kuczyński & Woźniakowski, Estimating
    the largest eigenvalue by the power and Lanczos algorithms with a random start, 1992.

    Examples:
        >>> import numpy as np
        >>> from flatmin import analysis
        >>> found = analysis.eigenvalues(np.diag([3.0, -5.0, 3.0, 1.0, 0.5]), k=3)
        >>> found.values.round(6).tolist(), found.converged
        ([3.0, 3.0, -5.0], True)
    """
    check.positive_int("k", k)
    check.positive_int("most", most)
    check.one_of("which", which, ("LM", "LA", "SA"))
    check.in_range("tol", tol, 0.0, 1.0, open_low=True)
    check.seed(seed)
    products = Products(H)
    if k > products.size:
        raise ValueError(
            f"k={k} eigenvalues of an operator on {products.size} parameters: there are no more "
            f"than that, ask for k={products.size}"
        )
    basis = Basis(products, max(most, k), seed)
    search = _Search(basis, k, which, tol)
    interrupted = False
    try:
        while search.goes_on():
            products.progress.say(search.state())
    except KeyboardInterrupt:
        interrupted = True
        if not len(basis):
            raise
    basis.say_asymmetry()
    result = search.result(interrupted)
    if not result.converged:
        warnings.warn(search.shortfall(interrupted), UserWarning, stacklevel=2)
    return result


class _Search:
    """Where to take the next product, and when to end."""

    def __init__(self, basis: Basis, k: int, which: str, tol: float) -> None:
        self._basis = basis
        self._k = k
        self._which = which
        self._tol = tol
        self._excluded = False
        self._checked_from = 0

    def goes_on(self) -> bool:
        """One product more; False, and none, where the search has come to its end."""
        basis = self._basis
        if basis.full or basis.exhausted:
            self._excluded = self._excluded or basis.full
            return False
        if not len(basis):
            basis.start()
        elif len(basis) < self._k or not self._all_good():
            self._approach()
        elif not self._copies_can_hide():
            self._excluded = True
            return False
        elif self._patience_is_over():
            return False
        else:
            self._check()
        return True

    def _approach(self) -> None:
        """Go on where most is to be won for what is wanted and still open."""
        basis = self._basis
        if not basis.ends:
            basis.start()
            return
        _, S, _ = basis.ritz()
        open_ = [i for i in self._wanted() if not self._good()[i]] or list(range(len(basis)))
        gain = basis.shares(S)[:, open_].sum(1)
        basis.extend(basis.ends[int(np.argmax(gain))])
        self._checked_from = len(basis)

    def _check(self) -> None:
        """Look for copies: begin, or go on with, a start after all has converged."""
        basis = self._basis
        if basis.starts[-1] >= self._checked_from and len(basis) - 1 in basis.ends:
            basis.extend(len(basis) - 1)
        else:
            self._checked_from = len(basis)
            basis.start()

    def _copies_can_hide(self) -> bool:
        basis = self._basis
        values = self._at_stake(basis.ritz()[0][self._wanted()])
        if not values:
            return False
        if len(basis.starts) < 2 or basis.starts[-1] < self._checked_from:
            return True
        alpha, beta = basis.sequence(len(basis.starts) - 1)
        room = basis.products.size - basis.starts[-1]
        end = basis.going_on(len(basis) - 1)
        return any(could_hide(alpha, beta, end, v, room) for v in values)

    def _at_stake(self, values: Array) -> list[float]:
        """The values, by sign, of which a missed copy would be the hardest to see.

        A copy of the last of the wanted would change nothing: it is one before it that counts.
        """
        order = ordered(values, self._which)
        last = values[order[-1]]
        slack = 2 * self._tol * abs(last) + 20 * self._basis.products.eps * self._basis.scale
        if self._which == "LM":
            before = values[np.abs(values) > abs(last) + slack]
        else:
            before = values[np.abs(values - last) > slack]
        signs = before[before >= 0], before[before < 0]
        return [float(v[np.argmin(np.abs(v))]) for v in signs if len(v)]

    def _patience_is_over(self) -> bool:
        """Copies at the edge of a bulk cannot be excluded at a fair price."""
        basis = self._basis
        return len(basis) - self._checked_from > max(8, self._checked_from // 2)

    # What there is so far.

    def _wanted(self) -> list[int]:
        """Positions of the wanted among the Ritz values, which descend."""
        return sorted(ordered(self._basis.ritz()[0], self._which)[: self._k])

    def _good(self) -> Array:
        """By Ritz value: is its residual within the tolerance?"""
        values, _, residuals = self._basis.ritz()
        floor = 20 * self._basis.products.eps * self._basis.scale
        return residuals <= np.maximum(self._tol * np.abs(values), floor)

    def _all_good(self) -> bool:
        return bool(self._good()[self._wanted()].all())

    def state(self) -> str:
        done = int(self._good()[self._wanted()].sum())
        return f"product {len(self._basis)}: {done} of {self._k} eigenvalues within {self._tol:g}"

    def result(self, interrupted: bool) -> Eigenvalues:
        values, S, residuals = self._basis.ritz()
        wanted = self._wanted()
        return Eigenvalues(
            values[wanted],
            self._basis.vectors(S[:, wanted]),
            residuals[wanted],
            self._basis.products.count,
            len(wanted) == self._k and self._all_good(),
            self._excluded,
            self._basis.asymmetry,
            interrupted,
        )

    def shortfall(self, interrupted: bool) -> str:
        values, _, residuals = self._basis.ritz()
        wanted = self._wanted()
        good = self._good()[wanted]
        relative = residuals[wanted] / np.maximum(np.abs(values[wanted]), 1e-300)
        why = "interrupted" if interrupted else "not converged"
        return (
            f"{why} after {len(self._basis)} products: {int(good.sum())} of {self._k} eigenvalues "
            f"are within tol={self._tol:g}, the worst is at {relative.max():.1e}; "
            "raise most= or tol="
        )
