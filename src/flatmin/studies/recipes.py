"""Recipes: every table and figure of the papers as a file of settings, methods, seeds and numbers.

    recipe = Recipe.find("agnostic-sam/table-5")
    plan = recipe.at("small")
    print(plan.says, plan.estimate.hours)

A recipe is complete: what is not in it does not change the result. docs/recipes.md tells how one is
written.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, ValidationError

from flatmin.studies import files, yamlfile
from flatmin.studies.estimate import Estimate
from flatmin.studies.measures import measures
from flatmin.studies.plans import Plan
from flatmin.studies.schema import (
    AtScale,
    Changes,
    Exceptional,
    Printed,
    Scale,
    Strict,
    Tune,
    labelled,
)
from flatmin.training import corruptions, sets
from flatmin.training.errors import InputError, unknown


class Paper(Strict):
    """Where a recipe comes from."""

    title: str
    authors: str
    venue: str
    arxiv: str | None = None


class Recipe(Strict):
    """A table or a figure.

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
        scales: what each scale changes.
    """

    name: str
    paper: str
    shows: str
    title: str
    about: str = ""
    needs: tuple[Literal["analysis", "meta"], ...] = ()
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
    scales: dict[Scale, AtScale]

    @classmethod
    def find(cls, name: str) -> Recipe:
        """The recipe at the path `name`, or the shipped one of that name.

        Raises InputError, in one line, where there is none or where it is not a recipe.
        """
        shipped = {known: folder() / f"{known}.yaml" for known in names()}
        if name in shipped:
            return cls.load(shipped[name])
        if files.is_file(Path(name)):
            return cls.load(Path(name))
        raise unknown("recipe", name, shipped)

    @classmethod
    def load(cls, path: Path) -> Recipe:
        """The recipe in the file at `path`; InputError names file, key and nearest known key."""
        content = yamlfile.read(path)
        name = f"{path.parent.resolve().name}/{path.stem}".lstrip("/")
        try:
            recipe = cls.model_validate({"name": name, **content})
        except ValidationError as error:
            raise InputError(f"{path}: {_first(error)}") from None
        try:
            recipe._check()
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        return recipe

    def at(self, scale: str) -> Plan:
        """What there is to do at one of `scales`."""
        if scale not in self.scales:
            raise unknown("scale", scale, self.scales)
        return Plan(self, scale)

    def require(self) -> None:
        """Raise InputError where a part in `needs` is not there yet."""
        for part in self.needs:
            if importlib.util.find_spec(f"flatmin.{part}") is None:
                raise InputError(
                    f"{self.name} needs the part {part!r} of flatmin, which this version does not "
                    f"have: `flatmin recipes` lists those that need nothing"
                )

    @property
    def measures(self) -> tuple[str, ...]:
        """What the table shows, first things first."""
        return (self.measure, *self.also)

    def _check(self) -> None:
        """Everything that a reader of the file alone cannot see; by doing all but the training."""
        if any(part in ("", ".", "..") for part in self.name.split("/")) or "\0" in self.name:
            raise InputError(
                f"name {self.name!r} is no folder below runs/: give one such as paper/table-1"
            )
        if "full" not in self.scales:
            raise InputError("scales: there is no full: add `full: {}`")
        for scale in self.scales:
            plan = self.at(scale)
            plan.check()
            for name in {name for run in plan.runs for name in run.examine}:
                _require_examination(name)
        self._check_measures(self.at("full"))
        self._check_printed()

    def _check_measures(self, plan: Plan) -> None:
        runs = [contender.usual for contender in plan.contenders]
        known = {
            *measures,
            *(name for run in runs for name in run.examine),
            *(f"observed:{name}" for run in runs for name in run.observe),
        }
        for measure in self.measures:
            part = measure.partition(":")[0]
            if measure not in known and part not in self.needs:
                raise unknown("measure", measure, known)

    def _check_printed(self) -> None:
        seen: set[object] = set()
        for number in self.printed:
            where = f"printed {number.model_dump(exclude_none=True)}"
            if number.method not in self.methods:
                raise InputError(f"{where}: {unknown('method', number.method, self.methods)}")
            if number.measure is not None and number.measure not in self.measures:
                raise InputError(f"{where}: {unknown('measure', number.measure, self.measures)}")
            for axis, label in number.at.items():
                if axis not in self.grid:
                    raise InputError(f"{where}: {unknown('axis', axis, self.grid)}")
                if label not in self.grid[axis]:
                    raise InputError(f"{where}: {unknown(axis, label, self.grid[axis])}")
            for axis, values in self.grid.items():
                if axis not in number.at and len(values) > 1:
                    raise InputError(f"{where}: no {axis}: give one of {', '.join(values)}")
            place = (number.method, number.measure or self.measure, *sorted(number.at.items()))
            if place in seen:
                raise InputError(f"{where}: the second number at that position: remove one")
            seen.add(place)


def _require_examination(name: str) -> None:
    """A name that `flatmin.training.examine` knows; whether it fits the data is seen there."""
    what = name.removesuffix("top-5").removesuffix(":")
    found, _, kind = what.partition(":")
    corrupted = ("cifar10-c", "cifar100-c", "imagenet-c")
    if found in corrupted and kind:
        corruptions.parse(what)
    known = ("", "hub", "digits", *corrupted, *sets.known)
    if found not in known and not files.is_folder(Path(what)) and not files.is_file(Path(what)):
        raise unknown("examination", name, ["top-5", *known[2:]])


def _first(error: ValidationError) -> str:
    """The first thing that does not fit, and where."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if not str(part).startswith("function-"))
    ours = first.get("ctx", {}).get("error")
    said = str(ours) if ours else f"{first['msg'].lower()}, found {first['input']!r}"
    return f"{where}: {said}" if where else said


def folder() -> Path:
    """Where the recipes that come with flatmin are: in the package, or beside its source."""
    inside = Path(__file__).parents[1] / "recipes"
    return inside if inside.is_dir() else Path(__file__).parents[3] / "recipes"


def names() -> list[str]:
    """Of the recipes that come with flatmin, by paper and number."""
    found = [path.relative_to(folder()).with_suffix("") for path in folder().glob("*/*.yaml")]
    return sorted((path.as_posix() for path in found), key=_by_number)


def _by_number(name: str) -> tuple[str, str, int, str]:
    paper, _, shown = name.partition("/")
    kind, _, number = shown.partition("-")
    return paper, kind, int(number) if number.isdecimal() else 0, number


def papers() -> dict[str, Paper]:
    """By the names of their folders."""
    content = yamlfile.read(folder() / "papers.yaml")
    return {name: Paper.model_validate(paper) for name, paper in content.items()}


@dataclass(frozen=True)
class Listing:
    """A recipe in a list: its name, what it is, and what each scale takes."""

    name: str
    shows: str
    title: str
    needs: tuple[str, ...]
    estimates: Mapping[Scale, Estimate]


def listing() -> list[Listing]:
    """Every recipe that comes with flatmin."""
    found = [Recipe.find(name) for name in names()]
    return [
        Listing(
            recipe.name,
            recipe.shows,
            recipe.title,
            recipe.needs,
            {scale: recipe.at(scale).estimate for scale in recipe.scales},
        )
        for recipe in found
    ]
