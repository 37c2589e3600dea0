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
from flatmin.optimizer import SharpnessAware
from flatmin.studies.plan.analyses import (
    ALIGNMENT,
    COMPONENTS,
    DISTRIBUTION,
    GRID,
    NOISE,
    asked,
)
from flatmin.training.data.batches import Batch, RunData
from flatmin.training.errors import InputError
from flatmin.training.loop import Learner
from flatmin.training.observer import Closures


def _begins_at_home(optimizer: SharpnessAware) -> bool:
    """Is there a pass at the unperturbed weights in each step?"""
    return optimizer.direction.needs_gradient or optimizer.descent.asks_for_gradient


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
        optimizer = learner.optimizer
        self._alignment: analysis.AlignmentMonitor | None = None
        self._auxiliary = None
        if options.alignment:
            self._alignment = analysis.AlignmentMonitor(
                learner.model, options.alignment, optimizer=optimizer
            )
            if learner.auxiliary is None:  # drawn for the measurement alone
                self._auxiliary = run_data.auxiliary()
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
            self._add_alignment(self._alignment.alignment.since(self._steps_before))
            self._steps_before = self._alignment.step
        if self._components is not None:
            self._add_components(self._components)
        if options.eigenvalues and epoch == training.epochs:
            self._add_eigenvalues(options.eigenvalues)
        if options.surface and epoch == training.epochs:
            self._add_surface(options.surface, options.extent)

    def state(self) -> dict[str, Any]:
        return {
            "found": self._found,
            "steps": self._steps_before,
            "alignment": None if self._alignment is None else self._alignment.state_dict(),
            "components": None if self._components is None else self._components.state_dict(),
            "auxiliary": None if self._auxiliary is None else self._auxiliary.state(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        self._found = {name: list(values) for name, values in state["found"].items()}
        self._steps_before = state["steps"]
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

    def _add_alignment(self, found: analysis.Alignment) -> None:
        columns = found.before, found.after, found.difference, found.change
        for name, column in zip(ALIGNMENT, columns, strict=False):
            known = column[np.isfinite(column)]
            self._add(name, float(np.median(known)) if len(known) else math.nan)
        self._add("cosine-lowered", 100 * found.lowered)

    def _add_components(self, monitor: analysis.ComponentMonitor) -> None:
        new, monitor.found, monitor.steps = monitor.found, [], []
        rows = [(c.batch_full, c.batch_mean, c.mean_full, c.error) for c in new]
        for i, name in enumerate(COMPONENTS):
            self._add(name, float(np.mean([row[i] for row in rows])) if rows else math.nan)

    def _add_surface(self, points: int, extent: float) -> None:
        surface: Any = getattr(analysis, "surface", None)
        if surface is None:
            raise InputError("surfaces are not part of this version of flatmin")
        at = np.linspace(-extent, extent, points)
        learner = self._learner
        found = surface(
            learner.model, self._loss, self._images(128), at=(at, at), seed=learner.training.seed
        )
        losses = np.asarray(found.losses)
        middle = points // 2
        half = max(1, round(middle / 2))
        around = [losses[middle + s * half, middle] for s in (-1, 1)]
        around += [losses[middle, middle + s * half] for s in (-1, 1)]
        self._found[f"{GRID}{points}"] = losses.reshape(-1).tolist()
        self._found["surface-rise"] = [float(np.mean(around) - losses[middle, middle])]

    def _add_eigenvalues(self, k: int) -> None:
        H = analysis.Hessian(
            self._learner.model, self._loss, self._images(128), mode="eval", memory="2 GiB"
        )
        with warnings.catch_warnings():  # the error is stored beside the values
            warnings.filterwarnings("ignore", message=".*converge")
            found = analysis.eigenvalues(H, k)
        values = [float(v) for v in found.values]
        for i, value in enumerate(values, 1):
            self._found[f"eigenvalue-{i}"] = [value]
            if i > 1:
                self._found[f"ratio-{i}"] = [values[0] / value if value else math.nan]
        off = found.residuals / np.maximum(np.abs(found.values), 1e-300)
        self._found["eigenvalue-error"] = [100 * float(off.max())]
