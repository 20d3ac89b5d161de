"""How commands print: plain text, a table, or one JSON object."""

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

WIDEST = 500  # columns

#: The exit code after Ctrl-C: 128 + SIGINT, as in shells.
INTERRUPTED = 130


def say(text: str) -> None:
    """Print text to stdout unchanged: no markup, and paths and commands are not wrapped."""
    open_console(stderr=False).print(text, highlight=False, markup=False, soft_wrap=True)


def open_console(stderr: bool) -> "Console":
    """Return a rich console on stdout or stderr; it prints plain lines if that is no terminal."""
    from rich.console import Console

    return Console(stderr=stderr)


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], numbers: Collection[str] = ()
) -> None:
    """Print a table to stdout.

    The table may be wider than the terminal: an id that is cut off is useless.

    Args:
        columns: The headings.
        rows: One text for every column.
        numbers: The headings of right-aligned columns.
    """
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in columns:
        table.add_column(column, justify="right" if column in numbers else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console = open_console(stderr=False)
    needed = console.measure(table, options=console.options.update(width=WIDEST)).maximum
    console.width = max(console.width, needed)
    console.print(table, markup=False)


def sweep_file(path: Path) -> Path:
    """Return the path of a sweep file; say so where it is one that comes with widthlab."""
    from orchestrator.sweep.find import SHIPPED_NOTE, find_sweep_file

    found = find_sweep_file(path)
    if found != path:
        typer.echo(f"note: {SHIPPED_NOTE.format(path, found)}", err=True)
    return found


def print_json(content: dict[str, Any]) -> None:
    """Print one JSON object to stdout."""
    from trialstore.json_objects import encode_json

    typer.echo(json.dumps(json.loads(encode_json(content))))  # NaN and infinity become null
