"""Coroutines that run beside a connection or request, bounded in number."""

from collections.abc import Callable

from eventbus.tasks import Tasks

__all__ = ["Background"]


class Background(Tasks):
    """Background tasks of which at most `limit` run at once."""

    def __init__(self, limit: int, on_dropped: Callable[[], object]) -> None:
        """`on_dropped` is called when a coroutine is not started because of the limit."""
        super().__init__(limit, on_dropped)
