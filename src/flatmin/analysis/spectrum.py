"""The whole spectrum of a symmetric operator from one basis, and its trace."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from flatmin.analysis.lanczos import Array, Basis, Products, ordered
from flatmin.engine import check

CONVERGED = 1e-2
"""A Ritz value whose residual is at most this share of it counts as one eigenvalue."""

UNKNOWN = 0.1
"""A share that is known no closer than this is not told."""


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
            width: standard deviation of the Gaussian, above 0; default 1 % of the range of the
                spectrum.
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

    Lanczos from a random start for four fifths of the products, and for the rest from further ones,
    orthogonal to all before, which find copies. The weights of a Gauss quadrature,
    `(first component)²`, are random where they are of single eigenvalues; a converged Ritz value
    counts as what it is, one of `size`, and only the rest is estimated:

        tr H = Σ_converged λ + (size - c) Σ_rest τ θ / Σ_rest τ

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

    Example:
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
    second = max(1, basis.most // 5)
    interrupted = False
    try:
        while not (basis.full or basis.exhausted):
            end = len(basis) - 1
            if end not in basis.ends or _has_done(basis, basis.most - second):
                basis.start()
            else:
                basis.extend(end)
            multiply.progress.say(f"product {len(basis)} of {basis.most}")
    except KeyboardInterrupt:
        interrupted = True
        if not len(basis):
            raise
    basis.say_asymmetry()
    return _spectrum_of(basis, interrupted)


def _has_done(basis: Basis, last: int) -> bool:
    """Is it time for another start? The first has its share; one that shows a copy has done."""
    if len(basis.starts) == 1:
        return len(basis) >= last
    values, S, residuals = basis.ritz()
    share = (S[basis.starts[-1] :] ** 2).sum(0)
    good = residuals <= CONVERGED * np.abs(values)
    return bool((good & (share > 0.5) & (np.abs(values) > 0.1 * basis.scale)).any())


def _spectrum_of(basis: Basis, interrupted: bool) -> Spectrum:
    nodes, S, residuals = basis.ritz()
    size, scale = basis.products.size, basis.scale
    floor = 20 * basis.products.eps * scale
    converged = residuals <= np.maximum(CONVERGED * np.abs(nodes), floor)
    rest = size - int(converged.sum())
    # the first start alone is random in all dimensions; its components are the first row
    shares = np.where(converged, 0.0, S[0] ** 2)
    if basis.full:
        converged, rest = np.ones(size, dtype=bool), 0
    total = float(shares.sum())
    if total > 0:
        shares *= rest / size / total
    weights = np.where(converged, 1.0 / size, shares)
    weights /= weights.sum()
    estimate = _trace_of(basis, nodes, S, weights, converged, rest, interrupted)
    vectors = basis.vectors(S[:, converged])
    count = basis.products.count
    return Spectrum(
        nodes, weights, residuals, converged, vectors, size, estimate, count, interrupted
    )


def _trace_of(
    basis: Basis,
    nodes: Array,
    S: Array,
    weights: Array,
    converged: Array,
    rest: int,
    interrupted: bool,
) -> Estimate:
    """The trace by both starts, and how far chance may have taken it."""
    size, count = basis.products.size, basis.products.count
    if rest == 0:
        return Estimate(float(nodes[converged].sum()), 0.0, count, interrupted)
    bulk = np.where(converged, 0.0, weights) * size
    first = float(nodes[converged].sum() + (bulk * nodes).sum())
    # of a random unit vector u in n dimensions, n uᵀBu varies by 2n/(n + 2) (‖B‖² - tr(B)²/n)
    norm = float((bulk * nodes**2).sum())
    variance = 2 * rest / (rest + 2) * max(norm - float((bulk * nodes).sum()) ** 2 / rest, 0.0)
    if len(basis.starts) == 1:
        return Estimate(first, math.sqrt(variance), count, interrupted)
    second, last = _by_second_start(basis, S, converged)
    # the copy that the last start has shown may not be the last copy
    error = math.hypot(math.sqrt(variance / 2), last)
    return Estimate((first + second) / 2, error, count, interrupted)


def _by_second_start(basis: Basis, S: Array, converged: Array) -> tuple[float, float]:
    """The trace within the first sequence, and the second start's estimate of what is outside.

    Of that, too, what is known is taken out: the directions, among those beside the first sequence,
    that lie in the space of the converged.

    Returns also the largest eigenvalue that the last start has shown first.
    """
    begin = basis.starts[1]
    inside = float(np.trace(basis.matrix[:begin, :begin]))
    outer = basis.matrix[begin:, begin:]
    directions: Array
    lengths: Array
    directions, lengths, _ = np.linalg.svd(S[begin:, converged], full_matrices=False)
    D: Array = directions[:, lengths > 0.7]
    known = cast(Array, D.T @ outer @ D)
    u = -D @ D[0]
    u[0] += 1.0
    rest = float(u @ outer @ u) / float(u @ u) * (basis.products.size - begin - D.shape[1])
    latest = basis.starts[-1] - begin
    values, V = np.linalg.eigh(known)
    fresh = ((D @ V)[latest:] ** 2).sum(0) > 0.5
    last = float(np.abs(values[fresh]).max(initial=0.0))
    return inside + float(np.trace(known)) + rest, last


def density(
    H: Any, products: int = 40, *, points: int = 400, width: float | None = None, seed: int = 0
) -> Density:
    """The spectral density of a symmetric operator, smoothed by a Gaussian.

    Args:
        H: an operator of this package, any scipy `LinearOperator` or a matrix.
        products: how many to take; default 40.
        points: number of eigenvalues at which to give it; default 400.
        width: standard deviation of the Gaussian; default 1 % of the range of the spectrum.
        seed: of the random starts; default 0.

    Cost: the products. Whoever wants the trace or eigenvalues too asks `spectrum`, once.

    Raises:
        TypeError, ValueError: as `spectrum`.

    Example:
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

    Example:
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
    m = len(estimates)
    # they share vectors, and so are not as independent as their spread says
    error = float(estimates.std() / math.sqrt(m)) * (1 + 2 / m)
    return Estimate(float(estimates.mean()), error, multiply.count)


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
    error = float(estimates.std() / math.sqrt(len(estimates)))
    return Estimate(float(estimates.mean()), error, multiply.count, interrupted=True)


def _exact_trace(multiply: Products) -> Estimate:
    total = 0.0
    for i in range(multiply.size):
        unit = torch.zeros(multiply.size, dtype=multiply.dtype, device=multiply.device)
        unit[i] = 1.0
        total += float(multiply(unit)[i])
    return Estimate(total, 0.0, multiply.count)
