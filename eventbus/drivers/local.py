"""Subscriptions within one process, for drivers without an external broker."""

import asyncio
import itertools
import logging

from eventbus.channels import Pattern
from eventbus.drivers.base import (
    Delivery,
    Handler,
    Position,
)
from eventbus.user_code import must_pass

__all__ = ["Listener", "Listeners"]


_log = logging.getLogger(__name__)


class Listeners:
    """Listeners by subject; several drivers of one event loop may share it."""

    def __init__(self) -> None:
        self._exact: dict[str, dict[int, Listener]] = {}
        self._filters: dict[int, tuple[Pattern, Listener]] = {}
        self._groups: dict[tuple[str, str], tuple[Pattern, dict[int, Listener]]] = {}
        self._keys = itertools.count()

    def add(
        self, subject: str, handler: Handler, *, group: str = "", position: Position | None = None
    ) -> "Listener":
        """Listen to a subject or a filter; the members of a `group` take turns.

        `position` is the current end of the stream. Raises InvalidPattern.
        """
        pattern = Pattern(subject)
        listener = Listener(
            self, subject, next(self._keys), handler, group=group, position=position
        )
        if group:
            self._groups.setdefault((group, subject), (pattern, {}))[1][listener.key] = listener
        elif pattern.is_exact:
            self._exact.setdefault(subject, {})[listener.key] = listener
        else:
            self._filters[listener.key] = (pattern, listener)
        return listener

    def remove(self, listener: "Listener") -> None:
        """Remove a listener; removing it twice is harmless."""
        key, subject = listener.key, listener.subject
        if listener.group:
            name = listener.group, subject
            _, members = self._groups.get(name, (None, {}))
            if members.pop(key, None) is not None and not members:
                del self._groups[name]
            return
        self._filters.pop(key, None)
        if (listeners := self._exact.get(subject)) is not None:
            listeners.pop(key, None)
            if not listeners:
                del self._exact[subject]

    def deliver(self, delivery: Delivery) -> None:
        """Call the matching listeners in the next turn of the event loop."""
        loop = asyncio.get_running_loop()
        for listener in self._exact.get(delivery.subject, {}).values():
            loop.call_soon(listener.receive, delivery)
        for pattern, listener in self._filters.values():
            if pattern.match(delivery.subject) is not None:
                loop.call_soon(listener.receive, delivery)
        for pattern, members in self._groups.values():
            if pattern.match(delivery.subject) is not None:
                key = next(iter(members))
                members[key] = member = members.pop(key)  # the next message goes to another member
                loop.call_soon(member.receive, delivery)

    @property
    def count(self) -> int:
        """The number of listeners."""
        members = [each for _, each in self._groups.values()]
        return len(self._filters) + sum(map(len, (*self._exact.values(), *members)))


class Listener:
    """One listener, until it is closed."""

    def __init__(
        self,
        listeners: Listeners,
        subject: str,
        key: int,
        handler: Handler,
        *,
        group: str,
        position: Position | None,
    ) -> None:
        """Use `Listeners.add` instead."""
        self.subject = subject
        self.key = key
        self.group = group
        self.position = position
        self._listeners = listeners
        self._handler: Handler | None = handler

    def receive(self, delivery: Delivery) -> None:
        """Call the handler, unless the listener was closed meanwhile."""
        if self._handler is None:
            return
        try:
            self._handler(delivery)
        except BaseException as exc:  # a fault of one listener must not reach the others
            if must_pass(exc):
                raise
            _log.exception("a handler of %s failed", self.subject)

    async def aclose(self) -> None:
        """Stop listening."""
        self._handler = None
        self._listeners.remove(self)
