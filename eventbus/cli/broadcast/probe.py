"""A WebSocket client that waits for one message, to check that an edge delivers it."""

import asyncio
import contextlib
import socket
import time
from collections.abc import (
    AsyncIterator,
    Sequence,
)
from typing import (
    TYPE_CHECKING,
    Any,
    Final,
    TypeVar,
)

import aiohttp
import msgspec

from eventbus.errors import EventBusError
from eventbus.messages import json_decoder
from eventbus.urls import (
    fault_text,
    is_web_address,
    mask_url,
)

if TYPE_CHECKING:
    from eventbus.cluster import NodeStats

__all__ = ["PATIENCE_S", "EdgeRefused", "Probe", "addresses_of", "probing"]


PATIENCE_S: Final = 5.0
"""How long to wait for an edge to accept the connection and reply, and then for the message."""
_ANY: Final = ("://0.0.0.0:", "://[::]:")


class EdgeRefused(EventBusError):
    """An edge is unreachable, refuses this client, or does not reply like an edge."""


def addresses_of(nodes: "Sequence[NodeStats]") -> list[str]:
    """The addresses of the nodes as seen from this machine, its own nodes first.

    Nodes without an address are left out.
    """
    here = socket.gethostname()
    found = []
    for node in sorted(nodes, key=lambda node: node.host != here):
        host = "127.0.0.1" if node.host == here else node.host
        address = node.address
        for any_host in _ANY:
            address = address.replace(any_host, f"://{host}:")
        found.append(address)
    return [address for address in dict.fromkeys(found) if address]


class _Frame(msgspec.Struct):
    """A frame of an edge. The data of other publishers is not decoded."""

    event: str = ""
    id: str | None = None
    data: msgspec.Raw = msgspec.Raw(b"{}")


class _Reply(msgspec.Struct):
    """The data of a frame about a request."""

    ref: str | None = None
    code: str | None = None
    message: str = ""


T = TypeVar("T")


def _decode(text: str | msgspec.Raw, type_: type[T], url: str) -> T:
    try:
        return json_decoder(type_)(text)
    except ValueError as exc:  # msgspec's are ValueErrors
        raise EdgeRefused(f"{url} sent a frame that no edge sends: {exc}") from None


class Probe:
    """A client that is subscribed to one channel."""

    def __init__(self, url: str, ws: aiohttp.ClientWebSocketResponse) -> None:
        self.url = url
        self._ws = ws

    async def wait_for(self, message_id: str) -> float:
        """Wait for the message with this id, and return when it arrived by `time.perf_counter`.

        Raises EdgeRefused if it does not arrive within PATIENCE_S.
        """
        try:
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    frame = await self._frame()
                    if frame.id == message_id:
                        return time.perf_counter()
        except TimeoutError:
            raise EdgeRefused(
                f"the edge at {self.url} did not deliver the message within {PATIENCE_S:g} s: "
                "does it use the same NATS_URL and BROADCAST_CHANNELS_PREFIX as this command?"
            ) from None

    async def _frame(self) -> _Frame:
        message = await self._ws.receive()
        if message.type is not aiohttp.WSMsgType.TEXT:
            raise EdgeRefused(
                f"the edge at {self.url} closed the connection with code {self._ws.close_code}"
            )
        return _decode(message.data, _Frame, self.url)

    async def join(self, channel: str, token: str) -> None:
        """Authenticate if there is a token, and subscribe. Raises EdgeRefused."""
        if token:
            await self._request({"action": "auth", "data": {"token": token}}, "the token")
        await self._request(
            {"action": "subscribe", "channel": channel}, f"the subscription to {channel}"
        )

    async def _request(self, command: dict[str, Any], what: str) -> None:
        await self._ws.send_str(msgspec.json.encode(command | {"ref": what}).decode())
        reply = _Reply()
        while reply.ref != what:
            frame = await self._frame()
            if frame.event.startswith("eb:"):
                reply = _decode(frame.data, _Reply, self.url)
        if reply.code is not None:
            hint = "; use --token with a token for it" if reply.code == "unauthorized" else ""
            raise EdgeRefused(
                f"the edge at {self.url} refused {what}: {reply.message} ({reply.code}){hint}"
            )


@contextlib.asynccontextmanager
async def probing(url: str, channel: str, token: str) -> AsyncIterator[Probe]:
    """Connect to the edge at `url` and subscribe to the channel. Raises EdgeRefused."""
    shown = mask_url(url)
    if not is_web_address(url, ("http", "https", "ws", "wss")):
        raise EdgeRefused(f"--url {shown!r}: not the address of an edge; allowed: http://host:port")
    address = f"{url.rstrip('/').removesuffix('/ws')}/ws"
    async with aiohttp.ClientSession() as http, contextlib.AsyncExitStack() as stack:
        try:
            async with asyncio.timeout(PATIENCE_S):
                ws = await stack.enter_async_context(http.ws_connect(address))
                probe = Probe(shown, ws)
                await probe.join(channel, token)
        except aiohttp.WSServerHandshakeError as exc:
            raise EdgeRefused(
                f"{shown} replied with HTTP status {exc.status}: is it an edge?"
            ) from None
        except (aiohttp.ClientError, OSError, ValueError) as exc:
            raise EdgeRefused(
                f"the edge at {shown} cannot be reached: {fault_text(exc)}; use --url to set "
                "its address"
            ) from None
        except TimeoutError:
            raise EdgeRefused(
                f"the edge at {shown} did not reply within {PATIENCE_S:g} s; use --url to set its "
                "address"
            ) from None
        yield probe
