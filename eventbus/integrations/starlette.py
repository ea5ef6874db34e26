"""Starlette: a bus for the lifespan of the application, and a token endpoint.

app = Starlette(routes=[Route("/orders", ship, methods=["POST"]), token_route(user_of)])
setup(app)
"""

import contextlib
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from eventbus.bus import EventBus
from eventbus.errors import BusStateError
from eventbus.events import current
from eventbus.integrations.asgi import ConnectionMiddleware, MakeBus, open_bus
from eventbus.tokens import TokenIssuer, TokenUser

__all__ = ["bus_of", "setup", "token_response", "token_route"]

User = TokenUser | str | None


def setup(app: Starlette, make_bus: MakeBus = EventBus.from_env) -> None:
    """Open a bus when the application starts, before its own lifespan, and close it at the end.

    `make_bus` creates the bus, once per start. `event.dispatch()` in endpoints uses it, and so does
    `event.dispatch_sync()` in endpoints that are plain functions. `to_others()` excludes the client
    connection that the request names in the header X-Eventbus-Connection.
    """
    inner: Any = app.router.lifespan_context

    @contextlib.asynccontextmanager
    async def lifespan(application: Starlette) -> AsyncIterator[Any]:
        async with open_bus(make_bus) as bus:
            application.state.eventbus = bus
            async with inner(application) as state:
                yield state

    app.router.lifespan_context = lifespan
    app.add_middleware(ConnectionMiddleware)


def bus_of(connection: HTTPConnection) -> EventBus:
    """The bus of the application that handles a request, or of the one that it is mounted in.

    Raises BusStateError without `setup`.
    """
    bus: EventBus | None = getattr(connection.app.state, "eventbus", None)
    if bus is not None:
        return bus
    if current.is_any() and isinstance(opened := current.current_bus(), EventBus):
        return opened  # Starlette runs no lifespan of a mounted application
    raise BusStateError("the application has no open bus: call setup(app) before it starts")


def token_route(
    get_user: Callable[[Request], Awaitable[User] | User],
    path: str = "/token",
    *,
    make_issuer: Callable[[], TokenIssuer] = TokenIssuer.from_env,
) -> Route:
    """The endpoint that the browser client's option `token` fetches: a signed token as plain text.

    `get_user` returns the user of a request, or None for a visitor without a session (status 401).
    """

    async def token(request: Request) -> Response:
        user = get_user(request)
        return token_response(await user if inspect.isawaitable(user) else user, make_issuer())

    return Route(path, token, methods=["GET"])


def token_response(user: User, issuer: TokenIssuer) -> Response:
    """A user's token, or 401 without a user. No cache may keep it."""
    headers = {"Cache-Control": "no-store"}
    if user is None:
        return PlainTextResponse("sign in first", 401, headers)
    return PlainTextResponse(issuer.issue(user), headers=headers)
