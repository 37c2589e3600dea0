"""Plans as a database keeps them, so that a worker elsewhere knows what there is to do."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch

import flatmin
from flatmin.studies.plan.comparison import Comparison
from flatmin.studies.plan.grid import ScaledRecipe
from flatmin.studies.plan.recipe import Recipe
from flatmin.training.errors import InputError

StoredPlan = Comparison | ScaledRecipe


def described(plan: ScaledRecipe, asked: str = "") -> dict[str, Any]:
    """A recipe at a scale, as JSON holds it; `asked` is what `flatmin run` was given for it."""
    return {
        "kind": "recipe",
        "content": plan.recipe.model_dump(mode="json"),
        "scale": plan.scale,
        "asked": asked or plan.recipe.name,
    }


def asked(description: Mapping[str, Any] | None) -> str:
    """What `flatmin run` was given for the plan that was described; empty for a comparison."""
    return str((description or {}).get("asked", ""))


def restored(description: Mapping[str, Any]) -> StoredPlan:
    """The plan that was described. Raises InputError for what this version does not know."""
    try:
        content = description["content"]
        if description["kind"] == "comparison":
            return Comparison.model_validate(content)
        if description["kind"] == "recipe":
            return Recipe.model_validate(content).at(description["scale"])
    except (ValueError, KeyError, TypeError) as error:
        said = str(error).strip().splitlines()[0]
        raise InputError(f"the plan of this run cannot be read: {said}") from None
    raise InputError(f"this flatmin knows no plan of the kind {description['kind']!r}")


def named(plan: StoredPlan) -> str:
    """What a reader calls it."""
    if isinstance(plan, Comparison):
        return plan.data
    return f"{plan.recipe.name} {plan.scale}"


def identity(plan: ScaledRecipe) -> dict[str, Any]:
    """What must agree for rows of a recipe to stand in one table: its runs, and the software."""
    keys = "".join(run.key for run in plan.runs)
    return {
        "recipe": plan.recipe.name,
        "scale": plan.scale,
        "runs": hashlib.sha256(keys.encode()).hexdigest()[:16],
        "flatmin": flatmin.__version__,
        "torch": torch.__version__,
    }
