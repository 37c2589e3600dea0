"""`flatmin compare`: methods side by side over shared seeds, radii tuned with an equal budget.

A comparison is a list of training runs. Which ones is known from the start, but for the radius that
tuning chooses; so the plan is a function of the rows so far, and an interrupted comparison goes on
by asking it again.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator

from flatmin.studies.plan import measures, tuning
from flatmin.studies.plan.defaults import BASE_DEFAULTS, regime
from flatmin.studies.plan.tuning import Progress, TunedMethod
from flatmin.studies.store.row import Row
from flatmin.training import losses, models, own, schedules
from flatmin.training.data import noise
from flatmin.training.errors import InputError, unknown
from flatmin.training.settings import Training

TUNING_FACTORS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
"""The grid of radii of each method, in units of its default radius."""

RATE_FACTORS = (0.3, 1.0, 3.0)
"""The grid of learning rates, in units of the one given."""

EXTENDABLE = ("methods", "rho", "tune", "tuning_seeds", "seeds", "options", "radii")
"""Fields of a comparison that may change in one folder: they say which runs there are, and not what
a run means. The learning rate is another one where it is tuned."""


class Comparison(BaseModel):
    """Everything that determines the results.

    Fields as in `flatmin.training.Training`, and
        methods: names in `flatmin.methods.TABLE`, or your own; differences are to the first.
        lr: one learning rate, or several as the grid of `tune`; None: the base's own.
        rho: one radius for every method, several as the grid of `tune`, or None: the defaults.
        tune: "rho", "lr" or both are chosen for each method on held-out images, with equal budgets:
            a method without a radius gets as many learning rates as others get pairs.
        tuning_seeds: number of runs of each candidate that is tried, with the seeds -1, -2, ...
        seeds: number of runs of each method, with the seeds 0 .. seeds - 1.
        options: further hyperparameters by method: {"agnostic-sam": {"beta": 0.5}}; a radius of
            its own is one of them, as "rho".
        radii: default radii of methods of your own, so that a report need not import them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str
    methods: tuple[str, ...]
    model: str
    noise: str
    epochs: int
    batch: int
    rho_schedule: str = "constant"
    lr: tuple[float, ...] | None
    momentum: float | None = 0.9
    weight_decay: float | None
    rho: tuple[float, ...] | None = None
    tune: tuple[Literal["rho", "lr"], ...] = ()
    tuning_seeds: int = 2
    seeds: int
    limit: int | None = None
    fraction: float = 0.25
    augment: bool = False
    base: str = "sgd"
    base_options: dict[str, Any] = {}
    schedule: str = "cosine"
    milestones: tuple[float, ...] = ()
    gamma: float = 0.1
    warmup: float = 0.0
    label_smoothing: float = 0.0
    cutout: int = 0
    max_norm: float | None = None
    precision: str = "float32"
    size: int | None = None
    pretrained: str | None = None
    examine: tuple[str, ...] = ()
    loss: str = losses.CROSS_ENTROPY
    metric: str = losses.ACCURACY
    options: dict[str, dict[str, int | float | str]] = {}
    radii: dict[str, float] = {}

    @classmethod
    def asked(cls, given: Mapping[str, Any]) -> Comparison:
        """A comparison from what is `given`: None there is as usual for its data and base."""
        typed = {name: value for name, value in given.items() if value is not None}
        usual: dict[str, Any] = {"noise": "0", **vars(regime(typed["data"]))}
        usual.update(BASE_DEFAULTS.get(typed.get("base", "sgd"), {}))
        if own.is_own(typed.get("base", "")):
            usual |= {"lr": None, "momentum": None, "weight_decay": None}
        return cls.checked(**{**usual, **typed})

    @classmethod
    def checked(cls, **fields: Any) -> Comparison:
        """A comparison, or an InputError that names the first field that does not fit.

        Methods of the user's own are imported for it.
        """
        try:
            ours = [name for name in fields["methods"] if own.is_own(name)]
            radii = {name: own.method(name).rho for name in ours}
            return cls.model_validate({**fields, "radii": radii})
        except ValidationError as error:
            first = error.errors()[0]
            ours = first.get("ctx", {}).get("error")
            name = ".".join(map(str, first["loc"]))
            if first["loc"][:1] == ("tune",):
                ours = f"--tune {first['input']} is nothing to tune: give rho, lr or rho,lr"
            raise InputError(ours or f"{name} {first['input']!r}: {first['msg']}") from None

    @field_validator("lr", mode="before")
    @classmethod
    def _rates(cls, lr: Any) -> Any:
        """One or several."""
        return (lr,) if isinstance(lr, int | float) else lr

    @field_validator("lr")
    @classmethod
    def _distinct_rates(cls, lr: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if lr is not None and not lr:
            raise InputError("--lr is empty: give a learning rate such as 0.1")
        return lr and tuple(dict.fromkeys(lr))

    @field_validator("tune", mode="before")
    @classmethod
    def _listed(cls, tune: Any) -> Any:
        """Names, one or several; as text they are separated by commas."""
        if tune is None:
            return ()
        names = tune.split(",") if isinstance(tune, str) else tune
        return tuple(sorted({str(name).strip() for name in names}, reverse=True))

    @field_validator("methods")
    @classmethod
    def _by_name(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        """However they are written: what is asked for has one hash."""
        return tuple(name if own.is_own(name) else own.method(name).name for name in given)

    @field_validator("options")
    @classmethod
    def _of_methods(
        cls, given: dict[str, dict[str, int | float | str]]
    ) -> dict[str, dict[str, int | float | str]]:
        """By the names that `methods` has, however they are written."""
        found: dict[str, dict[str, int | float | str]] = {}
        for name, values in given.items():
            with suppress(ValueError):  # of no method, which is told of beside those that there are
                name = name if own.is_own(name) else own.method(name).name
            found[name] = {**found.get(name, {}), **values}
        return found

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
        schedules.RhoSchedule.parse(self.rho_schedule)
        models.require(self.model)
        for name in ("epochs", "batch", "seeds", "tuning_seeds"):
            _require(
                getattr(self, name) >= 1, name, getattr(self, name), "a whole number from 1 on"
            )
        _require(self.limit is None or self.limit >= 1, "limit", self.limit, "at least 1")
        for lr in self.lr or ():
            _require(0 < lr < math.inf, "lr", lr, "a number above 0")
        momentum, decay = self.momentum or 0.0, self.weight_decay or 0.0
        _require(0 <= momentum < 1, "momentum", momentum, "a number in [0, 1)")
        _require(0 <= decay < math.inf, "weight_decay", decay, "at least 0")
        _require(0 < self.fraction <= 1, "fraction", self.fraction, "a number in (0, 1]")
        for rho in self.rho or ():
            _require(0 <= rho < math.inf, "rho", rho, "a radius of at least 0")
        if self.rho is not None and len(self.rho) != 1 and "rho" not in self.tune:
            raise InputError("--rho gives several radii: give one, or add --tune rho to choose")
        if self.lr is not None and len(self.lr) != 1 and "lr" not in self.tune:
            raise InputError(
                "--lr gives several learning rates: give one, or add --tune lr to choose"
            )
        if self.lr is None and "lr" in self.tune:
            raise InputError(
                "--tune lr needs to know where to start: give --lr too, and a base that takes lr"
            )
        for name in self.options:
            if name not in self.methods:
                raise unknown("method of an option", name, self.methods)
        for name in self.methods:  # raises what the first run would raise
            self._training(name, self.usual_radius(name), self._rate)
        tried = sum(len(self._candidates(name)) for name in self.methods)
        tuning.require_size(tried * self.tuning_seeds + len(self.methods) * self.seeds)
        return self

    def grid(self, method: str) -> tuple[float, ...]:
        """The radii that tuning tries for `method`; empty if it has none to tune."""
        default = self._default(method)
        if "rho" not in self.tune or not default:
            return ()
        return self.rho or tuple(_rounded(default * factor) for factor in TUNING_FACTORS)

    def rates(self, method: str) -> tuple[float, ...]:
        """The learning rates that tuning tries for `method`, ascending; empty if none is tuned.

        Where radii are tuned too, a method without one gets as many, evenly spaced between the same
        ends, as others get pairs of a learning rate and a radius: its budget is the same.
        """
        if "lr" not in self.tune or self.lr is None:
            return ()
        grid = sorted(self.lr)
        if len(grid) == 1:
            grid = [_rounded(grid[0] * factor) for factor in RATE_FACTORS]
        if "rho" not in self.tune or self._default(method):
            return tuple(grid)
        count = len(grid) * len(self.rho or TUNING_FACTORS)
        steps = [(at / max(1, count - 1)) for at in range(count)]
        return tuple(
            dict.fromkeys(_rounded(grid[0] * (grid[-1] / grid[0]) ** step) for step in steps)
        )

    def usual_radius(self, method: str) -> float | None:
        """Of `method` where none is tuned; None where it has none."""
        default = self._default(method)
        given = self.options.get(method, {}).get("rho", self.rho[0] if self.rho else default)
        return float(given) if default else None

    def tuned(self, method: str) -> TunedMethod:
        """The runs of `method`: what is tuned is the best, of equals the smallest."""
        usual = self._training(method, self.usual_radius(method), self._rate)
        return TunedMethod(usual, self._candidates(method), self.seeds, self.tuning_seeds)

    @property
    def _rate(self) -> float | None:
        """Where none is tuned."""
        return self.lr[0] if self.lr else None

    def _candidates(self, method: str) -> tuple[Training, ...]:
        radii, rates = sorted(self.grid(method)), self.rates(method)
        if not radii and not rates:
            return ()
        return tuple(
            self._training(method, rho, lr)
            for rho, lr in itertools.product(
                radii or [self.usual_radius(method)], rates or [self._rate]
            )
        )

    def _default(self, method: str) -> float:
        """The radius of `method` where nothing else is said; 0 where it has none."""
        return self.radii[method] if method in self.radii else own.method(method).rho

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
        found: dict[float, float] = {}
        for training, accuracy in self.tuned(method).judged(rows).items():
            rho = training.rho or 0.0
            found[rho] = max(accuracy, found.get(rho, accuracy))
        return found

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

    def title(self, method: str) -> str:
        """What a table calls `method`."""
        return own.method_title(method, self.base)

    @property
    def measure(self) -> str:
        """By which methods are ranked; see `flatmin.studies.plan.measures`."""
        return measures.of_metric(self.metric)

    @property
    def brought(self) -> dict[str, str]:
        """What is the user's own, by what it is: {"model": "my.module:Net"}."""
        named = {
            **{what: getattr(self, what) for what in ("data", "model", "base", "loss")},
            "metric": losses.metric_name(self.metric),
            **{f"method {own.title(name)}": name for name in self.methods},
        }
        return {what: name for what, name in named.items() if own.is_own(name)}

    def require_here(self) -> None:
        """Raise InputError where this process does not have what the user brought."""
        for name in self.brought.values():
            own.find(name)

    def _training(self, method: str, rho: float | None, lr: float | None) -> Training:
        shared = self.model_dump(exclude={*EXTENDABLE, "lr", "base_options"})
        given = self.options.get(method, {})
        options = tuple((name, value) for name, value in given.items() if name != "rho")
        extra = tuple(self.base_options.items())
        return Training(
            **shared, lr=lr, method=method, rho=rho, options=options, base_options=extra
        )


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _require(fits: bool, name: str, value: object, expected: str) -> None:
    if not fits:
        raise InputError(f"--{name.replace('_', '-')} {value} is out of range: expected {expected}")
