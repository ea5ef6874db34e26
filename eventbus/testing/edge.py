"""A real edge in the process and event loop of a test, on a free port."""

from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self

from aiohttp import web

from eventbus.bus import EventBus
from eventbus.testing.websocket import WebSocketClient
from eventbus.tokens import issue_token
from eventbus_edge.access import ChannelRules
from eventbus_edge.app import (
    create_app,
    make_runner,
)
from eventbus_edge.config import EdgeSettings

__all__ = ["EdgeServer"]

_HOST: Final = "127.0.0.1"


class EdgeServer:
    """An edge for tests: `async with EdgeServer(settings, bus) as edge:` listens at `edge.url`."""

    def __init__(
        self, settings: EdgeSettings, bus: EventBus, *, rules: ChannelRules | None = None
    ) -> None:
        """Prepare an edge on the loopback interface. It ignores the port in the settings.

        `bus` must be open, and the caller closes it. Without `rules`, the global ones apply, which
        the module `settings.app` adds to. Raises ConfigError.
        """
        self.settings = settings
        self.bus = bus
        self.port = 0
        self._runner = make_runner(create_app(settings, bus, rules=rules))
        self._clients: list[WebSocketClient] = []

    @property
    def url(self) -> str:
        """The base URL for HTTP."""
        return f"http://{_HOST}:{self.port}"

    @property
    def websocket_url(self) -> str:
        """The URL for WebSockets."""
        return f"ws://{_HOST}:{self.port}/ws"

    async def start(self) -> None:
        """Start listening. Raises the bus's error if the edge cannot use the bus."""
        await self._runner.setup()
        await web.TCPSite(self._runner, _HOST, 0).start()
        self.port = self._runner.addresses[0][1]

    async def aclose(self) -> None:
        """Close all clients of `connect`, and then the edge."""
        try:
            for client in self._clients:
                await client.aclose()
        finally:
            await self._runner.cleanup()

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def token(
        self,
        user: str,
        *,
        name: str | None = None,
        roles: Sequence[str] = (),
        permissions: Sequence[str] = (),
        grants: Sequence[str] = (),
        lifetime_s: int = 3600,
    ) -> str:
        """Return a token that this edge accepts. `grants` are channel names and patterns.

        Raises ValueError if the edge's settings have no secret.
        """
        if not self.settings.jwt_secret:
            raise ValueError("the edge's settings have no jwt_secret to sign with: use `token=`")
        return issue_token(
            user,
            secret=self.settings.jwt_secret,
            name=name,
            roles=roles,
            permissions=permissions,
            channels=grants,
            lifetime=lifetime_s,
            audience=self.settings.jwt_audience,
            algorithm=(self.settings.jwt_algorithms or ("HS256",))[0],
        )

    async def connect(
        self,
        *channels: str,
        user: str | None = None,
        name: str | None = None,
        roles: Sequence[str] = (),
        permissions: Sequence[str] = (),
        grants: Sequence[str] = (),
        token: str | None = None,
    ) -> WebSocketClient:
        """Connect a client and subscribe to the channels. It is closed with the edge.

        With `user`, the client gets a token for that user; otherwise it uses `token`, if any.
        Raises Refused if it is not allowed to connect or subscribe.
        """
        if user is not None:
            token = self.token(user, name=name, roles=roles, permissions=permissions, grants=grants)
        elif name or roles or permissions or grants:
            raise TypeError("name, roles, permissions and grants need a user: pass `user=` as well")
        client = WebSocketClient(self.websocket_url)
        self._clients.append(client)
        await client.open(token)
        for channel in channels:
            await client.subscribe(channel)
        return client
