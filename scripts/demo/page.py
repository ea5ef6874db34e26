"""The demo's routes on the edge: its page, scripts of other authors, and tokens for everybody.

They exist only in the demo, which listens on loopback. A production edge issues no tokens.
"""

import re
import secrets
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final

from aiohttp import web

from eventbus.tokens import issue_token
from eventbus_edge.http.pages import page

__all__ = ["extend", "guest_token", "new_guest"]

_ADJECTIVES: Final = (
    "amber", "brave", "calm", "clever", "coral", "eager", "gentle", "golden", "jolly", "keen",
    "lively", "lucky", "mellow", "merry", "nimble", "quiet", "silver", "sunny", "swift", "violet",
)  # fmt: skip
_ANIMALS: Final = (
    "badger", "beaver", "crane", "dolphin", "falcon", "finch", "fox", "gecko", "hare", "heron",
    "ibis", "koala", "lynx", "marten", "otter", "owl", "panda", "puffin", "raven", "seal",
)  # fmt: skip
_HERE: Final = Path(__file__).parent
_ECHO: Final = {
    "laravel-echo.js": _HERE / "node_modules" / "laravel-echo" / "dist" / "echo.js",
    "pusher.js": _HERE / "node_modules" / "pusher-js" / "dist" / "web" / "pusher.min.js",
    "resume.js": _HERE.parents[1] / "npm" / "echo" / "resume.js",
}
"""What the tab on Laravel Echo loads; `scripts/demo/packages` installs it."""
_GUEST: Final = re.compile(r"[a-z]{2,12}-[a-z]{2,12}-[0-9]{4}", re.ASCII)


def new_guest() -> str:
    """A random user id that contains a name, such as `amber-otter-4821`."""
    words = secrets.choice(_ADJECTIVES), secrets.choice(_ANIMALS)
    return f"{'-'.join(words)}-{secrets.randbelow(9000) + 1000}"


def guest_token(secret: str, user_id: str) -> str:
    """A development token for a guest."""
    return issue_token(user_id, secret=secret, name=" ".join(user_id.split("-")[:2]).title())


def extend(secret: str, nats_url: str) -> Callable[[web.Application], None]:
    """Return a function that adds the demo's routes to an edge with the JWT secret `secret`."""

    async def token(request: web.Request) -> web.Response:
        guest = request.query.get("guest") or new_guest()
        if not _GUEST.fullmatch(guest):
            raise web.HTTPBadRequest(reason="guest must look like amber-otter-4821, or be empty")
        about = {
            "user_id": guest,
            "token": guest_token(secret, guest),
            "nats_url": nats_url,
            "host": socket.gethostname(),
        }
        return web.json_response(about, headers={"Cache-Control": "no-store"})

    async def echo(request: web.Request) -> web.StreamResponse:
        path = _ECHO.get(request.match_info["name"])
        if path is None or not path.is_file():
            raise web.HTTPNotFound(reason="not installed: run scripts/demo/packages")
        headers = {"Content-Type": "text/javascript", "Cache-Control": "no-cache"}
        return web.FileResponse(path, headers=headers)

    def add(app: web.Application) -> None:
        app.router.add_get("/demo", page("demo.html"))
        app.router.add_get("/demo/token", token)
        app.router.add_get("/demo/echo/{name}", echo)

    return add
