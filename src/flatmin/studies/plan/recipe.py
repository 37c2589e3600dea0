"""Recipes: every table and figure of the papers as a file of settings, methods, seeds and numbers.

    recipe = Recipe.find("agnostic-sam/table-5")
    plan = recipe.at("small")
    print(plan.says, plan.estimate.hours)

A recipe is complete: what is not in it does not change the result. docs/recipes.md tells how one is
written.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from pydantic import ValidationError

from flatmin.studies.plan import yamlfile
from flatmin.studies.plan.analyses import asked
from flatmin.studies.plan.grid import ScaledRecipe
from flatmin.studies.plan.measures import MEASURES
from flatmin.studies.plan.schema import (
    RecipeContent,
    Strict,
    first_of,
)
from flatmin.studies.plan.shipped import folder, names
from flatmin.studies.store import files
from flatmin.training.data import corruptions, sets
from flatmin.training.errors import InputError, unknown

PARTS = {"surfaces": "flatmin.analysis.surfaces"}
"""Where the parts are that recipes need, if not in a room of their own."""


class Paper(Strict):
    """Where a recipe comes from."""

    title: str
    authors: str
    venue: str
    arxiv: str | None = None


class Recipe(RecipeContent):
    """A table or a figure: what its file says, looked at as a whole."""

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
            raise InputError(f"{path}: {first_of(error)}") from None
        try:
            recipe._check()
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        return recipe

    def at(self, scale: str) -> ScaledRecipe:
        """What there is to do at one of `scales`."""
        if scale not in self.scales:
            raise unknown("scale", scale, self.scales)
        return ScaledRecipe(self, scale)

    def require(self) -> None:
        """Raise InputError where a part in `needs` is not there yet."""
        for part in self.needs:
            if importlib.util.find_spec(PARTS.get(part, f"flatmin.{part}")) is None:
                raise InputError(
                    f"{self.name} needs the part {part!r} of flatmin, which this version does not "
                    f"have: `flatmin recipes` lists those that need nothing"
                )

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
            own = self.scales[scale]
            if scale == "full" or own.measure is not None or own.also is not None:
                self._check_measures(plan)
        self._check_printed()

    def _check_measures(self, plan: ScaledRecipe) -> None:
        runs = [tuned.usual for tuned in plan.tuned_methods]
        known = {
            *MEASURES,
            *(name for run in runs for name in run.examine),
            *(f"observed:{name}" for run in runs for name in run.observe),
            *(f"analysis:{name}" for run in runs for name in asked(run.analysis).measures),
        }
        for measure in plan.measures:
            part = measure.partition(":")[0]
            if measure not in known and not (part == "meta" and part in self.needs):
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
            cell = (number.method, number.measure or self.measure, *sorted(number.at.items()))
            if cell in seen:
                raise InputError(f"{where}: the second number at that position: remove one")
            seen.add(cell)


def _require_examination(name: str) -> None:
    """A name that `flatmin.training.evaluation` knows; whether it fits the data is seen there."""
    what = name.removesuffix("top-5").removesuffix(":")
    found, _, kind = what.partition(":")
    corrupted = ("cifar10-c", "cifar100-c", "imagenet-c")
    if found in corrupted and kind:
        corruptions.parse(what)
    known = ("", "hub", "digits", *corrupted, *sets.NAMED_SETS)
    if found not in known and not files.is_folder(Path(what)) and not files.is_file(Path(what)):
        raise unknown("examination", name, ["top-5", *known[2:]])


def papers() -> dict[str, Paper]:
    """By the names of their folders."""
    content = yamlfile.read(folder() / "papers.yaml")
    return {name: Paper.model_validate(paper) for name, paper in content.items()}
