"""Background tasks of connections and requests, limited in number."""

from collections.abc import Callable

from eventbus.tasks import Tasks

__all__ = ["Background"]


class Background(Tasks):
    """Background tasks, of which at most `limit` run concurrently."""

    def __init__(self, limit: int, on_dropped: Callable[[], object]) -> None:
        """`on_dropped` is called when a task is not started because of the limit."""
        super().__init__(limit, on_dropped)
