"""Collects the answers of a cluster to one question. Pure."""

from collections.abc import (
    Callable,
    Mapping,
    Sequence,
)
from typing import (
    Any,
    Final,
    Generic,
    NamedTuple,
    TypeVar,
)

__all__ = ["MAX_NODES", "MAX_PARTS", "Gather", "Gathered", "Question"]


Q = TypeVar("Q")
A = TypeVar("A")

MAX_PARTS: Final = 1000
"""The largest number of parts of one node's answer."""
MAX_NODES: Final = 1000


class Question(NamedTuple, Generic[Q, A]):
    """A kind of question: its name on the wire, and the msgspec types of question and answer."""

    name: str
    asks: type[Q]
    answers: type[A]


class Gathered(NamedTuple, Generic[A]):
    """The parts of each node's answer, by node id, and the nodes that did not answer in time."""

    answers: Mapping[str, Sequence[A]]
    missing: frozenset[str]

    @property
    def all(self) -> Sequence[A]:
        """The parts of all nodes."""
        return [part for parts in self.answers.values() for part in parts]


class Gather:
    """The answers to one question, until all have arrived."""

    def __init__(
        self,
        question: Question[Any, Any],
        expected: set[str],
        on_complete: Callable[[], object],
        *,
        has_strangers: bool,
    ) -> None:
        """`on_complete` is called when all expected nodes have answered.

        With `has_strangers` it never is: nodes that are not known yet may answer as well.
        """
        self.question = question
        self._expected = expected
        self._on_complete = on_complete
        self._has_strangers = has_strangers
        self._refused: set[str] = set()
        self._parts: dict[str, dict[int, Any]] = {}
        self._sizes: dict[str, int] = {}

    def add(self, node: str, part: int, parts: int, answer: Any) -> None:
        """Add one part of a node's answer; an impossible number is ignored."""
        is_known = node in self._parts or len(self._parts) < MAX_NODES
        if is_known and 0 <= part < parts <= MAX_PARTS:
            self._parts.setdefault(node, {})[part] = answer
            self._sizes[node] = parts
            self.check()

    def refuse(self, node: str) -> None:
        """A node will not answer."""
        self._refused.add(node)
        self.check()

    def leave(self, node: str) -> None:
        """A node has left: do not wait for it."""
        self._expected.discard(node)
        self.check()

    def check(self) -> None:
        """Check whether all have answered."""
        if not self._has_strangers and self._expected <= self._whole() | self._refused:
            self._on_complete()

    def result(self) -> Gathered[Any]:
        """The complete answers only: an incomplete one would be wrong."""
        whole = self._whole()
        answers = {
            node: [self._parts[node][part] for part in sorted(self._parts[node])]
            for node in sorted(whole)
        }
        return Gathered(answers, frozenset((self._expected | self._parts.keys()) - whole))

    def _whole(self) -> set[str]:
        return {node for node, parts in self._parts.items() if len(parts) == self._sizes[node]}
