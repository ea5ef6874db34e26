"""Which side a change breaks: readers or writers. See eventbus.contracts.difference."""

from typing import Final, NamedTuple, TypeAlias

__all__ = ["BOTH", "NOBODY", "READERS", "WRITERS", "Difference", "Views"]

Views: TypeAlias = frozenset[str]
NOBODY: Final[Views] = frozenset()
READERS: Final[Views] = frozenset({"readers"})
WRITERS: Final[Views] = frozenset({"writers"})
BOTH: Final = READERS | WRITERS


class Difference(NamedTuple):
    """One change: its place, and which side it breaks."""

    place: str
    """A path such as `lines[].price`; empty for the whole schema."""
    what: str
    breaks: Views
