"""What is measured of a model that is inspected, one thing after the other."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from flatmin import analysis
from flatmin.analysis.batches import batches_of, tensors_of
from flatmin.analysis.grids import digest
from flatmin.analysis.planes import line_between, plane_of, plane_through
from flatmin.analysis.surfaces import Statistics
from flatmin.analysis.untouched import Mode
from flatmin.studies.report.subjects import Subject
from flatmin.training.errors import InputError

Along = Literal["random", "eigenvectors", "between"]
"""Directions of the surfaces."""

TOP = 5
"""Eigenvalues that are told."""

STEPS = 10
"""Of projected ascent, and draws of the average."""


@dataclass(frozen=True)
class Wanted:
    """What is measured.

    Fields:
        mode: of the models, for curvature and sharpness: "eval" or "train".
        statistics: of batch normalization, for the surfaces.
        along: directions of the surfaces: "random", "eigenvectors", or "between" the models.
        rho: radii of sharpness.
        points: of a surface, along each direction.
        products: for each spectrum.
        seed: of all that is drawn.
    """

    mode: Mode = "eval"
    statistics: Statistics = "fixed"
    along: Along = "random"
    rho: tuple[float, ...] = (0.05, 0.1, 0.2, 0.5)
    points: int = 21
    products: int = 40
    seed: int = 0

    def check(self, count: int) -> None:
        """Raise InputError where that cannot be measured of `count` models."""
        for name, value in (("points", self.points), ("products", self.products)):
            if value < 2:
                raise InputError(f"--{name} {value} is out of range: expected at least 2")
        if not self.rho or not all(0 < r < math.inf for r in self.rho):
            raise InputError("--rho takes radii above 0, separated by commas: for example 0.05,0.1")
        if self.along == "between" and count < 2:
            raise InputError("--along between takes two models for a line, and more for a plane")


@dataclass(frozen=True)
class Findings:
    """What was found of one model; None, or missing, is what an interruption has left out.

    Fields:
        name, about: of the subject.
        samples: on how many it was looked at.
        loss: mean over them.
        accuracy: in %; None where the data has no labels.
        spectrum: of the Hessian.
        sharpness: by method.
        surface: along the directions that were asked for.
        observed: what was recorded along its training that says more.
    """

    name: str
    about: str
    samples: int = 0
    loss: float = math.nan
    accuracy: float | None = None
    spectrum: analysis.Spectrum | None = None
    sharpness: dict[str, analysis.Sharpness] = field(default_factory=dict[str, Any])
    surface: analysis.Surface | None = None
    observed: dict[str, Sequence[float | None]] = field(default_factory=dict[str, Any])

    @property
    def top(self) -> list[tuple[float, float]]:
        """The largest converged eigenvalues by magnitude, in descending order.

        Each with its residual, or with what the products round away where that is more.
        """
        if self.spectrum is None:
            return []
        values, residuals = self.spectrum.top(TOP)
        eps = torch.finfo(self.spectrum.vectors.dtype).eps
        floor = eps * float(abs(self.spectrum.nodes).max())
        return [(float(v), max(float(r), floor)) for v, r in zip(values, residuals, strict=True)]


class Bench:
    """Measures one model after the other.

    Args:
        wanted: what is measured.
        grids: a folder in which surfaces are kept as they grow; None to keep nothing.
        tell: called with what is being done.
        progress: whether points and products are told on standard error.
    """

    def __init__(
        self, wanted: Wanted, grids: Path | None, tell: Callable[[str], None], progress: bool
    ) -> None:
        self._wanted = wanted
        self._grids = grids
        self._tell = tell
        self._progress = progress

    def findings(self, subject: Subject) -> Iterator[Findings]:
        """What is known of a model, once more after each measurement.

        Raises KeyboardInterrupt after Ctrl-C, once what is known has been given.
        """
        known = Findings(subject.name, subject.about, observed=_alignment(subject))
        try:
            known = self._home(subject, known)
            yield known
            known = replace(known, spectrum=self._spectrum(subject))
            yield known
            _go_on(known.spectrum)
            self._tell(f"{subject.name}: sharpness")
            for method in ("ascent", "projected", "average"):
                found = self._sharpness(subject, method)
                known = replace(known, sharpness={**known.sharpness, method: found})
                yield known
            if self._wanted.along != "between":
                known = replace(known, surface=self._surface(subject, known))
                yield known
                _go_on(known.surface)
        except (ValueError, TypeError) as error:
            raise InputError(f"{subject.name}: {' '.join(str(error).split())}") from None

    def between(self, subjects: Sequence[Subject]) -> analysis.Surface:
        """The surface on which all models lie, or nearly: of the last one's loss."""
        last, models = subjects[-1], [subject.model for subject in subjects]
        self._tell(f"loss between {len(models)} models")
        try:
            if len(models) == 2:
                plane = line_between(last.model, *models)
            elif len(models) == 3:
                plane = plane_through(last.model, *models)
            else:
                plane = plane_of(last.model, models)
            return self._grid(last, plane, *(t for m in models for t in m.parameters()))
        except ValueError as error:
            raise InputError(f"--along between: {error}") from None

    def _home(self, subject: Subject, known: Findings) -> Findings:
        """Loss and accuracy at the weights as they are."""
        at = analysis.surface(
            subject.model,
            subject.loss,
            subject.data,
            analysis.random_directions(subject.model, 1, one_dimensional=True),
            at=[0.0],
            statistics="batch" if self._wanted.mode == "train" else "fixed",
            metrics="accuracy" if has_labels(subject) else None,
        )
        right = at.metrics.get("accuracy")
        return replace(
            known,
            samples=at.samples,
            loss=float(at.losses[0]),
            accuracy=None if right is None else float(right[0]),
        )

    def _spectrum(self, subject: Subject) -> analysis.Spectrum:
        self._tell(f"{subject.name}: spectrum, {self._wanted.products} products")
        H = analysis.Hessian(
            subject.model,
            subject.loss,
            subject.data,
            mode=self._wanted.mode,
            progress=self._progress,
        )
        return analysis.spectrum(H, self._wanted.products, seed=self._wanted.seed)

    def _sharpness(self, subject: Subject, method: Any) -> analysis.Sharpness:
        count = sum(p.numel() for p in subject.model.parameters() if p.requires_grad)
        # an average has the deviation of each weight: so its length is about the radius
        scale = 1 / math.sqrt(count) if method == "average" else 1.0
        return analysis.sharpness(
            subject.model,
            subject.loss,
            subject.data,
            [r * scale for r in self._wanted.rho],
            method,
            steps=STEPS,
            draws=STEPS,
            mode=self._wanted.mode,
            seed=self._wanted.seed,
        )

    def _surface(self, subject: Subject, known: Findings) -> analysis.Surface:
        self._tell(f"{subject.name}: surface of {self._wanted.points**2} points")
        if self._wanted.along == "random":
            return self._grid(subject, None)
        if len(known.top) < 2:
            raise ValueError("fewer than two eigenvectors have converged: raise --products")
        return self._grid(subject, known.spectrum)

    def _grid(self, subject: Subject, plane: Any, *others: Tensor) -> analysis.Surface:
        return analysis.surface(
            subject.model,
            subject.loss,
            subject.data,
            plane,
            self._wanted.points,
            statistics=self._wanted.statistics,
            metrics="accuracy" if has_labels(subject) else None,
            seed=self._wanted.seed,
            file=self._file(subject, others),
            progress=self._progress,
        )

    def _file(self, subject: Subject, others: Sequence[Tensor]) -> Path | None:
        """A file for the surface of these weights, this data and these wishes."""
        if self._grids is None:
            return None
        self._grids.mkdir(parents=True, exist_ok=True)
        weights = digest([*subject.model.parameters(), *subject.model.buffers(), *others])
        asked = f"{weights} {digest_of(subject)} {self._wanted}"
        return self._grids / f"{hashlib.sha256(asked.encode()).hexdigest()[:16]}.npz"


def _go_on(found: analysis.Spectrum | analysis.Surface | None) -> None:
    if found is not None and found.interrupted:
        raise KeyboardInterrupt


def digest_of(subject: Subject) -> str:
    """A text that differs where its data does."""
    return digest(t for batch in batches_of(subject.data) for t in tensors_of(batch))


def has_labels(subject: Subject) -> bool:
    """Is its data pairs of inputs and labels?"""
    batch: Any = batches_of(subject.data)[0]
    if not isinstance(batch, (tuple, list)):
        return False
    parts: list[Any] = list(batch)  # pyright: ignore[reportUnknownArgumentType]
    labels = parts[-1]
    return (
        len(parts) == 2
        and isinstance(labels, Tensor)
        and labels.ndim == 1
        and (not labels.is_floating_point())
    )


def _alignment(subject: Subject) -> dict[str, Sequence[float | None]]:
    """What was recorded of it along the training."""
    return {name: x for name, x in subject.observed.items() if "alignment" in name and len(x)}
