"""Nodes that the cases of a file share, and a summary of the cases by section."""

import collections
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.edges import Edge, serving


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run each file in one worker, with no other test in between that nodes could disturb.

    While Hypothesis makes an example, the thread of a node may take a random number: Hypothesis
    would warn that a strategy does.
    """
    here = Path(__file__).parent
    ours = pytest.mark.filterwarnings("ignore:Do not use the .random. module inside strategies")
    for item in items:
        if item.path.parent == here:
            item.add_marker(pytest.mark.xdist_group(f"conformance {item.path.stem}"))
            item.add_marker(ours)


@pytest.fixture(scope="module")
def edges() -> Iterator[dict[bool, Edge]]:
    """Two nodes, by whether they accept compression."""
    with (
        serving(compression=False) as plain,
        serving(compression=True, compression_min_bytes=1) as deflating,
    ):
        yield {False: plain, True: deflating}


@pytest.fixture
def summarize(record_property: Callable[[str, object], None]) -> Callable[[str, int], None]:
    """Count this test in the summary: `summarize("6 UTF-8", 8)` for a case in 8 variants."""

    def note(section: str, variants: int) -> None:
        record_property("section", section)
        record_property("variants", variants)

    return note


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print how many cases of each section passed; `scripts/conformance` is the command."""
    sections: dict[str, collections.Counter[str]] = {}
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            found = dict(getattr(report, "user_properties", ()))
            if report.when == "call" and "section" in found:
                counts = sections.setdefault(found["section"], collections.Counter())
                counts["cases"] += 1
                counts["runs"] += found["variants"]
                counts[outcome] += 1
    if not sections:
        return
    width = max(map(len, sections))
    terminalreporter.section("conformance")
    terminalreporter.line(f"{'section':{width}}  cases   runs  passed  failed")
    for name, counts in sorted(sections.items(), key=lambda item: _order(item[0])):
        numbers = [counts[column] for column in ("cases", "runs", "passed", "failed")]
        terminalreporter.line("{:{}}  {:5}  {:5}  {:6}  {:6}".format(name, width, *numbers))
    total = sum(sections.values(), collections.Counter())
    numbers = [total[column] for column in ("cases", "runs", "passed", "failed")]
    terminalreporter.line("{:{}}  {:5}  {:5}  {:6}  {:6}".format("all", width, *numbers))


def _order(name: str) -> tuple[bool, int, str]:
    number = name.split(maxsplit=1)[0]
    return not number.isdecimal(), int(number) if number.isdecimal() else 0, name
