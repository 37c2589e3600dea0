"""How much the gradients of batches differ at fixed weights, and how their norms are spread."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from scipy import stats
from torch import Tensor, nn

from flatmin.analysis.batches import batches_of, size_of
from flatmin.analysis.lanczos import Array
from flatmin.analysis.objective import Loss, Objective
from flatmin.analysis.parameters import Subset
from flatmin.analysis.untouched import Mode
from flatmin.analysis.vectors import dot
from flatmin.engine import check
from flatmin.pairs import part_of
from flatmin.policy import LargeGradient

SHAPIRO_MOST = 5000
"""Numbers up to which Shapiro and Wilk's test is known to be accurate."""


@dataclass(frozen=True)
class Histogram:
    """How many numbers lie in each bin.

    Fields:
        edges: of the bins, ascending, one more than there are counts.
        counts: numbers in each.
    """

    edges: Array
    counts: Array


@dataclass(frozen=True)
class QuantilePlot:
    """A normal quantile-quantile plot: points on a line, where the sample is normal.

    Fields:
        normal: quantiles of the standard normal distribution, ascending.
        sample: the sorted sample.
        slope: of the least-squares line.
        intercept: of the same line.
        correlation: of the points; 1 on a line.
    """

    normal: Array
    sample: Array
    slope: float
    intercept: float
    correlation: float


@dataclass(frozen=True)
class Normality:
    """Shapiro and Wilk's test of whether a sample is normal.

    Fields:
        statistic: W, at most 1; the nearer to 1, the nearer to normal.
        p: how often a normal sample has so small a W. With 400 numbers a distribution that no eye
            tells from a bell may have a small one.
        skewness: 0 for a symmetric distribution; sums of squares lean to the right.
    """

    statistic: float
    p: float
    skewness: float


@dataclass(frozen=True)
class GradientNoise:
    """What `gradient_noise` has found.

    Fields:
        squared_norms: `‖∇L_B‖²` of each batch.
        full: `‖∇L‖²`, of the mean over all batches.
        variance: `E‖∇L_B - ∇L‖²` over the batches, which is `E‖∇L_B‖² - ‖∇L‖²`.
        batch: samples of a batch.
        samples: in all batches.
        left_out: samples that did not fill a last batch.
    """

    squared_norms: Array
    full: float
    variance: float
    batch: int
    samples: int
    left_out: int = 0

    @property
    def per_sample(self) -> float:
        """An estimate of σ², the variance of the gradient of a single sample.

            σ² = b (N - 1) / (N - b) · variance

        Batches of a partition are drawn without replacement: hence the factor besides b. nan where
        there is but one batch. With batch normalization on batch statistics samples have no
        gradient of their own, and this is no more than a scaled variance.
        """
        if self.samples == self.batch:
            return math.nan
        return self.variance * self.batch * (self.samples - 1) / (self.samples - self.batch)

    def histogram(self, bins: int = 20) -> Histogram:
        """Of the squared norms.

        Args:
            bins: of equal width; default 20.
        """
        check.positive_int("bins", bins)
        counts, edges = np.histogram(self.squared_norms, bins)
        return Histogram(edges, counts)

    def quantiles(self) -> QuantilePlot:
        """The normal quantile-quantile plot of the squared norms."""
        _require_several(self.squared_norms, 3)
        points, line = cast(Any, stats.probplot)(self.squared_norms)
        slope, intercept, correlation = map(float, line)
        return QuantilePlot(points[0], points[1], slope, intercept, correlation)

    def normality(self) -> Normality:
        """Are the squared norms normal?"""
        _require_several(self.squared_norms, 3)
        with warnings.catch_warnings():  # a p above 5000 numbers is not accurate, and said so below
            warnings.filterwarnings("ignore", message=".*p-value may not be accurate")
            found: Any = stats.shapiro(self.squared_norms)
        p = float(found.pvalue) if len(self.squared_norms) <= SHAPIRO_MOST else math.nan
        skewness: Any = stats.skew(self.squared_norms)
        return Normality(float(found.statistic), p, float(skewness))

    def __str__(self) -> str:
        norms = self.squared_norms
        found = f"E‖g_B‖² {norms.mean():.6g}, ‖g‖² {self.full:.6g}, variance {self.variance:.6g}"
        rows = [f"{found} ({len(norms)} batches of {self.batch})"]
        if len(norms) >= 3:
            test = self.normality()
            rows.append(f"normality of ‖g_B‖²: W {test.statistic:.4f}, p {test.p:.2g}")
        return "\n".join(rows)


def gradient_noise(
    model: nn.Module,
    loss: Loss,
    data: Any,
    batch: int | None = None,
    *,
    most: int | None = None,
    parameters: Subset = None,
    mode: Mode | None = None,
    dtype: torch.dtype | None = None,
) -> GradientNoise:
    """The spread of batch gradients at fixed weights, over a partition into equal batches.

        variance = E‖∇L_B - ∇L‖² = E‖∇L_B‖² - ‖∇L‖²

    and the sample of `‖∇L_B‖²`, with its histogram, normal quantile plot and a test of normality.
    The policy of AE-SAM models these squared norms as normal.

    Args:
        model: any module; left as it is.
        loss: `loss(model, batch)`, the mean over the batch, without backward.
        data: see `Objective`; shuffled, since neighbours in it become one batch.
        batch: samples of a batch, at least 1; default None: the batches of `data` as they are,
            which must be equal but for a smaller last one. What does not fill a batch is left out.
        most: take this many batches at most; default None: all. The full gradient is that of the
            batches taken.
        parameters: which; default None: all that require gradients.
        mode: "eval" or "train"; default None: each module in the mode that it is in. In "train"
            batch normalization sees each batch alone, as training does, and the full gradient is
            the mean of the batches'.
        dtype: the type to compute in; default None: the model's.

    Cost: one gradient on the data; three copies of the weights.

    Raises:
        ValueError: the batches are not equal, or there is none; FSDP2 shards, of whose single
            batches no rank has the whole gradient; and what `Objective` raises.

    Reference: Jiang et al., An Adaptive Policy to Employ SAM, ICLR 2023, arXiv:2304.14647, eq. 3
    and Figures 1 to 3.

    Examples:
        >>> import torch
        >>> from flatmin import analysis
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> def loss(model, x):
        ...     return (model.weight * x).mean()  # its gradient is x
        >>> found = analysis.gradient_noise(model, loss, torch.tensor([[1.0], [3.0]]), batch=1)
        >>> found.squared_norms.tolist(), found.full, found.variance
        ([1.0, 9.0], 4.0, 1.0)
    """
    if batch is not None:
        check.positive_int("batch", batch)
    if most is not None:
        check.positive_int("most", most)
    batches, size, left_out = _equal(batches_of(data), batch)
    objective = Objective(
        model, loss, batches[:most], parameters, mode=mode, dtype=dtype, chunk=None
    )
    if objective.sharded:
        raise ValueError(
            "FSDP2 holds shards, and the gradients of single batches would be gathered one by one: "
            "take an unsharded copy of the model"
        )
    total = torch.zeros(objective.parameters.count, dtype=torch.float64, device=objective.device)
    norms: list[float] = []
    for gradient in gradients_of(objective):
        norms.append(dot(gradient, gradient))
        total += gradient
    norms = _from_all(norms, objective.group)
    mean = objective.summed(total) / len(norms)
    full = dot(mean, mean)
    squared = np.array(norms)
    # below 0 by rounding alone
    variance = max(0.0, float(squared.mean()) - full)
    count = objective.samples
    return GradientNoise(squared, full, variance, size, count, left_out)


def gradients_of(objective: Objective) -> Iterator[Tensor]:
    """The gradient of each chunk of an objective, as a flat vector."""
    with objective.evaluating() as visit:
        for chunk in objective.chunks:
            term = objective.term(chunk, visit)
            grads = torch.autograd.grad(term, objective.leaves, allow_unused=True)
            yield objective.parameters.flatten(grads, objective.dtype)


@dataclass(frozen=True)
class PolicyTrace:
    """What the adaptive policy makes of a series of squared gradient norms.

    Fields:
        mean: `μ` of each step, after the step's own norm.
        deviation: `σ` likewise.
        threshold: `μ + c σ`, which a norm has to reach.
        perturbed: whether it does.
    """

    mean: Array
    deviation: Array
    threshold: Array
    perturbed: Array


def policy_trace(squared_norms: Sequence[float], policy: LargeGradient) -> PolicyTrace:
    """The threshold of the adaptive policy over time, from the norms that it saw.

        μ <- δ μ + (1 - δ) s;   σ² <- δ σ² + (1 - δ) (s - μ)²;   perturbed iff s >= μ + c σ

    Args:
        squared_norms: `s = ‖g‖²` of each step from the first on, as a training records them.
        policy: that of the training.

    Reference: Jiang et al., ICLR 2023, arXiv:2304.14647, eqs. 4-5.

    Examples:
        >>> from flatmin import analysis, policy
        >>> found = analysis.policy_trace([1.0, 1.0, 4.0], policy.LargeGradient(total_steps=3))
        >>> found.mean.round(3).tolist()
        [0.1, 0.19, 0.571]
    """
    memory = policy.memory
    mean, variance = memory["gradient_mean"], memory["gradient_variance"]
    rows: list[tuple[float, float, float, bool]] = []
    for t, s in enumerate(squared_norms):
        mean, variance, threshold = policy.moved(s, t, mean, variance)
        rows.append((mean, math.sqrt(variance), threshold, s >= threshold))
    columns = [np.array(column) for column in zip(*rows, strict=True)] or [np.zeros(0)] * 4
    return PolicyTrace(*columns)


def _equal(batches: Sequence[Any], batch: int | None) -> tuple[list[Any], int, int]:
    """Equal batches, their size, and how many samples are left out."""
    sizes = [size_of(b) for b in batches]
    size = sizes[0] if batch is None else batch
    if batch is None and (any(s != size for s in sizes[:-1]) or sizes[-1] > size):
        raise ValueError(
            f"batches of {min(sizes)} to {max(sizes)} samples have gradients of different spread: "
            "pass batch=, which cuts them into equal ones"
        )
    found = [
        part_of(b, slice(start, start + size))
        for b, n in zip(batches, sizes, strict=True)
        for start in range(0, n - size + 1, size)
    ]
    if not found:
        raise ValueError(
            f"no batch of {size} samples can be cut from batches of {max(sizes)}: pass a smaller "
            "batch=, or all data as one batch"
        )
    return found, size, sum(sizes) - size * len(found)


def _from_all(norms: list[float], group: Any) -> list[float]:
    """Those of all ranks that bring data of their own."""
    if group is None:
        return norms
    every: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(every, norms, group=group)
    return [x for part in every for x in part]


def _require_several(values: Array, least: int) -> None:
    if len(values) < least:
        raise ValueError(f"a distribution is told from {least} batches on, got {len(values)}")
