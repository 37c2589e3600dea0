"""The whole spectrum of a symmetric operator from one basis, and its trace."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from flatmin.analysis.lanczos import Array, Basis, Products, ordered
from flatmin.engine import check

CONVERGED = 1e-2
"""A Ritz value whose residual is at most this share of it counts as one eigenvalue."""

UNKNOWN = 0.1
"""A share that is known no closer than this is not told."""


FEWEST = 3
"""Random vectors of which it is asked how much their images have in common; two say too little."""


@dataclass(frozen=True)
class Estimate:
    """A number and its standard error.

    Fields:
        value: the estimate.
        error: its standard error; 0 where the value is exact but for rounding.
        products: how many were taken.
        interrupted: whether Ctrl-C ended it early.
    """

    value: float
    error: float
    products: int
    interrupted: bool = False

    def __str__(self) -> str:
        return f"{self.value:.6g} ± {self.error:.1g}"

    def __float__(self) -> float:
        return self.value


@dataclass(frozen=True)
class Density:
    """A smoothed spectral density: of unit area, in eigenvalues per unit of `at`.

    Fields:
        at: eigenvalues, ascending.
        values: the density there.
        width: standard deviation of the Gaussian that each node of the spectrum was widened to.
    """

    at: Array
    values: Array
    width: float


@dataclass(frozen=True)
class Spectrum:
    """What `spectrum` has found: nodes and weights, as of a histogram without bins.

    Fields:
        nodes: Ritz values, descending.
        weights: the share of all eigenvalues that each stands for; they add up to 1.
        residuals: `‖H v - λ v‖` of each node.
        converged: which nodes are single eigenvalues, of weight 1 / size.
        vectors: of the converged nodes, one a column.
        size: number of parameters.
        trace: with its standard error.
        products: how many were taken.
        interrupted: whether Ctrl-C ended it early.
    """

    nodes: Array
    weights: Array
    residuals: Array
    converged: Array
    vectors: Tensor
    size: int
    trace: Estimate
    products: int
    interrupted: bool = False

    def top(self, k: int = 5) -> tuple[Array, Array]:
        """The `k` largest converged eigenvalues by magnitude, descending, and their residuals.

        Fewer where fewer have converged.
        """
        known = np.flatnonzero(self.converged)
        chosen = sorted(known[i] for i in ordered(self.nodes[known], "LM")[:k])
        return self.nodes[chosen], self.residuals[chosen]

    def density(self, points: int = 400, width: float | None = None) -> Density:
        """The density, smoothed by a Gaussian.

        Args:
            points: number of eigenvalues at which to give it; default 400.
            width: standard deviation of the Gaussian, above 0; default None: 1 % of the range of
                the spectrum.
        """
        check.positive_int("points", points)
        low, high = float(self.nodes.min()), float(self.nodes.max())
        span = high - low or abs(high) or 1.0
        if width is None:
            width = 0.01 * span
        check.in_range("width", width, 0.0, math.inf, open_low=True, open_high=True)
        at = np.linspace(low - 4 * width, high + 4 * width, points)
        z = (at[:, None] - self.nodes) / width
        bells = np.exp(-(z**2) / 2) / (width * math.sqrt(2 * math.pi))
        return Density(at, bells @ self.weights, width)

    def negative(self) -> tuple[float, float]:
        """Between which shares of all eigenvalues are negative.

        The nodes of a quadrature bound the share below each of them, and no more than that is
        known between two: most eigenvalues of networks lie in one node, nearly at 0.
        """
        below = float(self.weights[self.nodes < 0].sum())
        bulk = ~self.converged
        around = self.nodes[bulk & (self.nodes < 0)][:1], self.nodes[bulk & (self.nodes >= 0)][-1:]
        left, right = (float(self.weights[np.isin(self.nodes, x)].sum()) for x in around)
        noise = 2 * math.sqrt(max(below * (1 - below), 0.0) / self.size)
        return max(0.0, below - left - noise), min(1.0, below + right + noise)

    def __str__(self) -> str:
        values, residuals = self.top()
        rows = [f"{v:14.6g} ± {r:.1e}" for v, r in zip(values, residuals, strict=True)]
        low, high = self.negative()
        share = f"{low:.1%} to {high:.1%}" if high - low <= UNKNOWN else "not known"
        rows.append(f"trace {self.trace}; negative eigenvalues: {share}")
        return "\n".join(rows)


def spectrum(H: Any, products: int = 40, *, seed: int = 0) -> Spectrum:
    """The spectrum of a symmetric operator: density, trace and the extreme eigenvalues at once.

    Lanczos from a random start takes half of the products and gives density and extreme values. The
    weights of its Gauss quadrature, `(first component)²`, are random where they are of single
    eigenvalues; a converged Ritz value counts as what it is, one of `size`. The other half goes to
    further random vectors `u_i`, orthogonal to all before, for what the trace has outside:

        tr H = tr(Qᵀ H Q) + d · mean of u_iᵀ H u_i,   d the dimensions outside of the basis Q

    each left out once, so that `Q` holds all others. Where few directions hold most of what is
    outside, as copies of large eigenvalues do, the images `H u_i` are taken into the basis, too.
    Ten and more copies, or many with few products, still take more products than they get; then the
    error says so, at most by a third too little.

    Args:
        H: an operator of this package, any scipy `LinearOperator` or a matrix.
        products: how many to take, at least 2; default 40.
        seed: of the random starts; default 0.

    Returns:
        nodes, weights, trace with its standard error. After Ctrl-C, of the products taken.

    Cost: the products, and memory for as many vectors.

    Raises:
        TypeError: `H` is no operator.
        ValueError: an argument is out of range.

    Reference: Lin, Saad & Yang, Approximating spectral densities of large matrices, SIAM Review
    2016, arXiv:1308.5467; Ghorbani et al., ICML 2019, arXiv:1901.10159.

    Examples:
        >>> import numpy as np
        >>> from flatmin import analysis
        >>> found = analysis.spectrum(np.diag(np.arange(1.0, 7.0)))
        >>> round(found.trace.value, 6), found.trace.error, found.weights.round(3).tolist()[:2]
        (21.0, 0.0, [0.167, 0.167])
    """
    check.positive_int("products", products)
    check.in_range("products", products, 2, math.inf)
    check.seed(seed)
    multiply = Products(H)
    basis = Basis(multiply, products, seed)
    probing = _Probing(basis)
    first = -(-basis.most // 2)
    interrupted = False
    try:
        while not (basis.full or basis.exhausted):
            end = len(basis) - 1
            if not len(basis):
                basis.start()
            elif len(basis) < first and end in basis.ends:
                basis.extend(end)
            else:
                first = 0
                probing.go_on()
            probing.begin = len(basis) if first else probing.begin
            multiply.progress.say(f"product {len(basis)} of {basis.most}")
    except KeyboardInterrupt:
        interrupted = True
        if not len(basis):
            raise
    basis.say_asymmetry()
    return _spectrum_of(basis, probing, interrupted)


def _spectrum_of(basis: Basis, probing: _Probing, interrupted: bool) -> Spectrum:
    found, S, off = basis.ritz()
    size = basis.products.size
    floor = 20 * basis.products.eps * basis.scale
    known = off <= np.maximum(CONVERGED * np.abs(found), floor)
    if basis.full:
        known[:] = True
    nodes, shares, residuals = _quadrature(basis, found[known], S[:, known], probing.begin)
    rest = size - int(known.sum())
    total = float(shares.sum())
    if total > 0:
        shares *= rest / size / total
    order = np.argsort(-np.r_[found[known], nodes], kind="stable")
    weights = np.r_[np.full(int(known.sum()), 1.0 / size), shares][order]
    weights /= weights.sum()
    converged = np.r_[np.ones(int(known.sum()), dtype=bool), np.zeros(len(nodes), dtype=bool)]
    nodes = np.r_[found[known], nodes][order]
    residuals = np.r_[off[known], residuals][order]
    if basis.full:
        value, error = float(nodes.sum()), 0.0
    else:
        value, error = probing.trace() or _by_quadrature(size, nodes, weights, converged[order])
    estimate = Estimate(value, error, basis.products.count, interrupted)
    vectors = basis.vectors(S[:, known])
    count = basis.products.count
    return Spectrum(
        nodes, weights, residuals, converged[order], vectors, size, estimate, count, interrupted
    )


def _quadrature(basis: Basis, known: Array, S: Array, begin: int) -> tuple[Array, Array, Array]:
    """Nodes, weights and residuals of the first start's quadrature, without what is known.

    The first start alone is random in all dimensions, and of its own nodes the weights bound what
    lies below each of them.

    Args:
        basis: whose first sequence.
        known: eigenvalues that have converged.
        S: their coefficients.
        begin: where in the basis the first sequence ends.
    """
    T = basis.matrix[:begin, :begin]
    eigh = cast(Any, np.linalg.eigh)
    values, V = cast("tuple[Array, Array]", eigh((T + T.T) / 2))
    last = math.hypot(
        basis.going_on(begin - 1), float(np.linalg.norm(basis.matrix[begin:, begin - 1]))
    )
    left = list(range(len(values)))
    for value, share in zip(known, (S[:begin] ** 2).sum(0), strict=True):
        if share > 0.5 and left:  # not a copy that a later start has shown
            left.remove(min(left, key=lambda i: abs(values[i] - value)))
    kept = left[::-1]
    return values[kept], V[0, kept] ** 2, last * np.abs(V[-1, kept])


def _by_quadrature(
    size: int, nodes: Array, weights: Array, converged: Array
) -> tuple[float, float]:
    """The trace by the first start alone, of what an interruption has left, and its error."""
    bulk = np.where(converged, 0.0, weights) * size
    inside, rest = float((bulk * nodes).sum()), float(bulk.sum())
    spread = float((bulk * nodes**2).sum()) - inside**2 / (rest or 1.0)
    return float(nodes[converged].sum()) + inside, math.sqrt(_variance(rest, spread / (rest or 1)))


def _variance(d: float, spread: float) -> float:
    """Of `d uᵀBu` for a random unit vector `u` in `d` dimensions.

    It is `2 d² / (d + 2) (‖B‖² / d - (tr B / d)²)`; `spread` is what is in brackets, which is also
    the mean of `‖Bu‖² - (uᵀBu)²`: each vector brings its own estimate of how far it may be off.
    """
    return 2 * d**2 / (d + 2) * max(spread, 0.0)


@dataclass
class _Group:
    """Random vectors that were drawn one after another, orthogonal to all before and to each other.

    Fields:
        begin: length of the basis before the first.
        starts: their places in the basis.
        followed: those of which the basis holds the images, too.
    """

    begin: int
    starts: list[int]
    followed: list[int]


class _Probing:
    """The trace of what lies outside the first sequence, by further random vectors.

    What lies in the span of a basis is known exactly, and a random unit vector `u` in the `d`
    dimensions beside it tells `d uᵀHu` of the rest. Each vector is left out once, as in XTrace: the
    span is that of all others, and of their images where these were followed. That pays where few
    directions hold most of what is left, as copies of large eigenvalues do.
    """

    def __init__(self, basis: Basis) -> None:
        self._basis = basis
        self.begin = 0
        """Length of the basis when the first sequence ended."""
        self._groups: list[_Group] = []
        self._waiting: list[int] = []

    def go_on(self) -> None:
        """One product more: with another random vector, or with the image of one."""
        basis = self._basis
        if self._waiting:
            start = self._waiting.pop(0)
            if start in basis.ends:
                basis.extend(start)
                self._groups[-1].followed.append(start)
                return
        if not self._groups or self._groups[-1].followed:
            self._groups.append(_Group(len(basis), [], []))
        basis.start()
        group = self._groups[-1]
        group.starts.append(len(basis) - 1)
        if self._pays(group.starts):
            self._waiting = list(group.starts)

    def _pays(self, starts: list[int]) -> bool:
        """Is more than half of each image in the span of the other ones, and is there room?

        Then following them all takes away more of the variance than as many new vectors would.
        """
        basis = self._basis
        room = basis.most - len(basis)
        if len(starts) < FEWEST or len(starts) > room or any(s not in basis.ends for s in starts):
            return False
        gram = basis.gram(starts)
        if float(gram.diagonal().min()) <= 0.0:
            return False
        scaled = gram / np.sqrt(np.outer(gram.diagonal(), gram.diagonal()))
        alone = 1.0 / np.linalg.inv(scaled + 1e-12 * np.eye(len(starts))).diagonal()
        return float(alone.mean()) < 0.5

    def trace(self) -> tuple[float, float] | None:
        """The trace and its standard error; None where no vector was tried."""
        found = [self._of_group(group) for group in self._groups if group.starts]
        if not found:
            return None
        # each group is right by itself, whatever the ones before it were: weigh them by precision
        smallest = max(max(v for _, v in found) * 1e-12, 1e-300)
        weights = np.array([1.0 / max(v, smallest) for _, v in found])
        values = np.array([value for value, _ in found])
        variance = 1.0 / weights.sum() if max(v for _, v in found) > 0 else 0.0
        return float(weights @ values / weights.sum()), math.sqrt(variance)

    def _of_group(self, group: _Group) -> tuple[float, float]:
        """The mean over the vectors of a group, and its variance.

        Where a few directions hold what is left, the variances that the vectors bring differ, and
        their mean is as uncertain as a chi-square of so many degrees of freedom (Satterthwaite).
        """
        looks = [self._without(group, start) for start in group.starts]
        values, variances = (np.array(column) for column in zip(*looks, strict=True))
        count, mean = len(values), float(variances.mean())
        spread = float(variances.var(ddof=1)) / count if count > 1 else 2 * mean**2
        freedom = 2 * mean**2 / spread if spread > 0 else math.inf
        return float(values.mean()), mean / count * _student(max(freedom, 1.0)) ** 2

    def _without(self, group: _Group, start: int) -> tuple[float, float]:
        """The trace by one vector, and how far chance may have taken it, squared."""
        basis, T = self._basis, self._basis.matrix
        others = [s for s in group.starts if s != start]
        span = np.eye(len(T))[:, [*range(group.begin), *others]]
        images = T[:, [s for s in group.followed if s != start]]
        P, _ = np.linalg.qr(np.column_stack([span, images]))
        unit: Array = np.eye(len(T))[start]
        x = cast(Array, unit - P @ (P.T @ unit))
        x = x / math.sqrt(float(x @ x))
        y = cast(Array, T @ x)
        d = basis.products.size - P.shape[1]
        q = float(x @ y)
        beyond = basis.going_on(start) ** 2  # of the image, what no vector of the basis holds
        outside = cast(Array, y - P @ (P.T @ y))
        inside = float((P * (T @ P)).sum())
        return inside + d * q, _variance(d, float(outside @ outside) + beyond - q**2)


def density(
    H: Any, products: int = 40, *, points: int = 400, width: float | None = None, seed: int = 0
) -> Density:
    """The spectral density of a symmetric operator, smoothed by a Gaussian.

    Args:
        H: an operator of this package, any scipy `LinearOperator` or a matrix.
        products: how many to take; default 40.
        points: number of eigenvalues at which to give it; default 400.
        width: standard deviation of the Gaussian, above 0; default None: 1 % of the range of the
            spectrum.
        seed: of the random starts; default 0.

    Cost: the products. Whoever wants the trace or eigenvalues too asks `spectrum`, once.

    Raises:
        TypeError, ValueError: as `spectrum`.

    Examples:
        >>> import numpy as np
        >>> from flatmin import analysis
        >>> found = analysis.density(np.diag([1.0, 1.0, 4.0]), points=500)
        >>> float((found.values * (found.at[1] - found.at[0])).sum().round(3))
        1.0
    """
    return spectrum(H, products, seed=seed).density(points, width)


def trace(H: Any, products: int = 30, *, seed: int = 0) -> Estimate:
    """The trace of a symmetric operator with its standard error, by XTrace.

    Half of the products find the range in which most of the trace lies, where it is taken exactly;
    each of the random vectors estimates what lies outside the range of the others.

    Args:
        H: an operator of this package, any scipy `LinearOperator` or a matrix.
        products: how many to take, at least 4; default 30. As many as parameters give it exactly.
        seed: of the random vectors; default 0.

    Returns:
        the estimate and its standard error, from the spread over the vectors. After Ctrl-C, of the
        products taken, where there are enough of them.

    Cost: the products, and memory for as many vectors.

    Raises:
        TypeError: `H` is no operator.
        ValueError: an argument is out of range.

    Reference: Epperly, Tropp & Webber, XTrace: making the most of every sample in stochastic trace
    estimation, SIAM J. Matrix Anal. Appl. 2024, arXiv:2301.07825.

    Examples:
        >>> import numpy as np
        >>> from flatmin import analysis
        >>> str(analysis.trace(np.diag(np.arange(1.0, 5.0))))
        '10 ± 0'
    """
    check.positive_int("products", products)
    check.in_range("products", products, 4, math.inf)
    check.seed(seed)
    multiply = Products(H)
    if products >= multiply.size:
        return _exact_trace(multiply)
    omega = torch.randn(
        multiply.size,
        products // 2,
        generator=torch.Generator().manual_seed(seed),
        dtype=multiply.dtype,
    ).to(multiply.device)
    images: list[Tensor] = []
    try:
        for j in range(omega.shape[1]):
            images.append(multiply(omega[:, j].contiguous()))
            multiply.progress.say(f"product {multiply.count} of {products}")
    except KeyboardInterrupt:
        # what is left is a mean over the vectors so far
        return _hutchinson(omega, images, multiply)
    linalg = cast(Any, torch.linalg)
    factors: tuple[Tensor, Tensor] = linalg.qr(torch.stack(images, 1))
    Q, R = factors
    del images, factors
    try:
        core = torch.zeros(len(R), len(R), dtype=torch.float64)
        for j in range(len(R)):
            core[:, j] = (Q.T @ multiply(Q[:, j].contiguous()).to(Q)).double().cpu()
            multiply.progress.say(f"product {multiply.count} of {products}")
    except KeyboardInterrupt:
        return _hutchinson(omega, [Q @ R[:, j] for j in range(len(R))], multiply)
    dots = (omega * (Q @ R)).sum(0).double().cpu()
    W = (Q.T @ omega).double().cpu()
    lengths = omega.double().square().sum(0).cpu()
    estimates = _leave_one_out(core, R.double().cpu(), W, dots, lengths, multiply.size)
    # That they share vectors is not in their spread: over planted spectra the error is right for a
    # bulk and for outliers, and a tenth too small where eigenvalues decay slowly. The jackknife
    # over the vectors, which counts it, is twice too large there and more with few products.
    error = float(estimates.std() / math.sqrt(len(estimates))) * _student(len(estimates) - 1)
    return Estimate(float(estimates.mean()), error, multiply.count)


def _student(freedom: float) -> float:
    """By how much a standard error is to be widened whose variance is an estimate itself.

    Twice the widened error covers with the 95.4 % that it would if the variance were known, by
    Student's t with so many degrees of freedom.
    """
    return float(stats.t.ppf(stats.norm.cdf(2.0), freedom)) / 2.0


def _leave_one_out(
    core: Tensor, R: Tensor, W: Tensor, dots: Tensor, lengths: Tensor, size: int
) -> Tensor:
    """For every vector ω, the trace in the range of the others plus ω's estimate of the rest.

    The range of all but ω_i is that of `Q (I - s_i s_iᵀ)`, with `s_i` orthogonal to the other
    columns of R.

    Args:
        core: `Qᵀ H Q`.
        R: of `H Ω = Q R`.
        W: `Qᵀ Ω`.
        dots: `ω_iᵀ H ω_i`.
        lengths: `‖ω_i‖²`.
        size: dimensions of the whole.
    """
    m = len(R)
    core = (core + core.T) / 2
    scale = float(R.diagonal().abs().max())
    if float(R.diagonal().abs().min()) <= 1e-12 * scale:  # the range is all there is
        return core.trace().expand(m)
    linalg = cast(Any, torch.linalg)
    S = nn.functional.normalize(linalg.inv(R).T, dim=0)
    X = W - S * (S * W).sum(0)
    inside = core.trace() - (S * (core @ S)).sum(0)
    outside = dots - 2 * (X * R).sum(0) + (X * (core @ X)).sum(0)
    # normalised: a vector's length outside the range says nothing of the trace there
    return inside + outside * (size - m + 1) / (lengths - X.square().sum(0))


def _hutchinson(omega: Tensor, images: list[Tensor], multiply: Products) -> Estimate:
    """The plain mean over random vectors, for what an interruption has left."""
    if len(images) < 2:
        raise KeyboardInterrupt
    some = omega[:, : len(images)]
    estimates = (some * torch.stack(images, 1)).sum(0).double()
    error = float(estimates.std() / math.sqrt(len(estimates))) * _student(len(estimates) - 1)
    return Estimate(float(estimates.mean()), error, multiply.count, interrupted=True)


def _exact_trace(multiply: Products) -> Estimate:
    total = 0.0
    for i in range(multiply.size):
        unit = torch.zeros(multiply.size, dtype=multiply.dtype, device=multiply.device)
        unit[i] = 1.0
        total += float(multiply(unit)[i])
    return Estimate(total, 0.0, multiply.count)
