"""Our numbers beside the paper's, setting by setting, and whether they tell the same."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich.console import RenderableType

from flatmin.studies.plan.grid import ScaledRecipe
from flatmin.studies.plan.schema import Position, Printed
from flatmin.studies.report import columns, summary, text
from flatmin.studies.report.columns import ConsoleColumn
from flatmin.studies.report.measures import heading
from flatmin.studies.report.statistics import Difference
from flatmin.studies.report.summary import Line, Summary, Verdict
from flatmin.studies.store.row import Row


@dataclass(frozen=True)
class PaperTable:
    """One setting of a recipe.

    Fields:
        position: the labels of the axes.
        summary: the methods that have a finished run, ranked by the recipe's first measure.
        printed: the paper's numbers, by method and measure.
        sam: title of the method that is plain SAM; None where there is none beside the first.
    """

    position: Position
    summary: Summary
    printed: Mapping[tuple[str, str], Printed]
    sam: str | None = None

    def paper(self, line: Line, measure: str | None = None) -> Printed | None:
        """What the paper prints for a method; by the first measure unless told."""
        return self.printed.get((line.title, measure or line.measure))

    def lead(self, line: Line, over: str) -> Difference | None:
        """How much better a method is than the one with the title `over`; None for itself."""
        other = self._titled(over)
        return None if other is None or other is line else self.summary.lead(line, other)

    def gap(self, line: Line, over: str) -> Difference | None:
        """What a method has more than the one with the title `over`; None for itself."""
        other = self._titled(over)
        return None if other is None or other is line else self.summary.gap(line, other)

    def lead_in_paper(self, line: Line, over: str) -> float | None:
        """The same between the means that the paper prints; None unless it prints both."""
        other = self.printed.get((over, line.measure))
        ours = self.paper(line)
        if ours is None or other is None or over == line.title:
            return None
        return ours.mean - other.mean

    def _titled(self, title: str) -> Line | None:
        return next((line for line in self.summary.lines if line.title == title), None)


@dataclass(frozen=True)
class Order:
    """Pairs of methods that the paper puts in an order: how many are so here.

    Fields:
        same, reversed: as far as a 95 % interval can tell.
        untold: those that our seeds do not tell apart.
    """

    same: int
    reversed: int
    untold: int

    @property
    def pairs(self) -> int:
        return self.same + self.reversed + self.untold


def blocks(plan: ScaledRecipe, rows: Mapping[str, Row]) -> list[PaperTable]:
    """Every setting of `plan`, as far as `rows` tell."""
    return [
        PaperTable(
            position=setting.position,
            summary=summary.of_tuned_methods(setting.tuned_methods, rows, plan.measure),
            printed={
                (label, measure): number
                for label in setting.tuned_methods
                for measure in plan.measures
                if (number := plan.printed(setting.position, label, measure)) is not None
            },
            sam=_sam({label: each.usual.method for label, each in setting.tuned_methods.items()}),
        )
        for setting in plan.settings
        if setting.tuned_methods
    ]


def order(settings: Iterable[PaperTable]) -> Order:
    """What becomes of the paper's order by the first measure, over all settings."""
    leads = [lead for block in settings for lead in _leads(block)]
    told = [lead for lead in leads if lead.distinct]
    same = sum(lead.mean > 0 for lead in told)
    return Order(same, len(told) - same, len(leads) - len(told))


def verdict(settings: Sequence[PaperTable]) -> Verdict:
    """Which method is ahead over all settings, and whether the paper's order is found again."""
    told = [block.summary for block in settings if block.summary.lines]
    said = summary.verdict(told[0]) if len(told) == 1 else _over(settings)
    return Verdict(said.headline, f"{said.detail} {_ordered(order(settings))}".strip())


def verdict_of(plan: ScaledRecipe, settings: Sequence[PaperTable]) -> Verdict | None:
    """The verdict on a recipe; None where its measure ranks nothing."""
    if not any(block.summary.lines for block in settings):
        return summary.NOTHING
    if plan.smoke_only:
        return Verdict(
            "It runs; its numbers say nothing about methods",
            text.sentence(plan.smoke_only[:1].upper() + plan.smoke_only[1:]),
        )
    return verdict(settings) if heading(plan.measure).accuracy else None


def table(plan: ScaledRecipe, rows: Mapping[str, Row], width: int) -> RenderableType:
    """For a terminal of that many characters; an axis with one label has no column."""
    axes = [axis for axis, values in plan.grid.items() if len(values) > 1]
    measures = plan.measures
    several = len(measures) > 1
    lines: list[Sequence[str]] = []
    leads: list[bool] = []
    for measure, block in itertools.product(measures, blocks(plan, rows)):
        for line in block.summary.lines:
            ours, printed = line.spread(measure), block.paper(line, measure)
            lines.append(
                (
                    *(block.position[axis] for axis in axes),
                    line.title,
                    *([heading(measure).named] if several else []),
                    text.spread(ours, heading(measure).digits),
                    str(ours.n),
                    text.printed(printed),
                    text.signed(ours.mean - printed.mean if printed else math.nan),
                    text.number(line.ratio),
                )
            )
            leads.append(
                measure == line.measure and not plan.smoke_only and bool(block.summary.rank(line))
            )
    return columns.table(
        [
            *(ConsoleColumn(name, left=True) for name in (*axes, "method")),
            *([ConsoleColumn("measure", left=True, least=12)] if several else []),
            ConsoleColumn("ours" if several else heading(plan.measure).named),
            ConsoleColumn("runs", 3),
            ConsoleColumn("paper", 1),
            ConsoleColumn("ours −\npaper", 2),
            ConsoleColumn("gradients\na step", 4),
        ],
        lines,
        width,
        bold=leads,
    )


def _leads(block: PaperTable) -> Iterable[Difference]:
    """Of the better over the worse of each pair, as the paper sees them."""
    for a, b in itertools.combinations(block.summary.lines, 2):
        gap = block.lead_in_paper(a, b.title)
        if gap:
            lead = block.summary.lead(a, b)
            yield lead if gap > 0 else -lead


def _over(settings: Sequence[PaperTable]) -> Verdict:
    """Of several settings."""
    told = [block for block in settings if block.summary.lines]
    if all(len(block.summary.lines) == 1 for block in told):
        return _alone(told)
    enough = [block.summary for block in told if block.summary.repeated]
    ahead = Counter(block.summary.best.title for block in told).most_common()
    if not enough:
        first, count = ahead[0]
        return Verdict(
            f"Too few runs to tell: {first} has the highest accuracy in {count} of {len(told)} "
            f"settings",
            summary.FEW,
        )
    won = Counter(each.winner.title for each in enough if each.winner).most_common()
    untold = len(enough) - sum(count for _, count in won)
    few = len(told) - len(enough)
    where = "" if untold == len(told) else f"in {untold} "
    details = [f"{where}the seeds do not tell the leader from others"] if untold else []
    details += [f"in {few} there are too few runs to tell"] if few else []
    left = [block for block in told if block.summary.left_out]
    details += [f"in {len(left)} runs are left out that did not learn"] if left else []
    rest = "; ".join(details)
    rest = f"{rest[:1].upper()}{rest[1:]}." if rest else ""
    if not won:
        leads = Counter(each.best.title for each in enough).most_common(1)[0]
        count = len(told)
        often = (
            f"Most often ahead is {leads[0]}, in {'both' if leads[1] == 2 == count else leads[1]}."
        )
        none = "either setting" if count == 2 else f"any of {count} settings"
        return Verdict(f"No winner in {none}", f"{rest} {often}")
    return Verdict(
        ", ".join(
            [f"{won[0][0]} wins {won[0][1]} of {len(told)} settings"]
            + [f"{title} {count}" for title, count in won[1:]]
        ),
        rest,
    )


def _alone(settings: Sequence[PaperTable]) -> Verdict:
    """Of one method."""
    ranked = sorted(settings, key=lambda block: block.summary.best.value.mean)
    low, high = ranked[0], ranked[-1]
    method = high.summary.best.title
    return Verdict(
        f"{method} reaches {text.number(low.summary.best.value.mean, 1)} to "
        f"{text.number(high.summary.best.value.mean, 1)} %",
        f"Highest at {', '.join(_distinct(high, settings))}.",
    )


def _distinct(block: PaperTable, settings: Sequence[PaperTable]) -> list[str]:
    """Its labels on the axes that have several."""
    return [
        label
        for axis, label in block.position.items()
        if len({other.position[axis] for other in settings}) > 1
    ]


def _ordered(found: Order) -> str:
    if not found.pairs:
        return ""
    return (
        f"Pairs of methods in the paper's order: {found.same} of {found.pairs}; reversed: "
        f"{found.reversed}; not told apart: {found.untold}."
    )


def _sam(methods: Mapping[str, str]) -> str | None:
    plain = [label for label, method in methods.items() if method == "sam"]
    first = next(iter(methods))
    found = "SAM" if "SAM" in plain else next(iter(plain), first)
    return None if found == first else found
