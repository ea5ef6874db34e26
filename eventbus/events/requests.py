"""What was begun in the threads of a web request, for all code that runs for it.

Frameworks run each plain function (`def`) of a request in a thread, in a copy of its context: what
one sets in a context variable, the next does not see.
"""

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Final

__all__ = ["add_to_request", "one_request", "parts_of_request"]


class _Request:
    """Shared by all copies of the context in which the request began."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._has_ended = False
        self._parts: list[Any] = []

    def add(self, part: Any) -> None:
        with self._lock:
            if not self._has_ended and part not in self._parts:
                self._parts = [*(each for each in self._parts if each.is_open), part]

    def parts(self) -> Sequence[Any]:
        return self._parts

    def end(self) -> None:
        with self._lock:
            self._has_ended = True
            self._parts = []


_request: Final = contextvars.ContextVar[_Request | None]("eventbus_request", default=None)


@contextlib.contextmanager
def one_request() -> Iterator[None]:
    """The block handles one request; tasks that outlive it find nothing of it."""
    request = _Request()
    token = _request.set(request)
    try:
        yield
    finally:
        _request.reset(token)
        request.end()


def add_to_request(part: Any) -> None:
    """Let all code of the current request find `part` while it `is_open`.

    Does nothing in an event loop: what a task sets in its context, all that it calls can see.
    """
    if (request := _request.get()) is not None and not _is_in_event_loop():
        request.add(part)


def parts_of_request() -> Sequence[Any]:
    """What was added in the current request, the last one last; some may no longer be open."""
    return () if (request := _request.get()) is None else request.parts()


def _is_in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
