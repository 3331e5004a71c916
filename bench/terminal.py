"""What a run shows on the terminal: by rich, or plainly where that is not installed, as on machines
that have torch and no network."""

import sys
from collections.abc import Iterable

from . import machine, report
from .report import Section

WIDTH = 150  # of tables, where the terminal is narrower


def show(found: Iterable[Section]) -> None:
    if not machine.has("rich"):
        print(report.markdown([*found]))
        return
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if console.width < WIDTH:
        console = Console(highlight=False, width=WIDTH)
    for section in found:
        if section.header:
            table = Table(title=section.title, title_justify="left", title_style="bold")
            for i, name in enumerate(section.header):
                numeric = all(row[i][:1].isdigit() or row[i] == "-" for row in section.rows)
                table.add_column(name, justify="right" if numeric and i > 1 else "left")
            for row in section.rows:
                table.add_row(*row)
            console.print(table, markup=False)
        if section.note:
            console.print(section.note, markup=False)
        console.print()


class Bar:
    """Of the progress, on stderr. It is drawn where it is told to be: a thread of its own would run
    while calls are timed."""

    def __init__(self, total: int) -> None:
        self._bar = rich_bar() if machine.has("rich") else None
        if self._bar:
            self._task = self._bar.add_task("", total=total)

    def __enter__(self) -> "Bar":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *about: object) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, what: str) -> None:
        if self._bar:
            self._bar.update(self._task, advance=1, description=what, refresh=True)

    def stand(self, completed: int, what: str | None = None) -> None:
        if self._bar:
            self._bar.update(self._task, completed=completed, description=what, refresh=True)

    def line(self, text: str) -> None:
        if self._bar:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=sys.stderr, flush=True)


def rich_bar():
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        BarColumn(),
        TextColumn("{task.percentage:.0f}%"),
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False),
        console=Console(stderr=True),
        auto_refresh=False,
    )
