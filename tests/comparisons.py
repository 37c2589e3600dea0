"""Comparisons with made-up numbers, for what is said about them and how it is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flatmin.engine.cost import Cost
from flatmin.studies.plan import opening
from flatmin.studies.plan.comparison import Comparison
from flatmin.studies.plan.opening import Outcome
from flatmin.studies.store import provenance
from flatmin.studies.store.location import StudyLocation
from flatmin.studies.store.owner import ProcessIdentity
from flatmin.studies.store.row import Curves, Row
from flatmin.training import Training, load

RATIOS = {"sgd": 1.0, "sam": 2.0, "agnostic-sam": 2.5, "agnostic-sam-previous": 2.0}


def comparison(**changed: Any) -> Comparison:
    """A small comparison on digits."""
    settings: dict[str, Any] = {
        "data": "digits",
        "methods": ("sgd", "sam"),
        "model": "mlp",
        "noise": "0.6",
        "epochs": 4,
        "batch": 64,
        "lr": 0.1,
        "weight_decay": 5e-4,
        "seeds": 2,
    }
    return Comparison.checked(**(settings | changed))


def row(training: Training, accuracy: float, trouble: str | None = None) -> Row:
    """A run whose accuracy rises in a line from 0 to `accuracy`."""
    ratio = RATIOS.get(training.method, 2.0)
    share = (ratio > 1) * 100.0
    epochs = range(1, training.epochs + 1)
    return Row(
        key=training.key,
        training=asdict(training),
        accuracy=accuracy,
        curves=Curves(
            loss=[1.0 / epoch for epoch in epochs],
            train_accuracy=[50.0 for _ in epochs],
            accuracy=[accuracy * epoch / training.epochs for epoch in epochs],
            passes=[ratio * epoch for epoch in epochs],
            seconds=[0.5 for _ in epochs],
        ),
        cost=asdict(Cost(steps=100)),
        ratio=ratio,
        share=share,
        radius=training.rho if share else None,
        seconds_per_epoch=0.5,
        trouble=trouble,
        threads=1,
        versions=provenance.versions(),
    )


def outcome(
    folder: Path,
    accuracies: Mapping[str, Sequence[float | None]],
    *,
    held_out: Mapping[str, Mapping[float, float]] | None = None,
    troubles: Mapping[tuple[str, int], str] | None = None,
    failures: Mapping[tuple[str, int], str] | None = None,
    **changed: Any,
) -> Outcome:
    """An outcome with these accuracies by method and seed; None is a run that is missing.

    `troubles` and `failures` say why, by method and seed.
    """
    seeds = max(len(values) for values in accuracies.values())
    asked = comparison(methods=tuple(accuracies), seeds=seeds, **changed)
    data = load(asked.data)
    found = opening.begin(asked, data, StudyLocation.new(folder))
    store = found.store
    for method, by_rho in (held_out or {}).items():
        for training in asked.tuning(method):
            assert training.rho is not None
            store.add(row(training, by_rho[training.rho]))
    for method, values in accuracies.items():
        for training, value in zip(asked.evaluation(method, store.rows), values, strict=True):
            if value is not None:
                store.add(row(training, value, (troubles or {}).get((method, training.seed))))
            reason = (failures or {}).get((method, training.seed))
            if reason is not None:
                claim = store.claim(training, ProcessIdentity.here())
                assert claim is not None
                claim.fail(reason, "")
    store.refresh()
    return found
