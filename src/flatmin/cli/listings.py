"""`flatmin recipes` and `flatmin methods`: what there is."""

from __future__ import annotations


def recipes(_: object) -> int:
    """List the recipes, and what they take in runs and estimated time on two cores."""
    from flatmin.studies.plan import listing
    from flatmin.studies.report import text
    from flatmin.studies.report.columns import ConsoleColumn, console, table

    found = listing.summaries()
    # which columns of each, time and runs, go first where it is narrow
    scales = {
        "full": (2, 5),
        "small": (1, 5),
        "smoke": (4, 6),
    }  # what goes first where it is narrow
    columns = [ConsoleColumn("recipe", left=True), ConsoleColumn("shows", 3, left=True, least=24)]
    for scale, (time, runs) in scales.items():
        columns += [ConsoleColumn(f"{scale}\nruns", runs), ConsoleColumn(f"{scale}\ntime", time)]
    rows: list[list[str]] = []
    for each in found:
        needs = f" (needs {', '.join(each.needs)})" if each.needs else ""
        row = [each.name, f"{each.shows}: {each.title}{needs}"]
        for scale in scales:
            runs, hours = each.estimates.get(scale, (0, 0.0))
            row += [f"{runs:,}", text.duration(3600 * hours)] if runs else ["–", "–"]
        rows.append(row)
    out = console(160)
    out.print(table(columns, rows, out.width))
    out.print("\nruns and hours on two cores, estimated to a factor of two")
    return 0


def methods(_: object) -> int:
    """List the methods."""
    from flatmin import methods
    from flatmin.studies.report.columns import ConsoleColumn, console, table

    columns = [
        ConsoleColumn("name", left=True),
        ConsoleColumn("method", 2, left=True),
        ConsoleColumn("rho", 3, left=True),
        ConsoleColumn("what it does", 1, left=True, least=20),
    ]
    rows = [
        (each.name, each.title, f"{each.rho:g}" if each.rho else "–", each.summary)
        for each in methods.TABLE.values()
    ]
    out = console(120)
    out.print(table(columns, rows, out.width))
    return 0
