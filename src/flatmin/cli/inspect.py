"""`flatmin inspect`."""

from __future__ import annotations

import importlib
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from flatmin.cli.messages import stop

if TYPE_CHECKING:
    from flatmin.cli.arguments import InspectArguments
    from flatmin.studies.report.inspection import Inspection, Wanted


def inspect(wanted: InspectArguments) -> int:
    """Measure the models that are named and write a page about them."""
    importlib.import_module("plotly")  # better missed now than after the measuring

    from flatmin.studies.report import browser, inspection
    from flatmin.studies.report.subjects import subjects
    from flatmin.studies.store import files

    measured = _wanted(wanted)
    page = wanted.out or _folder(wanted.models) / "inspection.html"
    program = browser.find() if wanted.png or wanted.pdf else ""
    files.writable(page.parent)
    found = subjects(
        wanted.models, wanted.model, wanted.data, limit=wanted.limit, images=wanted.images
    )
    seen = inspection.inspect(
        found,
        measured,
        grids=page.parent / f".{page.stem}-grids",
        tell=lambda said: print(f"flatmin: {said}", file=sys.stderr, flush=True),
        progress=sys.stderr.isatty(),
    )
    if not any(each.spectrum is not None for each in seen.models):
        return stop("interrupted before anything was known", 130)
    with files.told(page, "give another file by --out"):
        files.write(page, seen.page(_command()))
    made = [page]
    if wanted.png:
        made.append(browser.picture(program, page, page.with_suffix(".png")))
    if wanted.pdf:
        made.append(browser.document(program, page, page.with_suffix(".pdf")))
    _print(seen)
    print(*made, sep="\n")
    if seen.interrupted:
        return stop("interrupted: the same command goes on with the surface", 130)
    return 0


def _wanted(given: InspectArguments) -> Wanted:
    from flatmin.studies.report.findings import Wanted

    wanted = Wanted(
        mode=given.mode,
        statistics=given.statistics,
        along=given.along,
        rho=_radii(given.rho),
        points=given.points,
        products=given.products,
    )
    wanted.check(2)
    return wanted


def _radii(text: str) -> tuple[float, ...]:
    from flatmin.training.errors import InputError

    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(
            f"--rho {text} is no radius: give numbers such as 0.05,0.1, separated by commas"
        ) from None


def _folder(models: tuple[str, ...]) -> Path:
    """Where the page goes: into the only folder, or else beside the only file, or here."""
    from flatmin.studies.report import runs
    from flatmin.training.errors import InputError

    if not models:
        raise InputError("inspect takes the folder of a run, a checkpoint, or several")
    return runs.folder([word.rpartition("=")[2] for word in models])


def _command() -> str:
    """What was typed."""
    return shlex.join(["flatmin", *sys.argv[1:]]) if sys.argv[1:2] == ["inspect"] else ""


def _print(seen: Inspection) -> None:
    from rich.console import Console
    from rich.table import Table

    from flatmin.studies.report.inspection import cells

    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    rises = [f"rise at ρ {rho:g}" for rho in seen.wanted.rho]
    for title in ("model", "loss", "accuracy %", "λ₁", "λ₁/λ₅", "trace", *rises):
        table.add_column(title, justify="left" if title == "model" else "right")
    for each in seen.models:
        table.add_row(*cells(each))
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False, emoji=False)
    console.print(table)
    for remark in seen.remarks:
        console.print(remark)
