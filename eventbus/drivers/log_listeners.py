"""The listeners of log drivers: live messages within one process, and nothing kept of them."""

import asyncio
import itertools
import logging

from eventbus.channels import Pattern
from eventbus.drivers.base import Delivery, Handler, Position

__all__ = ["Listener", "Listeners"]

_log = logging.getLogger(__name__)


class Listeners:
    """Who listens to which subject; several log drivers of one event loop may share it."""

    def __init__(self) -> None:
        self._exact: dict[str, dict[int, Listener]] = {}
        self._filters: dict[int, tuple[Pattern, Listener]] = {}
        self._keys = itertools.count()

    def add(self, subject: str, handler: Handler) -> "Listener":
        """Listen to a subject or a filter. Raises InvalidPattern."""
        pattern = Pattern(subject)
        listener = Listener(self, subject, next(self._keys), handler)
        if pattern.is_exact:
            self._exact.setdefault(subject, {})[listener.key] = listener
        else:
            self._filters[listener.key] = (pattern, listener)
        return listener

    def remove(self, listener: "Listener") -> None:
        """Stop listening; twice is harmless."""
        self._filters.pop(listener.key, None)
        if (listeners := self._exact.get(listener.subject)) is not None:
            listeners.pop(listener.key, None)
            if not listeners:
                del self._exact[listener.subject]

    def deliver(self, delivery: Delivery) -> None:
        """Call whoever listens, in the next turn of the event loop."""
        loop = asyncio.get_running_loop()
        for listener in self._exact.get(delivery.subject, {}).values():
            loop.call_soon(listener.receive, delivery)
        for pattern, listener in self._filters.values():
            if pattern.match(delivery.subject) is not None:
                loop.call_soon(listener.receive, delivery)


class Listener:
    """One listener, until it is closed."""

    def __init__(self, listeners: Listeners, subject: str, key: int, handler: Handler) -> None:
        self.subject = subject
        self.key = key
        self._listeners = listeners
        self._handler: Handler | None = handler

    @property
    def position(self) -> Position | None:
        """None: there is no history."""
        return None

    def receive(self, delivery: Delivery) -> None:
        """Hand a message to the handler, unless it was closed meanwhile."""
        if self._handler is None:
            return
        try:
            self._handler(delivery)
        except Exception:  # noqa: BLE001 - one listener's fault is not another's
            _log.exception("a handler of %s failed", self.subject)

    async def aclose(self) -> None:
        """Stop listening."""
        self._handler = None
        self._listeners.remove(self)
