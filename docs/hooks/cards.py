"""One page a method, put together from what stands elsewhere.

The docstring has the equation, the arguments and the cost; `results/` what was measured here;
`recipes/` the numbers of the papers; `differences.md` where the authors' code differs; `papers.bib`
whom to cite; `claims.yaml` what an abstract says. Nothing is written here twice.
"""

from __future__ import annotations

import inspect
import io
import re
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import formulas
import torch
import yaml

import flatmin
from flatmin import methods
from flatmin.documentation import SHARED
from flatmin.methods import Method
from flatmin.studies.meta import section as of_episodes
from flatmin.studies.plan import recipe
from flatmin.studies.plan.recipe import Recipe
from flatmin.studies.report import paper, runs, section, text
from flatmin.studies.report.paper import PaperTable
from flatmin.studies.report.runs import Record
from flatmin.studies.report.summary import INTERVALS, Line

PROJECT = Path(__file__).parents[2]
HEADINGS = ("Args", "Raises", "Examples")
GROUPS = {
    "From papers": lambda row: not _is_ours(row),
    "Our compositions": lambda row: _is_ours(row),
}


# Docstrings -----------------------------------------------------------------------------------


class Told(NamedTuple):
    """A docstring, taken apart."""

    sentence: str
    formula: str
    arguments: dict[str, str]
    cost: str
    reference: str
    example: str
    remarks: list[str]


def function(row: Method) -> Any:
    """The function that a row stands for, with the docstring."""
    return row.construct.func if isinstance(row.construct, partial) else row.construct


@cache
def told(row: Method) -> Told:
    """What the docstring of a method says."""
    doc = inspect.getdoc(function(row)) or ""
    paragraphs = re.split(r"\n\n+", doc.strip())
    sentence, formula, rest = paragraphs[0], paragraphs[1], paragraphs[2:]
    found: dict[str, str] = {}
    remarks = []
    for paragraph in rest:
        heading, _, content = paragraph.partition(":")
        if heading in (*HEADINGS, "Cost", "Reference"):
            found[heading] = content.strip("\n")
        else:
            remarks.append(_joined(paragraph))
    entries = re.split(r"^    (\*{0,2}\w+): ", found["Args"], flags=re.MULTILINE)[1:]
    arguments = dict(zip(entries[::2], map(_joined, entries[1::2]), strict=True))
    return Told(
        _joined(sentence),
        formula,
        arguments,
        _joined(found["Cost"]),
        _joined(found["Reference"]),
        inspect.cleandoc(found["Examples"]),
        remarks,
    )


def _joined(words: str) -> str:
    return re.sub(r"\s+", " ", words).strip()


def _is_ours(row: Method) -> bool:
    doc = told(row)
    ours = "no paper has" in " ".join([*doc.remarks, doc.reference])
    return ours or "a composition of" in doc.reference or bool(row.sentence)


# Pages ----------------------------------------------------------------------------------------


def pages() -> Iterator[tuple[str, str]]:
    """The name of each page, without its ending, and its text; first the page of all methods."""
    yield "index", overview()
    for row in methods.TABLE.values():
        yield row.name, card(row)


def navigation() -> list[dict[str, Any]]:
    """The titles of the cards, in the groups of the page of all methods."""
    return [
        {
            group: [
                {row.title: f"methods/{row.name}.md"} for row in methods.TABLE.values() if of(row)
            ]
        }
        for group, of in GROUPS.items()
    ]


def overview() -> str:
    """All methods in two tables."""
    lines = [
        "# All methods",
        "",
        "Every method that flatmin knows, the gradients of a step, and the radius to begin with.",
        "The auxiliary batch, where there is one, is a quarter as large as the primary one.",
        "[Choose a method](../choosing.md) says which to try.",
    ]
    for title, belongs in GROUPS.items():
        lines += ["", f"## {title}", "", "| method | what it does | gradients a step | rho |"]
        lines += ["| --- | --- | ---: | ---: |"]
        for row in methods.TABLE.values():
            if belongs(row):
                link = f"[{row.title}]({row.name}.md)"
                lines.append(f"| {link} | {_summary(row)} | {_ratio(row)} | {row.rho:g} |")
    return "\n".join(lines) + "\n"


def _summary(row: Method) -> str:
    """Without the authors, who stand on the card."""
    words = re.sub(r"^[A-Z][\w& ]*(?: et al\.)? \d{4}: ", "", row.summary)
    return words[0].upper() + words[1:]


def _ratio(row: Method) -> str:
    optimizer = _made(row)
    if row.adaptive:
        most = _every_step(optimizer)
        return f"1 to {most:g}"
    return f"{optimizer.gradients_per_step(fraction=0.25):g}"


def _made(row: Method) -> flatmin.SharpnessAware:
    model = torch.nn.Linear(2, 2)
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return row.build(base, total_steps=8)


def _every_step(optimizer: flatmin.SharpnessAware) -> float:
    model = torch.nn.Linear(2, 2)
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    always = flatmin.SharpnessAware(base, direction=optimizer.direction)
    return always.gradients_per_step(fraction=0.25)


def card(row: Method) -> str:
    """Everything about one method."""
    doc = told(row)
    return "\n\n".join(
        part.strip()
        for part in (
            f"---\ndescription: {row.summary!r}\n---",
            f"# {row.title}",
            row.summary,
            formulas.displayed(doc.formula),
            _glance(row, doc),
            "## Parameters and advice",
            _parameters(row, doc),
            *doc.remarks,
            "## An example",
            _example(doc),
            *_claimed(row, doc),
            "## What we measured",
            *_measured(row),
            *_differences(row),
            "## To cite",
            f"{doc.reference}",
            f"`flatmin.cite({row.name!r})` prints:",
            f"```bibtex\n{_bibtex(row)}```",
        )
        if part
    )


def _glance(row: Method, doc: Told) -> str:
    optimizer = _made(row)
    parts = {
        "direction": optimizer.direction,
        "geometry": optimizer.geometry,
        "policy": optimizer.policy,
        "selection": optimizer.selection,
        "descent": optimizer.descent,
    }
    named = function(row).__name__
    public = getattr(flatmin, named, None) is function(row)
    call = f"`flatmin.{named}`" if public else f'`flatmin.methods.find("{row.name}").build`'
    if isinstance(row.construct, partial):
        given = ", ".join(f'{name}="{value}"' for name, value in row.construct.keywords.items())
        call = f"`flatmin.{named}(base, {given})`"
    lines = [
        "| | |",
        "| --- | --- |",
        f"| in Python | {call} |",
        f"| on the command line | `{row.name}` |",
        f"| cost | {doc.cost} |",
        f"| radius to begin with | {row.rho:g} |",
        *(f"| {question} | `{part!r}` |" for question, part in parts.items()),
    ]
    return "\n".join(lines)


def _parameters(row: Method, doc: Told) -> str:
    signature = inspect.signature(function(row)).parameters
    lines = []
    for name, words in doc.arguments.items():
        if name in SHARED:
            continue
        default = signature[name].default
        shown = f" = {default!r}" if default is not inspect.Parameter.empty else ""
        lines.append(f"`{name}{shown}`\n:   {words[0].upper() + words[1:]}")
    options = ", ".join(f"`{name}`" for name in SHARED)
    lines.append(
        f"{options}\n:   Those of every method: see "
        "[`SharpnessAware`](../reference/optimizer.md#flatmin.SharpnessAware)."
    )
    return "\n\n".join(lines)


def _example(doc: Told) -> str:
    return f"```pycon\n{doc.example}\n```"


def _bibtex(row: Method) -> str:
    file = io.StringIO()
    flatmin.cite(row.name, file=file)
    return file.getvalue()


# What its paper claims ------------------------------------------------------------------------


@cache
def _claims() -> dict[str, str]:
    return yaml.safe_load(Path(__file__).with_name("claims.yaml").read_text(encoding="utf-8"))


def _numbers(row: Method, doc: Told) -> list[str]:
    """The papers that a card speaks of: those of the method's own reference."""
    if row.name.startswith("align-"):
        return ["align-sam"]
    return re.findall(r"\d{4}\.\d{5}", doc.reference)


def _claimed(row: Method, doc: Told) -> Iterator[str]:
    if row.name == "sgd":
        return
    yield "## What its paper claims"
    if _is_ours(row):
        yield "No paper has it: it is made of parts that have one each."
        return
    for number in _numbers(row, doc):
        if number in _claims():
            yield _claims()[number].strip()
            break
    yield from _printed(row, doc)


def _printed(row: Method, doc: Told) -> Iterator[str]:
    """The paper's own accuracies, as far as there are recipes of it: the first of each table."""
    lines = []
    for found in _recipes():
        source = recipe.papers()[found.paper].arxiv or found.paper
        if source not in _numbers(row, doc) or found.measure != "accuracy":
            continue
        # the setting that the whole paper is about, and not an ablation of it
        labels = [each for each, what in found.methods.items() if what.get("method") == row.name]
        if not labels:
            continue
        label = labels[0]
        at = next((p.at for p in found.printed if p.method == label and not p.measure), None)
        if at is None:
            continue
        beside = [p for p in found.printed if p.at == at and not p.measure]
        numbers = ", ".join(
            f"{'**' if p.method == label else ''}{p.method} {p.mean:g}"
            f"{f' ± {p.sd:g}' if p.sd is not None else ''}{'**' if p.method == label else ''}"
            for p in beside
        )
        where = ", ".join(at.values())
        lines.append(
            f"| {found.shows} | {found.title}{f': {where}' if where else ''} | {numbers} |"
        )
    if lines:
        yield "Its numbers (accuracy in %), the first setting of each table that has a recipe:"
        yield "\n".join(["| table | of | printed |", "| --- | --- | --- |", *lines])


@cache
def _recipes() -> list[Recipe]:
    return [Recipe.find(name) for name in recipe.names()]


# What we measured -----------------------------------------------------------------------------

COLUMNS = ("table and setting", "accuracy %", "to the base", "to SAM", "rho", "gradients", "runs")


class Measured(NamedTuple):
    """One line of a table in `results/`."""

    table: str
    about: str
    method: str
    cells: tuple[str, ...]


@cache
def measured() -> list[Measured]:
    """Every line of every table of accuracies in `results/`."""
    found = []
    for record in runs.records([str(PROJECT / "results")]):
        if record.episodes:
            found += _few_shot(record)
            continue
        about = section.of_record(record)
        says = record.plan.says.strip().removesuffix(".")
        words = f"{about.title}.{f' Here: {says}.' if says else ''}"
        for block in paper.blocks(record.plan, record.rows):
            labels = [block.position[axis] for axis in about.axes]
            for line in block.summary.lines:
                if line.measure == "accuracy":
                    cells = _cells(block, line, [f"`{about.name}`", *labels])
                    found.append(Measured(about.name, words, line.method, cells))
    return found


def _few_shot(record: Record) -> Iterator[Measured]:
    """The lines of a table of few-shot learning: over its trainings, as all others."""
    about = of_episodes.of_record(record)
    for block in of_episodes.blocks_of(record):
        table = block.table
        for line in table.lines:
            mark = "**" if table.rank(line) else ""
            value = text.spread(table.over_trainings(line))
            cells = (
                ", ".join([f"`{about.name}`", *block.labels, line.title]),
                f"{mark}{value}{mark}",
                text.difference(line.gap_of_trainings) if line.gap_of_trainings else "",
                "",  # to SAM
                f"{line.rho:g}" if line.method != "sgd" else "–",
                "",
                str(len(line.seeds)),
            )
            words = f"{about.title}. Here: {record.plan.says.strip().removesuffix('.')}."
            yield Measured(about.name, words, line.method, cells)


def _cells(block: PaperTable, line: Line, where: list[str]) -> tuple[str, ...]:
    of = {each.title: each.method for each in block.summary.lines}
    base = next((title for title in of if of[title] == "sgd"), "")
    sam = next((title for title in of if of[title] == "sam"), "")
    leads = [block.lead(line, other) for other in (base, sam)]
    if line.title != methods.TABLE[line.method].title:
        where.append(line.title)
    mark = "**" if block.summary.rank(line) else ""
    return (
        ", ".join(where),
        f"{mark}{text.spread(line.value)}{mark}",
        *(text.difference(lead) if lead else "" for lead in leads),
        f"{line.rho:g}" if line.rho else "–",
        text.number(line.ratio),
        str(line.value.n),
    )


def _measured(row: Method) -> Iterator[str]:
    lines = [line for line in measured() if line.method == row.name]
    if not lines:
        command = f"flatmin compare --methods sgd,sam,{row.name} --tune rho"
        yield (
            f"Nothing yet that stands in `results/`. `{command}` measures it on your data, with "
            f"the radius of each method tuned by the same budget."
        )
        return
    yield (
        "What stands in `results/`, on two CPU cores. Bold: the best of its table and setting, and "
        "what the seeds do not tell from it. Differences in points. "
        + INTERVALS.replace("(docs/statistics.md)", "([statistics](../statistics.md))")
    )
    yield "\n".join(
        [
            f"| {' | '.join(COLUMNS)} |",
            "| --- |" + " ---: |" * (len(COLUMNS) - 1),
            *(f"| {' | '.join(line.cells)} |" for line in lines),
        ]
    )
    tables = dict.fromkeys((line.table, line.about) for line in lines)
    yield "\n".join(f"- `{table}`: {about}" for table, about in tables)


# Where the authors' code differs --------------------------------------------------------------


def _differences(row: Method) -> Iterator[str]:
    page = (PROJECT / "docs" / "differences.md").read_text(encoding="utf-8")
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in page.splitlines()
        if line.startswith("| ") and not line.startswith(("| ---", "| method"))
    ]
    own = [line for line in lines if row.title in re.split(r", (?!§)", line[0])]
    if own:
        yield "## Where it differs from the paper or the authors' code"
        yield "\n".join(
            [
                "| the paper, or its code | flatmin |",
                "| --- | --- |",
                *(f"| {theirs} | {ours} |" for _, theirs, ours, _ in own),
            ]
        )
        yield "What holds for all methods: [differences](../differences.md)."


# Tables of several methods --------------------------------------------------------------------

DECIDING = {
    ("beyond/agnostic-for-free-digits", "equal epochs"): "digits, 60 % wrong: equal epochs",
    ("beyond/agnostic-for-free-digits", "equal gradients"): "digits, 60 % wrong: equal gradients",
    ("beyond/agnostic-for-free", "equal epochs"): "CIFAR-10, 40 % wrong: equal epochs",
    ("beyond/agnostic-for-free", "equal gradients"): "CIFAR-10, 40 % wrong: equal gradients",
    ("beyond/human-noise", ""): "CIFAR-10N: equal epochs",
}
"""Which tables of `results/` a choice is made by: those with tuned radii."""


def compared() -> str:
    """Measured cost and accuracy, method by method."""
    found: dict[str, dict[str, str]] = {}
    ratios: dict[str, list[str]] = {}
    for line in measured():
        setting = line.cells[0].partition("`, ")[2]
        if (line.table, setting) in DECIDING:
            column = DECIDING[line.table, setting]
            found.setdefault(line.method, {})[column] = line.cells[1]
            ratios.setdefault(line.method, []).append(line.cells[5])
    columns = list(DECIDING.values())
    lines = [
        f"| method | gradients a step | {' | '.join(columns)} |",
        "| --- |" + " ---: |" * (1 + len(columns)),
    ]
    for name, values in found.items():
        link = f"[{methods.TABLE[name].title}](methods/{name}.md)"
        ends = sorted({min(ratios[name]), max(ratios[name])})
        cells = [values.get(column, "") for column in columns]
        lines.append(f"| {link} | {' to '.join(ends)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def radii() -> str:
    """Where to start with the radius, as each method's docstring says it."""
    lines = ["| method | `rho` | advice |", "| --- | ---: | --- |"]
    for row in methods.TABLE.values():
        if row.name != "sgd":
            advice = told(row).arguments["rho"]
            advice = re.sub(r"^.*?; default [\d.]+[.,:] ?|^.*?default [\d.]+[.,;] ?", "", advice)
            words = advice[0].upper() + advice[1:]
            lines.append(f"| [{row.title}](methods/{row.name}.md) | {row.rho:g} | {words} |")
    return "\n".join(lines)
