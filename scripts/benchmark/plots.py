"""Plots of the results: one PNG per workload, with the median and the range of all runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from scripts.benchmark.cases import Case, Column
from scripts.benchmark.results import LIMIT, OURS, Results

__all__ = ["plot"]

_COLOURS: Final = {OURS: "#2563eb", LIMIT: "#9ca3af"}
_OTHER: Final = "#64748b"
_WIDTH_IN: Final = 8.0
_BAR_IN: Final = 0.34


def plot(results: Results, cases: Sequence[Case], folder: Path) -> list[Path]:
    """Write the plots of all workloads that have figures. Returns their paths."""
    mpl.use("agg")
    made = []
    for case in cases:
        figure = _figure(results, case)
        if figure is not None:
            path = folder / f"{case.key}.png"
            figure.savefig(path, dpi=120)
            made.append(path)
    return made


def _figure(results: Results, case: Case) -> Figure | None:
    column = case.columns[0]
    found = [
        (system, result)
        for system in results.systems
        if (result := results.of(case, system.name)) is not None
    ]
    if not found:
        return None
    found.sort(key=lambda each: each[1].median(column.key), reverse=column.is_less_better)
    medians = [result.median(column.key) for _, result in found]
    ranges = [
        [middle - min(result.values[column.key]), max(result.values[column.key]) - middle]
        for (_, result), middle in zip(found, medians, strict=True)
    ]
    figure = Figure(figsize=(_WIDTH_IN, 1.2 + _BAR_IN * len(found)), layout="constrained")
    axes = figure.add_subplot()
    axes.barh(
        [system.title for system, _ in found],
        medians,
        xerr=list(zip(*ranges, strict=True)),
        color=[_COLOURS.get(system.name, _OTHER) for system, _ in found],
        error_kw={"ecolor": "#111827", "capsize": 3, "linewidth": 1},
    )
    axes.set_title(f"{case.key}: {case.title}", fontsize="small", loc="left")
    axes.set_xlabel(_label(results, column), fontsize="small")
    axes.tick_params(labelsize="small")
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.10g}"))
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _label(results: Results, column: Column) -> str:
    better = "less" if column.is_less_better else "more"
    machine = results.machine
    runs = results.settings.get("runs")
    return f"{column.title} ({better} is better); runs: {runs}, {machine['cpu']}"
