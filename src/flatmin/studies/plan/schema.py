"""The pieces that a recipe is written with; `flatmin.studies.plan.recipe` puts them together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, cast

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from flatmin.training.errors import InputError, unknown

Scale = Literal["full", "small", "smoke"]

SCALES: tuple[Scale, ...] = ("full", "small", "smoke")
"""As printed; real data within 90 minutes on two cores; under a minute."""

Changes = dict[str, Any]
"""Some fields of `Training` by name; `factor` multiplies the radius; `budget` is the gradients a
step for which the epochs are meant, so that a method which takes others gets more or fewer; and
what a part named in `needs` is told stands under the name of that part."""

Position = Mapping[str, str]
"""A label on every axis."""


def _keys(content: object) -> list[str]:
    return list(map(str, cast("dict[Any, Any]", content))) if isinstance(content, dict) else []


def _text(label: Any) -> Any:
    """A label as text, however it is written; what is none stays, to be refused."""
    return str(label) if isinstance(label, int | float) else label


def _texts(value: Any) -> Any:
    """Labels: one or a list, or the keys of what holds for each."""
    if isinstance(value, list | tuple):
        return [_text(label) for label in cast("Sequence[object]", value)]
    if isinstance(value, dict):
        return {_text(label): what for label, what in cast("dict[Any, Any]", value).items()}
    return [_text(value)] if isinstance(value, str | int | float) else value


def labelled(axis: Any) -> Any:
    """The values of an axis by label; a list of scalars labels itself."""
    if isinstance(axis, list):
        return {str(value): None for value in cast("list[object]", axis)}
    return _texts(axis) if isinstance(axis, dict) else axis


def first_of(error: ValidationError) -> str:
    """The first thing that does not fit, and where."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if not str(part).startswith("function-"))
    ours = first.get("ctx", {}).get("error")
    said = str(ours) if ours else f"{first['msg'].lower()}, found {first['input']!r}"
    return f"{where}: {said}" if where else said


class Strict(BaseModel):
    """Refuses unknown keys with an offer of the nearest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _known(cls, content: object) -> object:
        for key in _keys(content):
            if key not in cls.model_fields:
                raise unknown("key", key, cls.model_fields)
        return content


class Exceptional(Strict):
    """What some methods do differently at some positions.

    Fields:
        at: labels by axis; elsewhere the exception does not hold. Empty: everywhere.
        methods: labels of the methods it is about; None for all.
        set: the changes.
    """

    at: dict[str, Annotated[tuple[str, ...], BeforeValidator(_texts)]] = {}
    methods: tuple[str, ...] | None = None
    set: Changes

    def holds(self, position: Position, method: str) -> bool:
        here = all(position[axis] in labels for axis, labels in self.at.items())
        return here and (self.methods is None or method in self.methods)


class Printed(BaseModel):
    """A number of the paper.

    Fields:
        method: label of the method.
        at: labels by axis; an axis with one value may be left out.
        measure: what the number is; None for the recipe's first measure.
        mean, sd: as printed, in the units of the paper; sd is None where there is none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str
    at: dict[str, str] = {}
    measure: str | None = None
    mean: float = Field(allow_inf_nan=False)
    sd: float | None = Field(None, ge=0, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _positioned(cls, content: Any) -> Any:
        """Keys that are no fields are axes."""
        if not isinstance(content, dict):
            return content
        given = cast("dict[str, Any]", content)
        axes = {name: str(label) for name, label in given.items() if name not in cls.model_fields}
        own = {name: value for name, value in given.items() if name not in axes}
        at = given.get("at", {})
        if not isinstance(at, dict):
            return own
        labels = {name: _text(label) for name, label in cast("dict[str, Any]", at).items()}
        return {**own, "at": {**labels, **axes}}


class Tune(Strict):
    """What is chosen on held-out images, for each method and setting, with equal budgets.

    Fields:
        rho: radii to try, or
        factors: the same in units of each method's radius.
        seeds: runs of each candidate.
    """

    rho: tuple[float, ...] = ()
    factors: tuple[float, ...] = ()
    seeds: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _one(self) -> Tune:
        if bool(self.rho) == bool(self.factors):
            raise InputError("takes either rho or factors: give a list of numbers to one of them")
        return self


class AtScale(Strict):
    """What a scale changes.

    Fields:
        says: what is smaller, for people to read; empty for nothing.
        smoke_only: why its numbers say nothing about methods, though the code runs; no verdict is
            given then. Empty where they may.
        fields: changes for all runs.
        grid: by axis the labels that stay, or label -> changes; a label of its own is a new value.
        methods: the same for methods.
        measure, also, seeds, tune, exceptions: in place of the recipe's.
    """

    says: str = ""
    smoke_only: str = ""
    fields: Changes = {}
    grid: dict[str, Annotated[tuple[str, ...] | dict[str, Changes], BeforeValidator(_texts)]] = {}
    methods: tuple[str, ...] | dict[str, Changes] | None = None
    measure: str | None = None
    also: tuple[str, ...] | None = None
    seeds: int | None = Field(None, ge=1)
    tune: Tune | Literal["off"] | None = None
    exceptions: tuple[Exceptional, ...] | None = None


class RecipeContent(Strict):
    """Everything that the file of a recipe says about a table or a figure.

    Fields:
        name: `<paper>/<table-or-figure>`; where a file says nothing, its folder's and its own.
        paper: a key of recipes/papers.yaml.
        shows: what it reproduces, as the paper calls it.
        title: what the numbers are.
        about: what the paper leaves open, and what is done here.
        needs: parts of flatmin beyond training that it takes.
        measure: what the table shows first; `also`: what else it shows.
        fields: of every run.
        methods: by label; the differences of a report are to the first.
        grid: the axes; every combination of their values is a setting.
        exceptions: where a method departs from its own settings; of several, the last wins.
        seeds: runs of each method in each setting.
        tune: what is chosen on held-out images; None for nothing.
        printed: the paper's numbers.
        figures: plots beyond those of every table: "frontier", accuracy over gradients a step.
        scales: what each scale changes.
    """

    name: str
    paper: str
    shows: str
    title: str
    about: str = ""
    needs: tuple[Literal["analysis", "meta", "surfaces"], ...] = ()
    measure: str = "accuracy"
    also: tuple[str, ...] = ()
    fields: Changes = Field(default_factory=dict)
    methods: dict[str, Changes] = Field(min_length=1)
    grid: dict[str, Annotated[dict[str, Changes | None], BeforeValidator(labelled)]] = Field(
        default_factory=dict
    )
    exceptions: tuple[Exceptional, ...] = ()
    seeds: int = Field(1, ge=1)
    tune: Tune | None = None
    printed: tuple[Printed, ...] = ()
    figures: tuple[Literal["frontier"], ...] = ()
    scales: dict[Scale, AtScale]

    @property
    def measures(self) -> tuple[str, ...]:
        """What the table shows, first things first."""
        return (self.measure, *self.also)
