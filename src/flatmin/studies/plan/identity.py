"""What rows of a comparison mean: whether they may stand in one table, and in which folder.

What is the user's own counts by its contents: a network that was changed since is another one,
though its name is the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

import flatmin
from flatmin.studies.plan.comparison import EXTENDABLE, Comparison
from flatmin.training import digests, own, trial
from flatmin.training.data.samples import AnyData
from flatmin.training.settings import Training

_ADDED = (
    *("base", "base_options", "schedule", "milestones", "gamma", "warmup", "label_smoothing"),
    *("cutout", "max_norm", "precision", "size", "pretrained", "examine", "loss", "metric"),
)
"""Fields of a training that a comparison sets for all its runs; folders of earlier versions have
none of them, and mean the defaults."""

_USUAL: Mapping[str, Any] = {each.name: each.default for each in fields(Training)}


def identity(comparison: Comparison, data: AnyData) -> dict[str, Any]:
    """What must agree for rows to stand in one table: configuration, images, software.

    What can be extended is told as well.
    """
    return {
        **comparison.model_dump(),
        "lr": _rate(comparison),
        "images": data.fingerprint(),
        **{f"contents of {what}": each for what, each in _contents(comparison, data).items()},
        "flatmin": flatmin.__version__,
        "torch": torch.__version__,
    }


def differing(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """The keys in which two identities of comparisons disagree."""
    found: list[str] = []
    for key in dict.fromkeys([*ours, *theirs]):
        free = key in EXTENDABLE or (key == "lr" and None in (ours.get(key), theirs.get(key)))
        # a method that only one of them has, and what earlier versions did not know
        usual = _USUAL[key] if key in _ADDED else None
        one, other = (_plain(each.get(key, usual)) for each in (ours, theirs))
        alone = key.startswith("contents of method") and None in (one, other)
        if not free and not alone and one != other:
            found.append(key)
    return found


def default_folder(comparison: Comparison) -> Path:
    """A folder for all comparisons that can share their rows: the same command continues there."""
    content = json.dumps(_meaning(comparison), sort_keys=True, default=str)
    digest = hashlib.sha256(content.encode()).hexdigest()[:8]
    return Path("runs") / f"{Path(own.title(comparison.data)).name}-{digest}"


def _meaning(comparison: Comparison) -> dict[str, Any]:
    """What rows of this comparison mean, whichever there are."""
    usual = {name: _USUAL[name] for name in _ADDED}
    content = {**comparison.model_dump(exclude=set(EXTENDABLE)), "lr": _rate(comparison)}
    return {
        name: value
        for name, value in content.items()
        if name not in usual or _plain(value) != _plain(usual[name])
    }


def _rate(comparison: Comparison) -> float | None:
    """The learning rate, where it is the same for all runs."""
    return None if comparison.lr is None or "lr" in comparison.tune else comparison.lr[0]


def _contents(comparison: Comparison, data: AnyData) -> dict[str, str]:
    """A digest of everything that the user brings, but for the data, which has a fingerprint."""
    found: dict[str, str] = {}
    for what, name in comparison.brought.items():
        if what == "model":
            training = comparison.tuned(comparison.methods[0]).usual
            found[what] = trial.network_digest(training, data)
        elif what != "data":
            found[what] = digests.digest(digests.described(own.find(name)))
    return found


def _plain(value: Any) -> Any:
    """As JSON gives it back; no mappings and no names are the same as none."""
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value] or None  # pyright: ignore[reportUnknownVariableType]
    return value or None if isinstance(value, dict) else value  # pyright: ignore[reportUnknownVariableType]
