"""A real edge in the test's own process and event loop, on a free port."""

from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self

from aiohttp import web

from eventbus.bus import EventBus
from eventbus.cli.tokens.commands import issue_token
from eventbus.testing.websocket import WebSocketClient
from eventbus_edge.access.rules import ChannelRules
from eventbus_edge.app import (
    create_app,
    make_runner,
)
from eventbus_edge.config import EdgeSettings

__all__ = ["EdgeServer"]

_HOST: Final = "127.0.0.1"


class EdgeServer:
    """`async with EdgeServer(settings, bus) as edge:` listens at `edge.url` until the end."""

    def __init__(
        self, settings: EdgeSettings, bus: EventBus, *, rules: ChannelRules | None = None
    ) -> None:
        """Listen on the loopback interface, on a free port whatever the settings say.

        `bus` is open and stays the caller's. Without `rules`, those of `eventbus_edge.channels`
        apply; the module `settings.app` adds the application's to them. Raises ConfigError.
        """
        self.settings = settings
        self.bus = bus
        self.port = 0
        self._runner = make_runner(create_app(settings, bus, rules=rules))
        self._clients: list[WebSocketClient] = []

    @property
    def url(self) -> str:
        """The address for HTTP."""
        return f"http://{_HOST}:{self.port}"

    @property
    def websocket_url(self) -> str:
        """The address for WebSockets."""
        return f"ws://{_HOST}:{self.port}/ws"

    async def start(self) -> None:
        """Listen. Raises what the bus raises when the edge cannot use it."""
        await self._runner.setup()
        await web.TCPSite(self._runner, _HOST, 0).start()
        self.port = self._runner.addresses[0][1]

    async def aclose(self) -> None:
        """Close the clients that `connect` made, then the edge."""
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
        """A token that this edge accepts; `grants` are names and patterns of channels.

        Raises ValueError where the edge's settings have no secret.
        """
        if not self.settings.jwt_secret:
            raise ValueError("the edge's settings have no jwt_secret to sign with: give `token=`")
        return issue_token(
            self.settings.jwt_secret,
            user,
            name=name,
            roles=list(roles),
            permissions=list(permissions),
            channels=list(grants),
            lifetime_s=lifetime_s,
            audience=self.settings.jwt_audience,
            algorithm=self.settings.jwt_algorithms[0],
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
        """A client that has joined the channels; it is closed with the edge.

        With `user` it has a token made for it, otherwise the one given, or none. Raises Refused
        where it may not connect or join.
        """
        if user is not None:
            token = self.token(user, name=name, roles=roles, permissions=permissions, grants=grants)
        elif name or roles or permissions or grants:
            raise TypeError(
                "name, roles, permissions and grants are a user's: give `user=` as well"
            )
        client = WebSocketClient(self.websocket_url)
        self._clients.append(client)
        await client.open(token)
        for channel in channels:
            await client.subscribe(channel)
        return client
