"""Output of commands: results go to stdout, errors to stderr with an exit code.

Tables are for people and are cut to the width of the terminal. `--json` is for programs. Output
into a pipe is never cut.
"""

import sys
from collections.abc import Sequence
from typing import Annotated, Any, Final, NoReturn, TypeAlias

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["Json", "console", "counted", "fail", "one_line", "print_table", "span", "write_json"]

Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Write JSON, for programs.")]
"""The `--json` option, which every command with results has."""

_NO_LIMIT: Final = 100_000
"""The width where there is no terminal: lines are as long as their text."""


def fail(message: str, *, code: int = 1) -> NoReturn:
    """Print an error and exit with `code`: 1 for a failure, 2 for wrong usage or settings."""
    typer.secho(f"error: {message}", fg=typer.colors.RED, err=True)
    raise typer.Exit(code)


def write_json(value: Any, *, indent: bool = True) -> None:
    """Write a value, or a msgspec struct, as JSON. Without `indent`: on one line, and flushed."""
    encoded = msgspec.json.encode(value)
    typer.echo((msgspec.json.format(encoded) if indent else encoded).decode())
    if not indent:
        sys.stdout.flush()


def console(*, stderr: bool = False) -> Console:
    """A rich console on stdout or stderr, with the colours and the width of the terminal."""
    made = Console(stderr=stderr, highlight=False, markup=False, emoji=False, soft_wrap=False)
    return made if made.is_terminal else _unlimited(stderr=stderr)


def _unlimited(*, stderr: bool) -> Console:
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False, width=_NO_LIMIT)


def one_line(text: str, limit: int = 60) -> str:
    """Untrusted text as one short line, without control characters."""
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def counted(number: int, word: str) -> str:
    """A number with its noun: `1 node`, `1,200 nodes`."""
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def span(seconds: float) -> str:
    """A duration for people: `45s`, `12m`, `3h 05m`, `9d 4h`."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m"
    if whole < 86_400:
        return f"{whole // 3600}h {whole % 3600 // 60:02}m"
    return f"{whole // 86_400}d {whole % 86_400 // 3600}h"


def print_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    empty: str = "",
    right: Sequence[str] = (),
) -> None:
    """Print a table, or the text `empty` if there are no rows.

    `right` names the columns to align right. A cell can be a rich Text. Other values are shown with
    `str`, without interpreting markup.
    """
    if not rows and empty:
        typer.echo(empty)
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(
            column,
            justify="right" if column in right else "left",
            no_wrap=True,
            overflow="ellipsis",
        )
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in row))
    writer = console()
    with writer.capture() as captured:
        writer.print(table)
    typer.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))
