"""A method in one setting: the runs that its place in a table takes, and the choice by tuning.

Which runs there are is known from the start, but for what tuning chooses; so a plan is a function
of the rows so far, and whatever was interrupted goes on by asking it again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from flatmin.training.errors import InputError
from flatmin.training.losses import lower_is_better
from flatmin.training.settings import Training

if TYPE_CHECKING:
    from flatmin.studies.store.row import Row
    from flatmin.studies.store.store import Store

HOLDOUT = 0.1
"""Share of the training images, labels as given, on which candidates are judged."""

MAX_RUNS = 1_000_000
"""Runs that a plan may have; it is held in memory, and gone through again and again."""


def mean(values: Sequence[float]) -> float:
    """To twelve digits, so that those who have met as many are equal on every machine.

    The last digit of a sum depends on its order and, from Python 3.12 on, on the version; a choice
    that hung on it would ask for other runs than those that have been made.
    """
    return float(f"{math.fsum(values) / len(values):.12g}")


@dataclass(frozen=True)
class TunedMethod:
    """One method in one setting.

    Fields:
        usual: how it trains where nothing is tuned, or where no tuning run has finished.
        candidates: what tuning chooses from, the modest ones first; empty for nothing to tune.
        seeds: number of runs that the table is made of, with the seeds 0 .. seeds - 1.
        tuning_seeds: number of runs of each candidate, with the seeds -1, -2, ...
    """

    usual: Training
    candidates: tuple[Training, ...] = ()
    seeds: int = 1
    tuning_seeds: int = 1

    @property
    def tuning(self) -> list[Training]:
        """The runs that judge the candidates."""
        return [
            self._judged_by(candidate, seed)
            for seed in range(-1, -self.tuning_seeds - 1, -1)
            for candidate in self.candidates
        ]

    def evaluation(self, rows: Mapping[str, Row]) -> list[Training]:
        """The runs that the table is made of, as chosen from `rows`."""
        chosen = self.chosen(rows)
        return [replace(chosen, seed=seed) for seed in range(self.seeds)]

    def chosen(self, rows: Mapping[str, Row]) -> Training:
        """The candidate with the best mean accuracy on held-out images; of equals, the first."""
        judged = self.judged(rows)
        sign = -1 if lower_is_better(self.usual.metric) else 1

        def worth(candidate: Training) -> float:
            mean = judged[candidate]
            return -math.inf if math.isnan(mean) else sign * mean  # nan: it has diverged

        return max(judged, key=worth) if judged else self.usual

    def judged(self, rows: Mapping[str, Row]) -> dict[Training, float]:
        """Mean held-out accuracy in % of each candidate whose tuning runs are all among `rows`."""
        means: dict[Training, float] = {}
        for candidate in self.candidates:
            keys = [self._judged_by(candidate, seed).key for seed in range(-self.tuning_seeds, 0)]
            if all(key in rows for key in keys):
                means[candidate] = mean([rows[key].accuracy for key in keys])
        return means

    def settled(self, done: frozenset[str]) -> bool:
        """Whether no tuning run is outstanding; `done` are the keys finished or given up."""
        return all(training.key in done for training in self.tuning)

    def _judged_by(self, candidate: Training, seed: int) -> Training:
        return replace(candidate, seed=seed, holdout=HOLDOUT, analysis=())


@dataclass(frozen=True)
class Progress:
    """How far a study is.

    Fields:
        done, failed: cells that have their row, and those given up. What the plan asks for no
            longer, since tuning has chosen anew, does not count.
        left: the others, with those that tuning has yet to choose; none left: it is finished.
    """

    done: int
    failed: int
    left: int

    @property
    def total(self) -> int:
        return self.done + self.failed + self.left


class Plan(Protocol):
    """Which cells there are: a function of the rows so far, since tuning chooses."""

    @property
    def total(self) -> int:
        """How many cells there will be in all, as far as is known before the first."""
        ...

    def plan(self, rows: Mapping[str, Row], given_up: frozenset[str]) -> Iterable[Training]:
        """The cells known by now, in the order to do them, the finished ones among them."""
        ...

    def progress(self, rows: Mapping[str, Row], given_up: frozenset[str]) -> Progress:
        """How far it is; nothing is left once each cell of `plan` has its row or is given up."""
        ...


def progress_of(plan: Plan, store: Store) -> Progress:
    """How far a plan is, by its store as it was last read."""
    return plan.progress(store.rows, store.given_up)


def progress(
    tuned_methods: Sequence[TunedMethod], rows: Mapping[str, Row], given_up: frozenset[str]
) -> Progress:
    """How far the runs of `tuned_methods` are."""
    keys = [training.key for training in expected(tuned_methods, rows, given_up)]
    done = len(rows.keys() & keys)
    failed = len(given_up.intersection(keys))
    return Progress(done, failed, len(keys) - done - failed)


def expected(
    tuned_methods: Sequence[TunedMethod], rows: Mapping[str, Row], given_up: frozenset[str]
) -> list[Training]:
    """The plan, and what is to follow where tuning goes on, as it would choose by now."""
    done = frozenset(rows) | given_up
    # of those with the same candidates, all will choose the same
    undecided = {each.candidates: each for each in tuned_methods if not each.settled(done)}
    further = [training for each in undecided.values() for training in each.evaluation(rows)]
    return [*plan(tuned_methods, rows, given_up), *further]


def plan(
    tuned_methods: Sequence[TunedMethod], rows: Mapping[str, Row], given_up: frozenset[str]
) -> Iterator[Training]:
    """The runs known by now, each once, in the order to do: tuning first, then seed by seed."""
    return iter(dict.fromkeys(_plan(tuned_methods, rows, given_up)))


def _plan(
    tuned_methods: Sequence[TunedMethod], rows: Mapping[str, Row], given_up: frozenset[str]
) -> Iterator[Training]:
    for tuned in tuned_methods:
        yield from tuned.tuning
    done = frozenset(rows) | given_up
    ready = [tuned.evaluation(rows) for tuned in tuned_methods if tuned.settled(done)]
    for same_seed in zip(*ready, strict=True):
        yield from same_seed


def require_size(runs: int) -> None:
    """Raise InputError for more runs than a plan may have."""
    if runs > MAX_RUNS:
        raise InputError(
            f"this takes up to {runs:,} runs, more than {MAX_RUNS:,}: give fewer seeds or settings"
        )


def share(noise: float) -> str:
    """A share of wrong labels as runs name it: `0.6`, and every digit of one that needs more."""
    short = f"{noise:g}"
    return short if float(short) == noise else repr(noise)
