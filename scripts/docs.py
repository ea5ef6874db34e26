"""Writes the tables in docs/ that are generated from code. With --check, reports stale ones."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
from prometheus_client.metrics import MetricWrapperBase

from eventbus.cli.app import all_commands
from eventbus.cli.reference import reference
from eventbus.config import Settings
from eventbus.environment import variables
from eventbus.tokens import TokenIssuer
from eventbus_edge.config import EdgeSettings
from eventbus_edge.metrics.metrics import Metrics
from eventbus_edge.metrics.readers import ReadMetric

DOCS = Path(__file__).parent.parent / "docs"


def settings_table(struct: type[msgspec.Struct]) -> Iterator[str]:
    yield "| variable | default | description | allowed |"
    yield "|---|---|---|---|"
    for variable in variables(struct):
        yield (
            f"| `{variable.name}` | {_default(variable.default)} "
            f"| {_cell(variable.help)} | {_cell(variable.allowed)} |"
        )


def metrics_table() -> Iterator[str]:
    yield "| metric | type | labels | description |"
    yield "|---|---|---|---|"
    for metric in vars(Metrics()).values():
        if isinstance(metric, MetricWrapperBase | ReadMetric):
            [family] = metric.describe()
            name = family.name + ("_total" if family.type == "counter" else "")
            labels = "none"
            if isinstance(metric, MetricWrapperBase) and metric._labelnames:  # noqa: SLF001 - no public name
                labels = ", ".join(metric._labelnames)  # noqa: SLF001
            yield f"| `{name}` | {family.type} | {labels} | {_cell(family.documentation)} |"


def _default(value: object) -> str:
    if value in ("", (), None):
        return "empty"
    if isinstance(value, tuple):
        value = ",".join(map(str, value))
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


GENERATED: dict[str, Callable[[], Iterator[str]]] = {
    "settings-bus": lambda: settings_table(Settings),
    "settings-edge": lambda: settings_table(EdgeSettings),
    "settings-tokens": lambda: settings_table(TokenIssuer),
    "metrics": metrics_table,
    "cli": lambda: reference(all_commands()),
}


def generate(page: str) -> str:
    """Return a page with the text between its markers regenerated."""
    for name, make in GENERATED.items():
        begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
        if begin in page:
            head, _, rest = page.partition(begin)
            _, _, tail = rest.partition(end)
            page = head + begin + "\n".join(make()) + "\n" + end + tail
    return page


def main(arguments: list[str]) -> int:
    stale = 0
    for path in sorted(DOCS.glob("*.md")):
        page = path.read_text(encoding="utf-8")
        fresh = generate(page)
        if fresh == page:
            continue
        if "--check" in arguments:
            print(f"{path.name} is stale: run scripts/docs.py", file=sys.stderr)
            stale = 1
        else:
            path.write_text(fresh, encoding="utf-8")
            print(f"wrote {path.name}")
    return stale


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
