"""Litestar: a bus for the lifespan of the application, a dependency, and a token endpoint.

app = Litestar([ship, token_route(user_of)], plugins=[EventBusPlugin()])

@post("/orders/{order_id:int}/ship")
async def ship(order_id: int, bus: EventBus) -> None:
    await bus.dispatch(OrderShipped(order_id=order_id))
"""

import contextlib
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from litestar import Litestar, MediaType, Request, Response, get
from litestar.config.app import AppConfig
from litestar.datastructures import State
from litestar.di import Provide
from litestar.handlers import HTTPRouteHandler
from litestar.middleware import DefineMiddleware
from litestar.plugins import InitPlugin

from eventbus.bus import EventBus
from eventbus.integrations.asgi import ConnectionMiddleware, MakeBus, open_bus
from eventbus.tokens import TokenIssuer, TokenUser

__all__ = ["EventBusPlugin", "token_route"]

User = TokenUser | str | None


class EventBusPlugin(InitPlugin):
    """Opens a bus when the application starts, closes it at the end, and provides it as `bus`."""

    def __init__(self, make_bus: MakeBus = EventBus.from_env) -> None:
        """`make_bus` creates the bus, once per start."""
        self._make_bus = make_bus

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        """Called by Litestar."""
        app_config.lifespan = [self._lifespan, *app_config.lifespan]
        app_config.dependencies = {**app_config.dependencies, "bus": Provide(_bus)}
        app_config.middleware = [DefineMiddleware(ConnectionMiddleware), *app_config.middleware]
        app_config.signature_namespace["EventBus"] = EventBus
        return app_config

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Litestar) -> AsyncIterator[None]:
        async with open_bus(self._make_bus) as bus:
            app.state.eventbus = bus
            yield


async def _bus(state: State) -> EventBus:
    bus: EventBus = state.eventbus
    return bus


def token_route(
    get_user: Callable[[Request[Any, Any, Any]], Awaitable[User] | User],
    path: str = "/token",
    *,
    make_issuer: Callable[[], TokenIssuer] = TokenIssuer.from_env,
) -> HTTPRouteHandler:
    """The endpoint that the browser client's option `token` fetches: a signed token as plain text.

    `get_user` returns the user of a request, or None for a visitor without a session (status 401).
    """

    @get(path, media_type=MediaType.TEXT)
    async def token(request: Request[Any, Any, Any]) -> Response[str]:
        user = get_user(request)
        found = await user if inspect.isawaitable(user) else user
        headers = {"Cache-Control": "no-store"}
        if found is None:
            return Response("sign in first", status_code=401, headers=headers)
        return Response(make_issuer().issue(found), headers=headers)

    return token
