"""What a few-shot training is: every number that its result depends on."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

import flatmin
from flatmin.studies.store import files
from flatmin.training.errors import InputError, unknown

if TYPE_CHECKING:  # `flatmin meta train --help` takes no torch
    from flatmin.meta import Perturbation

Data: TypeAlias = Literal["omniglot", "cifar-fs", "mini-imagenet"]
DATA: tuple[Data, ...] = ("omniglot", "cifar-fs", "mini-imagenet")
Level: TypeAlias = Literal["low", "up", "both"]

DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "omniglot": {
        "split": "at-hand",
        "inner_lr": 0.4,
        "inner_steps": 1,
        "tasks": 16,
        "down": "stride",
        "rotations": "classes",
    },
    "cifar-fs": {
        "split": "bertinetto",
        "inner_lr": 0.1,
        "inner_steps": 5,
        "tasks": 4,
        "down": "pool",
        "rotations": "none",
    },
    "mini-imagenet": {
        "split": "ravi",
        "inner_lr": 0.1,
        "inner_steps": 5,
        "tasks": 4,
        "down": "pool",
        "rotations": "none",
    },
}
"""What is left out, by data set."""

SPLITS: Mapping[str, tuple[str, ...]] = {
    "omniglot": ("at-hand", "vinyals", "finn", "lake"),
    "cifar-fs": ("bertinetto",),
    "mini-imagenet": ("ravi",),
}


@dataclass(frozen=True)
class FewShot:
    """A few-shot training and its test; `checked` says whether it can be."""

    data: Data = "omniglot"
    """omniglot, cifar-fs (made of cifar100), or mini-imagenet, under $FLATMIN_DATA."""
    split: str = ""
    """Classes to train, validate and test on; of omniglot at-hand, vinyals, finn or lake."""
    ways: int = 5
    """Classes of a task."""
    shots: int = 1
    """Images of each class to adapt to."""
    queries: int = 15
    """Images of each class to be judged by."""
    method: str = "sgd"
    """What climbs: sgd for MAML, or sam, agnostic-sam, align-sam, friendly-sam, asam, …"""
    level: Level = "low"
    """Whether it climbs in the inner loop, in the outer, or in both."""
    rho: float | None = None
    """Radius of the inner loop, and of the outer one unless that has its own."""
    upper_rho: float | None = None
    """Radius of the outer loop."""
    inner_lr: float = 0.0
    """Step size of the inner loop; 0 for that of the data set."""
    inner_steps: int = 0
    """Steps of the inner loop; 0 for those of the data set."""
    tasks: int = 0
    """Tasks of a meta-batch; 0 for those of the data set."""
    steps: int = 60000
    """Meta-steps."""
    lr: float = 1e-3
    """Step size of Adam, the outer optimizer."""
    filters: int = 64
    """Of each convolution of the network."""
    down: str = ""
    """How blocks halve the image: stride or pool; by data set."""
    rotations: str = ""
    """Quarter turns in training and validation: none, classes or drawn; by data set."""
    first_order: bool = False
    """Whether inner gradients are constants."""
    through_perturbation: bool = True
    """Whether gradients flow through the perturbation."""
    test_steps: int = 0
    """Inner steps at test time; 0 for those of training."""
    plain_test: bool = False
    """Whether tasks are adapted to without the perturbation at test time."""
    validate_every: int = 500
    """Meta-steps between validations; the best model is kept beside the last."""
    validation_tasks: int = 200
    """Tasks of a validation, always the same."""
    test_tasks: int = 600
    """Tasks of the test, the same for every method and seed."""
    seed: int = 0
    """Of the weights and of the tasks in training; trainings that choose a radius take -1, -2, …"""

    def __post_init__(self) -> None:
        for name, value in DEFAULTS.get(self.data, {}).items():
            if not getattr(self, name):
                object.__setattr__(self, name, value)

    def checked(self) -> FewShot:
        """These settings. Raises InputError, in one line, for what cannot be."""
        if self.data not in DATA:
            raise unknown("data set for episodes", self.data, DATA)
        if self.split not in SPLITS[self.data]:
            raise unknown(f"split of {self.data}", self.split, SPLITS[self.data])
        for name, known in (
            ("level", ("low", "up", "both")),
            ("down", ("stride", "pool")),
            ("rotations", ("none", "classes", "drawn")),
        ):
            if getattr(self, name) not in known:
                raise unknown(name, str(getattr(self, name)), known)
        for each in dataclasses.fields(self):
            value: Any = getattr(self, each.name)
            kind = str(each.type)
            if kind == "int":
                least = {"test_steps": 0, "seed": -math.inf}.get(each.name, 1)
                whole = isinstance(value, int) and not isinstance(value, bool)
                if not whole or value < least:
                    said = f" of at least {least}" if math.isfinite(least) else ""
                    raise InputError(f"{each.name} must be a whole number{said}, got {value!r}")
            elif kind == "bool" and not isinstance(value, bool):
                raise InputError(f"{each.name} must be true or false, got {value!r}")
            elif kind.startswith("float"):
                self._check_number(each.name, value, optional="None" in kind)
        if self.test_tasks < 2 or self.validation_tasks < 2:
            raise InputError("an interval takes at least 2 tasks: raise test_tasks or the like")
        _ = self.lower, self.upper
        return self

    def _check_number(self, name: str, value: object, *, optional: bool) -> None:
        if value is None and optional:
            return
        typed = isinstance(value, int | float) and not isinstance(value, bool)
        number = cast(float, value) if typed else math.nan
        if not (math.isfinite(number) and number >= 0 and (optional or number)):
            least = "of at least 0" if optional else "above 0"
            raise InputError(f"{name} must be a number {least}, got {value!r}")

    @classmethod
    def of(cls, changes: Mapping[str, Any], seed: int) -> FewShot:
        """The training that a cell of a recipe asks for.

        Args:
            changes: of its fields `data`, `model` (conv4), `method`, `rho`, `lr`, and what stands
                under `meta`.
            seed: of the run.
        """
        given: dict[str, Any] = {**changes, "seed": seed}
        if given.pop("model", "conv4") != "conv4":
            raise unknown("model for episodes", str(changes["model"]), ("conv4",))
        found = given.pop("meta", {})
        if not isinstance(found, Mapping):
            raise InputError(f"meta: expected options such as ways: 5, found {found!r}")
        options = cast("Mapping[str, Any]", found)
        known = [each.name for each in dataclasses.fields(cls)]
        for name in given:
            if name not in known:
                raise unknown("field of few-shot learning", name, [*known, "meta", "model"])
        for name in options:
            if name not in known:
                raise InputError(f"meta: {unknown('option', str(name), known)}")
        return cls(**{**given, **options}).checked()

    @property
    def lower(self) -> Perturbation | None:
        """Where inner steps look."""
        return self._sharp(self.rho) if self.level in ("low", "both") else None

    @property
    def upper(self) -> Perturbation | None:
        """Where meta-steps look."""
        rho = self.rho if self.upper_rho is None else self.upper_rho
        return self._sharp(rho) if self.level in ("up", "both") else None

    def _sharp(self, rho: float | None) -> Perturbation | None:
        try:
            return (
                None if self.method == "sgd" else flatmin.meta.Perturbation.named(self.method, rho)
            )
        except ValueError as error:
            raise InputError(str(error)) from None

    @property
    def title(self) -> str:
        """The method in words."""
        if self.method == "sgd":
            return "FOMAML" if self.first_order else "MAML"
        title = flatmin.methods.find(self.method).title
        name = "Sharp-MAML" if self.method == "sam" else f"MAML with {title}"
        first = ", first order" if self.first_order else ""
        return f"{name} ({self.level}{first}, ρ {self.rho or self._default_rho:g})"

    @property
    def _default_rho(self) -> float:
        return flatmin.methods.find(self.method).rho

    @property
    def problem(self) -> tuple[Any, ...]:
        """What two runs must share for their tests to be of the same tasks."""
        return (self.data, self.split, self.ways, self.shots, self.queries, self.test_tasks)

    @property
    def shows(self) -> str:
        """The problem in words."""
        plural = "shots" if self.shots > 1 else "shot"
        return f"{self.data} ({self.split}), {self.ways} ways {self.shots} {plural}"

    @property
    def key(self) -> str:
        """Twelve hexadecimal digits of everything that training depends on."""
        said = files.as_json(dataclasses.asdict(self))
        return hashlib.blake2b(said.encode(), digest_size=6).hexdigest()

    def as_data(self) -> dict[str, Any]:
        """For a file."""
        return dataclasses.asdict(self)


__all__ = ["DATA", "DEFAULTS", "FewShot"]
