"""A finished training run as it is stored: what was asked for, what came out, where and how."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict

from flatmin.studies.store import provenance
from flatmin.studies.store.files import finite
from flatmin.training.result import Epoch, Run


def _number(value: Any) -> Any:
    """JSON has no nan."""
    return math.nan if value is None else value


Number = Annotated[float, BeforeValidator(_number)]
"""nan where it was not finite."""


class Curves(BaseModel):
    """One number per epoch; None where it was not finite. See `flatmin.training.Epoch`."""

    model_config = ConfigDict(frozen=True)

    loss: list[float | None]
    train_accuracy: list[Number]
    accuracy: list[Number]
    passes: list[float]
    seconds: list[float]


class Row(BaseModel):
    """One finished run.

    Fields:
        key: hash of `training`.
        training: everything that determined the run, as in `flatmin.training.Training`.
        accuracy: in % after the last epoch, on the test images or on the held-out ones; or the
            metric of the run, nan where a model has diverged.
        examined: accuracy in % on further sets, by their names in `training.examine`.
        observed: what was recorded along the run, by the names in `training.observe`.
        analysed: what was looked at beside it, by the names that its `training.analysis` gives.
        curves: epoch by epoch.
        cost: the optimizer's counts, the same on any machine.
        ratio: gradient cost in passes over the primary batches.
        share: perturbed steps in %.
        radius: mean ‖ε‖ over the perturbed steps; None if there were none.
        seconds_per_epoch: of training, evaluation left out.
        wall: seconds from taking the run up to its end; after an interruption, of the last part.
        images: fingerprint of the data set.
        trouble: why the number should not be taken at face value; None if nothing is wrong.
        threads: of torch in the process that trained.
        processes: that trained together.
        tested: number of samples that `accuracy` was measured on; None in rows that do not say so.
        device: what trained, in words.
        commit: of flatmin's source; see `flatmin.studies.store.provenance.commit`.
        versions: of the software that trained.
    """

    model_config = ConfigDict(frozen=True)

    key: str
    training: dict[str, Any]
    accuracy: Number
    examined: dict[str, float | None] = {}
    observed: dict[str, list[float | None]] = {}
    analysed: dict[str, list[float | None]] = {}
    curves: Curves
    cost: dict[str, int | float]
    ratio: float | None
    share: float | None
    radius: float | None
    seconds_per_epoch: float
    wall: float | None = None
    images: str | None = None
    trouble: str | None
    threads: int
    processes: int = 1
    tested: int | None = None
    device: str = "unknown"
    commit: str = "unknown"
    versions: dict[str, str]

    @property
    def method(self) -> str:
        return self.training["method"]

    @property
    def rho(self) -> float | None:
        return self.training["rho"]

    @property
    def seed(self) -> int:
        return self.training["seed"]

    @property
    def failing(self) -> str | None:
        """Why this run says nothing about its method's accuracy; None if it does."""
        skipped, taken = (self.cost.get(name, 0) for name in ("skipped", "steps"))
        if skipped > taken:
            return "skipped most steps"
        trouble = self.trouble or ""
        if self.curves.loss[-1] is None or trouble.startswith("diverged"):
            return "diverged"
        return "learned nothing" if trouble.startswith("learned nothing") else None


def row_of(run: Run, *, images: str | None = None, wall: float | None = None) -> Row:
    """A run as it is stored; `images` and `wall` as in `Row`."""
    columns = {
        name: [getattr(epoch, name) for epoch in run.epochs] for name in Epoch.__dataclass_fields__
    }
    return Row(
        key=run.training.key,
        training=asdict(run.training),
        accuracy=run.accuracy,
        examined=finite(run.examined),
        observed=finite(run.observed),
        analysed=finite(run.analysed),
        curves=Curves(**finite(columns)),
        cost=asdict(run.cost),
        ratio=finite(run.cost.ratio),
        share=finite(run.cost.share),
        radius=finite(run.cost.radius),
        seconds_per_epoch=run.seconds_per_epoch,
        wall=wall,
        images=images,
        trouble=run.trouble,
        threads=run.threads,
        processes=run.processes,
        tested=run.tested,
        device=provenance.described(run.device),
        commit=provenance.commit(),
        versions=provenance.versions(),
    )
