"""Flask: a bus for the process, and a token endpoint.

app = Flask(__name__)
setup(app)
app.register_blueprint(token_route(lambda: session.get("user_id")))

@app.post("/orders/<int:order_id>/ship")
def ship(order_id):
    OrderShipped(order_id=order_id).dispatch_sync()
    return "", 204
"""

from collections.abc import Callable
from typing import Final

from flask import Blueprint, Flask, Response, current_app, has_request_context, request

from eventbus import sync
from eventbus.config import Settings
from eventbus.events import current
from eventbus.integrations.asgi import connection_of
from eventbus.tokens import TokenIssuer, TokenUser

__all__ = ["setup", "token_route"]

_NAME: Final = "eventbus"


def setup(app: Flask, settings: Settings | None = None) -> None:
    """Let views dispatch with `event.dispatch_sync()`, through the default bus of the process.

    It opens at its first use, also in workers that are forked later, and closes with the process.
    Async views use it, too: `await event.dispatch()`. `settings` replace those of the environment.
    `to_others()` excludes the client connection that the request names in the header
    X-Eventbus-Connection.

    Raises BusStateError if the default bus is already open with other settings.
    """
    if settings is not None:
        sync.configure(settings)
    sync.serve_event_loops()
    current.provide_connection(_connection_of_request)
    app.extensions[_NAME] = True


def token_route(
    get_user: Callable[[], TokenUser | str | None],
    path: str = "/token",
    *,
    make_issuer: Callable[[], TokenIssuer] = TokenIssuer.from_env,
) -> Blueprint:
    """The endpoint that the browser client's option `token` fetches: a signed token as plain text.

    `get_user` returns the user of the current request, or None for a visitor without a session
    (status 401). Blueprint `eventbus`, endpoint `token`.
    """
    blueprint = Blueprint(_NAME, __name__)

    @blueprint.get(path)
    def token() -> Response:
        user = current_app.ensure_sync(get_user)()
        text, status = ("sign in first", 401) if user is None else (make_issuer().issue(user), 200)
        response = Response(text, status, content_type="text/plain; charset=utf-8")
        response.headers["Cache-Control"] = "no-store"
        return response

    return blueprint


def _connection_of_request() -> str | None:
    if has_request_context() and _NAME in current_app.extensions:
        return connection_of(request.headers.get)
    return None
