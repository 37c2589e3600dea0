"""Every named method, and the table of their names on the command line.

Each takes the base optimizer, its own hyperparameters, and the options that all methods share
(`model`, `nonfinite`, `max_norm`, …), and returns a `SharpnessAware`. In their formulas

    w     the weights, at which the base optimizer takes the step
    g     ∇L(w; B), the gradient on the primary batch; A is the auxiliary batch
    eps   the perturbation; g_s = ∇L(w + eps; B) is what is seen there
    Γ(d)  d / ‖d‖ over all parameters together or, in the metric T of ASAM and Fisher SAM,
          T² d / ‖T d‖; 1e-12 is added to every norm that is divided by

To try them all, each with the radius that suits it: `flatmin compare --data digits --tune rho`.
"""

from __future__ import annotations

import difflib
import inspect
import re
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from types import MappingProxyType
from typing import Any, Literal

from torch.optim import Optimizer
from typing_extensions import Unpack

from flatmin.descent import Lookbehind, Mixed, Reuse, SurrogateGap
from flatmin.direction import (
    Agnostic,
    Direction,
    Friendly,
    FullComponent,
    Momentum,
    NoiseComponent,
    OtherBatch,
    Previous,
    PreviousAgnostic,
    Random,
    Suppressed,
)
from flatmin.documentation import SHARED, documented
from flatmin.engine import check
from flatmin.geometry import Adaptive, Fisher, RandomSubset
from flatmin.optimizer import Options, SharpnessAware
from flatmin.policy import Bernoulli, EveryK, LargeGradient, Late
from flatmin.selection import LossRise

Auxiliary = Literal["batch", "previous"]
Projection = Literal["printed", "orthogonal"]
Variant = Literal["paper", "released"]


@documented
def SAM(base: Optimizer, rho: float = 0.05, **options: Unpack[Options]) -> SharpnessAware:
    """Foret et al. 2021: descend the gradient seen one step of length rho uphill.

        eps = rho g / ‖g‖;   w <- base step from w with g_s = ∇L(w + eps)

    Args:
        base: any `torch.optim` optimizer, built on the parameters to train; it takes the step.
        rho: length of `eps`, over all parameters together, at least 0; default 0.05. Tune it before
            anything else, by factors of two. The paper takes 0.05 for CIFAR-10 and ImageNet and 0.1
            for CIFAR-100; few data or many wrong labels may bear 0.2 to 0.4, and at 80 % of them
            the papers take half of the usual. It follows neither `lr` nor how the base, AdamW
            included, scales a gradient; tune it again for another batch size.
        **options: `model`, `nonfinite`, `max_norm`, `ascent`, `masters`, `replay_random`,
            `measure_radius`, `max_skips`: those of every method; see `SharpnessAware`.

    Cost: 2 gradients a step; one copy of the weights.

    Raises:
        TypeError: `base` is not an optimizer instance.
        ValueError: `rho` is negative, or an option out of range.

    Reference: Foret et al., Sharpness-Aware Minimization for Efficiently Improving Generalization,
    ICLR 2021, arXiv:2010.01412, eq. 2 and Algorithm 1.

    Examples:
        >>> import torch, flatmin
        >>> model, x, y = torch.nn.Linear(4, 2), torch.randn(8, 4), torch.randint(2, (8,))
        >>> optimizer = flatmin.SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.05)
        >>> def closure():
        ...     loss = torch.nn.functional.cross_entropy(model(x), y)
        ...     loss.backward()
        ...     return loss
        >>> loss = optimizer.step(closure)
        >>> optimizer.cost.gradients
        2
    """
    return SharpnessAware(base, rho, **options)


@documented
def ASAM(
    base: Optimizer, rho: float = 0.5, eta: float = 0.01, **options: Unpack[Options]
) -> SharpnessAware:
    """Kwon et al. 2021: SAM where distances are relative to the size of each weight.

        T = |w| + eta;   eps = rho T² g / ‖T g‖;   w <- base step from w with ∇L(w + eps)

    For networks whose weights differ much in size, and wherever layers can be rescaled against each
    other without changing the function: with `eta = 0` the step does not notice.

    Args:
        base: any `torch.optim` optimizer, built on the parameters to train; it takes the step.
        rho: length of `eps / T`, at least 0; default 0.5. Relative to the weights, and so about ten
            times SAM's: 0.5 for CIFAR-10 and 1 for CIFAR-100 (others take 2 and 4). Tune it by
            factors of two.
        eta: floor of the scale, at least 0; default 0.01. It lets weights near 0 move; much larger,
            the metric is Euclidean again, with a radius of `rho eta`.
        **options: `model`, `nonfinite`, `max_norm`, `ascent`, `masters`, `replay_random`,
            `measure_radius`, `max_skips`: those of every method; see `SharpnessAware`.

    Cost: 2 gradients a step; one copy of the weights.

    Raises:
        TypeError: `base` is not an optimizer instance.
        ValueError: `rho` or `eta` is negative, or an option out of range.

    Differs from the authors' code, which leaves biases in the Euclidean metric: here `T` holds for
    every parameter, as in the paper's equations.

    Reference: Kwon et al., ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning
    of Deep Neural Networks, ICML 2021, arXiv:2102.11600, Algorithm 1.

    Examples:
        >>> import torch, flatmin
        >>> model, x, y = torch.nn.Linear(4, 2), torch.randn(8, 4), torch.randint(2, (8,))
        >>> optimizer = flatmin.ASAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.5)
        >>> def closure():
        ...     loss = torch.nn.functional.cross_entropy(model(x), y)
        ...     loss.backward()
        ...     return loss
        >>> loss = optimizer.step(closure)
    """
    return SharpnessAware(base, rho, geometry=Adaptive(eta), **options)


@documented
def FisherSAM(
    base: Optimizer, rho: float = 0.1, eta: float = 1.0, **options: Unpack[Options]
) -> SharpnessAware:
    """Kim et al. 2022: SAM where distances follow the Fisher information.

        T = (1 + eta g²)^(-1/2);   eps = rho T² g / ‖T g‖;   w <- base step with ∇L(w + eps)

    Args:
        base: any `torch.optim` optimizer, built on the parameters to train; it takes the step.
        rho: length of `eps / T`, at least 0; default 0.1, the paper's for CIFAR. Since `T` is at
            most 1, the way in the weights is no longer than SAM's with the same radius: start at
            SAM's, or twice that. Tune it by factors of two.
        eta: weight of the Fisher information against the identity, at least 0; default 1. 0 gives
            SAM. What matters is `eta g²`: where gradients are tiny, only a large one is felt.
        **options: `model`, `nonfinite`, `max_norm`, `ascent`, `masters`, `replay_random`,
            `measure_radius`, `max_skips`: those of every method; see `SharpnessAware`.

    Cost: 2 gradients a step; one copy of the weights.

    Raises:
        TypeError: `base` is not an optimizer instance.
        ValueError: `rho` or `eta` is negative, or an option out of range.

    The Fisher information is the empirical one of the batch, its diagonal the square of `g`.

    Reference: Kim et al., Fisher SAM: Information Geometry and Sharpness Aware Minimisation, ICML
    2022, arXiv:2206.04920, Algorithm 1.

    Examples:
        >>> import torch, flatmin
        >>> model, x, y = torch.nn.Linear(4, 2), torch.randn(8, 4), torch.randint(2, (8,))
        >>> optimizer = flatmin.FisherSAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.1)
        >>> def closure():
        ...     loss = torch.nn.functional.cross_entropy(model(x), y)
        ...     loss.backward()
        ...     return loss
        >>> loss = optimizer.step(closure)
    """
    return SharpnessAware(base, rho, geometry=Fisher(eta), **options)


@documented
def FriendlySAM(
    base: Optimizer,
    rho: float = 0.05,
    sigma: float = 1.0,
    lmbda: float = 0.9,
    variant: Variant = "paper",
    **options: Unpack[Options],
) -> SharpnessAware:
    """Li et al. 2024: climb what the batch adds to the running mean of the gradients.

        m <- lmbda m + (1 - lmbda) g, from 0;   d = g - sigma m
        eps = rho d / ‖d‖;   w <- base step from w with ∇L(w + eps)

    Args:
        base: any `torch.optim` optimizer, built on the parameters to train; it takes the step.
        rho: length of `eps`, at least 0; default 0.05. Start at SAM's, as the paper does (0.1 and
            0.2 for CIFAR-10 and CIFAR-100, 0.075 for ImageNet and for AdamW on a transformer); it
            bears a radius that is too large better than SAM.
        sigma: share of the mean gradient to remove, any finite number; default 1, the paper's. 0
            gives SAM.
        lmbda: memory of the mean, in [0, 1); default 0.9. The paper takes 0.6 for smaller networks
            and 0.95 for ImageNet.
        variant: "paper" or "released"; default "paper". "paper" is Algorithm 1, which updates `m`,
            from 0, before it is used; "released" is the authors' code, which subtracts the `m` of
            before and starts it at the first `g`. With sigma = 1 they differ in that start alone.
        **options: `model`, `nonfinite`, `max_norm`, `ascent`, `masters`, `replay_random`,
            `measure_radius`, `max_skips`: those of every method; see `SharpnessAware`.

    Cost: 2 gradients a step; two copies of the weights.

    Raises:
        TypeError: `base` is not an optimizer instance.
        ValueError: `rho` is negative, or a hyperparameter or an option out of range.

    Reference: Li et al., Friendly Sharpness-Aware Minimization, CVPR 2024, arXiv:2403.12350, eqs.
    10-14 and Algorithm 1.

    Examples:
        >>> import torch, flatmin
        >>> model, x, y = torch.nn.Linear(4, 2), torch.randn(8, 4), torch.randint(2, (8,))
        >>> optimizer = flatmin.FriendlySAM(torch.optim.SGD(model.parameters(), lr=0.1), lmbda=0.6)
        >>> def closure():
        ...     loss = torch.nn.functional.cross_entropy(model(x), y)
        ...     loss.backward()
        ...     return loss
        >>> loss = optimizer.step(closure)
    """
    return SharpnessAware(base, rho, direction=Friendly(sigma, lmbda, variant), **options)


@documented
def FriendlyASAM(
    base: Optimizer,
    rho: float = 0.5,
    eta: float = 0.01,
    sigma: float = 1.0,
    lmbda: float = 0.9,
    variant: Variant = "paper",
    **options: Unpack[Options],
) -> SharpnessAware:
    """Li et al. 2024: Friendly SAM in the metric of ASAM.

        m <- lmbda m + (1 - lmbda) g, from 0;   d = g - sigma m;   T = |w| + eta
        eps = rho T² d / ‖T d‖;   w <- base step from w with ∇L(w + eps)

    Args:
        base: any `torch.optim` optimizer, built on the parameters to train; it takes the step.
        rho: length of `eps / T`, at least 0; default 0.5. Start at ASAM's, about ten times that of
            `FriendlySAM`, and tune it by factors of two.
        eta: floor of the scale, at least 0; default 0.01. It lets weights near 0 move.
        sigma: share of the mean gradient to remove, any finite number; default 1. 0 gives ASAM.
        lmbda: memory of the mean, in [0, 1); default 0.9.
        variant: "paper" or "released"; default "paper": see `FriendlySAM`.
        **options: `model`, `nonfinite`, `max_norm`, `ascent`, `masters`, `replay_random`,
            `measure_radius`, `max_skips`: those of every method; see `SharpnessAware`.

    Cost: 2 gradients a step; two copies of the weights.

    Raises:
        TypeError: `base` is not an optimizer instance.
        ValueError: `rho` is negative, or a hyperparameter or an option out of range.

    Reference: Li et al., Friendly Sharpness-Aware Minimization, CVPR 2024, arXiv:2403.12350,
    Algorithm 1; the metric is that of Kwon et al., arXiv:2102.11600.

    Examples:
        >>> import torch, flatmin
        >>> model, x, y = torch.nn.Linear(4, 2), torch.randn(8, 4), torch.randint(2, (8,))
        >>> optimizer = flatmin.FriendlyASAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.5)
        >>> def closure():
        ...     loss = torch.nn.functional.cross_entropy(model(x), y)
        ...     loss.backward()
        ...     return loss
        >>> loss = optimizer.step(closure)
    """
    friendly = Friendly(sigma, lmbda, variant)
    return SharpnessAware(base, rho, direction=friendly, geometry=Adaptive(eta), **options)


@documented
def AgnosticSAM(
    base: Optimizer,
    rho: float = 0.05,
    rho1: float | None = None,
    rho2: float | None = None,
    beta: float = 0.9,
    auxiliary: Auxiliary = "batch",
    **options: Unpack[Options],
) -> SharpnessAware:
    """Nguyen et al. 2024: climb the training loss but step down that of an auxiliary batch.

        eps_v = rho2 Γ(∇L(w; A));   v <- beta v + (1 - beta) ∇L(w + eps_v; A), from 0
        eps = rho1 Γ(g) - rho2 Γ(v);   w <- base step from w with ∇L(w + eps; B)

    Call `step(closure, aux_closure)`, with batches from `flatmin.paired` or `flatmin.split`.

    Args:
        base: any `torch.optim` optimizer, built on the parameters to train; it takes the step.
        rho: at least 0; default 0.05. The steps are `2 rho` and `rho`, so that weights move by up
            to `3 rho` where SAM's move by `rho`. The paper takes SAM's (0.05 for CIFAR-10, 0.1 for
            CIFAR-100 and ImageNet). For a fair comparison give SAM twice or three times as much;
            where training breaks down, take half.
        rho1: step up the primary loss, at least 0; default None: `2 rho` of each parameter group,
            which it follows when `rho` changes. Given, it is absolute.
        rho2: step down the auxiliary loss, at least 0; default None: `rho` of each parameter group,
            likewise.
        beta: memory of `v`, in [0, 1); default 0.9, the paper's. 0 keeps none (Align-SAM).
        auxiliary: "batch" or "previous"; default "batch". "batch" measures the auxiliary closure's;
            "previous" takes the primary batch of the step before, whose `g_s` is already known, as
            `v <- beta v + (1 - beta) g_s`: no auxiliary closure, at SAM's cost.
        **options: `model`, `nonfinite`, `max_norm`, `ascent`, `masters`, `replay_random`,
            `measure_radius`, `max_skips`: those of every method; see `SharpnessAware`.

    Cost: 2 gradients on the primary and 2 on the auxiliary batch a step, 2.5 in all where that is a
    quarter as large ("previous": 2); two copies of the weights.

    Raises:
        TypeError: `base` is not an optimizer instance.
        ValueError: a radius is negative, or a hyperparameter or an option out of range.

    The paper parts one batch in two or draws two; here the two closures decide. `auxiliary=
    "previous"` is ours, an answer to the paper's closing question.

    Reference: Nguyen et al., Agnostic Sharpness-Aware Minimization, 2024, arXiv:2406.07107,
    Algorithm 1.

    Examples:
        >>> import torch, flatmin
        >>> model, x, y = torch.nn.Linear(4, 2), torch.randn(8, 4), torch.randint(2, (8,))
        >>> optimizer = flatmin.AgnosticSAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.05)
        >>> def loss_on(batch):
        ...     loss = torch.nn.functional.cross_entropy(model(batch[0]), batch[1])
        ...     loss.backward()
        ...     return loss
        >>> primary, auxiliary = flatmin.split((x, y))
        >>> loss = optimizer.step(lambda: loss_on(primary), lambda: loss_on(auxiliary))
        >>> optimizer.cost.gradients, optimizer.cost.auxiliary
        (4, 2)
    """
    return SharpnessAware(
        base, rho, direction=Agnostic(rho1, rho2, beta, auxiliary=auxiliary), **options
    )


@documented
def AgnosticASAM(
    base: Optimizer,
    rho: float = 0.5,
    eta: float = 0.01,
    rho1: float | None = None,
    rho2: float | None = None,
    beta: float = 0.9,
    auxiliary: Auxiliary = "batch",
    **options: Unpack[Options],
) -> SharpnessAware:
    """Nguyen et al. 2024: Agnostic-SAM in the metric of ASAM.

        eps_v = rho2 Γ(∇L(w; A));   v <- beta v + (1 - beta) ∇L(w + eps_v; A), from 0
        eps = rho1 Γ(g) - rho2 Γ(v);   w <- base step from w with ∇L(w + eps; B)
        T = |w| + eta;   Γ(d) = T² d / ‖T d‖

    Call `step(closure, aux_closure)`, with batches from `flatmin.paired` or `flatmin.split`.

    Args:
        base: any `torch.optim` optimizer, built on the parameters to train; it takes the step.
        rho: at least 0; default 0.5. Ten times that of `AgnosticSAM`, as in the paper: 0.5 for
            CIFAR-10 and 1 for CIFAR-100. The steps are `2 rho` and `rho`.
        eta: floor of the scale, at least 0; default 0.01. It lets weights near 0 move.
        rho1: step up the primary loss, at least 0; default None: `2 rho` of each parameter group.
        rho2: step down the auxiliary loss, at least 0; default None: `rho` of each parameter group.
        beta: memory of `v`, in [0, 1); default 0.9, the paper's.
        auxiliary: "batch" or "previous"; default "batch": see `AgnosticSAM`.
        **options: `model`, `nonfinite`, `max_norm`, `ascent`, `masters`, `replay_random`,
            `measure_radius`, `max_skips`: those of every method; see `SharpnessAware`.

    Cost: 2 gradients on the primary and 2 on the auxiliary batch a step, 2.5 in all where that is a
    quarter as large ("previous": 2); two copies of the weights.

    Raises:
        TypeError: `base` is not an optimizer instance.
        ValueError: a radius is negative, or a hyperparameter or an option out of range.

    Reference: Nguyen et al., Agnostic Sharpness-Aware Minimization, 2024, arXiv:2406.07107,
    Algorithm 1; the metric is that of Kwon et al., arXiv:2102.11600.

    Examples:
        >>> import torch, flatmin
        >>> model, x, y = torch.nn.Linear(4, 2), torch.randn(8, 4), torch.randint(2, (8,))
        >>> optimizer = flatmin.AgnosticASAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.5)
        >>> def loss_on(batch):
        ...     loss = torch.nn.functional.cross_entropy(model(batch[0]), batch[1])
        ...     loss.backward()
        ...     return loss
        >>> primary, auxiliary = flatmin.split((x, y))
        >>> loss = optimizer.step(lambda: loss_on(primary), lambda: loss_on(auxiliary))
    """
    agnostic = Agnostic(rho1, rho2, beta, auxiliary=auxiliary)
    return SharpnessAware(base, rho, direction=agnostic, geometry=Adaptive(eta), **options)


@documented
def AlignSAM(
    base: Optimizer, rho: float = 0.05, lmbda: float = 2.0, **options: Unpack[Options]
) -> SharpnessAware:
    """Agnostic-SAM in its later form: without memory, with radii `lmbda rho` and `rho`.

        v = ∇L(w + rho Γ(∇L(w; A)); A)
        eps = lmbda rho Γ(g) - rho Γ(v);   w <- base step from w with ∇L(w + eps; B)

    Call `step(closure, aux_closure)`, with batches from `flatmin.paired` or `flatmin.split`.

    Args:
        base: any `torch.optim` optimizer, built on the parameters to train; it takes the step.
        rho: at least 0; default 0.05. Weights move by up to `(lmbda + 1) rho`. The paper takes
            SAM's: 0.05 for CIFAR-10 and fine-tuning on ImageNet, 0.1 for CIFAR-100, half with 80 %
            of the labels wrong. Tune it by factors of two.
        lmbda: step up the primary loss in units of `rho`, at least 0; default 2, the paper's. Below
            1 the auxiliary batch has more to say than the primary.
        **options: `model`, `nonfinite`, `max_norm`, `ascent`, `masters`, `replay_random`,
            `measure_radius`, `max_skips`: those of every method; see `SharpnessAware`.

    Cost: 2 gradients on the primary and 2 on the auxiliary batch a step, 2.5 in all where that is a
    quarter as large; one copy of the weights.

    Raises:
        TypeError: `base` is not an optimizer instance.
        ValueError: `rho` or `lmbda` is negative, or an option out of range.

    Reference: Nguyen et al., Align-SAM: Seeking Flatter Minima for Better Cross-Subset Alignment,
    ICLR 2026, Algorithm 1; after Agnostic-SAM, arXiv:2406.07107.

    Examples:
        >>> import torch, flatmin
        >>> model, x, y = torch.nn.Linear(4, 2), torch.randn(8, 4), torch.randint(2, (8,))
        >>> optimizer = flatmin.AlignSAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.05)
        >>> def loss_on(batch):
        ...     loss = torch.nn.functional.cross_entropy(model(batch[0]), batch[1])
        ...     loss.backward()
        ...     return loss
        >>> primary, auxiliary = flatmin.split((x, y))
        >>> loss = optimizer.step(lambda: loss_on(primary), lambda: loss_on(auxiliary))
    """
    check.at_least_zero("lmbda", lmbda)
    return SharpnessAware(base, rho, direction=Agnostic(beta=0.0, ratio=lmbda), **options)


@documented
def AlignASAM(
    base: Optimizer,
    rho: float = 0.5,
    eta: float = 0.01,
    lmbda: float = 2.0,
    **options: Unpack[Options],
) -> SharpnessAware:
    """Align-SAM in the metric of ASAM.

        v = ∇L(w + rho Γ(∇L(w; A)); A)
        eps = lmbda rho Γ(g) - rho Γ(v);   w <- base step from w with ∇L(w + eps; B)
        T = |w| + eta;   Γ(d) = T² d / ‖T d‖

    Call `step(closure, aux_closure)`, with batches from `flatmin.paired` or `flatmin.split`.

    Args:
        base: any `torch.optim` optimizer, built on the parameters to train; it takes the step.
        rho: at least 0; default 0.5. Ten times that of `AlignSAM`, as in the paper: 0.5 for
            CIFAR-10 and 1 for CIFAR-100.
        eta: floor of the scale, at least 0; default 0.01. It lets weights near 0 move.
        lmbda: step up the primary loss in units of `rho`, at least 0; default 2, the paper's.
        **options: `model`, `nonfinite`, `max_norm`, `ascent`, `masters`, `replay_random`,
            `measure_radius`, `max_skips`: those of every method; see `SharpnessAware`.

    Cost: 2 gradients on the primary and 2 on the auxiliary batch a step, 2.5 in all where that is a
    quarter as large; one copy of the weights.

    Raises:
        TypeError: `base` is not an optimizer instance.
        ValueError: `rho`, `eta` or `lmbda` is negative, or an option out of range.

    Reference: Nguyen et al., Align-SAM: Seeking Flatter Minima for Better Cross-Subset Alignment,
    ICLR 2026, Algorithm 1; the metric is that of Kwon et al., arXiv:2102.11600.

    Examples:
        >>> import torch, flatmin
        >>> model, x, y = torch.nn.Linear(4, 2), torch.randn(8, 4), torch.randint(2, (8,))
        >>> optimizer = flatmin.AlignASAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.5)
        >>> def loss_on(batch):
        ...     loss = torch.nn.functional.cross_entropy(model(batch[0]), batch[1])
        ...     loss.backward()
        ...     return loss
        >>> primary, auxiliary = flatmin.split((x, y))
        >>> loss = optimizer.step(lambda: loss_on(primary), lambda: loss_on(auxiliary))
    """
    check.at_least_zero("lmbda", lmbda)
    align = Agnostic(beta=0.0, ratio=lmbda)
    return SharpnessAware(base, rho, direction=align, geometry=Adaptive(eta), **options)


@documented
def VASSO(
    base: Optimizer, rho: float = 0.05, theta: float = 0.9, **options: Unpack[Options]
) -> SharpnessAware:
    """Li & Giannakis 2023: climb a running mean of the gradients.

        d <- (1 - theta) d + theta g, from the first g
        eps = rho d / ‖d‖;   w <- base step from w with ∇L(w + eps)

    Args:
        base: any `torch.optim` optimizer, built on the parameters to train; it takes the step.
        rho: length of `eps`, at least 0; default 0.05. Start at SAM's: 0.05 for CIFAR-10, 0.1 for
            CIFAR-100 and fine-tuning. Tune it by factors of two.
        theta: weight of the new gradient, in (0, 1]; default 0.9. 1 gives SAM; a smaller one
            remembers longer, about `1 / theta` steps.
        **options: `model`, `nonfinite`, `max_norm`, `ascent`, `masters`, `replay_random`,
            `measure_radius`, `max_skips`: those of every method; see `SharpnessAware`.

    Cost: 2 gradients a step; two copies of the weights.

    Raises:
        TypeError: `base` is not an optimizer instance.
        ValueError: `rho` is negative, `theta` out of range, or an option.

    As in the paper `d` starts at the first gradient; a parameter that appears later starts at 0.

    Reference: Li & Giannakis, Enhancing Sharpness-Aware Optimization Through Variance Suppression,
    NeurIPS 2023, arXiv:2309.15639.

    Examples:
        >>> import torch, flatmin
        >>> model, x, y = torch.nn.Linear(4, 2), torch.randn(8, 4), torch.randint(2, (8,))
        >>> optimizer = flatmin.VASSO(torch.optim.SGD(model.parameters(), lr=0.1), theta=0.4)
        >>> def closure():
        ...     loss = torch.nn.functional.cross_entropy(model(x), y)
        ...     loss.backward()
        ...     return loss
        >>> loss = optimizer.step(closure)
    """
    return SharpnessAware(base, rho, direction=Suppressed(theta), **options)


@documented
def LookSAM(
    base: Optimizer, rho: float = 0.05, k: int = 5, alpha: float = 0.7, **options: Unpack[Options]
) -> SharpnessAware:
    """Liu et al. 2022: look every k-th step, and reuse what was seen in the steps between.

        steps 0, k, 2k, …:  g_s = ∇L(w + rho g / ‖g‖);   h = g_s - (gᵀg_s / ‖g‖²) g is kept
                            w <- base step from w with g_s
        the others:         w <- base step from w with g + alpha (‖g‖ / ‖h‖) h

    Args:
        base: any `torch.optim` optimizer, built on the parameters to train; it takes the step.
        rho: length of `eps` where it looks, at least 0; default 0.05. Start at SAM's.
        k: steps from look to look, at least 1; default 5. 1 gives SAM; beyond 10 what is reused is
            old.
        alpha: weight of what is reused, at least 0; default 0.7. 0 leaves the steps between to the
            base. A network that overfits early bears little: try 0.1 and 0.3 too.
        **options: `model`, `nonfinite`, `max_norm`, `ascent`, `masters`, `replay_random`,
            `measure_radius`, `max_skips`: those of every method; see `SharpnessAware`.

    Cost: 1 + 1/k gradients a step; two copies of the weights, and the first gradient through the
    second pass.

    Raises:
        TypeError: `base` is not an optimizer instance.
        ValueError: `rho` or `alpha` is negative, `k` is not a positive integer, or an option is out
            of range.

    Differs from much code for it, which projects tensor by tensor: norms here are over everything,
    as in the paper.

    Reference: Liu et al., Towards Efficient and Scalable Sharpness-Aware Minimization, CVPR 2022,
    arXiv:2203.02714, Algorithm 1.

    Examples:
        >>> import torch, flatmin
        >>> model, x, y = torch.nn.Linear(4, 2), torch.randn(8, 4), torch.randint(2, (8,))
        >>> optimizer = flatmin.LookSAM(torch.optim.SGD(model.parameters(), lr=0.1), k=5)
        >>> def closure():
        ...     loss = torch.nn.functional.cross_entropy(model(x), y)
        ...     loss.backward()
        ...     return loss
        >>> for _ in range(5):
        ...     loss = optimizer.step(closure)
        >>> optimizer.cost.gradients
        6
    """
    return SharpnessAware(base, rho, policy=EveryK(k), descent=Reuse(alpha), **options)


@documented
def SSSAM(
    base: Optimizer, rho: float = 0.05, p: float = 0.5, seed: int = 0, **options: Unpack[Options]
) -> SharpnessAware:
    """Zhao et al. 2022: a coin decides whether a step is SAM's or the base optimizer's.

        with probability p:  w <- base step from w with ∇L(w + rho g / ‖g‖)
        else:                w <- base step from w with g

    Args:
        base: any `torch.optim` optimizer, built on the parameters to train; it takes the step.
        rho: length of `eps` where it looks, at least 0; default 0.05. Start at SAM's.
        p: probability of a perturbed step, in [0, 1]; default 0.5. 1 gives SAM, 0 the base alone.
        seed: of the coin, any whole number; default 0. With the step count it decides, so that all
            ranks agree and a resumed run throws the same coins.
        **options: `model`, `nonfinite`, `max_norm`, `ascent`, `masters`, `replay_random`,
            `measure_radius`, `max_skips`: those of every method; see `SharpnessAware`.

    Cost: 1 + p gradients a step on average; one copy of the weights.

    Raises:
        TypeError: `base` is not an optimizer instance.
        ValueError: `rho` is negative, `p` outside of [0, 1], `seed` not a whole number, or an
            option out of range.

    Reference: Zhao et al., SS-SAM: Stochastic Scheduled Sharpness-Aware Minimization for
    Efficiently Training Deep Neural Networks, 2022, arXiv:2203.09962.

    Examples:
        >>> import torch, flatmin
        >>> model, x, y = torch.nn.Linear(4, 2), torch.randn(8, 4), torch.randint(2, (8,))
        >>> optimizer = flatmin.SSSAM(torch.optim.SGD(model.parameters(), lr=0.1), p=0.5)
        >>> def closure():
        ...     loss = torch.nn.functional.cross_entropy(model(x), y)
        ...     loss.backward()
        ...     return loss
        >>> loss = optimizer.step(closure)
        >>> optimizer.gradients_per_step()
        1.5
    """
    return SharpnessAware(base, rho, policy=Bernoulli(p, seed), **options)


@documented
def AESAM(
    base: Optimizer,
    total_steps: int,
    rho: float = 0.05,
    lambda1: float = -1.0,
    lambda2: float = 1.0,
    delta: float = 0.9,
    **options: Unpack[Options],
) -> SharpnessAware:
    """Jiang et al. 2023: SAM's step where the gradient is large, the base optimizer's elsewhere.

        s = ‖g‖²;   mu <- delta mu + (1 - delta) s;   var <- delta var + (1 - delta) (s - mu)²
        c = (t/T) lambda1 + (1 - t/T) lambda2
        s >= mu + c sqrt(var):  w <- base step from w with ∇L(w + rho g / ‖g‖)
        else:                   w <- base step from w with g

    Args:
        base: any `torch.optim` optimizer, built on the parameters to train; it takes the step.
        total_steps: `T`, the steps of the whole training (epochs times batches), at least 1. Later
            steps keep `lambda1`.
        rho: length of `eps` where it looks, at least 0; default 0.05. Start at SAM's; the paper
            tunes it over 0.01, 0.02, 0.05, 0.1, 0.2, 0.5.
        lambda1: threshold at the end, in standard deviations, any number or inf; default -1, the
            paper's. Lower looks more often.
        lambda2: threshold at the start, likewise; default 1, the paper's. -inf twice gives SAM, inf
            twice the base alone.
        delta: memory of the mean and variance of `s`, in [0, 1); default 0.9, the paper's.
        **options: `model`, `nonfinite`, `max_norm`, `ascent`, `masters`, `replay_random`,
            `measure_radius`, `max_skips`: those of every method; see `SharpnessAware`.

    Cost: 2 gradients on perturbed steps and 1 on the others, about 1.5 with the defaults; one copy
    of the weights; a GPU is waited for once a step, for the norm.

    Raises:
        TypeError: `base` is not an optimizer instance.
        ValueError: `total_steps` is not a positive integer, `rho` is negative, or a hyperparameter
            or an option out of range.

    The paper's Algorithm 1 prints `rho g` for the perturbation; its eq. 2 and its radii are those
    of the normalised one, which is taken here. It says nothing of `t > T`: `c` then stays.

    Reference: Jiang et al., An Adaptive Policy to Employ Sharpness-Aware Minimization, ICLR 2023,
    arXiv:2304.14647, eqs. 4-5 and Algorithm 1.

    Examples:
        >>> import torch, flatmin
        >>> model, x, y = torch.nn.Linear(4, 2), torch.randn(8, 4), torch.randint(2, (8,))
        >>> base = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> optimizer = flatmin.AESAM(base, total_steps=100)
        >>> def closure():
        ...     loss = torch.nn.functional.cross_entropy(model(x), y)
        ...     loss.backward()
        ...     return loss
        >>> loss = optimizer.step(closure)
        >>> optimizer.cost.perturbed in (0, 1)
        True
    """
    policy = LargeGradient(total_steps, lambda1, lambda2, delta)
    return SharpnessAware(base, rho, policy=policy, **options)


@documented
def AELookSAM(
    base: Optimizer,
    total_steps: int,
    rho: float = 0.05,
    alpha: float = 0.7,
    lambda1: float = 0.0,
    lambda2: float = 2.0,
    delta: float = 0.9,
    **options: Unpack[Options],
) -> SharpnessAware:
    """Jiang et al. 2023: look where the gradient is large, and reuse what was seen elsewhere.

        s = ‖g‖²;   mu <- delta mu + (1 - delta) s;   var <- delta var + (1 - delta) (s - mu)²
        c = (t/T) lambda1 + (1 - t/T) lambda2
        s >= mu + c sqrt(var):  g_s = ∇L(w + rho g / ‖g‖);   h = g_s - (gᵀg_s / ‖g‖²) g is kept
                                w <- base step from w with g_s
        else:                   w <- base step from w with g + alpha (‖g‖ / ‖h‖) h

    Args:
        base: any `torch.optim` optimizer, built on the parameters to train; it takes the step.
        total_steps: `T`, the steps of the whole training (epochs times batches), at least 1. Later
            steps keep `lambda1`.
        rho: length of `eps` where it looks, at least 0; default 0.05. Start at SAM's.
        alpha: weight of what is reused, at least 0; default 0.7. The paper chooses among 0.1, 0.3,
            0.6 and 0.9; a network that overfits bears little.
        lambda1: threshold at the end, in standard deviations, any number or inf; default 0, the
            paper's. Lower looks more often.
        lambda2: threshold at the start, likewise; default 2, the paper's.
        delta: memory of the mean and variance of `s`, in [0, 1); default 0.9, the paper's.
        **options: `model`, `nonfinite`, `max_norm`, `ascent`, `masters`, `replay_random`,
            `measure_radius`, `max_skips`: those of every method; see `SharpnessAware`.

    Cost: 2 gradients on perturbed steps and 1 on the others, about 1.2 with the defaults; two
    copies of the weights; a GPU is waited for once a step, for the norm.

    Raises:
        TypeError: `base` is not an optimizer instance.
        ValueError: `total_steps` is not a positive integer, `rho` or `alpha` is negative, or a
            hyperparameter or an option out of range.

    Before the first look there is nothing to reuse: such a step is the base optimizer's. See
    `AESAM` for what the paper leaves open.

    Reference: Jiang et al., An Adaptive Policy to Employ Sharpness-Aware Minimization, ICLR 2023,
    arXiv:2304.14647, eqs. 4-5 and Algorithm 1.

    Examples:
        >>> import torch, flatmin
        >>> model, x, y = torch.nn.Linear(4, 2), torch.randn(8, 4), torch.randint(2, (8,))
        >>> base = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> optimizer = flatmin.AELookSAM(base, total_steps=100, alpha=0.3)
        >>> def closure():
        ...     loss = torch.nn.functional.cross_entropy(model(x), y)
        ...     loss.backward()
        ...     return loss
        >>> loss = optimizer.step(closure)
    """
    policy = LargeGradient(total_steps, lambda1, lambda2, delta)
    return SharpnessAware(base, rho, policy=policy, descent=Reuse(alpha), **options)


@documented
def GSAM(
    base: Optimizer, rho: float = 0.05, alpha: float = 0.1, **options: Unpack[Options]
) -> SharpnessAware:
    """Zhuang et al. 2022: also close the gap between the perturbed loss and the loss.

        g_s = ∇L(w + rho g / ‖g‖)
        w <- base step from w with g_s - alpha (g - (gᵀg_s / ‖g_s‖²) g_s)

    Args:
        base: any `torch.optim` optimizer, built on the parameters to train; it takes the step.
        rho: length of `eps`, at least 0; default 0.05. Start at SAM's. The paper lets it follow the
            learning rate, which a scheduler that writes `group["rho"]` does.
        alpha: weight of the gap, at least 0; default 0.1. 0 gives SAM; tune it by factors of two.
            Since it climbs `L` across `g_s`, a large one works against the training.
        **options: `model`, `nonfinite`, `max_norm`, `ascent`, `masters`, `replay_random`,
            `measure_radius`, `max_skips`: those of every method; see `SharpnessAware`.

    Cost: 2 gradients a step; one copy of the weights, and the first gradient through the second
    pass.

    Raises:
        TypeError: `base` is not an optimizer instance.
        ValueError: `rho` or `alpha` is negative, or an option out of range.

    Reference: Zhuang et al., Surrogate Gap Minimization Improves Sharpness-Aware Training, ICLR
    2022, arXiv:2203.08065, eq. 7 and Algorithm 1.

    Examples:
        >>> import torch, flatmin
        >>> model, x, y = torch.nn.Linear(4, 2), torch.randn(8, 4), torch.randint(2, (8,))
        >>> optimizer = flatmin.GSAM(torch.optim.SGD(model.parameters(), lr=0.1), alpha=0.1)
        >>> def closure():
        ...     loss = torch.nn.functional.cross_entropy(model(x), y)
        ...     loss.backward()
        ...     return loss
        >>> loss = optimizer.step(closure)
    """
    return SharpnessAware(base, rho, descent=SurrogateGap(alpha), **options)


@documented
def ESAM(
    base: Optimizer,
    rho: float = 0.05,
    beta: float = 0.6,
    gamma: float = 0.5,
    seed: int = 0,
    **options: Unpack[Options],
) -> SharpnessAware:
    """Du et al. 2022: perturb some of the tensors, look at the samples whose loss rose most.

        T = 1 on tensors kept with probability beta, 0 on the rest;   eps = rho T g / (beta ‖T g‖)
        B' = the max(1, int(gamma |B|)) samples of B whose loss rose most from w to w + eps
        w <- base step from w with ∇L(w + eps; B')

    The closure takes the chosen sample indices (or None for all) and returns per-sample losses,
    without `backward`, which the optimizer runs; see `flatmin.selection.LossRise`.

    Args:
        base: any `torch.optim` optimizer, built on the parameters to train; it takes the step.
        rho: length of `beta eps`, at least 0; default 0.05. Start at SAM's; those tensors that move
            go `1 / beta` as far.
        beta: probability with which a tensor is perturbed, in (0, 1]; default 0.6. 1 moves all.
        gamma: share of the batch that is seen again, in (0, 1]; default 0.5. 1 sees all of it; both
            at 1 give SAM.
        seed: of the draws of tensors, any whole number; default 0.
        **options: `model`, `nonfinite`, `max_norm`, `ascent`, `masters`, `replay_random`,
            `measure_radius`, `max_skips`: those of every method; see `SharpnessAware`.

    Cost: 1 + gamma gradients a step, and a forward pass over the batch at `w + eps`; one copy of
    the weights.

    Raises:
        TypeError: `base` is not an optimizer instance.
        ValueError: `rho` is negative, or a hyperparameter or an option out of range.

    Reference: Du et al., Efficient Sharpness-aware Minimization for Improved Training of Neural
    Networks, ICLR 2022, arXiv:2110.03141, §3 and Algorithm 1.

    Examples:
        >>> import torch, flatmin
        >>> model, x, y = torch.nn.Linear(4, 2), torch.randn(8, 4), torch.randint(2, (8,))
        >>> optimizer = flatmin.ESAM(torch.optim.SGD(model.parameters(), lr=0.1), gamma=0.5)
        >>> def losses(chosen):
        ...     inputs, labels = (x, y) if chosen is None else (x[chosen], y[chosen])
        ...     return torch.nn.functional.cross_entropy(model(inputs), labels, reduction="none")
        >>> loss = optimizer.step(losses)
        >>> optimizer.gradients_per_step()
        1.5
    """
    subset = RandomSubset(beta, seed)
    return SharpnessAware(base, rho, geometry=subset, selection=LossRise(gamma), **options)


@documented
def LookbehindSAM(
    base: Optimizer, rho: float = 0.05, k: int = 5, alpha: float = 0.5, **options: Unpack[Options]
) -> SharpnessAware:
    """Mordido et al. 2024: climb k times, descend every gradient seen, go part of the way there.

        eps_1 = rho Γ(g);   eps_(j+1) = eps_j + rho Γ(∇L(w + eps_j))
        w_fast <- base step with ∇L(w + eps_j), j = 1 … k, from w;   w <- w + alpha (w_fast - w)

    Args:
        base: any `torch.optim` optimizer, built on the parameters to train; it takes `k` steps for
            each of ours.
        rho: length of each step uphill, at least 0; default 0.05. The whole way is up to `k rho`:
            start at SAM's, and try less.
        k: steps uphill, at least 1; default 5. 1, with alpha = 1, gives SAM.
        alpha: share of the way from the slow to the fast weights, in (0, 1]; default 0.5. Of the
            way of `k` base steps that share is left.
        **options: `model`, `nonfinite`, `max_norm`, `ascent`, `masters`, `replay_random`,
            `measure_radius`, `max_skips`: those of every method; see `SharpnessAware`.

    Cost: k + 1 gradients a step; one copy of the weights, and k gradients.

    Raises:
        TypeError: `base` is not an optimizer instance.
        ValueError: `rho` is negative, `k` is not a positive integer, `alpha` outside of (0, 1], or
            an option out of range.

    Differs from the authors' code, which computes each perturbed gradient twice (2k gradients), for
    the same weights.

    Reference: Mordido et al., Lookbehind-SAM: k Steps Back, 1 Step Forward, ICML 2024,
    arXiv:2307.16704, Algorithm 1.

    Examples:
        >>> import torch, flatmin
        >>> model, x, y = torch.nn.Linear(4, 2), torch.randn(8, 4), torch.randint(2, (8,))
        >>> optimizer = flatmin.LookbehindSAM(torch.optim.SGD(model.parameters(), lr=0.1), k=2)
        >>> def closure():
        ...     loss = torch.nn.functional.cross_entropy(model(x), y)
        ...     loss.backward()
        ...     return loss
        >>> loss = optimizer.step(closure)
        >>> optimizer.cost.gradients
        3
    """
    return SharpnessAware(base, rho, descent=Lookbehind(k, alpha), **options)


@documented
def MSAM(base: Optimizer, rho: float = 3.0, **options: Unpack[Options]) -> SharpnessAware:
    """Becker et al. 2024: look along the base optimizer's momentum, at the price of the base.

        eps = -rho m / ‖m‖,  m the base's momentum after its last step;  0 before the first
        w <- base step from w with ∇L(w + eps)

    For SGD with momentum and the Adam family. Of a base without momentum a running mean of the
    gradients, of memory 0.9, takes its place. The sign is that of the authors' code:
    `flatmin.direction.Momentum(sign=1)` has the other.

    Args:
        base: any `torch.optim` optimizer, built on the parameters to train; it takes the step.
        rho: length of `eps`, at least 0; default 3. The paper's radii are far above SAM's: about 3
            where SAM takes 0.2. Tune it by factors of two.
        **options: `model`, `nonfinite`, `max_norm`, `ascent`, `masters`, `replay_random`,
            `measure_radius`, `max_skips`: those of every method; see `SharpnessAware`.

    Cost: 1 gradient a step, at `w + eps`; one copy of the weights. The step returns the loss there,
    and with `model=` running statistics move there.

    Raises:
        TypeError: `base` is not an optimizer instance.
        ValueError: `rho` is negative, or an option out of range.

    Reference: Becker et al., Momentum-SAM: Sharpness Aware Minimization without Computational
    Overhead, 2024, arXiv:2401.12033, Algorithm 1.

    Examples:
        >>> import torch, flatmin
        >>> model, x, y = torch.nn.Linear(4, 2), torch.randn(8, 4), torch.randint(2, (8,))
        >>> base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> optimizer = flatmin.MSAM(base, rho=3.0)
        >>> def closure():
        ...     loss = torch.nn.functional.cross_entropy(model(x), y)
        ...     loss.backward()
        ...     return loss
        >>> loss = optimizer.step(closure)
        >>> optimizer.cost.gradients
        1
    """
    return SharpnessAware(base, rho, direction=Momentum(), **options)


@documented
def RWP(
    base: Optimizer,
    rho: float = 0.01,
    eta: float = 0.0,
    beta: float = 0.99,
    seed: int = 0,
    **options: Unpack[Options],
) -> SharpnessAware:
    """Li et al. 2022: descend the gradient at randomly perturbed weights, at the price of the base.

        eps = rho ‖w_filter‖ z,  z standard normal, for each row of a matrix or kernel
        eta > 0:  eps / sqrt(1 + eta f),  f <- beta f + Σ_filter g_s²
        w <- base step from w with ∇L(w + eps)

    Args:
        base: any `torch.optim` optimizer, built on the parameters to train; it takes the step.
        rho: standard deviation of a weight's noise in units of the norm of its filter, at least 0;
            default 0.01, the paper's for CIFAR. It follows the size of the weights by itself. Tune
            it by factors of two.
        eta: how much less filters with large gradients move, at least 0; default 0: not at all. 0.1
            is the adaptive form of Li et al. 2024.
        beta: memory of `f`, in [0, 1); default 0.99; without `eta` it does nothing.
        seed: of the noise, any whole number; default 0. With the step count it decides, so that all
            ranks agree and a resumed run draws the same.
        **options: `model`, `nonfinite`, `max_norm`, `ascent`, `masters`, `replay_random`,
            `measure_radius`, `max_skips`: those of every method; see `SharpnessAware`.

    Cost: 1 gradient a step, at `w + eps`; two copies of the weights, one more with `eta`. The step
    returns the loss there, and with `model=` running statistics move there.

    Raises:
        TypeError: `base` is not an optimizer instance.
        ValueError: `rho` is negative, or a hyperparameter or an option out of range.

    Reference: Li et al., Efficient Generalization Improvement Guided by Random Weight Perturbation,
    2022, arXiv:2211.11489; with `eta`, Li et al., TMLR 2024, arXiv:2404.00357.

    Examples:
        >>> import torch, flatmin
        >>> model, x, y = torch.nn.Linear(4, 2), torch.randn(8, 4), torch.randint(2, (8,))
        >>> base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> optimizer = flatmin.RWP(base, rho=0.01)
        >>> def closure():
        ...     loss = torch.nn.functional.cross_entropy(model(x), y)
        ...     loss.backward()
        ...     return loss
        >>> loss = optimizer.step(closure)
        >>> optimizer.cost.gradients
        1
    """
    return SharpnessAware(base, rho, direction=Random(eta, beta, seed), **options)


@documented
def MixedRWP(
    base: Optimizer,
    rho: float = 0.01,
    share: float = 0.5,
    eta: float = 0.0,
    beta: float = 0.99,
    seed: int = 0,
    **options: Unpack[Options],
) -> SharpnessAware:
    """Li et al. 2022: the gradient, and that at randomly perturbed weights, in one mean.

        eps = rho ‖w_filter‖ z, as in `RWP`
        w <- base step from w with (1 - share) g + share ∇L(w + eps)

    Args:
        base: any `torch.optim` optimizer, built on the parameters to train; it takes the step.
        rho: standard deviation of a weight's noise in units of the norm of its filter, at least 0;
            default 0.01. The mean bears a larger one than `RWP`. Tune it by factors of two.
        share: weight of the perturbed gradient, at least 0; default 0.5, the paper's. 0 is the base
            alone, 1 is `RWP`.
        eta: how much less filters with large gradients move, at least 0; default 0: not at all. 0.1
            is the adaptive form of Li et al. 2024.
        beta: memory of `f`, in [0, 1); default 0.99; without `eta` it does nothing.
        seed: of the noise, any whole number; default 0.
        **options: `model`, `nonfinite`, `max_norm`, `ascent`, `masters`, `replay_random`,
            `measure_radius`, `max_skips`: those of every method; see `SharpnessAware`.

    Cost: 2 gradients a step; two copies of the weights, one more with `eta`, and the first gradient
    through the second pass.

    Raises:
        TypeError: `base` is not an optimizer instance.
        ValueError: `rho` or `share` is negative, or a hyperparameter or an option out of range.

    Differs from the authors' code, which may take the two gradients on two batches: here both are
    of one batch, as in SAM.

    Reference: Li et al., Efficient Generalization Improvement Guided by Random Weight Perturbation,
    2022, arXiv:2211.11489; with `eta`, Li et al., TMLR 2024, arXiv:2404.00357.

    Examples:
        >>> import torch, flatmin
        >>> model, x, y = torch.nn.Linear(4, 2), torch.randn(8, 4), torch.randint(2, (8,))
        >>> base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> optimizer = flatmin.MixedRWP(base, rho=0.01)
        >>> def closure():
        ...     loss = torch.nn.functional.cross_entropy(model(x), y)
        ...     loss.backward()
        ...     return loss
        >>> loss = optimizer.step(closure)
        >>> optimizer.cost.gradients
        2
    """
    random, mixed = Random(eta, beta, seed), Mixed(share)
    return SharpnessAware(base, rho, direction=random, descent=mixed, **options)


@documented
def WSAM(
    base: Optimizer, rho: float = 0.05, gamma: float = 0.9, **options: Unpack[Options]
) -> SharpnessAware:
    """Yue et al. 2023: weigh the sharpness against the loss.

        share = gamma / (1 - gamma);   eps = rho g / ‖g‖
        w <- base step from w with (1 - share) g + share ∇L(w + eps)

    Args:
        base: any `torch.optim` optimizer, built on the parameters to train; it takes the step.
        rho: length of `eps`, at least 0; default 0.05. Start at SAM's.
        gamma: weight of the sharpness, in [0, 1); default 0.9, the paper's. 0.5 is SAM, 0 the base
            alone at SAM's price; towards 1 the sharpness is all.
        **options: `model`, `nonfinite`, `max_norm`, `ascent`, `masters`, `replay_random`,
            `measure_radius`, `max_skips`: those of every method; see `SharpnessAware`.

    Cost: 2 gradients a step; one copy of the weights, and the first gradient through the second
    pass.

    Raises:
        TypeError: `base` is not an optimizer instance.
        ValueError: `rho` is negative, `gamma` outside of [0, 1), or an option out of range.

    It is the coupled form; the paper also has one that takes the sharpness apart from the base's
    step.

    Reference: Yue et al., Sharpness-Aware Minimization Revisited: Weighted Sharpness as a
    Regularization Term, KDD 2023, arXiv:2305.15817, Algorithm 1.

    Examples:
        >>> import torch, flatmin
        >>> model, x, y = torch.nn.Linear(4, 2), torch.randn(8, 4), torch.randint(2, (8,))
        >>> base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> optimizer = flatmin.WSAM(base, rho=0.05, gamma=0.8)
        >>> def closure():
        ...     loss = torch.nn.functional.cross_entropy(model(x), y)
        ...     loss.backward()
        ...     return loss
        >>> loss = optimizer.step(closure)
        >>> optimizer.cost.gradients
        2
    """
    check.in_range("gamma", gamma, 0.0, 1.0, open_high=True)
    return SharpnessAware(base, rho, descent=Mixed(gamma / (1 - gamma)), **options)


@documented
def LateSAM(
    base: Optimizer,
    total_steps: int,
    rho: float = 0.05,
    start: float = 0.875,
    **options: Unpack[Options],
) -> SharpnessAware:
    """Zhou et al. 2024: the base optimizer alone, and SAM in the last part of the training.

        t < start T:  w <- base step from w with g
        else:         w <- base step from w with ∇L(w + rho g / ‖g‖)

    Args:
        base: any `torch.optim` optimizer, built on the parameters to train; it takes the step.
        total_steps: `T`, the steps of the whole training (epochs times batches), at least 1.
        rho: length of `eps` where it looks, at least 0; default 0.05. Start at SAM's.
        start: share of the training that comes first, in [0, 1]; default 0.875, the last 25 of 200
            epochs. 0 is SAM, 1 the base.
        **options: `model`, `nonfinite`, `max_norm`, `ascent`, `masters`, `replay_random`,
            `measure_radius`, `max_skips`: those of every method; see `SharpnessAware`.

    Cost: 2 - start gradients a step on average, 1.125 with the default; one copy of the weights.

    Raises:
        TypeError: `base` is not an optimizer instance.
        ValueError: `total_steps` is not a positive integer, `rho` is negative, `start` outside of
            [0, 1], or an option out of range.

    Reference: Zhou et al., Sharpness-Aware Minimization Efficiently Selects Flatter Minima Late in
    Training, 2024, arXiv:2410.10373.

    Examples:
        >>> import torch, flatmin
        >>> model, x, y = torch.nn.Linear(4, 2), torch.randn(8, 4), torch.randint(2, (8,))
        >>> base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> optimizer = flatmin.LateSAM(base, total_steps=100)
        >>> def closure():
        ...     loss = torch.nn.functional.cross_entropy(model(x), y)
        ...     loss.backward()
        ...     return loss
        >>> loss = optimizer.step(closure)
        >>> optimizer.cost.gradients, optimizer.gradients_per_step()
        (1, 1.12)
    """
    return SharpnessAware(base, rho, policy=Late(total_steps, start), **options)


@documented
def LateAgnosticSAM(
    base: Optimizer,
    total_steps: int,
    rho: float = 0.05,
    start: float = 0.875,
    rho1: float | None = None,
    rho2: float | None = None,
    beta: float = 0.9,
    auxiliary: Auxiliary = "batch",
    **options: Unpack[Options],
) -> SharpnessAware:
    """The base optimizer alone, and Agnostic-SAM in the last part of the training.

        t < start T:  w <- base step from w with g
        else:         v <- beta v + (1 - beta) ∇L(w + rho2 Γ(∇L(w; A)); A)
                      eps = rho1 Γ(g) - rho2 Γ(v);   w <- base step from w with ∇L(w + eps; B)

    Call `step(closure, aux_closure)`, with batches from `flatmin.paired` or `flatmin.split`; until
    it looks, the auxiliary batch is not evaluated.

    Args:
        base: any `torch.optim` optimizer, built on the parameters to train; it takes the step.
        total_steps: `T`, the steps of the whole training (epochs times batches), at least 1.
        rho: radius where it looks, at least 0; default 0.05. Start at that of `AgnosticSAM`.
        start: share of the training that comes first, in [0, 1]; default 0.875, the last 25 of 200
            epochs. 0 is Agnostic-SAM, 1 the base.
        rho1: step up the primary loss, at least 0; default None: `2 rho`, and following it.
        rho2: step down the auxiliary loss, at least 0; default None: `rho`, and following it.
        beta: memory of `v`, which starts at 0 with the first look, in [0, 1); default 0.9.
        auxiliary: "batch" or "previous"; default "batch". "previous" takes the gradient of the last
            perturbed step in place of an auxiliary batch.
        **options: `model`, `nonfinite`, `max_norm`, `ascent`, `masters`, `replay_random`,
            `measure_radius`, `max_skips`: those of every method; see `SharpnessAware`.

    Cost: 1 gradient a step until it looks, then 2 on the primary and 2 on the auxiliary batch:
    about 1.19 with the default and a quarter as many auxiliary samples; two copies of the weights.

    Raises:
        TypeError: `base` is not an optimizer instance.
        ValueError: `total_steps` is not a positive integer, `start` outside of [0, 1], a radius is
            negative, or a hyperparameter or an option out of range.

    Reference: a composition of Nguyen et al., Agnostic Sharpness-Aware Minimization, 2024,
    arXiv:2406.07107, and the late start of Zhou et al., 2024, arXiv:2410.10373.

    Examples:
        >>> import torch, flatmin
        >>> base = torch.optim.SGD(torch.nn.Linear(4, 2).parameters(), lr=0.1)
        >>> optimizer = flatmin.LateAgnosticSAM(base, total_steps=1000)
        >>> optimizer.gradients_per_step()
        1.1875
    """
    agnostic, late = Agnostic(rho1, rho2, beta, auxiliary=auxiliary), Late(total_steps, start)
    return SharpnessAware(base, rho, direction=agnostic, policy=late, **options)


@documented
def PreviousSAM(base: Optimizer, rho: float = 0.05, **options: Unpack[Options]) -> SharpnessAware:
    """Climb the perturbed gradient of the step before, at the price of the base.

        eps = rho Γ(g_s of the step before);  0 before the first
        w <- base step from w with g_s = ∇L(w + eps)

    Args:
        base: any `torch.optim` optimizer, built on the parameters to train; it takes the step.
        rho: length of `eps`, at least 0; default 0.05. Start at SAM's; batches that differ much
            from step to step bear less.
        **options: `model`, `nonfinite`, `max_norm`, `ascent`, `masters`, `replay_random`,
            `measure_radius`, `max_skips`: those of every method; see `SharpnessAware`.

    Cost: 1 gradient a step, at `w + eps`; two copies of the weights. The step returns the loss
    there, and with `model=` running statistics move there.

    Raises:
        TypeError: `base` is not an optimizer instance.
        ValueError: `rho` is negative, or an option out of range.

    Reference: no paper has it; it takes the closing question of Nguyen et al., arXiv:2406.07107
    (reuse the gradients of earlier steps), to its end.

    Examples:
        >>> import torch, flatmin
        >>> model, x, y = torch.nn.Linear(4, 2), torch.randn(8, 4), torch.randint(2, (8,))
        >>> base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> optimizer = flatmin.PreviousSAM(base, rho=0.05)
        >>> def closure():
        ...     loss = torch.nn.functional.cross_entropy(model(x), y)
        ...     loss.backward()
        ...     return loss
        >>> loss = optimizer.step(closure)
        >>> optimizer.cost.gradients
        1
    """
    return SharpnessAware(base, rho, direction=Previous(), **options)


@documented
def PreviousAgnosticSAM(
    base: Optimizer,
    rho: float = 0.05,
    rho1: float | None = None,
    rho2: float | None = None,
    beta: float = 0.9,
    **options: Unpack[Options],
) -> SharpnessAware:
    """Agnostic-SAM's step from the gradients of earlier steps alone, at the price of the base.

        eps = rho1 Γ(h) - rho2 Γ(v),  h = g_s of the step before;  0 before the first
        w <- base step from w with g_s = ∇L(w + eps)
        v <- beta v + (1 - beta) h, from 0;  then h <- g_s

    Args:
        base: any `torch.optim` optimizer, built on the parameters to train; it takes the step.
        rho: radius that the two steps follow, at least 0; default 0.05. The weights move by up to
            three of them: start at half of SAM's. Where it is too large training breaks down.
        rho1: step up the last gradient, at least 0; default None: `2 rho`, and following it.
        rho2: step down the mean, at least 0; default None: `rho`, and following it.
        beta: memory of `v`, in [0, 1); default 0.9, that of `AgnosticSAM`.
        **options: `model`, `nonfinite`, `max_norm`, `ascent`, `masters`, `replay_random`,
            `measure_radius`, `max_skips`: those of every method; see `SharpnessAware`.

    Cost: 1 gradient a step, at `w + eps`; three copies of the weights. The step returns the loss
    there, and with `model=` running statistics move there.

    Raises:
        TypeError: `base` is not an optimizer instance.
        ValueError: a radius is negative, `beta` out of range, or an option out of range.

    Reference: no paper has it; it takes the closing question of Nguyen et al., Agnostic
    Sharpness-Aware Minimization, 2024, arXiv:2406.07107, to its end.

    Examples:
        >>> import torch, flatmin
        >>> model, x, y = torch.nn.Linear(4, 2), torch.randn(8, 4), torch.randint(2, (8,))
        >>> base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> optimizer = flatmin.PreviousAgnosticSAM(base, rho=0.05)
        >>> def closure():
        ...     loss = torch.nn.functional.cross_entropy(model(x), y)
        ...     loss.backward()
        ...     return loss
        >>> loss = optimizer.step(closure)
        >>> optimizer.cost.gradients
        1
    """
    return SharpnessAware(base, rho, direction=PreviousAgnostic(rho1, rho2, beta), **options)


Build = Callable[..., SharpnessAware]


@dataclass(frozen=True)
class Method:
    """A method as the command line and the studies know it: a row of `TABLE`.

    What it does, with formula, arguments, cost and reference, is the help of `construct`.

    Args:
        name: its name on the command line.
        title: its name in a table.
        rho: its default radius; 0 for the base optimizer itself.
        construct: the function of this module, with the hyperparameters that the name stands for.
        adaptive: whether gradients decide which steps are perturbed, so that only training can tell
            what it costs; default False.
        auxiliary: whether its step takes an auxiliary closure; default False.
        per_sample: whether its closure takes indices and returns per-sample losses (ESAM); default
            False.
        sentence: what it does, where the function does not say; default "".

    Examples:
        >>> import flatmin
        >>> method = flatmin.methods.find("ae-agnostic-sam")
        >>> method.title, method.auxiliary, sorted(method.hyperparameters)
        ('AE-Agnostic-SAM', True, ['delta', 'lambda1', 'lambda2'])
    """

    name: str
    title: str
    rho: float
    construct: Build
    adaptive: bool = False
    auxiliary: bool = False
    per_sample: bool = False
    sentence: str = ""

    @property
    def summary(self) -> str:
        """What it does, in a sentence: its own, or that of the function."""
        return self.sentence or (self.construct.__doc__ or "").split("\n")[0]

    @cached_property
    def hyperparameters(self) -> frozenset[str]:
        """The names of its further hyperparameters, beside `rho` and `total_steps`."""
        parameters = inspect.signature(self.construct).parameters
        return frozenset(parameters) - {"base", "rho", "total_steps", *SHARED}

    def build(
        self,
        base: Optimizer,
        rho: float | None = None,
        *,
        total_steps: int,
        seed: int = 0,
        settings: Mapping[str, Any] | None = None,
        **options: Unpack[Options],
    ) -> SharpnessAware:
        """Make `base` sharpness-aware.

        Args:
            base: the base optimizer.
            rho: radius, at least 0; default None: the method's own.
            total_steps: of the whole training, for methods that ask for it.
            seed: for methods that throw coins; default 0.
            settings: further hyperparameters by name, some of `hyperparameters`; default None.
            **options: those of every method; see `SharpnessAware`.

        Raises:
            TypeError: `base` is not an optimizer instance, or `settings` has an unknown name.
            ValueError: something is out of range.
        """
        given: dict[str, Any] = {"rho": self.rho if rho is None else rho}
        if "total_steps" in inspect.signature(self.construct).parameters:
            given["total_steps"] = total_steps
        if "seed" in self.hyperparameters:
            given["seed"] = seed
        return self.construct(base, **{**given, **(settings or {})}, **options)


@documented
def _base_alone(base: Optimizer, rho: float = 0.0, **options: Unpack[Options]) -> SharpnessAware:
    """The base optimizer's own step, through the same loop.

        w <- base step from w with g

    The line to compare with: it differs from the bare `base` by nothing, bit for bit.

    Args:
        base: any `torch.optim` optimizer, built on the parameters to train; it takes the step.
        rho: not used, so that all methods are built alike; default 0.
        **options: `model`, `nonfinite`, `max_norm`, `ascent`, `masters`, `replay_random`,
            `measure_radius`, `max_skips`: those of every method; see `SharpnessAware`.

    Cost: 1 gradient a step; one copy of the weights.

    Raises:
        TypeError: `base` is not an optimizer instance.
        ValueError: an option is out of range.

    Reference: what the papers compare with; SGD or ERM in Foret et al., arXiv:2010.01412, and Jiang
    et al., arXiv:2304.14647.

    Examples:
        >>> import torch, flatmin
        >>> base = torch.optim.SGD(torch.nn.Linear(4, 2).parameters(), lr=0.1)
        >>> optimizer = flatmin.methods.find("sgd").build(base, total_steps=100)
        >>> optimizer.gradients_per_step()
        1.0
    """
    return SharpnessAware(base, 0.0, policy=Bernoulli(0.0), **options)


@dataclass(frozen=True)
class _Words:
    """What the help of a composition says of its direction."""

    name: str
    sentence: str
    eps: str
    cost: str
    copies: str
    reference: str

    def describe(self, construct: Build, text: str) -> Build:
        """Give a function that was made for this name its help."""
        paragraphs = text.format(**vars(self)).split("\n\n")
        construct.__doc__ = "\n\n".join(
            textwrap.fill(paragraph, 100)
            if paragraph.startswith(("Cost:", "Reference:"))
            else paragraph
            for paragraph in paragraphs
        )
        return documented(construct)


_AE_HELP = """{sentence}

    {eps}
    s, mu, var and c as in `AESAM`
    s >= mu + c sqrt(var):  w <- base step from w with ∇L(w + eps; B)
    else:                   w <- base step from w with g

A composition that no paper has. What the direction remembers moves on perturbed steps alone.

Args:
    base: any `torch.optim` optimizer, built on the parameters to train; it takes the step.
    total_steps: `T`, the steps of the whole training (epochs times batches), at least 1.
    rho: radius where it looks, at least 0; default 0.05. Start at that of the direction at every
        step, and tune it by factors of two.
    lambda1: threshold at the end, in standard deviations, any number or inf; default -1. Lower
        looks more often.
    lambda2: threshold at the start, likewise; default 1.
    delta: memory of the mean and variance of `s`, in [0, 1); default 0.9.
    **options: replaced by those of every method.

Cost: {cost} on perturbed steps, about half of them, and 1 on the others; {copies} of the weights; a
GPU is waited for once a step, for the norm.

Raises:
    TypeError: `base` is not an optimizer instance.
    ValueError: `total_steps` is not a positive integer, `rho` is negative, or a hyperparameter or
        an option out of range.

Reference: {reference}; the policy is that of Jiang et al., An Adaptive Policy to Employ
Sharpness-Aware Minimization, arXiv:2304.14647, Algorithm 1.

Examples:
    >>> import torch, flatmin
    >>> base = torch.optim.SGD(torch.nn.Linear(4, 2).parameters(), lr=0.1)
    >>> optimizer = flatmin.methods.find("{name}").build(base, total_steps=100)
    >>> optimizer.policy
    LargeGradient(total_steps=100, lambda1=-1.0, lambda2=1.0, delta=0.9)
"""

_LOOK_HELP = """{sentence}

    {eps}
    steps 0, k, 2k, …:  g_s = ∇L(w + eps; B);   h = g_s - (gᵀg_s / ‖g‖²) g is kept
                        w <- base step from w with g_s
    the others:         w <- base step from w with g + alpha (‖g‖ / ‖h‖) h

A composition that no paper has. What the direction remembers moves on perturbed steps alone.

Args:
    base: any `torch.optim` optimizer, built on the parameters to train; it takes the step.
    rho: radius where it looks, at least 0; default 0.05. Start at that of the direction at every
        step, and tune it by factors of two.
    k: steps from look to look, at least 1; default 5.
    alpha: weight of what is reused, at least 0; default 0.7. See `LookSAM`.
    **options: replaced by those of every method.

Cost: {cost} every k-th step, and 1 on the others; {copies} of the weights, one more for what is
reused, and the first gradient through the second pass.

Raises:
    TypeError: `base` is not an optimizer instance.
    ValueError: `rho` or `alpha` is negative, `k` is not a positive integer, or an option is out of
        range.

Reference: {reference}; what is reused is that of Liu et al., Towards Efficient and Scalable
Sharpness-Aware Minimization, arXiv:2203.02714, Algorithm 1.

Examples:
    >>> import torch, flatmin
    >>> base = torch.optim.SGD(torch.nn.Linear(4, 2).parameters(), lr=0.1)
    >>> optimizer = flatmin.methods.find("{name}").build(base, total_steps=100)
    >>> optimizer.policy, optimizer.descent
    (EveryK(k=5), Reuse(alpha=0.7))
"""

_CLIMBING_HELP = """{sentence}

    {eps}
    w <- base step from w with ∇L(w + eps; B)

It shows which part of the climb helps. Call `step(closure, aux_closure)`.

Args:
    base: any `torch.optim` optimizer, built on the parameters to train; it takes the step.
    rho: length of `eps`, at least 0; default 0.05. Take SAM's, so that the direction alone differs.
    **options: replaced by those of every method.

Cost: {cost} a step; {copies} of the weights.

Raises:
    TypeError: `base` is not an optimizer instance.
    ValueError: `rho` is negative, or an option out of range.

Reference: {reference}.

Examples:
    >>> import torch, flatmin
    >>> base = torch.optim.SGD(torch.nn.Linear(4, 2).parameters(), lr=0.1)
    >>> optimizer = flatmin.methods.find("{name}").build(base, total_steps=100)
    >>> optimizer.gradients_per_step(fraction=1.0)
    3.0
"""

_AGNOSTIC_EPS = """v <- beta v + (1 - beta) ∇L(w + rho Γ(∇L(w; A)); A), from 0
    eps = 2 rho Γ(g) - rho Γ(v);   beta = 0.9"""
_PREVIOUS_EPS = """eps = 2 rho Γ(g) - rho Γ(v);   beta = 0.9
    v <- beta v + (1 - beta) g_s after a perturbed step, from 0"""
_FRIENDLY_EPS = """m <- lmbda m + (1 - lmbda) g, from 0;   lmbda = 0.9
    eps = rho Γ(g - m)"""

_AGNOSTIC_COST = "2 gradients on the primary and 2 on the auxiliary batch"
_CLIMBING_COST = "2 gradients on the primary and 1 on the auxiliary batch"

_AGNOSTIC_PAPER = (
    "Nguyen et al., Agnostic Sharpness-Aware Minimization, 2024, arXiv:2406.07107, Algorithm 1"
)
_FRIENDLY_PAPER = "Li et al., Friendly Sharpness-Aware Minimization, CVPR 2024, arXiv:2403.12350, "


def _ae(direction: Direction, words: _Words) -> Build:
    """A composition that no paper has: the adaptive policy over any direction."""

    def construct(
        base: Optimizer,
        total_steps: int,
        rho: float = 0.05,
        lambda1: float = -1.0,
        lambda2: float = 1.0,
        delta: float = 0.9,
        **options: Unpack[Options],
    ) -> SharpnessAware:
        policy = LargeGradient(total_steps, lambda1, lambda2, delta)
        return SharpnessAware(base, rho, direction=direction, policy=policy, **options)

    return words.describe(construct, _AE_HELP)


def _look(direction: Direction, words: _Words) -> Build:
    """A composition that no paper has: reuse between every fifth step over any direction."""

    def construct(
        base: Optimizer,
        rho: float = 0.05,
        k: int = 5,
        alpha: float = 0.7,
        **options: Unpack[Options],
    ) -> SharpnessAware:
        policy, descent = EveryK(k), Reuse(alpha)
        return SharpnessAware(
            base, rho, direction=direction, policy=policy, descent=descent, **options
        )

    return words.describe(construct, _LOOK_HELP)


def _climbing(direction: Direction, words: _Words) -> Build:
    """SAM along another direction, as Li et al. 2024 take it apart."""

    def construct(base: Optimizer, rho: float = 0.05, **options: Unpack[Options]) -> SharpnessAware:
        return SharpnessAware(base, rho, direction=direction, **options)

    return words.describe(construct, _CLIMBING_HELP)


def _noise(words: _Words) -> Build:
    """The same, along what the batch adds."""

    def construct(
        base: Optimizer,
        rho: float = 0.05,
        projection: Projection = "printed",
        **options: Unpack[Options],
    ) -> SharpnessAware:
        return SharpnessAware(base, rho, direction=NoiseComponent(projection), **options)

    return words.describe(construct, _CLIMBING_HELP.replace("    **options", _PROJECTION_HELP))


_PROJECTION_HELP = """\
    projection: "printed" or "orthogonal"; default "printed", the paper's equation. Its text and
        its Lemma 1 ask for "orthogonal".
    **options"""

_PREVIOUS = Agnostic(auxiliary="previous")

_ROWS = (
    Method("sgd", "SGD", 0.0, _base_alone),
    Method("sam", "SAM", 0.05, SAM),
    Method("asam", "ASAM", 0.5, ASAM),
    Method("fisher-sam", "Fisher SAM", 0.1, FisherSAM),
    Method("friendly-sam", "F-SAM", 0.05, FriendlySAM),
    Method("friendly-asam", "F-ASAM", 0.5, FriendlyASAM),
    Method("agnostic-sam", "Agnostic-SAM", 0.05, AgnosticSAM, auxiliary=True),
    Method("agnostic-asam", "Agnostic-ASAM", 0.5, AgnosticASAM, auxiliary=True),
    Method("align-sam", "Align-SAM", 0.05, AlignSAM, auxiliary=True),
    Method("align-asam", "Align-ASAM", 0.5, AlignASAM, auxiliary=True),
    Method("vasso", "VASSO", 0.05, VASSO),
    Method("look-sam", "LookSAM", 0.05, LookSAM),
    Method("ss-sam", "SS-SAM", 0.05, SSSAM),
    Method("ae-sam", "AE-SAM", 0.05, AESAM, adaptive=True),
    Method("ae-look-sam", "AE-LookSAM", 0.05, AELookSAM, adaptive=True),
    Method("gsam", "GSAM", 0.05, GSAM),
    Method("esam", "ESAM", 0.05, ESAM, per_sample=True),
    Method("lookbehind-sam", "Lookbehind-SAM", 0.05, LookbehindSAM),
    Method("msam", "MSAM", 3.0, MSAM),
    Method("rwp", "RWP", 0.01, RWP),
    Method("mixed-rwp", "Mixed RWP", 0.01, MixedRWP),
    Method("wsam", "WSAM", 0.05, WSAM),
    Method("late-sam", "Late SAM", 0.05, LateSAM),
    Method("late-agnostic-sam", "Late Agnostic-SAM", 0.05, LateAgnosticSAM, auxiliary=True),
    Method("previous-sam", "SAM (previous)", 0.05, PreviousSAM),
    Method("previous-agnostic-sam", "Agnostic-SAM (previous only)", 0.05, PreviousAgnosticSAM),
    Method(
        "agnostic-sam-previous",
        "Agnostic-SAM (previous)",
        0.05,
        partial(AgnosticSAM, auxiliary="previous"),
        sentence="Agnostic-SAM at SAM's cost: the auxiliary batch is the one before.",
    ),
    Method(
        "ae-agnostic-sam",
        "AE-Agnostic-SAM",
        0.05,
        _ae(
            Agnostic(),
            _Words(
                "ae-agnostic-sam",
                "Agnostic-SAM's step where the gradient is large.",
                _AGNOSTIC_EPS,
                _AGNOSTIC_COST,
                "two copies",
                _AGNOSTIC_PAPER,
            ),
        ),
        adaptive=True,
        auxiliary=True,
    ),
    Method(
        "ae-agnostic-sam-previous",
        "AE-Agnostic-SAM (previous)",
        0.05,
        _ae(
            _PREVIOUS,
            _Words(
                "ae-agnostic-sam-previous",
                "Agnostic-SAM's step from the previous batch, where the gradient is large.",
                _PREVIOUS_EPS,
                "2 gradients",
                "two copies",
                _AGNOSTIC_PAPER,
            ),
        ),
        adaptive=True,
    ),
    Method(
        "ae-friendly-sam",
        "AE-F-SAM",
        0.05,
        _ae(
            Friendly(),
            _Words(
                "ae-friendly-sam",
                "Friendly SAM's step where the gradient is large.",
                _FRIENDLY_EPS,
                "2 gradients",
                "two copies",
                f"{_FRIENDLY_PAPER}Algorithm 1",
            ),
        ),
        adaptive=True,
    ),
    Method(
        "look-agnostic-sam",
        "Look-Agnostic-SAM",
        0.05,
        _look(
            Agnostic(),
            _Words(
                "look-agnostic-sam",
                "Agnostic-SAM every fifth step, and its look reused between.",
                _AGNOSTIC_EPS,
                _AGNOSTIC_COST,
                "two copies",
                _AGNOSTIC_PAPER,
            ),
        ),
        auxiliary=True,
    ),
    Method(
        "look-friendly-sam",
        "Look-F-SAM",
        0.05,
        _look(
            Friendly(),
            _Words(
                "look-friendly-sam",
                "Friendly SAM every fifth step, and its look reused between.",
                _FRIENDLY_EPS,
                "2 gradients",
                "two copies",
                f"{_FRIENDLY_PAPER}Algorithm 1",
            ),
        ),
    ),
    Method(
        "sam-db",
        "SAM-db",
        0.05,
        _climbing(
            OtherBatch(),
            _Words(
                "sam-db",
                "SAM that climbs the gradient of another batch.",
                "eps = rho Γ(∇L(w; A))",
                _CLIMBING_COST,
                "one copy",
                f"{_FRIENDLY_PAPER}§4.2",
            ),
        ),
        auxiliary=True,
    ),
    Method(
        "sam-full",
        "SAM-full",
        0.05,
        _climbing(
            FullComponent(),
            _Words(
                "sam-full",
                "SAM that climbs along the full gradient alone.",
                "G = ∇L(w; A), A the whole training set or a large sample of it\n    "
                "eps = rho Γ(cos(G, g) G)",
                _CLIMBING_COST,
                "one copy",
                f"{_FRIENDLY_PAPER}§4.1",
            ),
        ),
        auxiliary=True,
    ),
    Method(
        "sam-noise",
        "SAM-noise",
        0.05,
        _noise(
            _Words(
                "sam-noise",
                "SAM that climbs what the batch adds to the full gradient.",
                "G = ∇L(w; A), A the whole training set or a large sample of it\n    "
                'eps = rho Γ(g - c G);   c = cos(G, g), or gᵀG / ‖G‖² with projection="orthogonal"',
                _CLIMBING_COST,
                "one copy",
                f"{_FRIENDLY_PAPER}§4.2, eq. 8",
            ),
        ),
        auxiliary=True,
    ),
)

TABLE: Mapping[str, Method] = MappingProxyType({row.name: row for row in _ROWS})
"""Every method by its command-line name, the base optimizer (`sgd`) first."""


def find(name: str) -> Method:
    """The method called `name`, however it is written: `look-sam`, `LookSAM`, `looksam`.

    Args:
        name: a name in `TABLE`, the title there, or the name of the function; letters may be large
            or small, and hyphens and spaces are left out at will.

    Raises:
        ValueError: there is none; the nearest names are offered.

    Examples:
        >>> import flatmin
        >>> flatmin.methods.find("look-sam").construct is flatmin.LookSAM
        True
        >>> flatmin.methods.find("F-SAM") is flatmin.methods.find("FriendlySAM")
        True
    """
    if name in TABLE:
        return TABLE[name]
    spelt = _letters(name)
    for method in TABLE.values():
        if spelt and spelt in (_letters(method.name), _letters(method.title)):
            return method
    near = difflib.get_close_matches(name.lower(), TABLE, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(TABLE)}"
    raise ValueError(f"unknown method {name!r}: {hint}")


def _letters(name: str) -> str:
    """What tells the names of two methods apart."""
    return re.sub(r"[^a-z0-9]", "", name.lower())
