"""The demo's routes on the edge: its page, and tokens for everybody.

They exist only in the demo, which listens on loopback. A production edge issues no tokens.
"""

import re
import secrets
import socket
from collections.abc import Callable
from typing import Final

from aiohttp import web

from eventbus.cli.tokens.commands import issue_token
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
_GUEST: Final = re.compile(r"[a-z]{2,12}-[a-z]{2,12}-[0-9]{4}", re.ASCII)


def new_guest() -> str:
    """A random user id that contains a name, such as `amber-otter-4821`."""
    words = secrets.choice(_ADJECTIVES), secrets.choice(_ANIMALS)
    return f"{'-'.join(words)}-{secrets.randbelow(9000) + 1000}"


def guest_token(secret: str, user_id: str) -> str:
    """A development token for a guest."""
    return issue_token(secret, user_id, name=" ".join(user_id.split("-")[:2]).title())


def extend(secret: str, nats_url: str) -> Callable[[web.Application], None]:
    """Return a function that adds the demo's routes to an edge with the JWT secret `secret`."""

    async def demo(_: web.Request) -> web.FileResponse:
        return page("demo.html")

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

    def add(app: web.Application) -> None:
        app.router.add_get("/", demo)
        app.router.add_get("/demo/token", token)

    return add
