"""A recipe at a scale: its settings, the runs they take, and what these will cost."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_type_hints

from pydantic import TypeAdapter, ValidationError

from flatmin import methods
from flatmin.studies.plan import estimate, tuning, yamlfile
from flatmin.studies.plan.analyses import AnalysisOptions
from flatmin.studies.plan.estimate import CostEstimate
from flatmin.studies.plan.fewshot import FewShot
from flatmin.studies.plan.schema import (
    AtScale,
    Changes,
    Exceptional,
    Position,
    Printed,
    RecipeContent,
    Scale,
    Tune,
)
from flatmin.studies.plan.tuning import Progress, TunedMethod
from flatmin.studies.store import files
from flatmin.training import Training
from flatmin.training.errors import InputError, unknown

if TYPE_CHECKING:
    from flatmin.studies.store.row import Row


@dataclass(frozen=True)
class Setting:
    """One position of the grid.

    Fields:
        position: its label on every axis.
        tuned_methods: by the label of the method; empty where the runs are another part's.
        changes: everything that holds for each method, by its label.
    """

    position: Position
    tuned_methods: Mapping[str, TunedMethod]
    changes: Mapping[str, Changes]


@dataclass(frozen=True)
class ScaledRecipe:
    """A recipe at a scale.

    Fields:
        recipe: what is reproduced.
        scale: one of its scales.
    """

    recipe: RecipeContent
    scale: Scale

    def check(self) -> None:
        """Raise InputError, in one line, where one of the runs cannot be."""
        try:
            for exception in self._exceptions:
                self._check_exception(exception)
            self._check_size()
            for run in self.runs:
                _require_data(run.data)
            if "meta" in self.recipe.needs:
                for setting in self.settings:
                    for changes in setting.changes.values():
                        FewShot.of(changes, 0)
        except ValueError as error:
            raise InputError(f"{self.scale}: {error}") from None

    @property
    def says(self) -> str:
        """What is smaller than in the paper; empty for nothing."""
        return self._scale.says

    @property
    def smoke_only(self) -> str:
        """Why the numbers say nothing about methods; empty where they may."""
        return self._scale.smoke_only

    @property
    def measure(self) -> str:
        """What the table shows first."""
        return self._scale.measure or self.recipe.measure

    @property
    def measures(self) -> tuple[str, ...]:
        """What the table shows, first things first."""
        also = self._scale.also
        return (self.measure, *(self.recipe.also if also is None else also))

    @property
    def seeds(self) -> int:
        return self._scale.seeds or self.recipe.seeds

    @property
    def tune(self) -> Tune | None:
        tune = self._scale.tune
        return None if tune == "off" else tune or self.recipe.tune

    @cached_property
    def methods(self) -> Mapping[str, Changes]:
        """By label, those of this scale."""
        return _narrowed("methods", self.recipe.methods, self._scale.methods)

    @cached_property
    def grid(self) -> Mapping[str, Mapping[str, Changes]]:
        """The axes at this scale: label -> changes, by axis."""
        for axis in self._scale.grid:
            if axis not in self.recipe.grid:
                raise unknown("axis", axis, self.recipe.grid)
        for axis, values in self.recipe.grid.items():
            if not values:
                raise InputError(
                    f"grid: the axis {axis!r} has no values: give it one, or remove it"
                )
        axes = {
            axis: {
                label: {axis: yamlfile.scalar(label)} if changes is None else changes
                for label, changes in values.items()
            }
            for axis, values in self.recipe.grid.items()
        }
        return {
            axis: _narrowed(axis, values, self._scale.grid.get(axis))
            for axis, values in axes.items()
        }

    @cached_property
    def settings(self) -> tuple[Setting, ...]:
        """Every position of the grid, the last axis fastest."""
        return tuple(map(self._setting, self._positions))

    @property
    def tuned_methods(self) -> list[TunedMethod]:
        """Of all settings."""
        return [each for setting in self.settings for each in setting.tuned_methods.values()]

    def plan(self, rows: Mapping[str, Row], given_up: frozenset[str]) -> Iterator[Training]:
        """The runs known by now, each once, in the order to do: tuning first, then by seed."""
        return tuning.plan(self.tuned_methods, rows, given_up)

    def progress(self, rows: Mapping[str, Row], given_up: frozenset[str]) -> Progress:
        """How far it is."""
        return tuning.progress(self.tuned_methods, rows, given_up)

    @cached_property
    def runs(self) -> tuple[Training, ...]:
        """Every run, with what tuning chooses left at its usual value."""
        trials = [run for each in self.tuned_methods for run in each.tuning]
        evaluation = [run for each in self.tuned_methods for run in each.evaluation({})]
        return tuple(dict.fromkeys((*trials, *evaluation)))

    @property
    def total(self) -> int:
        """How many runs there are, as far as is known before the first."""
        return self.progress({}, frozenset()).total

    @cached_property
    def estimate(self) -> CostEstimate:
        """Of the cost of all runs."""
        if "meta" in self.recipe.needs:
            tried = len(self.tune.rho or self.tune.factors) * self.tune.seeds if self.tune else 0
            every = (
                (FewShot.of(changes, 0), changes.get("method") != "sgd")
                for setting in self.settings
                for changes in setting.changes.values()
            )
            return CostEstimate.of_episodes(
                usual for usual, tuned in every for _ in range(self.seeds + (tried if tuned else 0))
            )
        return self.left({})

    def left(self, rows: Mapping[str, Row]) -> CostEstimate:
        """Of the cost of the runs that have no row, those given up among them."""
        every = tuning.expected(self.tuned_methods, rows, frozenset())
        return CostEstimate.of(each for each in every if each.key not in rows)

    def printed(
        self, position: Position, method: str, measure: str | None = None
    ) -> Printed | None:
        """The paper's number there; None if it printed none, or if the data are others here."""
        wanted = measure or self.measure
        for number in self.recipe.printed:
            here = all(position[axis] == label for axis, label in number.at.items())
            same = number.method == method and (number.measure or self.recipe.measure) == wanted
            if here and same:
                return number if self._as_in_full("data", position, method) else None
        return None

    def _as_in_full(self, field: str, position: Position, method: str) -> bool:
        full = ScaledRecipe(self.recipe, "full")
        if any(label not in full.grid[axis] for axis, label in position.items()):
            return False
        return full._changes(position, method).get(field) == self._changes(position, method)[field]

    @property
    def _scale(self) -> AtScale:
        return self.recipe.scales[self.scale]

    @property
    def _exceptions(self) -> tuple[Exceptional, ...]:
        own = self._scale.exceptions
        return self.recipe.exceptions if own is None else own

    @property
    def _positions(self) -> Iterator[Position]:
        for labels in itertools.product(*self.grid.values()):
            yield dict(zip(self.grid, labels, strict=True))

    def _check_size(self) -> None:
        """Before anything is built, since that may take for ever."""
        settings = math.prod(map(len, self.grid.values()))
        tuning.require_size(settings * len(self.methods) * self.seeds)
        if self.tune is not None:
            every = itertools.product(self._positions, self.methods)
            tuning.require_size(sum(self._size(self._changes(*each)) for each in every))

    def _size(self, changes: Changes) -> int:
        """The most runs that a method in one setting takes."""
        assert self.tune is not None
        radii = len(self.tune.rho or self.tune.factors)
        others: dict[str, tuple[float, ...]] = _typed("tune", changes.get("tune", {}))
        return self.seeds + self.tune.seeds * radii * math.prod(map(len, others.values()))

    def _check_exception(self, exception: Exceptional) -> None:
        for axis, labels in exception.at.items():
            if axis not in self.recipe.grid:
                raise InputError(f"exceptions: {unknown('axis', axis, self.recipe.grid)}")
            for label in labels:
                known = {**self.recipe.grid[axis], **self.grid[axis]}
                if label not in known:
                    raise InputError(f"exceptions: {unknown(axis, label, known)}")
        for label in exception.methods or ():
            known = {**self.recipe.methods, **self.methods}
            if label not in known:
                raise InputError(f"exceptions: {unknown('method', label, known)}")

    def _setting(self, position: Position) -> Setting:
        changes = {label: self._changes(position, label) for label in self.methods}
        if "meta" in self.recipe.needs:
            return Setting(position, {}, changes)
        built = {label: self._tuned(each) for label, each in changes.items()}
        return Setting(position, built, changes)

    def _changes(self, position: Position, label: str) -> Changes:
        return merged(
            self.recipe.fields,
            self._scale.fields,
            *(self.grid[axis][at] for axis, at in position.items()),
            self.methods[label],
            *(each.set for each in self._exceptions if each.holds(position, label)),
        )

    def _tuned(self, changes: Changes) -> TunedMethod:
        usual = self._training(changes)
        others: dict[str, tuple[float, ...]] = _typed("tune", changes.get("tune", {}))
        if self.tune is None:
            return TunedMethod(usual, (), self.seeds)
        radii = self._radii(usual)
        names = list(others)
        candidates = [
            self._training(merged(changes, {"rho": rho, "factor": 1.0}, {"options": options}))
            for rho in radii
            for values in itertools.product(*others.values())
            for options in [dict(zip(names, values, strict=True))]
        ]
        if len(candidates) == 1:  # nothing to choose
            return TunedMethod(candidates[0], (), self.seeds)
        return TunedMethod(usual, tuple(dict.fromkeys(candidates)), self.seeds, self.tune.seeds)

    def _radii(self, usual: Training) -> list[float]:
        default = methods.find(usual.method).rho
        if not default or self.tune is None:
            return []
        centre = usual.rho or default
        return sorted(self.tune.rho or [_rounded(centre * each) for each in self.tune.factors])

    def _training(self, changes: Changes) -> Training:
        """The run that `changes` describe, seed 0."""
        for name in changes:
            if name not in _KINDS and name not in self.recipe.needs:
                raise unknown("field", name, _KINDS)
        if "analysis" in changes and "analysis" not in self.recipe.needs:
            raise InputError("analysis is not among needs: write `needs: [analysis]`")
        given = {name: _typed(name, value) for name, value in changes.items() if name in _KINDS}
        for name in ("data", "model", "method"):
            if name not in given:
                raise InputError(f"there is no {name}: give it under fields, methods or grid")
        budget = given.pop("budget", None)
        factor = given.pop("factor", 1.0)
        given.pop("tune", None)
        method = methods.find(given["method"])
        given["method"], default = method.name, method.rho
        if not default:
            given.pop("rho", None)
        elif factor != 1.0:
            given["rho"] = _rounded((given.get("rho") or default) * factor)
        for pairs in ("options", "base_options"):
            given[pairs] = tuple(given.get(pairs, {}).items())
        given["analysis"] = AnalysisOptions.of(given.get("analysis", {})).pairs
        training = Training.of(given)
        if budget is None:
            return training
        if not 0 < budget < math.inf:
            raise InputError(f"budget {budget:g}: give the gradients a step, such as 2")
        epochs = round(training.epochs * budget / estimate.gradients_a_step(training))
        return replace(training, epochs=max(1, epochs))


def _require_data(name: str) -> None:
    """A name of a data set, or a folder that is there."""
    if name not in estimate.SETS and not files.is_folder(Path(name)):
        raise unknown("data set", name, estimate.SETS)


_KINDS: Mapping[str, TypeAdapter[Any]] = {
    name: TypeAdapter(kind)
    for name, kind in {
        **get_type_hints(Training),
        "options": dict[str, int | float | str],
        "analysis": dict[str, Any],
        "base_options": dict[str, Any],
        "factor": float,
        "budget": float,
        "tune": dict[str, tuple[float, ...]],
    }.items()
    if name not in ("seed", "holdout")
}
"""What a recipe sets for a run, and its types: however a number is written, it has one hash."""


def _typed(name: str, value: Any) -> Any:
    if name == "noise" and isinstance(value, int | float):
        return tuning.share(value)
    if name == "rho_schedule" and isinstance(value, dict):
        return _rho_schedule(cast("dict[str, Any]", value))
    try:
        return _KINDS[name].validate_python(value)
    except ValidationError as error:
        said = error.errors()[0]["msg"].lower()
        raise InputError(f"{name} {value!r}: {said}") from None


def _rho_schedule(given: Mapping[str, Any]) -> str:
    """`{kind: cosine, end: 0.5}`, as a run names it."""
    known = ("kind", "end")
    for name in given:
        if name not in known:
            raise InputError(f"rho_schedule: {unknown('key', name, known)}")
    if "kind" not in given:
        raise InputError("rho_schedule: there is no kind: give one, such as {kind: cosine}")
    return f"{given['kind']}:{given['end']}" if "end" in given else str(given["kind"])


def merged(*layers: Changes) -> Changes:
    """Later layers win; mappings such as `options` are merged in turn."""
    result: Changes = {}
    for layer in layers:
        for name, value in layer.items():
            before = result.get(name)
            if isinstance(value, dict) and isinstance(before, dict):
                result[name] = merged(cast("Changes", before), cast("Changes", value))
            else:
                result[name] = value
    return result


def _narrowed(
    kind: str,
    values: Mapping[str, Changes],
    kept: Sequence[str] | Mapping[str, Changes] | None,
) -> dict[str, Changes]:
    """The values that a scale keeps, changed as it says; a label of its own comes with changes."""
    if kept is None:
        return dict(values)
    if not kept:
        raise InputError(f"{kind} is empty: name at least one of {', '.join(values)}")
    changes = kept if isinstance(kept, Mapping) else dict.fromkeys(kept, Changes())
    for label in changes:
        if label not in values and not changes[label]:
            raise unknown(kind.removesuffix("s"), label, values)
    return {label: merged(values.get(label, {}), change) for label, change in changes.items()}


def _rounded(rho: float) -> float:
    return float(f"{rho:.4g}")
