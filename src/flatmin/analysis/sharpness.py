"""How much the loss rises nearby: at one ascent step, at the worst place found, on average."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from flatmin.analysis.batches import batches_of, chunks_of
from flatmin.analysis.metric import metric_of
from flatmin.analysis.objective import Loss, Objective
from flatmin.analysis.parameters import Subset
from flatmin.analysis.untouched import Mode
from flatmin.engine import check
from flatmin.engine.vec import TINY
from flatmin.geometry import Euclidean, Geometry

METHODS = ("ascent", "projected", "average")


@dataclass(frozen=True)
class Sharpness:
    """What `sharpness` has found, by radius.

    Fields:
        rho: the radii.
        rise: `L(w + eps) - L(w)` at each; what a mean is taken over, its mean.
        error: standard error of each rise, over draws or over groups; 0 where nothing is drawn.
        distance: `‖eps‖`, the Euclidean length really travelled.
        loss: `L(w)`.
        gradients: how many were taken in all, in units of one on all the data; a loss counts a
            third.
    """

    rho: tuple[float, ...]
    rise: tuple[float, ...]
    error: tuple[float, ...]
    distance: tuple[float, ...]
    loss: float
    gradients: float

    def __str__(self) -> str:
        rows = zip(self.rho, self.rise, self.error, strict=True)
        return "\n".join(f"rho {r:g}: {x:.6g} ± {e:.1g}" for r, x, e in rows)


def sharpness(
    model: nn.Module,
    loss: Loss,
    data: Any,
    rho: float | Sequence[float] = 0.05,
    method: Literal["ascent", "projected", "average"] = "ascent",
    *,
    geometry: Geometry | None = None,
    m: int | None = None,
    steps: int = 20,
    draws: int = 20,
    parameters: Subset = None,
    mode: Mode | None = "eval",
    dtype: torch.dtype | None = None,
    chunk: int | None = 128,
    seed: int = 0,
) -> Sharpness:
    """By how much the mean loss rises near the weights.

        ascent      L(w + rho Γ(g)) - L(w),                          g = ∇L(w)
        projected   max L(w + eps) - L(w)  subject to ‖T⁻¹ eps‖ ≤ rho,   by projected ascent
        average     E L(w + rho T z) - L(w),                         z standard normal

    `T` and `Γ` are those of the geometry, as in the optimizers. A projected rise is at least that
    of one ascent step, and grows with rho: each radius also starts where the one before ended.

    Args:
        model: any module; left bit for bit as it is.
        loss: `loss(model, batch)` returns the mean over the samples of `batch`, without backward.
        data: one batch, a list of batches, a `DataLoader`, or a data set of batches.
        rho: one radius or several, above 0; default 0.05. For "average" it is the deviation of each
            weight: rho / √parameters has about the length rho.
        method: "ascent" (default), the step of SAM; "projected", the worst place that `steps` steps
            find; "average".
        geometry: the metric; default `Euclidean()`. `Adaptive(eta=0)` does not change when layers
            are rescaled against each other.
        m: number of samples in a group; then each group has its own worst place, as in m-sharpness,
            and rises are averaged over groups. Default None: all samples together.
        steps: of projected ascent, at least 1; default 20.
        draws: of "average", at least 2; default 20. They come in pairs of opposite ones, at least
            two of these.
        parameters: which are perturbed; default all that require gradients.
        mode: "eval" (default), "train", or None for the model's own.
        dtype: the type to compute in; default the model's. Rises below 1e-6 of the loss need
            `torch.float64`.
        chunk: most samples evaluated at once; default 128.
        seed: of the draws; default 0.

    Cost: "ascent" one gradient and one loss a radius; "projected" `steps` gradients a radius;
    "average" `draws` losses a radius. Memory: five copies of the weights.

    Raises:
        ValueError: an argument is out of range; and what `Objective` raises.

    Reference: Foret et al., ICLR 2021, arXiv:2010.01412 (m-sharpness: section 4.1); Andriushchenko
    et al., A modern look at the relationship between sharpness and generalization, ICML 2023,
    arXiv:2302.07011.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> from flatmin import analysis
        >>> def loss(model, batch):
        ...     x, y = batch
        ...     return ((model(x) - y) ** 2).mean() / 2
        >>> model = nn.Linear(1, 1, bias=False)
        >>> nn.init.ones_(model.weight).numel()
        1
        >>> batch = torch.ones(2, 1), torch.zeros(2, 1)
        >>> found = analysis.sharpness(model, loss, batch, rho=1.0)  # (2² - 1²) / 2
        >>> found.rise
        (1.5,)
    """
    radii = (float(rho),) if isinstance(rho, (int, float)) else tuple(float(r) for r in rho)
    if not radii:
        raise ValueError("rho holds no radius: give one, as in rho=[0.05, 0.1]")
    for r in radii:
        check.in_range("rho", r, 0.0, math.inf, open_low=True, open_high=True)
    check.one_of("method", method, METHODS)
    check.positive_int("steps", steps)
    check.positive_int("draws", draws)
    check.in_range("draws", draws, 2, math.inf)
    check.seed(seed)
    metric = geometry or Euclidean()

    def of(part: Any) -> Sharpness:
        objective = Objective(model, loss, part, parameters, mode=mode, dtype=dtype, chunk=chunk)
        look = _Look(objective, metric)
        if method == "ascent":
            return look.ascent(radii)
        if method == "projected":
            return look.projected(radii, steps)
        return look.average(radii, draws, seed)

    if m is None:
        return of(data)
    check.positive_int("m", m)
    groups = chunks_of(batches_of(data), m)
    found = [of(group.batch) for group in groups]
    return _mean(found, [group.weight for group in groups])


def _mean(found: Sequence[Sharpness], weights: Sequence[float]) -> Sharpness:
    """The mean over groups, each by its size, with the standard error of their spread."""
    count = len(found)

    def mean(values: Sequence[float]) -> float:
        return sum(w * x for w, x in zip(weights, values, strict=True))

    rises = list(zip(*(each.rise for each in found), strict=True))
    means = [mean(each) for each in rises]
    spreads = [
        mean([(x - middle) ** 2 for x in each]) for each, middle in zip(rises, means, strict=True)
    ]
    return replace(
        found[0],
        rise=tuple(means),
        error=tuple(math.sqrt(s / (count - 1)) if count > 1 else 0.0 for s in spreads),
        distance=tuple(mean(x) for x in zip(*(each.distance for each in found), strict=True)),
        loss=mean([each.loss for each in found]),
        gradients=mean([each.gradients for each in found]),
    )


class _Look:
    """A loss around the weights, in a metric: `eps = T u`, with `u` in a Euclidean ball."""

    def __init__(self, objective: Objective, geometry: Geometry) -> None:
        self._objective = objective
        self._losses = self._gradients = 0
        self.loss, self._grad = objective.value_and_gradient()
        self._gradients += 1
        self._T = metric_of(objective.parameters, geometry, self._grad, objective.leaves)
        self._gain = geometry.gain

    def ascent(self, radii: Sequence[float]) -> Sharpness:
        ways = [self._T * self._up(self._T * self._grad, r) for r in radii]
        with self._objective.moving() as move:
            rises = [self._rise(move, eps) for eps in ways]
        return self._found(radii, rises, [0.0] * len(radii), list(map(_norm, ways)))

    def projected(self, radii: Sequence[float], steps: int) -> Sharpness:
        rises = dict.fromkeys(radii, 0.0)
        lengths = dict.fromkeys(radii, 0.0)
        best = torch.zeros_like(self._grad)
        with self._objective.moving() as move:
            for r in sorted(radii):
                starts = [self._up(self._T * self._grad, r)]
                if best.any():
                    starts.append(best)
                rises[r], best = self._climb(move, r, starts, steps)
                lengths[r] = _norm(self._T * best)
        found = [rises[r] for r in radii]
        return self._found(radii, found, [0.0] * len(radii), [lengths[r] for r in radii])

    def _climb(
        self, move: Any, rho: float, starts: Sequence[Tensor], steps: int
    ) -> tuple[float, Tensor]:
        """The highest place that steps of projected ascent see from the best of some starts."""
        radius = rho * self._gain
        looks = [(self._at(move, u), u) for u in starts]
        (rise, slope), u = max(looks, key=lambda look: look[0][0])
        top, highest, stride = rise, u, radius
        for _ in range(steps - len(starts)):
            u = u + self._up(slope, stride / self._gain)
            length = _norm(u)
            if length > radius:
                u = u * (radius / length)
            rise, slope = self._at(move, u)
            if rise > top:
                top, highest = rise, u
            else:
                stride /= 2
        return top, highest

    def average(self, radii: Sequence[float], draws: int, seed: int) -> Sharpness:
        source = torch.Generator().manual_seed(seed)
        rises: list[list[float]] = [[] for _ in radii]
        lengths: list[list[float]] = [[] for _ in radii]
        pairs = max(2, -(-draws // 2))
        with self._objective.moving() as move:
            for _ in range(pairs):
                z = torch.randn(len(self._grad), generator=source, dtype=torch.float64)
                eps = self._T * z.to(self._grad.device)
                for i, r in enumerate(radii):
                    # with its opposite: the slope, whose mean is 0, would hide the curvature
                    both = self._rise(move, r * eps) + self._rise(move, -r * eps)
                    rises[i].append(both / 2)
                    lengths[i].append(r * _norm(eps))
        means = [sum(x) / pairs for x in rises]
        spreads = [
            sum((x - mean) ** 2 for x in each) for each, mean in zip(rises, means, strict=True)
        ]
        errors = [math.sqrt(s / (pairs - 1) / pairs) for s in spreads]
        return self._found(radii, means, errors, [sum(x) / pairs for x in lengths])

    def _up(self, slope: Tensor, rho: float) -> Tensor:
        """A step of length `rho` along a slope in the ball's coordinates."""
        return slope * (rho * self._gain / (_norm(slope) + TINY))

    def _rise(self, move: Any, eps: Tensor) -> float:
        move(eps)
        self._losses += 1
        return self._objective.value() - self.loss

    def _at(self, move: Any, u: Tensor) -> tuple[float, Tensor]:
        """The rise at a place in the ball, and its slope there."""
        move(self._T * u)
        self._gradients += 1
        value, grad = self._objective.value_and_gradient()
        return value - self.loss, self._T * grad

    def _found(
        self,
        radii: Sequence[float],
        rises: Sequence[float],
        errors: Sequence[float],
        lengths: Sequence[float],
    ) -> Sharpness:
        cost = self._gradients + self._losses / 3
        return Sharpness(tuple(radii), tuple(rises), tuple(errors), tuple(lengths), self.loss, cost)


def _norm(x: Tensor) -> float:
    return float(x.square().sum().sqrt())
