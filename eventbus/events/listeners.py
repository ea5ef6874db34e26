"""Listeners: callables that run when this process dispatches an event.

    from eventbus import listen

    @listen(OrderShipped)                 # an event type, or a base class of several
    async def send_receipt(event: OrderShipped) -> None: ...

    @bus.listen("order.*", priority=10)   # event names; `*` matches any characters
    def audit(event: Event) -> None: ...

`listen` registers for the whole process, at import time and without a bus. Every bus runs these and
its own, from `bus.listen`. Within `isolated()` none is registered, so that the listeners of one
test do not run in the next.
"""

import contextlib
import itertools
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, NamedTuple, TypeVar, overload

from eventbus import tracing
from eventbus.events.event import Event, event_definition, event_type, qualified_name
from eventbus.messages import validate_event_name
from eventbus.user_code import advice_on, call_guarded, check_callable, guarded

__all__ = ["Listeners", "default_listeners", "isolated", "listen"]


_log = logging.getLogger(__name__)

E1 = TypeVar("E1")
E2 = TypeVar("E2")
R = TypeVar("R")
Handler = Callable[[Any], Any]
What = type | str

_order: Final = itertools.count()
"""Numbers all registrations in the process: a bus runs its own and the process's in this order."""


class _Listener(NamedTuple):
    sort_key: tuple[int, int]
    what: frozenset[What]
    handler: Handler
    stop_on_error: bool

    def matches(self, name: str, cls: type | None) -> bool:
        return any(
            _name_matches(what, name)
            if isinstance(what, str)
            else cls is not None and issubclass(cls, what)
            for what in self.what
        )


class Listeners:
    """Callables by the events that they listen to, run one after the other.

    A higher `priority` runs first, equal ones in the order of registration. A listener that matches
    an event in several ways runs once.
    """

    def __init__(self, inherited: "Listeners | None" = None) -> None:
        """`inherited`: other listeners that run with these."""
        self.errors = 0
        """How many times a listener raised."""
        self._inherited = inherited
        self._listeners: list[_Listener] = []
        self._version = 0
        self._found: dict[type[Event], tuple[_Listener, ...]] = {}
        self._found_version = 0

    @overload
    def listen(
        self, what: type[E1], /, *, priority: int = 0, stop_on_error: bool = False
    ) -> Callable[[Callable[[E1], R]], Callable[[E1], R]]: ...

    @overload
    def listen(
        self, one: type[E1], other: type[E2], /, *, priority: int = 0, stop_on_error: bool = False
    ) -> Callable[[Callable[[E1 | E2], R]], Callable[[E1 | E2], R]]: ...

    @overload
    def listen(
        self, *what: What, priority: int = 0, stop_on_error: bool = False
    ) -> Callable[[Callable[[Any], R]], Callable[[Any], R]]: ...

    def listen(
        self, *what: What, priority: int = 0, stop_on_error: bool = False
    ) -> Callable[[Callable[[Any], R]], Callable[[Any], R]]:
        """Decorate a callable, async or plain, that takes the event; it is returned unchanged.

        `what` are event types (a base class includes its subclasses), event names, or patterns of
        names, in which `*` matches any characters, including dots. An exception of a listener is
        logged and counted, and the next listener runs; with `stop_on_error` no further listener
        runs, and `dispatch` raises the exception. Raises TypeError and InvalidEventName.
        """
        wanted = frozenset(map(_check_what, what))
        if not wanted:
            raise TypeError("listen() needs event types or names: `@listen(OrderShipped)`")

        def register(handler: Callable[[Any], R]) -> Callable[[Any], R]:
            check_callable(handler, "a listener", 1)
            listener = _Listener((-priority, next(_order)), wanted, handler, stop_on_error)
            self._change([*self._listeners, listener])
            return handler

        return register

    def forget(self, what: What, handler: Handler | None = None) -> int:
        """Remove the listeners to exactly this type, name or pattern; returns how many.

        With `handler`, only that one. Other registrations of the same listener stay.
        """
        _check_what(what)
        remaining, dropped = [], 0
        for listener in self._listeners:
            # Each access to a bound method creates an object: equal, but not the same.
            if what in listener.what and (handler is None or listener.handler == handler):
                dropped += 1
                listener = listener._replace(what=listener.what - {what})  # noqa: PLW2901
            if listener.what:
                remaining.append(listener)
        self._change(remaining)
        return dropped

    def has_listeners(self, what: type | str) -> bool:
        """Whether there is a listener to events of this type or name."""
        if isinstance(what, str):
            name, cls = what, event_type(what)
        else:
            name = event_definition(what).name if issubclass(what, Event) else ""
            cls = what
        own = any(listener.matches(name, cls) for listener in self._listeners)
        return own or (self._inherited is not None and self._inherited.has_listeners(what))

    async def run(self, *events: Event, raise_errors: bool = False) -> None:
        """Run the listeners of each event.

        With `raise_errors` all of them run, and their exceptions are raised as an ExceptionGroup.
        The exception of a listener with `stop_on_error` is raised as it is, at once.
        """
        errors: list[Exception] = []
        for event in events:
            for listener in self.matching(type(event)):
                try:
                    name = event_definition(type(event)).name
                    with guarded(), tracing.listening(name, listener.handler):
                        await call_guarded(listener.handler, event)
                except Exception as exc:
                    self._report(listener, event, exc)
                    if listener.stop_on_error:
                        raise
                    errors.append(exc)
        if errors and raise_errors:
            raise ExceptionGroup(f"{len(errors)} listeners failed", errors)

    async def until(self, event: Event) -> Any:
        """Call one listener after the other; returns the first answer that is not None, or None.

        Nothing is broadcast. An exception is logged and counted, and the next listener is called;
        with `stop_on_error` it is raised.
        """
        for listener in self.matching(type(event)):
            try:
                answer = await call_guarded(listener.handler, event)
            except Exception as exc:
                self._report(listener, event, exc)
                if listener.stop_on_error:
                    raise
                continue
            if answer is not None:
                return answer
        return None

    @contextlib.contextmanager
    def isolated(self) -> Iterator[None]:
        """Start the block without listeners; those that it registers end with it."""
        before = self._listeners
        self._change([])
        try:
            yield
        finally:
            self._change(before)

    def _change(self, listeners: list[_Listener]) -> None:
        self._listeners = listeners
        self._version += 1

    def matching(self, cls: type[Event]) -> "tuple[_Listener, ...]":
        """The listeners that `run` calls for events of this type, in order."""
        version = self._version_of_all()
        if version != self._found_version:
            self._found, self._found_version = {}, version
        if (found := self._found.get(cls)) is None:
            name = event_definition(cls).name
            found = tuple(sorted(one for one in self._all() if one.matches(name, cls)))
            self._found[cls] = found
        return found

    def _version_of_all(self) -> int:
        """Grows with each change of these listeners and of the inherited ones."""
        version, inherited = self._version, self._inherited
        while inherited is not None:
            version += inherited._version  # noqa: SLF001 - of the same class
            inherited = inherited._inherited  # noqa: SLF001
        return version

    def _all(self) -> Iterable[_Listener]:
        inherited = self._inherited
        theirs = () if inherited is None else inherited._all()  # noqa: SLF001 - of the same class
        return (*theirs, *self._listeners)

    def _report(self, listener: _Listener, event: Event, exc: Exception) -> None:
        self.errors += 1
        # The event's fields stay out of the log: they may be confidential.
        _log.error(
            "listener %s failed on event %r, id %s%s",
            _handler_name(listener.handler),
            event_definition(type(event)).name,
            event.event_meta.id,
            advice_on(exc),
            exc_info=exc,
        )


def _check_what(what: object) -> What:
    if isinstance(what, str):
        return validate_event_name(what)
    if isinstance(what, type):
        return what
    raise TypeError(
        f"{repr(what)[:80]} is neither an event type nor a name: use `@listen(OrderShipped)` or "
        '`@listen("order.*")`'
    )


def _name_matches(pattern: str, name: str) -> bool:
    if "*" not in pattern:
        return pattern == name
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), name, re.DOTALL) is not None


def _handler_name(handler: Handler) -> str:
    named = handler if hasattr(handler, "__qualname__") else getattr(handler, "func", handler)
    if hasattr(named, "__qualname__"):
        return f"{named.__module__}.{named.__qualname__}"
    return qualified_name(type(named))


default_listeners: Final = Listeners()
"""The process's own listeners, which every bus runs unless it is created with others."""
listen = default_listeners.listen
"""Register for the whole process: see `Listeners.listen`."""
isolated = default_listeners.isolated
"""For tests: within the block, the process has only the listeners that the block registers."""
