"""Every named method, one sentence each, and the table of their names on the command line.

Each takes the base optimizer, its own hyperparameters, and the options of `SharpnessAware`
(`model`, `nonfinite`, `replay_random`, `measure_radius`), and returns a `SharpnessAware`.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from types import MappingProxyType
from typing import Any, Literal

from torch.optim import Optimizer
from typing_extensions import Unpack

from flatmin.descent import Lookbehind, Reuse, SurrogateGap
from flatmin.direction import (
    Agnostic,
    Direction,
    Friendly,
    FullComponent,
    NoiseComponent,
    OtherBatch,
    Suppressed,
)
from flatmin.engine import check
from flatmin.geometry import Adaptive, Fisher, RandomSubset
from flatmin.optimizer import Options, SharpnessAware
from flatmin.policy import Bernoulli, EveryK, LargeGradient
from flatmin.selection import LossRise

Auxiliary = Literal["batch", "previous"]
Variant = Literal["paper", "released"]


def SAM(base: Optimizer, rho: float = 0.05, **options: Unpack[Options]) -> SharpnessAware:
    """Foret et al. 2021: descend the gradient seen one step of length rho uphill."""
    return SharpnessAware(base, rho, **options)


def ASAM(
    base: Optimizer, rho: float = 0.5, eta: float = 0.01, **options: Unpack[Options]
) -> SharpnessAware:
    """Kwon et al. 2021: SAM where distances are relative to the size of each weight."""
    return SharpnessAware(base, rho, geometry=Adaptive(eta), **options)


def FisherSAM(
    base: Optimizer, rho: float = 0.1, eta: float = 1.0, **options: Unpack[Options]
) -> SharpnessAware:
    """Kim et al. 2022: SAM where distances follow the Fisher information."""
    return SharpnessAware(base, rho, geometry=Fisher(eta), **options)


def FriendlySAM(
    base: Optimizer,
    rho: float = 0.05,
    sigma: float = 1.0,
    lmbda: float = 0.9,
    variant: Variant = "paper",
    **options: Unpack[Options],
) -> SharpnessAware:
    """Li et al. 2024: climb what the batch adds to the running mean of the gradients."""
    return SharpnessAware(base, rho, direction=Friendly(sigma, lmbda, variant), **options)


def FriendlyASAM(
    base: Optimizer,
    rho: float = 0.5,
    eta: float = 0.01,
    sigma: float = 1.0,
    lmbda: float = 0.9,
    variant: Variant = "paper",
    **options: Unpack[Options],
) -> SharpnessAware:
    """Li et al. 2024: Friendly SAM in the metric of ASAM."""
    friendly = Friendly(sigma, lmbda, variant)
    return SharpnessAware(base, rho, direction=friendly, geometry=Adaptive(eta), **options)


def AgnosticSAM(
    base: Optimizer,
    rho: float = 0.05,
    rho1: float | None = None,
    rho2: float | None = None,
    beta: float = 0.9,
    auxiliary: Auxiliary = "batch",
    **options: Unpack[Options],
) -> SharpnessAware:
    """Nguyen et al. 2024: climb the training loss but step down that of an auxiliary batch."""
    return SharpnessAware(
        base, rho, direction=Agnostic(rho1, rho2, beta, auxiliary=auxiliary), **options
    )


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
    """Nguyen et al. 2024: Agnostic-SAM in the metric of ASAM."""
    agnostic = Agnostic(rho1, rho2, beta, auxiliary=auxiliary)
    return SharpnessAware(base, rho, direction=agnostic, geometry=Adaptive(eta), **options)


def AlignSAM(
    base: Optimizer, rho: float = 0.05, lmbda: float = 2.0, **options: Unpack[Options]
) -> SharpnessAware:
    """Agnostic-SAM in its later form: without memory, with radii `lmbda rho` and `rho`."""
    check.at_least_zero("lmbda", lmbda)
    return SharpnessAware(base, rho, direction=Agnostic(beta=0.0, ratio=lmbda), **options)


def AlignASAM(
    base: Optimizer,
    rho: float = 0.5,
    eta: float = 0.01,
    lmbda: float = 2.0,
    **options: Unpack[Options],
) -> SharpnessAware:
    """Align-SAM in the metric of ASAM."""
    check.at_least_zero("lmbda", lmbda)
    align = Agnostic(beta=0.0, ratio=lmbda)
    return SharpnessAware(base, rho, direction=align, geometry=Adaptive(eta), **options)


def VASSO(
    base: Optimizer, rho: float = 0.05, theta: float = 0.9, **options: Unpack[Options]
) -> SharpnessAware:
    """Li & Giannakis 2023: climb a running mean of the gradients."""
    return SharpnessAware(base, rho, direction=Suppressed(theta), **options)


def LookSAM(
    base: Optimizer, rho: float = 0.05, k: int = 5, alpha: float = 0.7, **options: Unpack[Options]
) -> SharpnessAware:
    """Liu et al. 2022: look every k-th step, and reuse what was seen in the steps between."""
    return SharpnessAware(base, rho, policy=EveryK(k), descent=Reuse(alpha), **options)


def SSSAM(
    base: Optimizer, rho: float = 0.05, p: float = 0.5, seed: int = 0, **options: Unpack[Options]
) -> SharpnessAware:
    """Zhao et al. 2022: a coin decides whether a step is SAM's or the base optimizer's."""
    return SharpnessAware(base, rho, policy=Bernoulli(p, seed), **options)


def AESAM(
    base: Optimizer,
    total_steps: int,
    rho: float = 0.05,
    lambda1: float = -1.0,
    lambda2: float = 1.0,
    delta: float = 0.9,
    **options: Unpack[Options],
) -> SharpnessAware:
    """Jiang et al. 2023: SAM's step where the gradient is large, the base optimizer's elsewhere."""
    policy = LargeGradient(total_steps, lambda1, lambda2, delta)
    return SharpnessAware(base, rho, policy=policy, **options)


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
    """Jiang et al. 2023: look where the gradient is large, and reuse what was seen elsewhere."""
    policy = LargeGradient(total_steps, lambda1, lambda2, delta)
    return SharpnessAware(base, rho, policy=policy, descent=Reuse(alpha), **options)


def GSAM(
    base: Optimizer, rho: float = 0.05, alpha: float = 0.1, **options: Unpack[Options]
) -> SharpnessAware:
    """Zhuang et al. 2022: also close the gap between the perturbed loss and the loss."""
    return SharpnessAware(base, rho, descent=SurrogateGap(alpha), **options)


def ESAM(
    base: Optimizer,
    rho: float = 0.05,
    beta: float = 0.6,
    gamma: float = 0.5,
    seed: int = 0,
    **options: Unpack[Options],
) -> SharpnessAware:
    """Du et al. 2022: perturb some of the tensors, look at the samples whose loss rose most.

    Its closure takes the chosen sample indices (or None) and returns per-sample losses; see
    `flatmin.selection.LossRise`.
    """
    subset = RandomSubset(beta, seed)
    return SharpnessAware(base, rho, geometry=subset, selection=LossRise(gamma), **options)


def LookbehindSAM(
    base: Optimizer, rho: float = 0.05, k: int = 5, alpha: float = 0.5, **options: Unpack[Options]
) -> SharpnessAware:
    """Mordido et al. 2024: climb k times, descend every gradient seen, go part of the way there."""
    return SharpnessAware(base, rho, descent=Lookbehind(k, alpha), **options)


Build = Callable[..., SharpnessAware]


@dataclass(frozen=True)
class Method:
    """A method as the command line and the studies know it.

    Fields:
        name: its name on the command line.
        title: its name in a table.
        rho: its default radius; 0 for the base optimizer itself.
        construct: the function of this module, with the hyperparameters that the name stands for.
        adaptive: whether it needs to know the number of steps in advance.
        auxiliary: whether its step takes an auxiliary closure.
        per_sample: whether its closure takes indices and returns per-sample losses (ESAM).
        sentence: what it does, where the function does not say.
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
        return frozenset(parameters) - {"base", "rho", "total_steps", "options"}

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
            rho: radius; the method's default unless given.
            total_steps: of the whole training, for methods that are `adaptive`.
            seed: for methods that throw coins.
            settings: further hyperparameters by name, some of `hyperparameters`.
            options: those of `SharpnessAware`.
        """
        given: dict[str, Any] = {"rho": self.rho if rho is None else rho}
        if self.adaptive:
            given["total_steps"] = total_steps
        if "seed" in self.hyperparameters:
            given["seed"] = seed
        return self.construct(base, **{**given, **(settings or {})}, **options)


def _base_alone(base: Optimizer, rho: float = 0.0, **options: Unpack[Options]) -> SharpnessAware:
    """The base optimizer's own step, through the same loop."""
    return SharpnessAware(base, 0.0, policy=Bernoulli(0.0), **options)


def _ae(direction: Direction, summary: str) -> Build:
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

    construct.__doc__ = summary
    return construct


def _look(direction: Direction, summary: str) -> Build:
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

    construct.__doc__ = summary
    return construct


def _climbing(direction: Direction, summary: str) -> Build:
    """SAM along another direction, as Li et al. 2024 take it apart."""

    def construct(base: Optimizer, rho: float = 0.05, **options: Unpack[Options]) -> SharpnessAware:
        return SharpnessAware(base, rho, direction=direction, **options)

    construct.__doc__ = summary
    return construct


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
        _ae(Agnostic(), "Agnostic-SAM's step where the gradient is large."),
        adaptive=True,
        auxiliary=True,
    ),
    Method(
        "ae-agnostic-sam-previous",
        "AE-Agnostic-SAM (previous)",
        0.05,
        _ae(_PREVIOUS, "Agnostic-SAM's step from the previous batch, where the gradient is large."),
        adaptive=True,
    ),
    Method(
        "ae-friendly-sam",
        "AE-F-SAM",
        0.05,
        _ae(Friendly(), "Friendly SAM's step where the gradient is large."),
        adaptive=True,
    ),
    Method(
        "look-agnostic-sam",
        "Look-Agnostic-SAM",
        0.05,
        _look(Agnostic(), "Agnostic-SAM every fifth step, and its look reused between."),
        auxiliary=True,
    ),
    Method(
        "look-friendly-sam",
        "Look-F-SAM",
        0.05,
        _look(Friendly(), "Friendly SAM every fifth step, and its look reused between."),
    ),
    Method(
        "sam-db",
        "SAM-db",
        0.05,
        _climbing(OtherBatch(), "SAM that climbs the gradient of another batch."),
        auxiliary=True,
    ),
    Method(
        "sam-full",
        "SAM-full",
        0.05,
        _climbing(FullComponent(), "SAM that climbs along the full gradient alone."),
        auxiliary=True,
    ),
    Method(
        "sam-noise",
        "SAM-noise",
        0.05,
        _climbing(NoiseComponent(), "SAM that climbs what the batch adds to the full gradient."),
        auxiliary=True,
    ),
)

TABLE: Mapping[str, Method] = MappingProxyType({row.name: row for row in _ROWS})
"""Every method by its command-line name, the base optimizer (`sgd`) first."""


def find(name: str) -> Method:
    """The method called `name`; raises ValueError offering the nearest names if there is none."""
    if name in TABLE:
        return TABLE[name]
    near = difflib.get_close_matches(name, TABLE, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(TABLE)}"
    raise ValueError(f"unknown method {name!r}: {hint}")
