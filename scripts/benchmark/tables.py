"""Writes the tables of docs/performance.md from the results of a run.

    .venv/bin/python -m scripts.benchmark.tables build/bench/results.json

The text between the two markers of the page is replaced.
"""

import argparse
import json
import statistics
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from scripts.benchmark.cases import CASES, Case, Column
from scripts.benchmark.results import LIMIT, NOTHING, OURS, SHARED

__all__ = ["BEGIN", "END", "PAGE", "tables"]

PAGE: Final = Path(__file__).parents[2] / "docs" / "performance.md"
BEGIN: Final = "<!-- begin benchmark -->"
END: Final = "<!-- end benchmark -->"

_WIDTH: Final = 120

Row = Mapping[str, Any]
Rows = Mapping[tuple[str, str], Row]
"""By workload and system."""


def tables(records: Mapping[str, Any]) -> str:
    """The Markdown of the results: the goals of eventbus, then all systems."""
    rows: Rows = {(row["workload"], row["system"]): row for row in records["rows"]}
    cases = [case for case in CASES if _figure(rows, case, OURS, case.columns[0].key) is not None]
    parts = (_origin(records), _goals(rows, cases), _systems(rows, cases), _versions(rows))
    return "\n\n".join("\n".join(part) for part in parts)


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, break_long_words=False, break_on_hyphens=False)


def _origin(records: Mapping[str, Any]) -> list[str]:
    row = records["rows"][0]
    machine, settings = row["machine"], row["settings"]
    settled = ", ".join(f"{key}: {value}" for key, value in settings.items())
    text = (
        f"Measured on {machine['cpu']}, {machine['cores']} cores, Linux {machine['kernel']}; "
        f"{records['date'][:10]}; {settled}. Medians, ± half the range of all runs."
    )
    others = [
        value
        for each in records["rows"]
        if each.get("figures") and "others" in each["figures"]
        for value in each["figures"]["others"]["values"]
    ]
    if others and (used := statistics.median(others)) > SHARED:
        text += (
            f" **Other programs used {used:.1f} cores of this machine meanwhile**: times, figures "
            "per second and latencies look far worse than on an idle machine, and b and c may look "
            "better. Figures per second of CPU time, their ratios, and memory are reliable."
        )
    return _wrapped(text)


def _goals(rows: Rows, cases: Sequence[Case]) -> Iterator[str]:
    yield "| workload | goal | measured | of the limit | |"
    yield "|---|---:|---:|---:|---|"
    for case in cases:
        goals = rows[case.key, OURS]["goals"]
        for column in case.columns:
            if column.goal is not None:
                bound = "≤" if column.is_less_better else "≥"
                unit = "of the limit" if column.goal.is_of_limit else column.title
                yield _line(
                    f"{case.key}: {case.title}",
                    f"{bound} {_goal(column)} {unit}",
                    _cell(rows, case, OURS, column),
                    _ratio(rows, case, column),
                    goals[column.key]["verdict"],
                )


def _systems(rows: Rows, cases: Sequence[Case]) -> Iterator[str]:
    compared = [case for case in cases if len({s for k, s in rows if _has(rows, case, s)}) > 1]
    columns = [case.columns[0] for case in compared]
    heads = [f"{case.key}, {column.title}" for case, column in zip(compared, columns, strict=True)]
    yield _line("", *heads)
    yield "|---" + "|---:" * len(heads) + "|"
    for name in dict.fromkeys(system for _, system in rows):
        cells = []
        for case, column in zip(compared, columns, strict=True):
            text = _cell(rows, case, name, column, has_spread=False)
            is_ahead = name not in {OURS, LIMIT} and _is_ahead(rows, case, name, column)
            cells.append(f"**{text}**" if is_ahead else text)
        yield _line(name, *cells)
    yield ""
    yield "Bold: ahead of eventbus."


def _versions(rows: Rows) -> list[str]:
    found = {row["system"]: row["version"] for row in rows.values()}
    listed = "; ".join(f"{name}: {version}" for name, version in found.items())
    return _wrapped(f"Versions: {listed}.")


def _has(rows: Rows, case: Case, system: str) -> bool:
    return _figure(rows, case, system, case.columns[0].key) is not None


def _figure(rows: Rows, case: Case, system: str, key: str) -> Mapping[str, float] | None:
    row = rows.get((case.key, system))
    figures = row and row.get("figures")
    return figures[key] if figures else None


def _cell(rows: Rows, case: Case, system: str, column: Column, *, has_spread: bool = True) -> str:
    figure = _figure(rows, case, system, column.key)
    if figure is None:
        return NOTHING
    text = f"{figure['median']:,.{column.digits}f}"
    return f"{text} ± {figure['spread']:.0%}" if has_spread else text


def _ratio(rows: Rows, case: Case, column: Column) -> str:
    ours = _figure(rows, case, OURS, column.key)
    limit = _figure(rows, case, LIMIT, column.key)
    return f"{ours['median'] / limit['median']:.2f}" if ours and limit else NOTHING


def _is_ahead(rows: Rows, case: Case, system: str, column: Column) -> bool:
    theirs = _figure(rows, case, system, column.key)
    ours = _figure(rows, case, OURS, column.key)
    if theirs is None or ours is None:
        return False
    if column.is_less_better:
        return theirs["median"] < ours["median"]
    return theirs["median"] > ours["median"]


def _goal(column: Column) -> str:
    assert column.goal is not None
    digits = 2 if column.goal.is_of_limit else column.digits
    return f"{column.goal.value:,.{digits}f}"


def _line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Replace the tables of the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, help="a results.json")
    text = tables(json.loads(parser.parse_args().results.read_text(encoding="utf-8")))
    page = PAGE.read_text(encoding="utf-8")
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    PAGE.write_text(f"{head}{BEGIN}\n{text}\n{END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
