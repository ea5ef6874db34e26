"""One WebSocket to an edge that waits for one message: does what is published reach a client?"""

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
)

import aiohttp
import msgspec

from eventbus.errors import EventBusError
from eventbus.urls import (
    fault_text,
    is_web_address,
    mask_url,
)

if TYPE_CHECKING:
    from eventbus_edge.cluster.answers import NodeStats

__all__ = ["PATIENCE_S", "EdgeRefused", "Probe", "addresses_of", "probing"]


PATIENCE_S: Final = 5.0
"""How long an edge may take to connect, to answer, and to deliver."""
_ANY: Final = ("://0.0.0.0:", "://[::]:")


class EdgeRefused(EventBusError):
    """An edge does not let this client in, or does not answer as an edge does."""


def addresses_of(nodes: "Sequence[NodeStats]") -> list[str]:
    """Where nodes can be reached from here, this machine's first; those unknown are left out."""
    here = socket.gethostname()
    found = []
    for node in sorted(nodes, key=lambda node: node.host != here):
        host = "127.0.0.1" if node.host == here else node.host
        address = node.address
        for any_host in _ANY:
            address = address.replace(any_host, f"://{host}:")
        found.append(address)
    return [address for address in dict.fromkeys(found) if address]


class Probe:
    """A client that has joined one channel."""

    def __init__(self, url: str, ws: aiohttp.ClientWebSocketResponse) -> None:
        self.url = url
        self._ws = ws

    async def wait_for(self, message_id: str) -> float:
        """The time, by `time.perf_counter`, at which the message of that id came.

        Raises EdgeRefused when it has not come within PATIENCE_S.
        """
        try:
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    frame = await self._frame()
                    if frame.get("id") == message_id:
                        return time.perf_counter()
        except TimeoutError:
            raise EdgeRefused(
                f"the edge at {self.url} has not delivered the message within {PATIENCE_S:g} s: "
                "does it have the same NATS_URL and BROADCAST_CHANNELS_PREFIX as this command?"
            ) from None

    async def _frame(self) -> dict[str, Any]:
        message = await self._ws.receive()
        if message.type is not aiohttp.WSMsgType.TEXT:
            raise EdgeRefused(f"the edge at {self.url} has closed: code {self._ws.close_code}")
        frame: dict[str, Any] = msgspec.json.decode(message.data)
        return frame

    async def join(self, channel: str, token: str) -> None:
        """Authenticate where there is a token, and join. Raises EdgeRefused."""
        if token:
            await self._ask({"action": "auth", "data": {"token": token}}, "the token")
        await self._ask({"action": "subscribe", "channel": channel}, f"joining {channel}")

    async def _ask(self, question: dict[str, Any], what: str) -> None:
        await self._ws.send_str(msgspec.json.encode(question | {"ref": what}).decode())
        while True:
            data = (await self._frame()).get("data")
            if isinstance(data, dict) and data.get("ref") == what:
                break
        if (code := data.get("code")) is not None:
            hint = "; give a token that may join it by --token" if code == "unauthorized" else ""
            raise EdgeRefused(f"{what} at {self.url}: {code}: {data.get('message')}{hint}")


@contextlib.asynccontextmanager
async def probing(url: str, channel: str, token: str) -> AsyncIterator[Probe]:
    """A client at the edge of that address, which has joined the channel. Raises EdgeRefused."""
    shown = mask_url(url)
    if not is_web_address(url, ("http", "https", "ws", "wss")):
        raise EdgeRefused(f"{shown} is not the address of an edge; allowed: http://host:port")
    address = f"{url.rstrip('/').removesuffix('/ws')}/ws"
    async with aiohttp.ClientSession() as http, contextlib.AsyncExitStack() as stack:
        try:
            async with asyncio.timeout(PATIENCE_S):
                ws = await stack.enter_async_context(http.ws_connect(address))
                probe = Probe(shown, ws)
                await probe.join(channel, token)
        except aiohttp.WSServerHandshakeError as exc:
            raise EdgeRefused(f"{shown} answers {exc.status}: is it an edge?") from None
        except (aiohttp.ClientError, OSError, ValueError) as exc:
            raise EdgeRefused(
                f"the edge at {shown} cannot be reached: {fault_text(exc)}; give its address by "
                "--url"
            ) from None
        except TimeoutError:
            raise EdgeRefused(
                f"the edge at {shown} has not answered within {PATIENCE_S:g} s; give its address "
                "by --url"
            ) from None
        yield probe
