"""The table of a comparison, and its meaning in a sentence that does not say more than it knows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flatmin import methods
from flatmin.studies.plan import measures
from flatmin.studies.plan.comparison import Comparison, Outcome
from flatmin.studies.plan.tuning import TunedMethod
from flatmin.studies.report import text
from flatmin.studies.report.statistics import Difference, Spread, at_cost, paired
from flatmin.studies.store.row import Row
from flatmin.studies.store.store import Failed
from flatmin.training import Training


@dataclass(frozen=True)
class Line:
    """One method of the table; percentages are of the test images.

    Fields:
        method, title: its name on the command line and in print.
        asked: number of runs that were asked for.
        rows: the evaluation runs that have finished, by seed.
        rho: radius it was evaluated with; None where it has none.
        edge: the tuned radius is the smallest or largest tried: a better one may lie outside.
        tuned: what else tuning has chosen, by name.
        judged: mean held-out accuracy in % by radius, the best of each; empty if none was tuned.
        measure: what methods are ranked by, a name that `flatmin.studies.plan.measures` knows.
        value: by that measure.
        difference: to the first method, by that measure; None for the first.
        at_equal_cost: accuracy at the largest gradient cost that every run has reached.
    """

    method: str
    title: str
    asked: int
    rows: Mapping[int, Row]
    rho: float | None
    edge: bool
    tuned: Mapping[str, float | str | int]
    judged: Mapping[float, float]
    measure: str
    value: Spread
    difference: Difference | None
    at_equal_cost: Spread

    @property
    def by_seed(self) -> dict[int, float]:
        """What was measured, seed by seed."""
        return _by_seed(self.rows, self.measure)

    def mean(self, measure: str) -> float:
        """Over the runs, by any measure; nan where none has it."""
        return self.spread(measure).mean

    def spread(self, measure: str) -> Spread:
        """Of the runs, by any measure."""
        return Spread.of(list(_by_seed(self.rows, measure).values()))

    @property
    def ratio(self) -> float:
        """Mean gradient cost a step, in gradients of a primary batch."""
        return self.mean("ratio")

    @property
    def troubles(self) -> list[str]:
        """What went wrong, run by run."""
        return [f"seed {seed}: {row.trouble}" for seed, row in self.rows.items() if row.trouble]


@dataclass(frozen=True)
class Summary:
    """The lines of the methods that have at least one finished run, in the order asked for.

    Fields:
        first: title of the first method asked for, to which differences are taken.
        common_cost: the largest gradient cost, in passes over the training images, that every
            run has reached.
        missing: runs that failed.
    """

    lines: tuple[Line, ...]
    first: str
    common_cost: float
    missing: tuple[str, ...]

    @property
    def repeated(self) -> bool:
        """Whether every method has at least two runs, without which nothing can be told."""
        return all(line.value.n > 1 for line in self.lines)

    @property
    def best(self) -> Line:
        return self._ranked[0]

    @property
    def rivals(self) -> list[Line]:
        """The methods that the seeds do not tell from the best one, best first."""
        rest = [line for line in self._ranked if line is not self.best]
        return [line for line in rest if not lead(self.best, line).distinct]

    @property
    def beaten(self) -> list[Line]:
        """The methods that are worse than the best one, as far as a 95 % interval can tell."""
        rest = [line for line in self._ranked if line is not self.best]
        return [line for line in rest if lead(self.best, line).distinct]

    @property
    def _ranked(self) -> list[Line]:
        return sorted(self.lines, key=lambda line: -_finite(line.value.mean))


@dataclass(frozen=True)
class Verdict:
    """What the table means, in one line, and the numbers for it; together they are a paragraph."""

    headline: str
    detail: str

    def __str__(self) -> str:
        return f"{self.headline}. {self.detail}"


def lead(line: Line, over: Line) -> Difference:
    """How much better `line` is than another one, over their shared seeds, in points."""
    return paired(line.by_seed, over.by_seed)


def summarise(outcome: Outcome) -> Summary:
    """The table of the rows that an outcome has; without lines if it has none."""
    comparison = outcome.comparison
    return of_comparison(comparison, outcome.store.rows, outcome.failures)


def of_comparison(
    comparison: Comparison, rows: Mapping[str, Row], failures: Sequence[Failed] = ()
) -> Summary:
    """The table of a comparison, from `rows`."""
    missing = tuple(
        f"{_named(failure.training.method)}, seed {failure.training.seed}: {failure.reason}"
        for failure in failures
    )
    tuned_methods = {_named(name): comparison.tuned(name) for name in comparison.methods}
    return of_tuned_methods(tuned_methods, rows, missing=missing)


def of_tuned_methods(
    tuned_methods: Mapping[str, TunedMethod],
    rows: Mapping[str, Row],
    measure: str = "accuracy",
    missing: tuple[str, ...] = (),
) -> Summary:
    """The table of methods, by their titles, that are ranked by `measure`."""
    found = {title: _finished(tuned, rows) for title, tuned in tuned_methods.items()}
    found = {title: by_seed for title, by_seed in found.items() if by_seed}
    every = [row for by_seed in found.values() for row in by_seed.values()]
    common = min((row.curves.passes[-1] for row in every), default=math.nan)
    first = next(iter(tuned_methods))
    lines = tuple(
        _line(title, tuned_methods[title], by_seed, found.get(first), measure, common, rows)
        for title, by_seed in found.items()
    )
    return Summary(lines, first, common, missing)


def verdict(summary: Summary) -> Verdict:
    """Who generalises better, by how much, and how sure that is."""
    best, rivals, beaten = summary.best, summary.rivals, summary.beaten
    seeds = best.value.n
    if len(summary.lines) == 1:
        return Verdict(
            f"{best.title} reaches {_mean(best)}", "There is no other method to compare it with."
        )
    if not summary.repeated:
        return Verdict(
            f"Too few runs to tell: {best.title} has the highest accuracy, {_mean(best)}",
            "One run of a method cannot tell a better method from a lucky seed.",
        )
    if not rivals:
        return Verdict(
            f"{best.title} wins: {_mean(best)} on average over {seeds} seeds",
            f"It is {_ahead(best, _ends(beaten))}.",
        )
    headline = (
        f"No winner: {seeds} seeds do not tell any method from {best.title}"
        if not beaten
        else f"No single winner: {seeds} seeds do not tell {best.title} from "
        f"{text.listing([line.title for line in rivals])}"
    )
    return Verdict(
        headline,
        f"{best.title} has the highest mean accuracy, {_mean(best)}; it is "
        f"{_ahead(best, [*rivals[:1], *_ends(beaten)])}.",
    )


def remarks(comparison: Comparison, summary: Summary) -> list[str]:
    """What a reader must know before believing the table; empty if there is nothing."""
    found = [f"{line.title}: {trouble}." for line in summary.lines for trouble in line.troubles]
    found += [f"Missing: {run}." for run in summary.missing]
    edges = [f"{line.title} ({line.rho:g})" for line in summary.lines if line.edge]
    if edges:
        found.append(
            f"The chosen radius is at the edge of what was tried for {text.listing(edges)}: a "
            f"better one may lie beyond. Give a wider grid by --rho."
        )
    leaders = [summary.best, *summary.rivals]
    cheapest = min(leaders, key=lambda line: line.ratio)
    if summary.repeated and cheapest.ratio < 0.95 * summary.best.ratio:
        found.append(
            f"The cheapest of the leaders is {cheapest.title}, with {cheapest.ratio:.2f} gradients "
            f"a step where {summary.best.title} takes {summary.best.ratio:.2f}."
        )
    return found


def _finished(tuned: TunedMethod, rows: Mapping[str, Row]) -> dict[int, Row]:
    keys = {training.seed: training.key for training in tuned.evaluation(rows)}
    return {seed: rows[key] for seed, key in keys.items() if key in rows}


def _by_seed(rows: Mapping[int, Row], measure: str) -> dict[int, float]:
    values = {seed: measures.value(row, measure) for seed, row in rows.items()}
    return {seed: value for seed, value in values.items() if value is not None}


def _line(
    title: str,
    tuned: TunedMethod,
    by_seed: Mapping[int, Row],
    first: Mapping[int, Row] | None,
    measure: str,
    common: float,
    rows: Mapping[str, Row],
) -> Line:
    chosen = tuned.chosen(rows)
    judged = _judged(tuned, rows)
    values = _by_seed(by_seed, measure)
    difference = None
    if first is not None and by_seed is not first:
        difference = paired(values, _by_seed(first, measure))
    return Line(
        method=chosen.method,
        title=title,
        asked=tuned.seeds,
        rows=by_seed,
        rho=chosen.rho if chosen.rho is not None else methods.find(chosen.method).rho or None,
        edge=len(judged) > 1 and chosen.rho in (min(judged), max(judged)),
        tuned=_tuned(tuned, chosen),
        judged=judged,
        measure=measure,
        value=Spread.of(list(values.values())),
        difference=difference,
        at_equal_cost=Spread.of(
            [at_cost(row.curves.passes, row.curves.accuracy, common) for row in by_seed.values()]
        ),
    )


def _tuned(tuned: TunedMethod, chosen: Training) -> dict[str, float | str | int]:
    """The options that differ among the candidates, as chosen."""
    tried = [dict(candidate.options) for candidate in tuned.candidates]
    return {
        name: value
        for name, value in chosen.options
        if len({options.get(name) for options in tried}) > 1
    }


def _judged(tuned: TunedMethod, rows: Mapping[str, Row]) -> dict[float, float]:
    best: dict[float, float] = {}
    for candidate, accuracy in tuned.judged(rows).items():
        rho = candidate.rho
        if rho is not None:
            best[rho] = max(accuracy, best.get(rho, accuracy))
    return dict(sorted(best.items()))


def _finite(mean: float) -> float:
    """For ranking: what was not measured comes last."""
    return mean if math.isfinite(mean) else -math.inf


def _named(method: str) -> str:
    return methods.find(method).title


def _mean(line: Line) -> str:
    return f"{line.value.mean:.1f} %"


def _ahead(best: Line, others: Sequence[Line]) -> str:
    return text.listing(
        [f"{text.points(lead(best, line))} ahead of {line.title}" for line in others]
    )


def _ends(lines: Sequence[Line]) -> Sequence[Line]:
    """The nearest and the farthest of the methods beaten."""
    return lines if len(lines) < 3 else (lines[0], lines[-1])
