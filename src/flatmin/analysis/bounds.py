"""What the papers prove, as functions of constants that can be measured, and how little it says.

Each is an inequality whose right-hand side is computed from numbers: put in what `gradient_noise`,
`smoothness` and a training run give, and see which term is how large. For networks every one of
them is vacuous by orders of magnitude, as the docstrings say: they order nothing, and no method is
better for having one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from flatmin.analysis.curvature import Hessian
from flatmin.analysis.eigen import eigenvalues
from flatmin.analysis.noise import GradientNoise
from flatmin.analysis.objective import Loss
from flatmin.analysis.parameters import Subset
from flatmin.analysis.untouched import Mode
from flatmin.analysis.vectors import norm
from flatmin.engine import check
from flatmin.engine.vec import TINY

INF = math.inf


@dataclass(frozen=True)
class Bound:
    """A right-hand side.

    Fields:
        value: the sum of the terms.
        terms: by name.
    """

    value: float
    terms: Mapping[str, float]

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {x:.4g}" for name, x in self.terms.items())
        return f"{self.value:.6g} ({parts})"


def _bound(**terms: float) -> Bound:
    named = {name.replace("_", " "): x for name, x in terms.items()}
    return Bound(math.fsum(named.values()), named)


# Generalisation.


def generalization(
    sharp_loss: float,
    norm: float,
    count: int,
    samples: int,
    rho: float = 0.05,
    delta: float = 0.05,
    most: float = 1.0,
    form: Literal["proof", "appendix", "main"] = "proof",
) -> Bound:
    """Theorem 1 of Agnostic-SAM and of Align-SAM: a bound of the loss on all of the distribution.

    The explicit form of its proof, with `σ = ρ / (√k + √log N)`:

        max_{‖ε‖≤ρ} L_S(w + ε) + 2L/√N
        + L/(2√N) √(1 + k log(1 + ‖w‖²/(kσ²)) + 2 log(π²/(6δ)) + 4 log(1 + k + 4N))

    The last line of the appendix rounds that up, with an O(1) left out here:

        4L/√N [√(k log(1 + ‖w‖²/ρ² (1 + √(log N / k))²)) + 2 √log((N + k)/δ)]

    and the main text of both papers prints another one, without the first root and with ρ for ρ²:

        4L/√N [k log(1 + ‖w‖²/ρ (1 + √(log N / k))) + 2 √log((N + k)/δ)]

    **How vacuous it is.** A loss that is bounded by L is at most L; a bound above L says nothing.
    For a ResNet-20 on CIFAR-10 (k = 272,474, N = 50,000, ρ = 0.05, δ = 0.05, ‖w‖ = 42.33, a norm
    such as training leaves) the complexity term is 4.3 L by the explicit form, 34 L by the last
    line of the appendix and 51,145 L by the main text's, whatever the network has learned. It falls
    below L only where there are three to four samples for each parameter. It also asks that the
    loss be at most that of weights with noise added, and is stated for N = |S^v| samples that
    training has not seen, which S^v = S has.

    Args:
        sharp_loss: `max_{‖ε‖≤ρ} L_S(w + ε)`, at least 0; such as the loss plus the rise that
            `sharpness(..., method="projected")` finds, which is but a lower estimate of it.
        norm: `‖w‖`, at least 0.
        count: k, the number of parameters.
        samples: N.
        rho: radius, above 0; default 0.05.
        delta: with which probability it may fail, in (0, 1); default 0.05.
        most: L, an upper bound of the loss of a single sample, above 0; default 1. Cross-entropy
            has none.
        form: "proof" (default), "appendix" or "main".

    Returns:
        the right-hand side; its terms are the sharp loss, the complexity and, in the first form,
        the tail.

    Raises:
        ValueError: a number is out of range.

    Reference: Nguyen et al., Agnostic Sharpness-Aware Minimization, 2024, arXiv:2406.07107,
    Theorem 1 and appendix A.1.

    Examples:
        >>> from flatmin.analysis import bounds
        >>> found = bounds.generalization(0.0, 42.33, 272_474, 50_000)
        >>> round(found.value, 1)
        4.3
    """
    check.at_least_zero("sharp_loss", sharp_loss)
    check.at_least_zero("norm", norm)
    k, N = check_count("count", count), check_count("samples", samples)
    _above_zero(rho=rho, most=most)
    check.in_range("delta", delta, 0.0, 1.0, open_low=True, open_high=True)
    check.one_of("form", form, ("proof", "appendix", "main"))
    log_N = math.log(N)
    if form == "proof":
        sigma = rho / (math.sqrt(k) + math.sqrt(log_N))
        inside = (
            1
            + k * math.log1p(norm**2 / (k * sigma**2))
            + 2 * math.log(math.pi**2 / (6 * delta))
            + 4 * math.log(1 + k + 4 * N)
        )
        complexity = most / (2 * math.sqrt(N)) * math.sqrt(inside)
        return _bound(sharp_loss=sharp_loss, complexity=complexity, tail=2 * most / math.sqrt(N))
    last = 2 * math.sqrt(math.log((N + k) / delta))
    wide = 1 + math.sqrt(log_N / k)
    if form == "appendix":
        size = math.sqrt(k * math.log1p(norm**2 / rho**2 * wide**2))
    else:
        size = k * math.log1p(norm**2 / rho * wide)
    return _bound(sharp_loss=sharp_loss, complexity=4 * most / math.sqrt(N) * (size + last))


# Rates of convergence.


def mixed_rate(
    drop: float, beta: float, variance: float, batch: int, steps: int, share: float
) -> Bound:
    """Theorem 3.3 of AE-SAM: steps of SAM and of plain SGD in any mixture.

        min_t E‖∇L(w_t)‖² ≤ 32 β (L(w_0) - E L(w_T)) / (√T (7 - 6ζ))
                            + (1 + ζ + 5β²ζ) σ² / (b √T (7 - 6ζ))

    for `η = 1/(4β√T)` and `ρ = T^(-1/4)`, with the gradient not normalised in the ascent.

    **How vacuous it is.** β of a network is in the hundreds: at 10,000 steps such an η is about a
    ten-thousandth of what one trains with, and the first term alone is in the tens to hundreds,
    above any squared norm on the way. The bound grows with ζ: it says that steps of SAM can only
    slow convergence down, and nothing of generalisation.

    Args:
        drop: `L(w_0) - E L(w_T)`, at least 0.
        beta: β, the smoothness, above 0; `smoothness` has a lower estimate.
        variance: σ² of a single sample's gradient, at least 0; `GradientNoise.per_sample`.
        batch: b, samples of a batch.
        steps: T.
        share: ζ, the share of steps that are perturbed, in [0, 1].

    Raises:
        ValueError: a number is out of range.

    Reference: Jiang et al., ICLR 2023, arXiv:2304.14647, Theorem 3.3.

    Examples:
        >>> from flatmin.analysis import bounds
        >>> bounds.mixed_rate(drop=1.0, beta=1.0, variance=4.0, batch=2, steps=100, share=1.0).value
        4.6
    """
    _at_least_zero(drop=drop, variance=variance)
    _above_zero(beta=beta)
    check.in_range("share", share, 0.0, 1.0)
    b, root = check_count("batch", batch), math.sqrt(check_count("steps", steps))
    slow = 7 - 6 * share
    return _bound(
        descent=32 * beta * drop / (root * slow),
        noise=(1 + share + 5 * beta**2 * share) * variance / (b * root * slow),
    )


def full_batch_rate(
    drop: float, beta: float, lr: float, rho: float, steps: int, share: float
) -> Bound:
    """Theorem A.4 of AE-SAM: the same with gradients of all data.

        min_t ‖∇L(w_t)‖² ≤ (L(w_0) - L(w_T)) / (T η (1 - βη/2 - βρζ)),   ρ < 1/(2β), η < 1/β

    **How vacuous it is.** Not at all where its conditions hold: it is a descent lemma. They ask for
    a learning rate below 1/β, and training by full batches sits at 2/β (the edge of stability), and
    by small ones beyond it.

    Args:
        drop: `L(w_0) - L(w_T)`, at least 0.
        beta: β, above 0.
        lr: η, in (0, 1/β).
        rho: ρ, in [0, 1/(2β)).
        steps: T.
        share: ζ, in [0, 1].

    Raises:
        ValueError: a number is out of range, or a condition does not hold.

    Reference: Jiang et al., ICLR 2023, arXiv:2304.14647, Theorem A.4.

    Examples:
        >>> from flatmin.analysis import bounds
        >>> bounds.full_batch_rate(1.0, beta=1.0, lr=0.5, rho=0.25, steps=8, share=1.0).value
        0.5
    """
    _at_least_zero(drop=drop)
    _above_zero(beta=beta)
    check.in_range("share", share, 0.0, 1.0)
    check.in_range("lr", lr, 0.0, 1 / beta, open_low=True, open_high=True)
    check.in_range("rho", rho, 0.0, 1 / (2 * beta), open_high=True)
    shrunk = 1 - beta * lr / 2 - beta * rho * share
    return _bound(descent=drop / (check_count("steps", steps) * lr * shrunk))


def friendly_rate(
    drop: float, beta: float, variance: float, steps: int, lr: float, rho: float
) -> Bound:
    """Theorem 2 of F-SAM.

        1/T Σ E‖∇L(w_t)‖² ≤ 2Δ/(γ₀√T) + (2βMγ₀ + ρ₀²β³γ₀)/√T + ρ₀²β² log T / √T

    for a learning rate `γ₀/√T ≤ 1/β` and a radius `ρ₀/√t` that shrinks with the steps.

    **How vacuous it is.** It is about a radius that goes to 0, where F-SAM is SGD; at the fixed
    radius that is used nothing follows. With β in the hundreds, ρ₀ = 0.1 and 10,000 steps the last
    term is in the tens to hundreds, above any squared norm on the way. Nothing in it depends
    on σ or λ: it holds for any direction of that length, a random one too.

    Args:
        drop: Δ, `L(w_0) - L(w*)`, at least 0.
        beta: β, the smoothness, above 0.
        variance: M, that of a batch's gradient, at least 0; `GradientNoise.variance`.
        steps: T.
        lr: γ₀, above 0; the rate is `γ₀/√T`.
        rho: ρ₀, at least 0; the radius is `ρ₀/√t`.

    Raises:
        ValueError: a number is out of range, or the rate is above 1/β.

    Reference: Li et al., CVPR 2024, arXiv:2403.12350, Theorem 2.

    Examples:
        >>> from flatmin.analysis import bounds
        >>> bounds.friendly_rate(1.0, beta=1.0, variance=1.0, steps=4, lr=1.0, rho=0.0).value
        2.0
    """
    _at_least_zero(drop=drop, variance=variance, rho=rho)
    _above_zero(beta=beta, lr=lr)
    root = math.sqrt(check_count("steps", steps))
    if lr / root > 1 / beta:
        raise ValueError(
            f"the theorem asks for lr / √steps <= 1 / beta, and {lr / root:.4g} is above "
            f"{1 / beta:.4g}: it says nothing of such a rate"
        )
    return _bound(
        descent=2 * drop / (lr * root),
        noise=(2 * beta * variance * lr + rho**2 * beta**3 * lr) / root,
        radius=rho**2 * beta**2 * math.log(steps) / root,
    )


def align_rate(
    drop: float,
    beta: float,
    variance: float,
    slope: float,
    steps: int,
    rho1: float,
    rho2: float,
) -> Bound:
    """Theorem 3 of Align-SAM.

        1/T Σ (E‖∇L(w_l)‖ - Δρ β)² ≤ 4 √(βΔ(σ² + G²)) / √T + 6β² (7ρ₁² + 7ρ₂² - 8ρ₁ρ₂)

    for `η = √(Δ / (βT(σ² + G²)))`, with `Δρ = ρ₁ - ρ₂`.

    **How vacuous it is.** The second term does not shrink with T: at ρ₁ = 2ρ₂ = 0.1 and β in the
    hundreds it is in the ten thousands, and the gradients may be anything. That it does not
    converge is what the theorem says, as of normalised SAM. The proof writes 6β² (7ρ₁² + …) where
    the line before has β² Δρ² + 6β² (ρ₁² + ρ₂² - ρ₁ρ₂): the smaller one would do.

    Args:
        drop: Δ, `L(w_0) - inf L`, at least 0.
        beta: β, above 0.
        variance: σ², that of a batch's gradient, at least 0; `GradientNoise.variance`.
        slope: G, the most that `‖∇L‖` can be, at least 0.
        steps: T.
        rho1: ρ₁, at least 0.
        rho2: ρ₂, at least 0.

    Raises:
        ValueError: a number is out of range.

    Reference: Align-SAM (ICLR 2026), Theorem 3.

    Examples:
        >>> from flatmin.analysis import bounds
        >>> bounds.align_rate(1.0, 1.0, 3.0, 1.0, steps=64, rho1=0.0, rho2=0.0).value
        1.0
    """
    _at_least_zero(drop=drop, variance=variance, slope=slope, rho1=rho1, rho2=rho2)
    _above_zero(beta=beta)
    root = math.sqrt(check_count("steps", steps))
    return _bound(
        descent=4 * math.sqrt(beta * drop * (variance + slope**2)) / root,
        radius=6 * beta**2 * _spread(rho1, rho2),
    )


def align_least_norm(
    drop: float,
    beta: float,
    variance: float,
    slope: float,
    steps: int,
    rho1: float,
    rho2: float,
) -> Bound:
    """Corollary 3.1 of Align-SAM: how small a gradient norm is met with.

        min_l E‖∇L(w_l)‖ ≤ 2 (βΔ(σ² + G²))^(1/4) / T^(1/4) + β (√(6(7ρ₁² + 7ρ₂² - 8ρ₁ρ₂)) + Δρ)

    **How vacuous it is.** As `align_rate`: the second term is 58 at ρ₁ = 2ρ₂ = 0.1 and β = 100, and
    norms of a network's gradient are below that from the start. The theorem is a mean over
    squares, and its sum starts at l = 1 where the corollary's minimum has l = 0.

    Args:
        drop: as of `align_rate`.
        beta: likewise.
        variance: likewise.
        slope: likewise.
        steps: likewise.
        rho1: likewise, and at least rho2.
        rho2: likewise.

    Raises:
        ValueError: a number is out of range.

    Reference: Align-SAM (ICLR 2026), Corollary 3.1.

    Examples:
        >>> from flatmin.analysis import bounds
        >>> bounds.align_least_norm(1.0, 1.0, 3.0, 1.0, steps=64, rho1=0.0, rho2=0.0).value
        1.0
    """
    first = align_rate(drop, beta, variance, slope, steps, rho1, rho2).terms["descent"]
    if rho1 < rho2:
        raise ValueError(f"rho1 must be at least rho2, got {rho1} and {rho2}")
    return _bound(
        descent=math.sqrt(first),
        radius=beta * (math.sqrt(6 * _spread(rho1, rho2)) + rho1 - rho2),
    )


def _spread(rho1: float, rho2: float) -> float:
    return 7 * rho1**2 + 7 * rho2**2 - 8 * rho1 * rho2


# Estimators.


def smoothness(
    model: nn.Module,
    loss: Loss,
    data: Any,
    *,
    parameters: Subset = None,
    mode: Mode | None = None,
    dtype: torch.dtype | None = None,
    chunk: int | None = 128,
) -> float:
    """β at the weights as they are: the largest magnitude of an eigenvalue of the Hessian.

        β ≥ max |λ_i(∇²L(w))|

    The theorems ask for the largest over all weights, which no sample of places shows: this is a
    lower estimate. Along a training it moves by orders of magnitude. At kinks, as of ReLU, there is
    no β at all.

    Args:
        model: any module; left as it is.
        loss: `loss(model, batch)`, the mean over the batch, without backward.
        data: as of `Hessian`.
        parameters: which; default None: all that require gradients.
        mode: "eval" or "train"; default None: each module in the mode that it is in.
        dtype: the type to compute in; default None: the model's.
        chunk: most samples evaluated at once; default 128.

    Cost: about ten products.

    Raises:
        TypeError, ValueError: as `Hessian`.

    Examples:
        >>> import torch
        >>> from flatmin.analysis import bounds
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> def loss(model, x):
        ...     return model(x).square().sum() / 2  # of one sample, whose Hessian is x xᵀ
        >>> round(bounds.smoothness(model, loss, torch.tensor([[3.0, 4.0]])), 4)
        25.0
    """
    H = Hessian(model, loss, data, parameters, mode=mode, dtype=dtype, chunk=chunk)
    return abs(float(eigenvalues(H, k=1).values[0]))


def smoothness_between(places: Sequence[tuple[Tensor, Tensor]]) -> float:
    """β from gradients along a way: the largest ratio of their difference to that of the weights.

        β ≥ max ‖∇L(w) - ∇L(v)‖ / ‖w - v‖   over successive places

    A lower estimate, which sees kinks as well; far apart, it misses what is curved between.

    Args:
        places: weights and the gradient of the same loss there, as flat vectors, at least two.

    Raises:
        ValueError: there are fewer than two different places.

    Examples:
        >>> import torch
        >>> from flatmin.analysis import bounds
        >>> w, v = torch.tensor([1.0]), torch.tensor([3.0])
        >>> bounds.smoothness_between([(w, 2 * w), (v, 2 * v)])
        2.0
    """
    ratios = [
        norm(g - h) / norm(w - v)
        for (w, g), (v, h) in itertools.pairwise(places)
        if norm(w - v) > TINY
    ]
    if not ratios:
        raise ValueError("a smoothness is seen between two different places: give at least two")
    return max(ratios)


def variances(noise: GradientNoise) -> tuple[float, float]:
    """σ² of a sample's gradient (AE-SAM) and M of a batch's (F-SAM; Align-SAM's σ²).

    The theorems ask for bounds over all weights; these are estimates at one place. `M = σ²/b` for
    batches drawn with replacement, as the theorems have them.

    Args:
        noise: as `gradient_noise` has found it.

    Examples:
        >>> import numpy as np
        >>> from flatmin.analysis import GradientNoise, bounds
        >>> noise = GradientNoise(np.array([1.0, 9.0]), 4.0, 1.0, batch=1, samples=2)
        >>> bounds.variances(noise)
        (1.0, 1.0)
    """
    return noise.per_sample, noise.per_sample / noise.batch


def check_count(name: str, count: int) -> int:
    check.positive_int(name, count)
    return count


def _above_zero(**numbers: float) -> None:
    for name, x in numbers.items():
        check.in_range(name, x, 0.0, INF, open_low=True, open_high=True)


def _at_least_zero(**numbers: float) -> None:
    for name, x in numbers.items():
        check.at_least_zero(name, x)


__all__ = [
    "Bound",
    "align_least_norm",
    "align_rate",
    "friendly_rate",
    "full_batch_rate",
    "generalization",
    "mixed_rate",
    "smoothness",
    "smoothness_between",
    "variances",
]
