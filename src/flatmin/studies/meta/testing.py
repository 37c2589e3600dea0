"""A few-shot test: the same tasks for every method, and methods paired over them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from flatmin.studies.meta import training
from flatmin.studies.meta.pools import Pools
from flatmin.studies.plan.fewshot import FewShot
from flatmin.studies.report.statistics import (
    SEEDS,
    Comparisons,
    Difference,
    Spread,
    paired,
)
from flatmin.studies.store import files, provenance
from flatmin.training.errors import InputError
from flatmin.training.processes import ProcessGroup

RESULT = "test.json"


@dataclass(frozen=True)
class Tested:
    """One training and what its models reach on the test tasks, task by task in percent.

    Fields:
        settings: of the training.
        best: of the model that was best on the validation classes.
        last: of that after the last meta-step.
        history: of the validation.
        made: where the numbers come from: commit, software, device, threads.
    """

    settings: FewShot
    best: tuple[float, ...]
    last: tuple[float, ...]
    history: Sequence[training.Validation]
    made: Mapping[str, str] = field(default_factory=dict[str, str])

    def as_data(self) -> dict[str, Any]:
        """For a file; accuracies to four digits behind the point, which keeps it small."""
        return {
            **vars(self),
            "settings": self.settings.as_data(),
            "best": [round(accuracy, 4) for accuracy in self.best],
            "last": [round(accuracy, 4) for accuracy in self.last],
            "history": [vars(row) for row in self.history],
        }

    @classmethod
    def of_data(cls, content: Mapping[str, Any]) -> Tested:
        """Of what `as_data` has made of it, through JSON."""
        return cls(
            FewShot(**content["settings"]),
            tuple(content["best"]),
            tuple(content["last"]),
            training.validations(content["history"]),
            content["made"],
        )


def measured(
    wanted: FewShot, pools: Pools, folder: Path, group: ProcessGroup | None = None
) -> Tested:
    """Measure the finished training in `folder`, and keep it there; once measured it is read."""
    group = group or ProcessGroup.here()
    key = f"{wanted.key}-{pools.fingerprint}"
    kept = group.from_leader(_kept(folder / RESULT, key))
    if kept is None:
        tasks = pools.test.batch(0, wanted.test_tasks)
        kept = dict[str, Any](key=key, made=_made(group))
        for name, learner in training.models(wanted, pools, folder).items():
            learner.to(group.device)
            kept[name] = training.accuracies(
                learner,
                tasks,
                group,
                steps=wanted.test_steps or None,
                plainly=wanted.plain_test,
            )
        if group.leads:
            with files.told(folder / RESULT, "make room there, and run the same again"):
                files.write(folder / RESULT, files.as_json(kept))
    return Tested(
        wanted,
        tuple(kept["best"]),
        tuple(kept["last"]),
        training.history(folder),
        kept.get("made", {}),
    )


def _made(group: ProcessGroup) -> dict[str, str]:
    device = group.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "commit": provenance.commit(),
        "software": ", ".join(f"{name} {v}" for name, v in provenance.versions().items()),
        "device": provenance.described(name),
        "threads a run": str(torch.get_num_threads()),
    }


def _kept(path: Path, key: str) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return content if content["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


@dataclass(frozen=True)
class TestedMethod:
    """A method on one problem.

    Fields:
        title: of the method; `method` is its name.
        rho: its radius, of the first training.
        seeds: of its trainings.
        best, last: mean accuracy in percent, with half of its 95 % interval over the tasks.
        gap: best minus that of the first method, paired over the tasks that both were tested on;
            None for the first. How far these trained models differ.
        gap_of_trainings: the same, paired over the seeds, with an interval for all methods of the
            table together. How far trainings differ.
        seconds: mean time of the meta-steps of a training.
        diverged: training tasks left out, over all seeds.
    """

    title: str
    method: str
    rho: float
    seeds: tuple[int, ...]
    best: tuple[float, float]
    last: tuple[float, float]
    gap: Difference | None
    gap_of_trainings: Difference | None
    seconds: float
    diverged: int

    @property
    def told_apart(self) -> bool:
        """Whether both intervals leave out zero, on the same side."""
        gaps = (self.gap, self.gap_of_trainings)
        return all(gap is not None and gap.distinct for gap in gaps)


@dataclass(frozen=True)
class TestTable:
    """All methods on one problem, the first being what the others are compared with.

    Fields:
        shows: the problem in words.
        tasks: that it was tested on.
        lines: the methods, in order.
        curves: the course of the validation of the first seed, by title.
        trainings: all methods over the seeds.
    """

    shows: str
    tasks: int
    lines: tuple[TestedMethod, ...]
    curves: Mapping[str, Sequence[training.Validation]]
    trainings: Comparisons

    @property
    def repeated(self) -> bool:
        """Whether there are trainings enough of every method; without, nothing can be told."""
        return all(len(line.seeds) >= SEEDS for line in self.lines)

    def over_trainings(self, line: TestedMethod) -> Spread:
        """The accuracy of its trainings."""
        return Spread.of(list(self.trainings.values[line.title].values()))

    def rank(self, line: TestedMethod) -> str:
        """For the leader "best", "level" for what the seeds do not tell from it, or empty."""
        if not self.repeated or len(self.lines) == 1:
            return ""
        if line.title == self.trainings.best:
            return "best"
        return "" if self.trainings.lead(self.trainings.best, line.title).distinct else "level"


def tables(tested: Sequence[Tested]) -> list[TestTable]:
    """One table a problem; trainings that differ in the seed alone are one line.

    The accuracy of a task is its mean over the seeds. An interval over tasks says how far these
    trained models differ, one over seeds how far trainings do.
    """
    if not tested:
        raise InputError("nothing is tested: give at least one folder of flatmin meta train")
    problems: dict[Any, dict[FewShot, list[Tested]]] = {}
    for each in tested:
        methods = problems.setdefault(each.settings.problem, {})
        methods.setdefault(replace(each.settings, seed=0), []).append(each)
    return [table(_titled(methods)) for methods in problems.values()]


def _titled(methods: Mapping[FewShot, list[Tested]]) -> dict[str, list[Tested]]:
    """By the title of the method; of two that share it, the second says how it differs."""
    found: dict[str, list[Tested]] = {}
    firsts: dict[str, FewShot] = {}
    for wanted, members in methods.items():
        title = wanted.title
        first = firsts.setdefault(title, wanted)
        differing = [
            f"{name} {value}"
            for name, value in wanted.as_data().items()
            if first.as_data()[name] != value
        ]
        found[f"{title}, {', '.join(differing)}" if differing else title] = members
    return found


def table(methods: Mapping[str, Sequence[Tested]]) -> TestTable:
    """Of the trainings of each method, by its title, all on one problem."""
    lines: list[TestedMethod] = []
    first: list[float] | None = None
    trainings = Comparisons(
        {
            title: {each.settings.seed: Spread.of(each.best).mean for each in members}
            for title, members in methods.items()
        }
    )
    control = next(iter(methods))
    for title, members in methods.items():
        best, last = (
            _by_task([getattr(each, kind) for each in members]) for kind in ("best", "last")
        )
        gap = None if first is None else _paired(best, first)
        first = best if first is None else first
        histories = [each.history for each in members if each.history]
        lines.append(
            TestedMethod(
                title,
                members[0].settings.method,
                members[0].settings.rho or 0.0,
                tuple(sorted(each.settings.seed for each in members)),
                (Spread.of(best).mean, training.half_width(best)),
                (Spread.of(last).mean, training.half_width(last)),
                gap,
                None if gap is None else trainings.lead(title, control),
                Spread.of([rows[-1].seconds for rows in histories]).mean,
                sum(rows[-1].diverged for rows in histories),
            )
        )
    some = next(iter(methods.values()))[0]
    curves = {title: members[0].history for title, members in methods.items()}
    return TestTable(some.settings.shows, len(some.best), tuple(lines), curves, trainings)


def _by_task(seeds: Sequence[Sequence[float]]) -> list[float]:
    return [sum(values) / len(values) for values in zip(*seeds, strict=True)]


def _paired(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    return paired(dict(enumerate(ours)), dict(enumerate(theirs)))
