"""Figures as people and programs read them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

__all__ = ["Table", "figure"]


class Table(NamedTuple):
    """One kind of figures: a row for each case, a column for each figure."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]

    def markdown(self) -> str:
        """As docs/deployment.md has it."""
        lines = [f"### {self.title}", ""]
        lines.append("| " + " | ".join(self.columns) + " |")
        lines.append("|---" + "|---:" * (len(self.columns) - 1) + "|")
        lines += ["| " + " | ".join(row) + " |" for row in self.rows]
        return "\n".join(lines) + "\n"

    def records(self) -> list[dict[str, Any]]:
        """A dict for each row."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]


def figure(value: float) -> str:
    """Two digits that count, or all before the point: 0.042, 1.7, 23, 1,234."""
    if value >= 10:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 1 else f"{value:.2g}"
