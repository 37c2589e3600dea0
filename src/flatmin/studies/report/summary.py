"""The table of a comparison, and its meaning in a sentence that does not say more than it knows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from flatmin import methods
from flatmin.studies.plan import measures
from flatmin.studies.plan.comparison import Comparison
from flatmin.studies.plan.opening import Outcome
from flatmin.studies.plan.tuning import TunedMethod
from flatmin.studies.report import text
from flatmin.studies.report.measures import heading
from flatmin.studies.report.statistics import (
    SEEDS,
    SPREADS,
    Comparisons,
    Difference,
    Spread,
    at_cost,
    images_of,
    paired,
)
from flatmin.studies.store.row import Row
from flatmin.studies.store.store import Failed
from flatmin.training import Training, own
from flatmin.training.losses import lower_is_better


@dataclass(frozen=True)
class Line:
    """One method of the table; percentages are of the test images.

    Its numbers are of the runs that say something about it: one that diverged, learned nothing or
    skipped most of its steps is told and left out, unless there is no other.

    Fields:
        method, title: its name on the command line and in print.
        asked: number of runs that were asked for.
        finished: the evaluation runs that have finished, by seed.
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
    finished: Mapping[int, Row]
    rho: float | None
    edge: bool
    tuned: Mapping[str, float | str | int]
    judged: Mapping[float, float]
    measure: str
    value: Spread
    difference: Difference | None
    at_equal_cost: Spread

    @property
    def rows(self) -> Mapping[int, Row]:
        """The runs that its numbers are of, by seed."""
        return _sound(self.finished) or self.finished

    @property
    def failing(self) -> list[str]:
        """Of the finished runs that are left out: what is wrong with each."""
        return [row.failing for row in self.finished.values() if row.failing]

    @property
    def ranked(self) -> bool:
        """Whether it takes part in verdicts: not where too few runs are left for that."""
        left = len(self.finished) - len(self.failing)
        return bool(self.by_seed) and left > 0 and (left >= SEEDS or not self.failing)

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
        return [
            f"seed {seed}: {row.trouble or row.failing}{'; left out' if row.failing else ''}"
            for seed, row in self.finished.items()
            if row.trouble or row.failing
        ]


@dataclass(frozen=True)
class Summary:
    """The lines of the methods that have at least one finished run, in the order asked for.

    Fields:
        first: title of the first method asked for, to which differences are taken.
        common_cost: the largest gradient cost, in passes over the training images, that every
            run has reached.
        missing: runs that failed.
        comparisons: of the ranked methods, by their titles; what is told apart is decided there.
    """

    lines: tuple[Line, ...]
    first: str
    common_cost: float
    missing: tuple[str, ...]
    comparisons: Comparisons

    @property
    def ranked(self) -> list[Line]:
        """The methods that take part in verdicts, best first."""
        ranked = [line for line in self.lines if line.ranked]
        return sorted(ranked, key=_worth, reverse=True)

    @property
    def left_out(self) -> list[Line]:
        """The methods that have runs which are left out, or that are left out themselves."""
        return [line for line in self.lines if line.failing]

    @property
    def repeated(self) -> bool:
        """Whether there are runs enough of every ranked method; without, nothing can be told."""
        return bool(self.ranked) and all(line.value.n >= SEEDS for line in self.ranked)

    @property
    def best(self) -> Line:
        """The leader; of methods that all fail to be ranked, the one with the highest mean."""
        return next(iter(self.ranked), max(self.lines, key=_worth))

    @property
    def digits(self) -> int:
        """Behind the point of what was measured; four that say something of an own metric."""
        means = [abs(line.value.mean) for line in self.lines if math.isfinite(line.value.mean)]
        shown = heading(self.lines[0].measure) if self.lines else heading("accuracy")
        if not shown.metric:
            return shown.digits
        largest = max(means, default=0.0)
        return max(0, 3 - math.floor(math.log10(largest))) if largest else shown.digits

    @property
    def rivals(self) -> list[Line]:
        """The methods that the seeds do not tell from the best one, best first."""
        return [line for line in self.ranked[1:] if not self.lead(self.best, line).distinct]

    @property
    def beaten(self) -> list[Line]:
        """The methods that are worse than the best one, as far as 95 % intervals can tell."""
        return [line for line in self.ranked[1:] if self.lead(self.best, line).distinct]

    @property
    def winner(self) -> Line | None:
        """The method that is told from all others; None where nothing is."""
        alone = self.repeated and len(self.ranked) > 1 and not self.rivals
        return self.best if alone else None

    @property
    def apart(self) -> list[Line]:
        """The methods whose spread differs by far from that of the others."""
        return [line for line in self.lines if line.title in self.comparisons.pool.apart]

    def rank(self, line: Line) -> str:
        """For the leader "best", "level" for what the seeds do not tell from it, or empty."""
        if not (heading(line.measure).ranks and self.repeated and line.ranked):
            return ""
        if line is self.best:
            return "best"
        return "level" if line in self.rivals else ""

    def lead(self, line: Line, over: Line) -> Difference:
        """How much better `line` is than another one, over their shared seeds, in points."""
        if line.ranked and over.ranked:
            return self.comparisons.lead(line.title, over.title)
        alone = paired(_signed(line), _signed(over))
        return replace(alone, low=math.nan, high=math.nan)  # no claim is made about these

    def gap(self, line: Line, over: Line) -> Difference:
        """What `line` has more than another one, better or not."""
        lead = self.lead(line, over)
        return -lead if heading(line.measure).lower else lead


@dataclass(frozen=True)
class Verdict:
    """What the table means, in one line, and the numbers for it; together they are a paragraph."""

    headline: str
    detail: str

    def __str__(self) -> str:
        return f"{self.headline}. {self.detail}"


FEW = f"Fewer than {SEEDS} runs of a method cannot tell a better method from a lucky seed."
"""Why nothing is said about a table."""


INTERVALS = (
    "Intervals: 95 %, adjusted for the number of methods, with a spread pooled over them "
    "(docs/statistics.md)."
)
"""What stands below a table."""


NOTHING = Verdict("No run has finished", "")


def summarise(outcome: Outcome) -> Summary:
    """The table of the rows that an outcome has; without lines if it has none."""
    comparison = outcome.comparison
    return of_comparison(comparison, outcome.store.rows, outcome.failures)


def of_comparison(
    comparison: Comparison, rows: Mapping[str, Row], failures: Sequence[Failed] = ()
) -> Summary:
    """The table of a comparison, from `rows`."""
    missing = tuple(
        f"{comparison.title(each.training.method)}, seed {each.training.seed}: {each.reason}"
        for each in failures
    )
    tuned_methods = {comparison.title(name): comparison.tuned(name) for name in comparison.methods}
    return of_tuned_methods(tuned_methods, rows, comparison.measure, missing)


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
    lines = [
        _line(title, tuned_methods[title], by_seed, measure, common, rows)
        for title, by_seed in found.items()
    ]
    ranked = {line.title: _signed(line) for line in lines if line.ranked}
    comparisons = Comparisons(ranked, _images(every, measure))
    summary = Summary(tuple(lines), first, common, missing, comparisons)
    start = next((line for line in lines if line.title == first), None)
    if start is None:
        return summary
    return replace(
        summary,
        lines=tuple(
            line if line is start else replace(line, difference=summary.gap(line, start))
            for line in lines
        ),
    )


def verdict(summary: Summary) -> Verdict:
    """Who generalises better, by how much, and how sure that is."""
    said = _verdict(summary)
    left = text.listing([_left_out(line) for line in summary.left_out]) if summary.left_out else ""
    return replace(said, detail=f"{said.detail} Left out: {left}.") if left else said


def _verdict(summary: Summary) -> Verdict:
    best, rivals, beaten = summary.best, summary.rivals, summary.beaten
    seeds = best.value.n
    if not best.ranked:
        return Verdict("Nothing to rank", "Too few runs have learned anything.")
    if len(summary.ranked) == 1:
        return Verdict(
            f"{best.title} reaches {_mean(summary)}", "There is no other method to compare it with."
        )
    if not summary.repeated:
        return Verdict(
            f"Too few runs to tell: {best.title} has the {_best(best)}, {_mean(summary)}", FEW
        )
    if not rivals:
        return Verdict(
            f"{best.title} wins: {_mean(summary)} on average over {seeds} seeds",
            f"It is {_ahead(summary, _ends(beaten))}.",
        )
    headline = (
        f"No winner: {seeds} seeds do not tell any method from {best.title}"
        if not beaten
        else f"No single winner: {seeds} seeds do not tell {best.title} from "
        f"{text.listing([line.title for line in rivals])}"
    )
    return Verdict(
        headline,
        f"{best.title} has the {_best(best, 'mean ')}, {_mean(summary)}; it is "
        f"{_ahead(summary, [*rivals[:1], *_ends(beaten)])}.",
    )


def _rate_edges(comparison: Comparison, summary: Summary) -> Iterable[str]:
    """A remark on learning rates that were chosen at the edge of what was tried."""
    edges: list[str] = []
    for line in summary.lines:
        rates = comparison.rates(line.method)
        if len(rates) > 1 and line.tuned.get("lr") in (rates[0], rates[-1]):
            edges.append(f"{line.title} ({line.tuned['lr']:g})")
    if edges:
        yield (
            f"The chosen learning rate is at the edge of what was tried for {text.listing(edges)}: "
            f"a better one may lie beyond. Give a wider grid by --lr."
        )


def remarks(comparison: Comparison, summary: Summary) -> list[str]:
    """What a reader must know before believing the table; empty if there is nothing."""
    found = [f"{line.title}: {trouble}." for line in summary.lines for trouble in line.troubles]
    found += [f"Missing: {run}." for run in summary.missing]
    found += spreads([line.title for line in summary.apart])
    edges = [f"{line.title} ({line.rho:g})" for line in summary.lines if line.edge]
    if edges:
        found.append(
            f"The chosen radius is at the edge of what was tried for {text.listing(edges)}: a "
            f"better one may lie beyond. Give a wider grid by --rho."
        )
    found += _rate_edges(comparison, summary)
    leaders = [summary.best, *summary.rivals]
    cheapest = min(leaders, key=lambda line: line.ratio)
    if summary.repeated and len(leaders) > 1 and cheapest.ratio < 0.95 * summary.best.ratio:
        found.append(
            f"The cheapest of the leaders is {cheapest.title}, with {cheapest.ratio:.2f} gradients "
            f"a step where {summary.best.title} takes {summary.best.ratio:.2f}."
        )
    return found


def spreads(titles: Sequence[str]) -> Iterable[str]:
    """A remark on the methods that have a spread of their own, by their titles."""
    if titles:
        yield (
            f"†: the spread of {text.listing(titles)} differs from that of the other methods by a "
            f"factor of {SPREADS:g} or more: it has no part in their intervals, and its own are of "
            f"its pairs alone."
        )


def _finished(tuned: TunedMethod, rows: Mapping[str, Row]) -> dict[int, Row]:
    keys = {training.seed: training.key for training in tuned.evaluation(rows)}
    return {seed: rows[key] for seed, key in keys.items() if key in rows}


def _by_seed(rows: Mapping[int, Row], measure: str) -> dict[int, float]:
    values = {seed: measures.value(row, measure) for seed, row in rows.items()}
    return {seed: value for seed, value in values.items() if value is not None}


def _line(
    title: str,
    tuned: TunedMethod,
    finished: Mapping[int, Row],
    measure: str,
    common: float,
    rows: Mapping[str, Row],
) -> Line:
    chosen = tuned.chosen(rows)
    judged = _judged(tuned, rows)
    shown = (_sound(finished) or finished).values()
    values = _by_seed(_sound(finished) or finished, measure)
    return Line(
        method=chosen.method,
        title=title,
        asked=tuned.seeds,
        finished=finished,
        rho=_radius(chosen),
        edge=len(judged) > 1 and chosen.rho in (min(judged), max(judged)),
        tuned=_tuned(tuned, chosen),
        judged=judged,
        measure=measure,
        value=Spread.of(list(values.values())),
        difference=None,
        at_equal_cost=Spread.of(
            [at_cost(row.curves.passes, row.curves.accuracy, common) for row in shown]
        ),
    )


def _tuned(tuned: TunedMethod, chosen: Training) -> dict[str, float | str | int]:
    """The options that differ among the candidates, as chosen."""
    tried = [dict(candidate.options) for candidate in tuned.candidates]
    rates = {candidate.lr for candidate in tuned.candidates}
    rate: dict[str, float | str | int] = {}
    if len(rates) > 1 and chosen.lr is not None:
        rate = {"lr": chosen.lr}
    return rate | {
        name: value
        for name, value in chosen.options
        if len({options.get(name) for options in tried}) > 1
    }


def _judged(tuned: TunedMethod, rows: Mapping[str, Row]) -> dict[float, float]:
    best: dict[float, float] = {}
    pick = min if lower_is_better(tuned.usual.metric) else max
    for candidate, accuracy in tuned.judged(rows).items():
        rho = candidate.rho
        if rho is not None:
            best[rho] = pick(accuracy, best.get(rho, accuracy))
    return dict(sorted(best.items()))


def _radius(chosen: Training) -> float | None:
    if chosen.rho is not None or own.is_own(chosen.method):
        return chosen.rho
    return methods.find(chosen.method).rho or None


def _worth(line: Line) -> float:
    """For ranking: more is better, and what was not measured comes last."""
    mean = line.value.mean
    return _sign(line) * mean if math.isfinite(mean) else -math.inf


def _signed(line: Line) -> dict[int, float]:
    """What was measured, seed by seed, so that more is better."""
    return {seed: _sign(line) * value for seed, value in line.by_seed.items()}


def _sign(line: Line) -> int:
    return -1 if heading(line.measure).lower else 1


def _mean(summary: Summary) -> str:
    """Of the best method, with its unit."""
    mean = text.number(summary.best.value.mean, summary.digits)
    return mean if heading(summary.best.measure).metric else f"{mean} %"


def _best(line: Line, mean: str = "") -> str:
    """`highest mean accuracy`, or what is best by a user's own metric."""
    shown = heading(line.measure)
    most = "lowest" if shown.lower else "highest"
    of = "" if line.measure == "accuracy" else f" ({shown.title})"
    return f"{most} {mean}{shown.title.lower() if shown.metric else f'accuracy{of}'}"


def _ahead(summary: Summary, others: Sequence[Line]) -> str:
    best = summary.best
    own_metric = heading(best.measure).metric

    def by(line: Line) -> str:
        lead = summary.lead(best, line)
        return text.interval(lead, summary.digits) if own_metric else text.points(lead)

    return text.listing([f"{by(line)} ahead of {line.title}" for line in others])


def _left_out(line: Line) -> str:
    """`LookSAM (1 of 3 runs diverged)`."""
    runs = len(line.finished)
    kinds = Counter(line.failing).items()
    return f"{line.title} ({', '.join(f'{n} of {runs} runs {kind}' for kind, n in kinds)})"


def _sound(rows: Mapping[int, Row]) -> dict[int, Row]:
    return {seed: row for seed, row in rows.items() if not row.failing}


def _images(rows: Sequence[Row], measure: str) -> int | None:
    """How many test images there are, as the rows say, or so far as the accuracies tell."""
    if not heading(measure).accuracy:
        return None
    if measure == "accuracy":
        counts = {row.tested for row in rows}
        if len(counts) == 1 and None not in counts:
            return counts.pop()
        return images_of(accuracy for row in rows for accuracy in row.curves.accuracy)
    values = (measures.value(row, measure) for row in rows)
    return images_of(value for value in values if value is not None)


def _ends(lines: Sequence[Line]) -> Sequence[Line]:
    """The nearest and the farthest of the methods beaten."""
    return lines if len(lines) < 3 else (lines[0], lines[-1])
