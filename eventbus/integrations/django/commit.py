"""Events with `after_commit=True` wait for the commit of Django's `atomic` blocks."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from django.db import connections

from eventbus.events import Held, Holder, check_room
from eventbus.sync import send_committed

__all__ = ["atomic_blocks"]


class _Hook:
    """What `transaction.on_commit` calls."""

    def __init__(self, held: Held) -> None:
        self.held = held
        self.__qualname__ = "eventbus"  # Django reads it when it logs an error

    def __call__(self) -> None:
        if self.held.release():
            send_committed([self.held])


class _Atomic(NamedTuple):
    """The transaction of one database. Django drops the hooks of what is rolled back."""

    connection: Any

    def hold(self, held: Held) -> None:
        """See `Holder`.

        It may run in the thread of the bus, while the connection's own thread waits for it.
        """
        hooks = [hook for _, hook, _ in self.connection.run_on_commit]
        check_room(sum(len(hook.held) for hook in hooks if isinstance(hook, _Hook)), held)
        self.connection.on_commit(_Hook(held), robust=True)


def atomic_blocks() -> Sequence[Holder]:
    """The databases in which this thread is within an `atomic` block."""
    return [
        _Atomic(connection)
        for connection in connections.all(initialized_only=True)
        if connection.in_atomic_block
    ]
