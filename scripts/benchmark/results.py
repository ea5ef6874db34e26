"""What was measured: medians, spreads, ratios, the table for a terminal, and the JSON."""

import datetime
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from scripts.benchmark.cases import Case, Column
from scripts.benchmark.loader import BUSY

__all__ = [
    "LIMIT", "NOTHING", "OURS", "SHARED", "TIMES", "Result", "Results", "System", "verdict",
]  # fmt: skip

LIMIT: Final = "limit"
"""The system that all others are compared with."""
OURS: Final = "eventbus"
WIDTH: Final = 80
NOTHING: Final = "–"  # noqa: RUF001
"""For a system that lacks a workload."""
TIMES: Final = "×"  # noqa: RUF001
_TITLE: Final = 24
_CELL: Final = 16
WAITED: Final = 0.1
"""If a server waited for its core for more than this share of the time, messages have piled up and
were sent together: its figures are too good."""
SHARED: Final = 0.25
"""With more cores than this used by others, elapsed times mean little."""


class System(NamedTuple):
    """What was measured."""

    name: str
    title: str
    version: str
    settings: str


class Result(NamedTuple):
    """The figures of one system in one workload, one value per run."""

    values: Mapping[str, Sequence[float]]

    def median(self, key: str) -> float:
        """The middle of all runs."""
        return statistics.median(self.values[key])

    def spread(self, key: str) -> float:
        """Half the range of all runs, as a share of the median."""
        values, middle = self.values[key], self.median(key)
        return (max(values) - min(values)) / 2 / middle if middle else 0.0

    def warnings(self) -> list[str]:
        """Why these figures may be wrong."""
        found = []
        if max(self.values.get("loader", [0])) > BUSY:
            found.append("the load generator used most of its core: it may be what was measured")
        if statistics.median(self.values.get("waited", [0])) > WAITED:
            found.append("the server waited for its core, used by others: do not trust these")
        if lost := max(self.values.get("lost", [0])):
            found.append(f"{lost:,.0f} messages or clients were missing at the end")
        return found


def verdict(column: Column, result: Result, limit: Result | None) -> str:
    """Whether eventbus reaches the goal of a column; empty if it cannot be said."""
    goal = column.goal
    if goal is None or (goal.is_of_limit and limit is None):
        return ""
    value = result.median(column.key)
    if goal.is_of_limit and limit is not None:
        value /= limit.median(column.key)
    reached = value <= goal.value if column.is_less_better else value >= goal.value
    return "reached" if reached else "missed"


class Results:
    """All figures of a run of the benchmark."""

    def __init__(
        self, machine: Mapping[str, Any], systems: Sequence[System], settings: Mapping[str, Any]
    ) -> None:
        self.machine = machine
        self.systems = systems
        self.settings = settings
        self.date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self._values: dict[tuple[str, str], dict[str, list[float]]] = {}
        self._errors: dict[tuple[str, str], str] = {}

    def add(self, case: Case, system: str, figures: Mapping[str, float]) -> None:
        """Add the figures of one run."""
        values = self._values.setdefault((case.key, system), {})
        for key, value in figures.items():
            values.setdefault(key, []).append(value)

    def fail(self, case: Case, system: str, error: str) -> None:
        """Note that a system could not be measured."""
        self._errors[case.key, system] = error

    def of(self, case: Case, system: str) -> Result | None:
        """The figures of a system, or None without any."""
        values = self._values.get((case.key, system))
        return None if values is None else Result(values)

    def has_failures(self) -> bool:
        """Whether something could not be measured."""
        return bool(self._errors)

    def header(self) -> str:
        """The machine and the settings of all rows."""
        machine = self.machine
        first = f"{machine['cpu']}, {machine['cores']} cores, Linux {machine['kernel']}"
        pinned = "the server is pinned to one core, the load generator to another"
        lines = [first, pinned]
        lines.append(", ".join(f"{key}: {value}" for key, value in self.settings.items()))
        lines.append("figures are medians, ± half the range")
        return "\n".join(line[:WIDTH] for line in lines)

    def footer(self) -> str:
        """The versions and settings of all systems."""
        return "\n".join(
            textwrap.fill(f"{system.title}: {system.version}; {system.settings}", WIDTH,
                          subsequent_indent="   ")
            for system in self.systems
        )  # fmt: skip

    def table(self, case: Case) -> str:
        """The table of a workload, at most 80 columns wide."""
        lines = [f"{case.key}  {case.title}"]
        lines += [f"   {self._goal(case, column)}" for column in case.columns if column.goal]
        titles = "".join(f"{column.title:>{_CELL}}" for column in case.columns)
        lines.append(f"   {'system':<{_TITLE}}{titles}  of C  against ours")
        warnings: dict[str, None] = {}
        for system in self.systems:
            result = self.of(case, system.name)
            if result is None:
                error = self._errors.get((case.key, system.name))
                what = f" failed: {error}" if error else f"{NOTHING:>{_CELL}}"
                lines.append(f"   {system.title:<{_TITLE}}{what}")
                continue
            lines.append(self._line(case, system, result))
            warnings |= dict.fromkeys(result.warnings())
            if error := self._errors.get((case.key, system.name)):
                warnings[f"{system.title} failed in a run: {error}"] = None
        lines += [f"   ! {warning}" for warning in warnings]
        return "\n".join(line[:WIDTH].rstrip() for line in lines)

    def _goal(self, case: Case, column: Column) -> str:
        goal = column.goal
        assert goal is not None
        number = _number(goal.value, 2 if goal.is_of_limit else column.digits)
        unit = f"of C, {column.title}" if goal.is_of_limit else column.title
        text = f"goal: at {'most' if column.is_less_better else 'least'} {number} {unit}"
        ours = self.of(case, OURS)
        found = ours and verdict(column, ours, self.of(case, LIMIT))
        return f"{text}: {found}" if found else text

    def _line(self, case: Case, system: System, result: Result) -> str:
        title = f"{system.title} !" if result.warnings() else system.title
        cells = "".join(_cell(result, column) for column in case.columns)
        limit, first = self.of(case, LIMIT), case.columns[0]
        ratio = f"{result.median(first.key) / limit.median(first.key):.2f}" if limit else NOTHING
        ours = self.of(case, OURS)
        note = ""
        if ours is not None and system.name != OURS:
            against = result.median(first.key) / ours.median(first.key)
            is_ahead = against < 1 if first.is_less_better else against > 1
            note = f"{TIMES} {against:.2f}{' AHEAD' if is_ahead and system.name != LIMIT else ''}"
        return f"   {title:<{_TITLE}}{cells}{ratio:>6}  {note}"

    def records(self, cases: Sequence[Case]) -> dict[str, Any]:
        """The JSON: each row has all that is needed to judge it."""
        rows = []
        for case in cases:
            for system in self.systems:
                result = self.of(case, system.name)
                row: dict[str, Any] = {
                    "workload": case.key, "title": case.title, "system": system.name,
                    "version": system.version, "system_settings": system.settings,
                    "machine": self.machine, "settings": self.settings,
                }  # fmt: skip
                if result is not None:
                    row["runs"] = max(map(len, result.values.values()))
                    row["figures"] = {
                        key: {
                            "median": result.median(key), "spread": result.spread(key),
                            "values": list(values),
                        }
                        for key, values in result.values.items()
                    }  # fmt: skip
                    row["warnings"] = result.warnings()
                    row["goals"] = self._goals(case, result) if system.name == OURS else {}
                elif error := self._errors.get((case.key, system.name)):
                    row["error"] = error
                else:
                    row["figures"] = None
                rows.append(row)
        return {"date": self.date, "rows": rows}

    def _goals(self, case: Case, result: Result) -> dict[str, Any]:
        limit = self.of(case, LIMIT)
        return {
            column.key: {
                "goal": column.goal.value,
                "of_limit": column.goal.is_of_limit,
                "verdict": verdict(column, result, limit),
            }
            for column in case.columns
            if column.goal is not None
        }

    def is_shared(self) -> bool:
        """Whether other programs used the machine while this was measured."""
        others = [value for each in self._values.values() for value in each.get("others", [])]
        return bool(others) and statistics.median(others) > SHARED


def _cell(result: Result, column: Column) -> str:
    number = _number(result.median(column.key), column.digits)
    if len(result.values[column.key]) == 1:
        return number.rjust(_CELL)
    return f"{number} ±{result.spread(column.key):>3.0%}".rjust(_CELL)


def _number(value: float, digits: int) -> str:
    return f"{value:,.{digits}f}"
