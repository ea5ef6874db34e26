"""Tables of figures, as Markdown and as JSON."""

from collections.abc import Sequence
from typing import Any, NamedTuple

__all__ = ["Table", "figure"]


class Table(NamedTuple):
    """The result of a measurement: one row per case, one column per figure."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]

    def markdown(self) -> str:
        """The table in Markdown, as in docs/deployment.md."""
        lines = [f"### {self.title}", ""]
        lines.append("| " + " | ".join(self.columns) + " |")
        lines.append("|---" + "|---:" * (len(self.columns) - 1) + "|")
        lines += ["| " + " | ".join(row) + " |" for row in self.rows]
        return "\n".join(lines) + "\n"

    def records(self) -> list[dict[str, Any]]:
        """One dict per row."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]


def figure(value: float) -> str:
    """Format with two significant digits, or all integer digits: 0.042, 1.7, 23, 1,234."""
    if value >= 10:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 1 else f"{value:.2g}"
