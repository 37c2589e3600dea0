"""What is looked at beside the training of a cell, and stored in its row."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.nn import functional as F

from flatmin import analysis
from flatmin.direction import Agnostic
from flatmin.optimizer import SharpnessAware
from flatmin.studies.plan.analyses import (
    ALIGNMENT,
    AT_LOSS,
    COMPONENTS,
    DISTRIBUTION,
    GRID,
    NOISE,
    THEOREM,
    asked,
)
from flatmin.training.data.batches import Batch, RunData
from flatmin.training.errors import InputError
from flatmin.training.learner import Learner
from flatmin.training.observer import Closures


def _begins_at_home(optimizer: SharpnessAware) -> bool:
    """Is there a pass at the unperturbed weights in each step?"""
    return optimizer.direction.needs_gradient or optimizer.descent.asks_for_gradient


def _looks_at_two(optimizer: SharpnessAware) -> bool:
    """Does it step as Theorem 2 has it, with a batch and an auxiliary one?"""
    direction = optimizer.direction
    return isinstance(direction, Agnostic) and direction.auxiliary == "batch"


NEAR = 4.0
"""Times the loss at which all are compared: further above it, nothing is measured for it."""

Images = tuple[Tensor, Tensor]
"""Normalised images and their labels as given."""


class CellAnalysis:
    """Does the `analysis` of a training, as its options say.

    Weights, buffers, gradients and random numbers are left as they are, so that a training with an
    analysis gives the numbers of one without.

    Args:
        learner: what trains.
        run_data: what it trains on.
    """

    def __init__(self, learner: Learner, run_data: RunData) -> None:
        if learner.group.world > 1:
            raise InputError(
                f"a training with an analysis is one process's, and here are "
                f"{learner.group.world}: leave torchrun out, or `analysis:`"
            )
        self._learner, self._data = learner, run_data
        self._asked = options = asked(learner.training.analysis)
        self._found: dict[str, list[float]] = {}
        self._steps_before = 0
        self._above: tuple[float, dict[str, float]] | None = None
        self._step = 0
        self._theorems: list[tuple[bool, bool]] = []
        optimizer = learner.optimizer
        self._alignment: analysis.AlignmentMonitor | None = None
        self._auxiliary = None
        if options.alignment:
            self._alignment = analysis.AlignmentMonitor(
                learner.model, options.alignment, optimizer=optimizer
            )
            if learner.auxiliary is None:  # drawn for the measurement alone
                self._auxiliary = run_data.auxiliary()
        if options.theorem and not _looks_at_two(optimizer):
            raise InputError(
                f"{learner.training.method} is none of those that Theorem 2 speaks of: leave "
                f"`theorem` out, or take agnostic-sam or align-sam"
            )
        self._components: analysis.ComponentMonitor | None = None
        if options.components and (learner.method.per_sample or not _begins_at_home(optimizer)):
            raise InputError(
                f"{learner.training.method} asks for no gradient of a batch at the unperturbed "
                f"weights, of which `components` would take the running mean: leave it out"
            )
        if options.components:
            self._components = analysis.ComponentMonitor(
                learner.model,
                self._loss,
                self._images(learner.training.batch),
                options.components,
                optimizer=optimizer,
                mode="eval",
                chunk=learner.training.batch,
            )

    @property
    def values(self) -> Mapping[str, list[float]]:
        return self._found

    def wrap(self, closures: Closures, batch: Batch, other: Batch | None) -> Closures:
        closure, *rest = closures
        if self._asked.theorem and self._step % self._asked.theorem == 0 and other is not None:
            self._theorems.append(self._theorem(batch, other))
        self._step += 1
        if self._components is not None:
            closure = self._components.wrap(closure)
        if self._alignment is not None:
            if self._auxiliary is not None:
                other = self._auxiliary.next()
            assert other is not None
            quiet = (
                partial(self._learner.loss_in_parts, batch),
                partial(self._learner.loss_in_parts, other),
            )
            aux: Callable[..., Any] = rest[0] if rest else quiet[1]
            closure, _ = pair = self._alignment.wrap(closure, aux, again=quiet)
            rest = [pair[1]] if rest and pair[1] is not None else []
        return (closure, *rest)

    def ended(self, epoch: int) -> None:
        training, options = self._learner.training, self._asked
        if options.gradient_noise != "never":
            self._add_noise(self._noise())
        for share in options.at:
            if options.gradient_norms and epoch == max(1, round(share * training.epochs)):
                self._add_norms(share, self._noise(options.gradient_norms))
        if self._alignment is not None:
            self._add_alignment(self._alignment.alignment)
            self._steps_before = self._alignment.step
        if self._components is not None:
            self._add_components(self._components)
        if options.theorem:
            self._add_theorem()
        if options.eigenvalues and epoch == training.epochs:
            self._add_eigenvalues(options.eigenvalues)
        if options.surface and epoch == training.epochs:
            self._add_surface(options.surface, options.extent)
        if options.at_loss:
            self._add_at_loss(options.at_loss, last=epoch == training.epochs)

    def state(self) -> dict[str, Any]:
        return {
            "found": self._found,
            "steps": self._steps_before,
            "above": self._above,
            "step": self._step,
            "theorems": self._theorems,
            "alignment": None if self._alignment is None else self._alignment.state_dict(),
            "components": None if self._components is None else self._components.state_dict(),
            "auxiliary": None if self._auxiliary is None else self._auxiliary.state(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        self._found = {name: list(values) for name, values in state["found"].items()}
        self._steps_before = state["steps"]
        self._above, self._step = state["above"], state["step"]
        self._theorems = list(state["theorems"])
        for part, saved in ((self._alignment, "alignment"), (self._components, "components")):
            if part is not None:
                part.load_state_dict(state[saved])
        if self._auxiliary is not None:
            self._auxiliary.load(state["auxiliary"])

    # Observer.

    def _loss(self, model: nn.Module, batch: Images) -> Tensor:
        """As in training, in float32 whatever its precision."""
        images, labels = batch
        smoothing = self._learner.training.label_smoothing
        return F.cross_entropy(model(images).float(), labels, label_smoothing=smoothing)

    def _images(self, size: int, batches: int | None = None) -> list[Images]:
        """Training images in batches: so many of them, or as many images as are asked for."""
        some = self._asked.images
        if batches is None and some:
            size = min(size, some)
            batches = -(-some // size)
        found = self._data.plain_batches(batches, size)
        return [(batch.inputs, batch.targets) for batch in found]

    def _noise(self, batches: int | None = None) -> analysis.GradientNoise:
        data = self._images(self._learner.training.batch, batches)
        return analysis.gradient_noise(self._learner.model, self._loss, data, mode=self._asked.mode)

    def _add(self, name: str, value: float) -> None:
        self._found.setdefault(name, []).append(value)

    def _add_noise(self, noise: analysis.GradientNoise) -> None:
        found = noise.variance, float(noise.squared_norms.mean()), noise.full
        for name, value in zip(NOISE, found, strict=True):
            self._add(name, value)

    def _add_norms(self, share: float, noise: analysis.GradientNoise) -> None:
        self._found[f"{DISTRIBUTION}{share:g}"] = noise.squared_norms.tolist()
        test = noise.normality()
        self._add("gradient-norms", float(noise.squared_norms.mean()))
        self._add("normality", test.statistic)
        self._add("normality-p", test.p)
        self._add("skewness", test.skewness)

    def _add_alignment(self, everything: analysis.Alignment) -> None:
        found = everything.since(self._steps_before)
        columns = found.before, found.after, found.difference, found.change
        for name, column in zip(ALIGNMENT, columns, strict=False):
            self._add(name, _median(column))
        self._add("cosine-lowered", 100 * found.lowered)
        self._add("cosine-so-far", _median(everything.before))
        self._add("lowered-so-far", 100 * everything.lowered)

    def _add_components(self, monitor: analysis.ComponentMonitor) -> None:
        new, monitor.found, monitor.steps = monitor.found, [], []
        rows = [(c.batch_full, c.batch_mean, c.mean_full, c.error) for c in new]
        for i, name in enumerate(COMPONENTS):
            self._add(name, float(np.mean([row[i] for row in rows])) if rows else math.nan)

    def _theorem(self, batch: Batch, other: Batch) -> tuple[bool, bool]:
        """Whether the step sizes are small enough, and whether the inequality holds."""
        optimizer = self._learner.optimizer
        direction, rho = optimizer.direction, optimizer.param_groups[0]["rho"]
        assert isinstance(direction, Agnostic)
        found = analysis.alignment_theorem(
            self._learner.model,
            self._loss,
            (batch.inputs, batch.targets),
            (other.inputs, other.targets),
            direction.ratio * rho if direction.rho1 is None else direction.rho1,
            rho if direction.rho2 is None else direction.rho2,
            mode=self._asked.mode,
        )
        return found.small_enough, found.holds

    def _add_theorem(self) -> None:
        small = [holds for enough, holds in self._theorems if enough]
        shares = (
            len(small) / len(self._theorems),
            sum(holds for _, holds in self._theorems) / len(self._theorems),
            small.count(False) / len(small) if small else math.nan,
        )
        for name, share in zip(THEOREM, shares, strict=True):
            self._add(name, 100 * share)

    def _surface(self, at: Any) -> Any:
        learner = self._learner
        return analysis.surface(
            learner.model, self._loss, self._images(128), at=(at, at), seed=learner.training.seed
        ).losses

    def _add_surface(self, points: int, extent: float) -> None:
        losses = np.asarray(self._surface(np.linspace(-extent, extent, points)))
        self._found[f"{GRID}{points}"] = losses.reshape(-1).tolist()
        self._found["surface-rise"] = [rise(losses)]

    def _eigenvalues(self, k: int) -> analysis.Eigenvalues:
        H = analysis.Hessian(
            self._learner.model, self._loss, self._images(128), mode="eval", memory="2 GiB"
        )
        with warnings.catch_warnings():  # the error is stored beside the values
            warnings.filterwarnings("ignore", message=".*converge")
            return analysis.eigenvalues(H, k)

    def _add_eigenvalues(self, k: int) -> None:
        found = self._eigenvalues(k)
        values = [float(v) for v in found.values]
        for i, value in enumerate(values, 1):
            self._found[f"eigenvalue-{i}"] = [value]
            if i > 1:
                self._found[f"ratio-{i}"] = [values[0] / value if value else math.nan]
        off = found.residuals / np.maximum(np.abs(found.values), 1e-300)
        self._found["eigenvalue-error"] = [100 * float(off.max())]

    def _add_at_loss(self, target: float, *, last: bool) -> None:
        """What was found at a loss of `target`, as soon as training has passed it."""
        names = [name for name in AT_LOSS if name in self._asked.measures]
        if all(f"{name}-at-loss" in self._found for name in names):
            return
        loss = self._plain_loss()
        if target < loss <= NEAR * target:
            self._above = loss, self._now(names)
        elif loss <= target:
            found = self._now(names)
            if self._above is not None:
                found = between(target, self._above, (loss, found))
            self._found |= {f"{name}-at-loss": [value] for name, value in found.items()}
            return
        if last:
            self._found |= {f"{name}-at-loss": [math.nan] for name in names}

    def _plain_loss(self) -> float:
        """On the images of the analysis, of the model in evaluation mode."""
        batches = self._images(128)
        return analysis.Objective(self._learner.model, self._loss, batches, mode="eval").value()

    def _now(self, names: list[str]) -> dict[str, float]:
        """The measures that are compared at one loss, of the model as it is."""
        found = {name: self._found[name][-1] for name in names if name in ALIGNMENT}
        if "eigenvalue-1" in names:
            found["eigenvalue-1"] = float(self._eigenvalues(1).values[0])
        if "surface-rise" in names:
            middle = self._asked.surface // 2
            reach = self._asked.extent * half_way(middle) / middle
            found["surface-rise"] = rise(np.asarray(self._surface(np.linspace(-reach, reach, 3))))
        return found


def _median(column: np.ndarray[Any, Any]) -> float:
    known = column[np.isfinite(column)]
    return float(np.median(known)) if len(known) else math.nan


def half_way(middle: int) -> int:
    """Points from the middle of a surface to half way to its border."""
    return max(1, round(middle / 2))


def rise(losses: np.ndarray[Any, Any]) -> float:
    """Of the loss half way to the border, over that in the middle: both directions, both ways.

    A grid of three points ends half way already.
    """
    middle = len(losses) // 2
    out = half_way(middle)
    around = [losses[middle + way * out, middle] for way in (-1, 1)]
    around += [losses[middle, middle + way * out] for way in (-1, 1)]
    return float(np.mean(around) - losses[middle, middle])


def between(
    loss: float, above: tuple[float, dict[str, float]], below: tuple[float, dict[str, float]]
) -> dict[str, float]:
    """What was found at two losses, interpolated in the logarithm of the loss."""
    (high, before), (low, after) = above, below
    part = math.log(high / loss) / math.log(high / max(low, 1e-300))
    return {name: value + part * (after[name] - value) for name, value in before.items()}
