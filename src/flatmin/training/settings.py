"""Everything that determines one training run, and what of it can be."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from numbers import Real
from typing import Any

import torch

from flatmin import methods
from flatmin.training import bases, losses, models, own, recorder, schedules
from flatmin.training.data import noise
from flatmin.training.errors import InputError, unknown

PRECISIONS = ("float32", "bfloat16")
"""The types in which a model can be evaluated; its weights are float32 in both."""

AUXILIARY = ("own", "containing")
"""Where auxiliary batches can come from."""

_HASHED_ALWAYS = (
    *("data", "model", "method", "rho", "seed", "epochs", "batch", "lr", "momentum"),
    *("weight_decay", "noise", "limit", "fraction", "augment", "holdout", "options", "base"),
    *("schedule", "milestones", "gamma", "warmup", "label_smoothing", "cutout", "max_norm"),
    *("precision", "width", "pretrained", "size", "examine", "observe"),
)
"""Fields that go into every key. A later one goes in where it is not at its default, so that rows
of earlier versions keep their keys."""


@dataclass(frozen=True)
class Training:
    """Everything that determines one training run.

    Fields:
        data: name or folder, as for `flatmin.training.load`, or your own (see below).
        model: a name in `flatmin.training.models`, or your own.
        method: a name in `flatmin.methods.TABLE`, or your own.
        rho: radius; None for the method's default.
        seed: of weights, order, augmentation, auxiliary batches, noise, held-out images and the
            method's own coins.
        epochs: number of passes over the training images.
        batch: images a step. The images that do not fill a last batch are left out of the epoch,
            other ones each time.
        lr: learning rate of the base optimizer; None leaves it to a base of your own.
        weight_decay: of the base optimizer; None likewise.
        momentum: of SGD; the first of Adam's betas; None likewise.
        noise: share of wrong labels in [0, 1), or "human:<column>".
        limit: number of training images; None for all.
        fraction: size of an auxiliary batch over that of a primary one; above 1 it is evaluated
            `batch` images at a time, and it is never larger than the training set.
        auxiliary: where auxiliary batches come from: "own", a stream of their own, or "containing":
            the primary batch with further images around it, `fraction` times as large in all.
        augment: random crops and flips.
        holdout: share of the training images, stratified by the labels as given, that is held out
            and on which, in place of the test set, accuracy is measured against those labels.
        options: further hyperparameters of the method, by name: (("beta", 0.9),).
        base: the base optimizer, a name in `flatmin.training.bases`, or your own.
        base_options: further arguments of the base optimizer, by name: (("eps", 1e-6),).
        loss: "cross-entropy", or your own function of (outputs, targets).
        metric: "accuracy" in %, or "max:" or "min:", whichever is better, and your own function of
            (outputs, targets) of the whole test set.
        schedule: of the learning rate, step by step, a name in `flatmin.training.schedules`.
        rho_schedule: of the radius, step by step: "constant", or "cosine", "linear", "proportional"
            (to the learning rate), down to 0 or, as in "cosine:0.5", to a share of the radius.
        milestones: where "step" multiplies the learning rate by `gamma`, as shares of the epochs.
        gamma: see `milestones`.
        warmup: epochs, not necessarily whole, in which the learning rate rises along a line; the
            schedule fills the rest.
        label_smoothing: share of each label that goes to all classes alike, in [0, 1).
        cutout: side, in pixels, of the square that is cut out of each training image; 0 for none.
        max_norm: the norm to which the descended gradient is clipped; None for no clipping.
        precision: of forward and backward passes, "float32" or "bfloat16" (autocast).
        width: multiplies the channels (or units) of the model.
        pretrained: "hub", a file of weights (.safetensors, .pt) or the folder of a run that has
            kept the weights of one training, to start from; None starts from random weights.
        size: side in pixels to which the images are resized; None for the size they have.
        examine: further sets on which the final model is measured, beside the test set; see
            `flatmin.training.evaluation`.
        observe: what is recorded along the run, names in `flatmin.training.recorder`.
        analysis: what is looked at beside it, names and values of options that whoever looks knows;
            see `flatmin.studies.plan.analyses`.

    What is your own has an import path, `module:name`; `flatmin.compare` takes objects as well, and
    names them.

    Raises InputError, from its construction on, where a field cannot be what it is.
    """

    data: str
    model: str
    method: str
    rho: float | None = None
    seed: int = 0
    epochs: int = 20
    batch: int = 64
    lr: float | None = 0.1
    momentum: float | None = 0.9
    weight_decay: float | None = 5e-4
    noise: str = "0"
    limit: int | None = None
    fraction: float = 0.25
    auxiliary: str = "own"
    augment: bool = False
    holdout: float = 0.0
    options: tuple[tuple[str, float | str | int], ...] = ()
    base: str = "sgd"
    schedule: str = "cosine"
    rho_schedule: str = "constant"
    milestones: tuple[float, ...] = ()
    gamma: float = 0.1
    warmup: float = 0.0
    label_smoothing: float = 0.0
    cutout: int = 0
    max_norm: float | None = None
    precision: str = "float32"
    width: float = 1.0
    pretrained: str | None = None
    size: int | None = None
    examine: tuple[str, ...] = ()
    observe: tuple[str, ...] = ()
    analysis: tuple[tuple[str, Any], ...] = ()
    base_options: tuple[tuple[str, Any], ...] = ()
    loss: str = losses.CROSS_ENTROPY
    metric: str = losses.ACCURACY

    def __post_init__(self) -> None:
        for name, value in self._tidied().items():
            object.__setattr__(self, name, value)
        self._check_types()
        self._check_names()
        self._check_numbers()
        self._check_options()
        noise.parse(self.noise)
        one_form = str(schedules.RhoSchedule.parse(self.rho_schedule))
        object.__setattr__(self, "rho_schedule", one_form)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Training:
        """The training that `values`, as JSON holds them, describe: lists for tuples.

        Raises InputError for a field that there is not, or one that is missing.
        """
        known = {field.name for field in fields(cls)}
        for name in values:
            if name not in known:
                raise unknown("field of a training", name, known)
        for name in ("data", "model", "method"):
            if name not in values:
                raise InputError(f"a training without {name}: say which {name}")
        return cls(**{name: _frozen(value) for name, value in values.items()})

    @cached_property
    def key(self) -> str:
        """The hash of all fields, 16 hexadecimal digits."""
        hashed = asdict(self)
        for name, usual in _LATER.items():
            if hashed[name] == usual:
                del hashed[name]
        text = json.dumps(hashed, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _tidied(self) -> dict[str, Any]:
        """What may be written in several ways, in the one that counts."""
        number: Any = self.noise
        many = ("milestones", "examine", "observe")
        return {
            "options": _pairs("options", self.options),
            "analysis": _pairs("analysis", self.analysis),
            "base_options": _pairs("base_options", self.base_options),
            "noise": f"{number!r}" if _is(number, Real) else number,
            **{name: _frozen(getattr(self, name)) for name in many},
        }

    def _check_types(self) -> None:
        for field in fields(self):
            value, (wanted, *rest) = getattr(self, field.name), str(field.type).split(" | ")
            kind, says = _KINDS[wanted.partition("[")[0]]
            if not _is(value, kind) and not (value is None and rest):
                raise InputError(f"{field.name} {value!r} does not fit: expected {says}")

    def _check_names(self) -> None:
        models.require(self.model)
        losses.require(self.loss, self.metric)
        for kind, name, known in (
            ("method", self.method, methods.TABLE),
            ("base optimizer", self.base, bases.BASES),
            ("schedule", self.schedule, schedules.SCHEDULES),
            ("precision", self.precision, PRECISIONS),
            ("source of auxiliary batches", self.auxiliary, AUXILIARY),
            *(("observable", name, recorder.OBSERVABLES) for name in self.observe),
        ):
            if name not in known and not (kind in _OWN_KINDS and own.is_own(name)):
                raise unknown(kind, name, known)

    def _check_numbers(self) -> None:
        for name in ("epochs", "batch"):
            self._require(name, getattr(self, name) >= 1, "a whole number from 1 on")
        for name in ("limit", "size"):
            given = getattr(self, name)
            self._require(name, given is None or given >= 1, "a whole number from 1 on, or none")
        most = torch.finfo(torch.float32).max
        self._require("rho", self.rho is None or 0 <= self.rho <= most, "a radius of at least 0")
        lr, momentum, decay = self.lr, self.momentum, self.weight_decay
        if None in (lr, momentum, decay) and not own.is_own(self.base):
            for name in ("lr", "momentum", "weight_decay"):
                given = getattr(self, name) is not None
                self._require(name, given, f"a number for {self.base}")
        self._require("lr", lr is None or 0 < lr < math.inf, "a number above 0")
        self._require("momentum", momentum is None or 0 <= momentum < 1, "a number in [0, 1)")
        self._require("momentum", self.base != "nesterov" or momentum != 0, "above 0, Nesterov")
        self._require("weight_decay", decay is None or 0 <= decay < math.inf, "at least 0")
        self._require("fraction", 0 < self.fraction < math.inf, "a number above 0")
        contained = self.auxiliary == "own" or self.fraction >= 1
        self._require("fraction", contained, "at least 1 where the primary batch is contained")
        self._require("holdout", 0 <= self.holdout < 1, "a share in [0, 1)")
        self._require("gamma", 0 < self.gamma <= 1, "a number in (0, 1]")
        self._require("warmup", 0 <= self.warmup < self.epochs, "fewer than the epochs")
        self._require("label_smoothing", 0 <= self.label_smoothing < 1, "a share in [0, 1)")
        self._require("cutout", self.cutout >= 0, "a side in pixels, or 0")
        self._require("width", 0 < self.width < math.inf, "a factor above 0")
        limit = self.max_norm
        self._require("max_norm", limit is None or 0 < limit < math.inf, "a norm above 0")
        inside = all(0 < share < 1 for share in self.milestones)
        self._require("milestones", inside, "shares of the epochs, in (0, 1)")
        stepped = self.schedule == "step"
        self._require(
            "milestones",
            bool(self.milestones) == stepped,
            "some with schedule step, and none with any other",
        )

    def _check_options(self) -> None:
        bases.require(self.base, dict(self.base_options))
        if not self.options or own.is_own(self.method):  # what is the user's own is tried later
            return
        method = methods.find(self.method)
        if not method.hyperparameters:
            raise InputError(f"{self.method} has no options, got {self.options[0][0]!r}")
        for name, _ in self.options:
            if name not in method.hyperparameters:
                raise unknown(f"option of {self.method}", name, method.hyperparameters)
        try:
            trial = torch.optim.SGD([torch.zeros(1)])
            built = method.build(trial, self.rho, total_steps=1, settings=dict(self.options))
        except (TypeError, ValueError) as error:
            raise InputError(f"an option of {self.method} does not fit: {error}") from None
        if bool(built.direction.auxiliary_passes) != method.auxiliary:
            raise InputError(
                f"the options of {self.method} change which batches a step takes: that is another "
                f"method, with a name of its own (`flatmin methods` lists them)"
            )

    def _require(self, name: str, fits: bool, expected: str) -> None:
        if not fits:
            value = getattr(self, name)
            raise InputError(f"{name} {value} is out of range: expected {expected}")


_LATER: Mapping[str, Any] = {
    field.name: field.default for field in fields(Training) if field.name not in _HASHED_ALWAYS
}
"""The defaults of the fields that a key has only where they differ."""

_OWN_KINDS = ("method", "base optimizer")
"""Of the names that are looked up in a table: what may also be the user's own."""

_KINDS: Mapping[str, tuple[type, str]] = {
    "str": (str, "a text"),
    "int": (int, "a whole number"),
    "float": (Real, "a number"),
    "bool": (bool, "True or False"),
    "tuple": (tuple, "a tuple"),
}
"""What a field may hold, by how its type is written."""


def _pairs(what: str, given: Any) -> tuple[tuple[str, Any], ...]:
    try:
        return tuple(sorted((str(name), _frozen(value)) for name, value in dict(given).items()))
    except (TypeError, ValueError):
        raise InputError(f"{what} {given!r} do not fit: expected names and values") from None


def _is(value: Any, kind: type) -> bool:
    """Like isinstance, but that True and False are no numbers."""
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _frozen(value: Any) -> Any:
    """Lists become tuples, all the way down."""
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
