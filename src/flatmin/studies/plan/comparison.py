"""`flatmin compare`: methods side by side over shared seeds, radii tuned with an equal budget.

A comparison is a list of training runs. Which ones is known from the start, but for the radius that
tuning chooses; so the plan is a function of the rows so far, and an interrupted comparison goes on
by asking it again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator

import flatmin
from flatmin import methods
from flatmin.studies.plan import tuning
from flatmin.studies.plan.tuning import Progress, TunedMethod
from flatmin.studies.store.location import StudyLocation
from flatmin.studies.store.row import Row
from flatmin.studies.store.store import Failed, Store
from flatmin.training import models
from flatmin.training.data import noise
from flatmin.training.data.images import ImageData, load, require_shared_classes
from flatmin.training.errors import InputError
from flatmin.training.loop import Training

TUNING_FACTORS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
"""The grid of radii of each method, in units of its default radius."""


class Comparison(BaseModel):
    """Everything that determines the results.

    Fields as in `flatmin.training.Training`, and
        methods: names in `flatmin.methods.TABLE`; differences are taken to the first.
        rho: one radius for every method, several as the grid of `tune`, or None: the defaults.
        tune: "rho" chooses the radius of each method on held-out images, equal budget for all.
        tuning_seeds: number of runs of each radius that is tried, with the seeds -1, -2, ...
        seeds: number of runs of each method, with the seeds 0 .. seeds - 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str
    methods: tuple[str, ...]
    model: str
    noise: str
    epochs: int
    batch: int
    lr: float
    momentum: float = 0.9
    weight_decay: float
    rho: tuple[float, ...] | None = None
    tune: Literal["rho"] | None = None
    tuning_seeds: int = 2
    seeds: int
    limit: int | None = None
    fraction: float = 0.25
    augment: bool = False

    @classmethod
    def checked(cls, **fields: Any) -> Comparison:
        """A comparison, or an InputError that names the first field that does not fit."""
        try:
            return cls(**fields)
        except ValidationError as error:
            first = error.errors()[0]
            ours = first.get("ctx", {}).get("error")
            name = ".".join(map(str, first["loc"]))
            raise InputError(ours or f"{name} {first['input']!r}: {first['msg']}") from None

    @field_validator("methods")
    @classmethod
    def _by_name(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        """However they are written: what is asked for has one hash."""
        return tuple(methods.find(name).name for name in given)

    @field_validator("noise")
    @classmethod
    def _canonical(cls, text: str) -> str:
        found = noise.parse(text)
        return tuning.share(found.share) if isinstance(found, noise.Symmetric) else text

    @field_validator("rho")
    @classmethod
    def _distinct(cls, rho: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if rho is not None and not rho:
            raise InputError(
                "--rho is empty: give a radius such as 0.1, or with --tune rho several separated "
                "by commas"
            )
        return rho and tuple(dict.fromkeys(rho))

    @model_validator(mode="after")
    def _fits(self) -> Comparison:
        if not self.methods:
            raise InputError("--methods is empty: name at least one, for example sgd,sam")
        if len(set(self.methods)) < len(self.methods):
            raise InputError("--methods names a method twice: name each once")
        models.find(self.model)
        for name in ("epochs", "batch", "seeds", "tuning_seeds"):
            _require(
                getattr(self, name) >= 1, name, getattr(self, name), "a whole number from 1 on"
            )
        _require(self.limit is None or self.limit >= 1, "limit", self.limit, "at least 1")
        _require(0 < self.lr < math.inf, "lr", self.lr, "a number above 0")
        _require(0 <= self.momentum < 1, "momentum", self.momentum, "a number in [0, 1)")
        _require(0 <= self.weight_decay < math.inf, "weight_decay", self.weight_decay, "at least 0")
        _require(0 < self.fraction <= 1, "fraction", self.fraction, "a number in (0, 1]")
        for rho in self.rho or ():
            _require(0 <= rho < math.inf, "rho", rho, "a radius of at least 0")
        if self.rho is not None and len(self.rho) != 1 and not self.tune:
            raise InputError("--rho gives several radii: give one, or add --tune rho to choose")
        tried = sum(len(self.grid(name)) for name in self.methods)
        tuning.require_size(tried * self.tuning_seeds + len(self.methods) * self.seeds)
        return self

    def grid(self, method: str) -> tuple[float, ...]:
        """The radii that tuning tries for `method`; empty if it has nothing to tune."""
        default = methods.find(method).rho
        if not self.tune or not default:
            return ()
        return self.rho or tuple(float(f"{default * factor:.4g}") for factor in TUNING_FACTORS)

    def tuned(self, method: str) -> TunedMethod:
        """The runs of `method`: a tuned radius is the best, of equals the smallest."""
        grid = self.grid(method)
        default = methods.find(method).rho
        usual = (self.rho[0] if self.rho else default) if default else None
        return TunedMethod(
            self._training(method, usual),
            tuple(self._training(method, rho) for rho in sorted(grid)),
            self.seeds,
            self.tuning_seeds,
        )

    def tuning(self, method: str) -> list[Training]:
        """The tuning runs of `method`."""
        return self.tuned(method).tuning

    def evaluation(self, method: str, rows: Mapping[str, Row]) -> list[Training]:
        """The runs of `method` that the table is made of, with the radius chosen from `rows`."""
        return self.tuned(method).evaluation(rows)

    def radius(self, method: str, rows: Mapping[str, Row]) -> float | None:
        """The radius of `method`: tuned, given, or its default; None where it has none."""
        return self.tuned(method).chosen(rows).rho

    def judged(self, method: str, rows: Mapping[str, Row]) -> dict[float, float]:
        """Mean held-out accuracy in % of each radius whose tuning runs are all among `rows`."""
        judged = self.tuned(method).judged(rows)
        return {training.rho or 0.0: accuracy for training, accuracy in judged.items()}

    def plan(self, rows: Mapping[str, Row], given_up: frozenset[str]) -> Iterator[Training]:
        """The runs known by now, in the order to do them: tuning first, then seed by seed."""
        return tuning.plan(self._tuned_methods, rows, given_up)

    def progress(self, rows: Mapping[str, Row], given_up: frozenset[str]) -> Progress:
        """How far it is."""
        return tuning.progress(self._tuned_methods, rows, given_up)

    @property
    def description(self) -> dict[str, Any]:
        """As a database keeps it; `flatmin.studies.plan.grid.restored` reads it."""
        return {"kind": "comparison", "content": self.model_dump(mode="json")}

    @property
    def total(self) -> int:
        """How many runs there are in all."""
        return self.progress({}, frozenset()).total

    @property
    def _tuned_methods(self) -> list[TunedMethod]:
        return [self.tuned(name) for name in self.methods]

    def _training(self, method: str, rho: float | None) -> Training:
        shared = self.model_dump(exclude={"methods", "rho", "tune", "tuning_seeds", "seeds"})
        return Training(**shared, method=method, rho=rho)


@dataclass(frozen=True)
class Outcome:
    """A comparison with its rows.

    Fields:
        comparison: what was asked for.
        data: the images.
        store: where the rows are.
    """

    comparison: Comparison
    data: ImageData
    store: Store

    @property
    def failures(self) -> tuple[Failed, ...]:
        """Why a run is missing, for each that is."""
        return tuple(self.store.failures.values())


def images(comparison: Comparison) -> ImageData:
    """What it is about. Raises InputError where they are missing, or something does not fit."""
    data = load(comparison.data, limit=comparison.limit)
    _try(comparison, data)
    return data


def begin(
    comparison: Comparison, data: ImageData, location: StudyLocation, *, allow_mixed: bool = False
) -> Outcome:
    """A comparison with the rows that are at its location by now.

    Raises InputError where it cannot be written there, or what is there belongs to another
    configuration.
    """
    store = Store.open(
        location, identity(comparison, data), comparison.description, allow_mixed=allow_mixed
    )
    return Outcome(comparison, data, store)


def identity(comparison: Comparison, data: ImageData) -> dict[str, Any]:
    """What must agree for rows to stand in one table: configuration, images, software."""
    return {
        **comparison.model_dump(),
        "images": data.fingerprint(),
        "flatmin": flatmin.__version__,
        "torch": torch.__version__,
    }


def _require(fits: bool, name: str, value: object, expected: str) -> None:
    if not fits:
        raise InputError(f"--{name.replace('_', '-')} {value} is out of range: expected {expected}")


def _try(comparison: Comparison, data: ImageData) -> None:
    """Raise now what the first run would raise."""
    require_shared_classes(data)
    noise.parse(comparison.noise).labels(data, 0)
    models.build(
        comparison.model, channels=data.channels, size=data.size, classes=len(data.classes)
    )
    count = len(data.train_labels)
    smallest = round(count * (1 - tuning.HOLDOUT)) if comparison.tune else count
    if comparison.batch > smallest:
        raise InputError(
            f"--batch {comparison.batch} is more than the {smallest} images to train on: give a "
            f"smaller one"
        )
