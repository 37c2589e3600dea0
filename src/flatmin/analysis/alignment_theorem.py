"""Theorem 2 of Agnostic-SAM at one step: do its conditions hold, and what it concludes?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from flatmin.analysis.curvature import Hessian
from flatmin.analysis.objective import Loss
from flatmin.analysis.parameters import Subset
from flatmin.analysis.untouched import Mode
from flatmin.analysis.vectors import dot, norm
from flatmin.engine import check
from flatmin.engine.vec import TINY


@dataclass(frozen=True)
class AlignmentTheorem:
    """Both sides of Theorem 2, with `a = ∇L_B(w)` and `b = ∇L_A(w + eps_v)`.

    Fields:
        product: `a·b`.
        eta1: the step size really used in front of `a`, ρ₁/‖a‖.
        eta2: the one in front of `b`, ρ₂/‖b‖.
        eta_v: the one that leads to where `b` is taken: ρ₂/‖∇L_A(w)‖. The theorem has one letter
            for it and `eta2`; they differ, since each gradient is divided by its own norm.
        most1: the most that eta1 may be, `|a·b| / (12 |bᵀ H_B a|)`.
        most2: the most that eta2 may be, `min(|a·b| / (6 |bᵀ H_B b|), |a·b| / (6 |bᵀ H_A a|))`.
        left: `∇L_B(w + eta1 a - eta2 b)·b`, measured.
        expanded: the same to first order in the step sizes, which is all that the proof speaks of.
        gradients: what it cost, in gradients on the primary batch; a product
            with its graph counts 3.3.
    """

    product: float
    eta1: float
    eta2: float
    eta_v: float
    most1: float
    most2: float
    left: float
    expanded: float
    gradients: float

    @property
    def small_enough(self) -> bool:
        """Do the conditions hold?"""
        return self.eta1 <= self.most1 and max(self.eta2, self.eta_v) <= self.most2

    @property
    def right(self) -> float:
        """What `left` is to reach: half of `a·b`, or three halves where it is negative."""
        return (0.5 if self.product >= 0 else 1.5) * self.product

    @property
    def holds(self) -> bool:
        """Does the conclusion hold? It may where the conditions do not."""
        return self.left >= self.right

    def __str__(self) -> str:
        state = "small enough" if self.small_enough else "too large"
        return (
            f"eta1 {self.eta1:.3g} (at most {self.most1:.3g}), eta2 {self.eta2:.3g} and "
            f"{self.eta_v:.3g} (at most {self.most2:.3g}): {state}\n"
            f"{self.left:.4g} >= {self.right:.4g}: {'holds' if self.holds else 'does not hold'}"
        )


def alignment_theorem(
    model: nn.Module,
    loss: Loss,
    primary: Any,
    auxiliary: Any,
    rho1: float = 0.1,
    rho2: float = 0.05,
    *,
    parameters: Subset = None,
    mode: Mode | None = None,
    dtype: torch.dtype | None = None,
) -> AlignmentTheorem:
    """The conditions and the conclusion of Theorem 2 at the weights as they are.

        a = ∇L_B(w),   b = ∇L_A(w + η₂ ∇L_A(w))
        if η₁ ≤ |a·b| / (12 |bᵀ H_B(w) a|)
        and η₂ ≤ min(|a·b| / (6 |bᵀ H_B(w) b|), |a·b| / (6 |bᵀ H_A(w + η₂ ∇L_A(w)) a|))
        then ∇L_B(w + η₁ a - η₂ b)·b ≥ a·b / 2   (3/2 a·b where that is negative)

    with the step sizes that the practical algorithm takes: ρ over the norm of each gradient. At
    usual radii the conditions hold at hardly any step, at a hundredth of them at nearly all; then
    the theorem says no more than that a short step changes an inner product by a part of it, for
    any direction in the place of `a` and `b`. It says nothing of the update of the weights.

    Args:
        model: any module; left as it is.
        loss: `loss(model, batch)`, the mean over the batch, without backward.
        primary: the batch B.
        auxiliary: the batch A; the papers take a quarter of B.
        rho1: radius of the step up the primary loss, above 0; default 0.1.
        rho2: radius of the step on the auxiliary one, above 0; default 0.05.
        parameters: which; default None: all that require gradients.
        mode: "eval" or "train"; default None: each module in the mode that it is in.
        dtype: the type to compute in; default None: the model's.

    Cost: a gradient, and a Hessian product with the gradient that comes with it, on each batch;
    with |A| = |B|/4 that is about 6 gradients on the primary one. A few copies of the weights.

    Raises:
        ValueError: a radius is not above 0; and what `Hessian` raises.

    Reference: Nguyen et al., Agnostic Sharpness-Aware Minimization, 2024, arXiv:2406.07107,
    Theorem 2 and its proof.

    Examples:
        >>> import torch
        >>> from flatmin import analysis
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> def loss(model, batch):
        ...     return model(batch).square().mean() / 2
        >>> found = analysis.alignment_theorem(
        ...     model, loss, torch.eye(2), torch.eye(2), rho1=1e-3, rho2=1e-3
        ... )
        >>> found.small_enough, found.holds
        (True, True)
    """
    for name, rho in (("rho1", rho1), ("rho2", rho2)):
        check.in_range(name, rho, 0.0, float("inf"), open_low=True, open_high=True)

    def on(batch: Any) -> Hessian:
        return Hessian(model, loss, batch, parameters, mode=mode, dtype=dtype)

    B, A = on(primary), on(auxiliary)
    a, towards = B.gradient(), A.objective.gradient()
    eta1, eta_v = rho1 / (norm(a) + TINY), rho2 / (norm(towards) + TINY)
    with A.displaced(eta_v * towards):
        b, Aa = A.gradient(), A.times(a)
    eta2 = rho2 / (norm(b) + TINY)
    Bb = B.times(b)
    with B.objective.moving() as move:
        move(eta1 * a - eta2 * b)
        left = dot(B.objective.gradient(), b)
    product, bBa, bBb, bAa = dot(a, b), dot(a, Bb), dot(b, Bb), dot(b, Aa)
    share = A.objective.samples / B.objective.samples
    return AlignmentTheorem(
        product=product,
        eta1=eta1,
        eta2=eta2,
        eta_v=eta_v,
        most1=abs(product) / (12 * abs(bBa) + TINY),
        most2=abs(product) / (6 * max(abs(bBb), abs(bAa)) + TINY),
        left=left,
        expanded=product + 2 * eta1 * bBa - eta2 * (bBb + bAa),
        gradients=(1 + share) * (1 + 3.3),
    )
