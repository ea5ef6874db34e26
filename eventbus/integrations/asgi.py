"""What the integrations of ASGI frameworks share: a bus for the lifespan, and each request's client
connection.
"""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

from eventbus import sync
from eventbus.bus import EventBus
from eventbus.events import current, one_request

__all__ = ["ConnectionMiddleware", "MakeBus", "connection_of", "open_bus"]

MakeBus = Callable[[], EventBus]

_HEADERS: Final = ("X-Eventbus-Connection", "X-Socket-ID")
"""The headers in which a page names its connection: ours by `bus.headers()`, and Laravel Echo's."""


@contextlib.asynccontextmanager
async def open_bus(make_bus: MakeBus) -> AsyncIterator[EventBus]:
    """An open bus, which blocking calls in the application's worker threads use as well."""
    async with make_bus() as bus:
        with sync.shared(bus):
            yield bus


def connection_of(header: Callable[[str], str | None]) -> str | None:
    """The client connection that a request names in its headers, if any; `header` looks one up."""
    return next((found for name in _HEADERS if (found := header(name))), None)


class ConnectionMiddleware:
    """ASGI middleware: `to_others()` excludes the client connection that a request names.

    A transaction that begins in a thread of the request holds events in all of them.
    """

    def __init__(self, app: Callable[[Any, Any, Any], Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Handle one request (ASGI specification 3.0)."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            with one_request():
                await self._app(scope, receive, send)
            return
        headers: dict[str, str | None] = {}
        for raw_name, value in scope["headers"]:
            name = raw_name.decode("latin-1")
            # One that is given twice names no connection.
            headers[name] = None if name in headers else value.decode("latin-1")
        connection = connection_of(lambda name: headers.get(name.lower()))
        with one_request(), current.connection_of_request(connection):
            await self._app(scope, receive, send)
