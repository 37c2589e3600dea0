"""`flatmin recipes` and `flatmin methods`: what there is."""

from __future__ import annotations

import sys


def recipes(_: object) -> int:
    """List the recipes."""
    from flatmin.studies.plan import recipe
    from flatmin.studies.report import terminal

    terminal.recipes(recipe.summaries())
    return 0


def methods(_: object) -> int:
    """List the methods."""
    from rich.console import Console
    from rich.table import Table

    from flatmin import methods

    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("name", "method", "rho", "what it does"):
        table.add_column(title, no_wrap=title != "what it does")
    for method in methods.TABLE.values():
        table.add_row(
            method.name, method.title, f"{method.rho:g}" if method.rho else "–", method.summary
        )
    Console(width=None if sys.stdout.isatty() else 120, highlight=False).print(table)
    return 0
