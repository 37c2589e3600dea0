"""A method in one setting: the runs that its place in a table takes, and the choice by tuning.

Which runs there are is known from the start, but for what tuning chooses; so a plan is a function
of the rows so far, and whatever was interrupted goes on by asking it again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from flatmin.training.errors import InputError
from flatmin.training.loop import Training

if TYPE_CHECKING:
    from flatmin.studies.rows import Row

holdout = 0.1
"""Share of the training images, labels as given, on which candidates are judged."""

most = 1_000_000
"""Runs that a plan may have; it is held in memory, and gone through again and again."""


@dataclass(frozen=True)
class Contender:
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
        return max(judged, key=lambda candidate: judged[candidate]) if judged else self.usual

    def judged(self, rows: Mapping[str, Row]) -> dict[Training, float]:
        """Mean held-out accuracy in % of each candidate whose tuning runs are all among `rows`."""
        means: dict[Training, float] = {}
        for candidate in self.candidates:
            keys = [
                key_of(self._judged_by(candidate, seed)) for seed in range(-self.tuning_seeds, 0)
            ]
            if all(key in rows for key in keys):
                means[candidate] = sum(rows[key].accuracy for key in keys) / len(keys)
        return means

    def settled(self, done: frozenset[str]) -> bool:
        """Whether no tuning run is outstanding; `done` are the keys finished or given up."""
        return all(key_of(training) in done for training in self.tuning)

    def _judged_by(self, candidate: Training, seed: int) -> Training:
        return replace(candidate, seed=seed, holdout=holdout)


@dataclass(frozen=True)
class Tally:
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


def tally(
    contenders: Sequence[Contender], rows: Mapping[str, Row], given_up: frozenset[str]
) -> Tally:
    """How far the runs of `contenders` are."""
    keys = [key_of(training) for training in expected(contenders, rows, given_up)]
    done = len(rows.keys() & keys)
    failed = len(given_up.intersection(keys))
    return Tally(done, failed, len(keys) - done - failed)


def expected(
    contenders: Sequence[Contender], rows: Mapping[str, Row], given_up: frozenset[str]
) -> list[Training]:
    """The plan, and what is to follow where tuning goes on, as it would choose by now."""
    done = frozenset(rows) | given_up
    # of those with the same candidates, all will choose the same
    undecided = {each.candidates: each for each in contenders if not each.settled(done)}
    further = [training for each in undecided.values() for training in each.evaluation(rows)]
    return [*plan(contenders, rows, given_up), *further]


def plan(
    contenders: Sequence[Contender], rows: Mapping[str, Row], given_up: frozenset[str]
) -> Iterator[Training]:
    """The runs known by now, each once, in the order to do: tuning first, then seed by seed."""
    return iter(dict.fromkeys(_plan(contenders, rows, given_up)))


def _plan(
    contenders: Sequence[Contender], rows: Mapping[str, Row], given_up: frozenset[str]
) -> Iterator[Training]:
    for contender in contenders:
        yield from contender.tuning
    done = frozenset(rows) | given_up
    ready = [contender.evaluation(rows) for contender in contenders if contender.settled(done)]
    for same_seed in zip(*ready, strict=True):
        yield from same_seed


def key_of(training: Training) -> str:
    """What tells a run from all others."""
    return training.key


def require_size(runs: int) -> None:
    """Raise InputError for more runs than a plan may have."""
    if runs > most:
        raise InputError(
            f"this takes up to {runs:,} runs, more than {most:,}: give fewer seeds or settings"
        )


def share(noise: float) -> str:
    """A share of wrong labels as runs name it: `0.6`, and every digit of one that needs more."""
    short = f"{noise:g}"
    return short if float(short) == noise else repr(noise)
