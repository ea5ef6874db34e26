"""Output of commands: results go to stdout, errors to stderr with an exit code.

Tables are for people and fit the width of the terminal. `--json` is for programs. Output into a
pipe is never cut.
"""

import sys
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Final, NoReturn, TypeAlias

import msgspec
import typer
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from eventbus.cli.terminal import json_safe
from eventbus.user_code import printable

__all__ = [
    "Json",
    "console",
    "counted",
    "fail",
    "fit_columns",
    "make_table",
    "one_line",
    "print_table",
    "say",
    "span",
    "write_json",
]

Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Write JSON, for programs.")]
"""The `--json` option, which every command with results has."""

_NO_LIMIT: Final = 100_000
"""The width where there is no terminal: lines are as long as their text."""
_GAP: Final = 2
"""Spaces between columns."""
_CUT: Final = 12
"""The least width to which text is cut; a column without that much room is left out."""
_ID: Final = 36
"""The length of an id. A column of ids is only folded when it stands alone."""
_FOLD: Final = 20
"""The least width of a folded column while others are shown."""


def fail(message: str, *, code: int = 1) -> NoReturn:
    """Print an error and exit with `code`: 1 for a failure, 2 for wrong usage or settings."""
    say(f"error: {message}", fg="red", err=True)
    raise typer.Exit(code)


def say(text: str, *, err: bool = False, fg: str | None = None) -> None:
    """Print lines of text, with control characters escaped: others may have written parts of it."""
    shown = Text(printable(text, keep="\n"), style=fg or "")
    console(stderr=err).print(shown, soft_wrap=True)


def write_json(value: Any, *, indent: bool = True) -> None:
    """Write a value, or a msgspec struct, as JSON. Without `indent`: on one line."""
    encoded = msgspec.json.encode(value)
    text = (msgspec.json.format(encoded) if indent else encoded).decode()
    _write(json_safe(text))


def _write(text: str) -> None:
    # Not typer.echo, which writes UTF-8 where the encoding is ASCII.
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()  # here, where a closed pipe ends the command without a traceback


def console(*, stderr: bool = False) -> Console:
    """A rich console on stdout or stderr, with the colours and the width of the terminal."""
    terminal = Console(stderr=stderr, highlight=False, markup=False, emoji=False, soft_wrap=False)
    return terminal if terminal.is_terminal else _unlimited(stderr=stderr)


def _unlimited(*, stderr: bool) -> Console:
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False, width=_NO_LIMIT)


def one_line(text: str, limit: int = 60) -> str:
    """Untrusted text as one short line, with control characters escaped."""
    line = printable(" ".join(text.split()))
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
    whole: Sequence[str] = (),
) -> None:
    """Print a table, or the text `empty` if there are no rows.

    `right` names the columns to align right. `whole` names the columns that other commands take as
    arguments, such as ids: in a narrow terminal they are folded and never cut. Other text is cut
    there. Then the last columns are left out, which a line below the table says. A cell can be a
    rich Text. Other values are shown with `str`, without interpreting markup.
    """
    if not rows and empty:
        say(empty)
        return
    writer = console()
    table, left_out = make_table(columns, rows, writer.width, right=right, whole=whole)
    with writer.capture() as captured:
        writer.print(table)
    lines = (line.rstrip() for line in captured.get().splitlines())
    _write("\n".join(lines))
    if left_out:
        say(f"not shown in this width: {', '.join(left_out)} (see --json)")


def make_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    room: int,
    *,
    right: Sequence[str] = (),
    whole: Sequence[str] = (),
) -> tuple[Table, list[str]]:
    """The table for a width, and the names of the columns that are left out. See `print_table`."""
    cells = [[_cell(value) for value in row] for row in rows]
    natural = {
        name: max([cell_len(name), *(row[number].cell_len for row in cells)])
        for number, name in enumerate(columns)
    }
    widths = fit_columns(natural, room, right, whole)
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    for name, width in widths.items():
        table.add_column(
            name,
            justify="right" if name in right else "left",
            width=width,
            no_wrap=name not in whole,
            overflow="fold" if name in whole else "ellipsis",
        )
    for row in cells:
        table.add_row(*(cell for cell, name in zip(row, columns, strict=True) if name in widths))
    return table, [name for name in columns if name not in widths and name]


def _cell(value: object) -> Text:
    return value if isinstance(value, Text) else Text(printable(str(value)))


def fit_columns(
    natural: dict[str, int], room: int, right: Sequence[str], whole: Sequence[str]
) -> dict[str, int]:
    """Choose the columns that fit into `room`, and their widths. See `print_table`."""
    widths = dict(natural)

    def excess() -> int:
        return sum(widths.values()) + _GAP * (len(widths) - 1) - room

    def shrink(names: Iterable[str], least: int) -> None:
        for name in names:
            if (over := excess()) > 0:
                widths[name] = min(widths[name], max(widths[name] - over, least))

    shrink([name for name in reversed(natural) if name not in right and name not in whole], _CUT)
    longest = sorted(whole, key=lambda name: -natural[name])
    shrink([name for name in longest if natural[name] > _ID], _FOLD)
    for name in reversed(natural):
        if name not in whole and len(widths) > 1 and excess() > 0:
            del widths[name]
    first, *others = whole or [""]
    shrink(reversed(others), _FOLD)
    for name in reversed(others):  # the first is copied most: it is folded only on its own
        if natural.get(first, 0) <= room and excess() > 0:
            del widths[name]
    shrink([name for name in (*reversed(others), first) if name in widths], _FOLD)
    shrink([name for name in longest if name in widths], 1)
    for name in [
        name for name in (*whole, *widths) if name in widths
    ]:  # columns that were left out may have freed more than needed
        widths[name] += min(natural[name] - widths[name], max(-excess(), 0))
    return widths
