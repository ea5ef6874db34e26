"""FastAPI: a bus for the lifespan of the application, a dependency, and a token endpoint.

app = FastAPI()
setup(app)
app.include_router(token_route(current_user))

@app.post("/orders/{order_id}/ship")
async def ship(order_id: int, bus: Bus) -> None:
    await bus.dispatch(OrderShipped(order_id=order_id))
"""

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response
from fastapi.responses import PlainTextResponse
from starlette.requests import HTTPConnection

from eventbus.bus import EventBus
from eventbus.integrations.starlette import bus_of, setup, token_response
from eventbus.tokens import TokenIssuer, TokenUser

__all__ = ["Bus", "setup", "token_route"]


async def _bus(connection: HTTPConnection) -> EventBus:
    return bus_of(connection)


Bus = Annotated[EventBus, Depends(_bus)]
"""A parameter of this type is the application's open bus."""


def token_route(
    get_user: Callable[..., Any],
    path: str = "/token",
    *,
    make_issuer: Callable[[], TokenIssuer] = TokenIssuer.from_env,
) -> APIRouter:
    """The endpoint that the browser client's option `token` fetches: a signed token as plain text.

    `app.include_router(token_route(current_user))`. `get_user` is a dependency of the application
    that returns a user id, a TokenUser, or None for a visitor without a session (status 401).
    """
    router = APIRouter()

    @router.get(path, response_class=PlainTextResponse)
    def token(user: Annotated[TokenUser | str | None, Depends(get_user)]) -> Response:
        return token_response(user, make_issuer())

    return router
