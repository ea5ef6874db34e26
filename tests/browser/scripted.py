"""A server of the wire protocol whose every frame the test decides, and what its tests share."""

import asyncio
import json
from typing import Any

from aiohttp import WSMsgType, web
from playwright.async_api import Page

PAGE = '<!doctype html><title>client</title><script type="module" src="/page.js"></script>'
SCRIPT = """
import { connect } from "/static/eventbus.js";
globalThis.states = [];
globalThis.got = [];
globalThis.start = () => {
  let tokens = 0;
  globalThis.bus = connect({ url: "/ws", token: async () => `token-${++tokens}` });
  bus.on("state", (state) => states.push(state));
  globalThis.room = bus.subscribe("orders.1", (data) => got.push(data), { history: 5 });
};
document.title = "ready";
"""


class Server:
    """A server of the wire protocol whose every frame the test decides."""

    def __init__(self) -> None:
        self.url = ""
        self.heartbeat_s = 25.0
        self.pace: dict[str, float] = {}
        self.refusal: web.Response | None = None
        """What the path of the WebSockets answers instead of opening them."""
        self.connections: asyncio.Queue[web.WebSocketResponse] = asyncio.Queue()
        self.received: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def socket(self, request: web.Request) -> web.StreamResponse:
        if self.refusal is not None:
            return web.Response(
                status=self.refusal.status,
                body=self.refusal.body,
                content_type=self.refusal.content_type,
            )
        socket = web.WebSocketResponse(protocols=("eventbus.v1",))
        await socket.prepare(request)
        about = {"connection_id": "c", "node": "n", "heartbeat_s": self.heartbeat_s}
        about |= self.pace
        await self.say(socket, "eb:connected", about)
        self.connections.put_nowait(socket)
        async for message in socket:
            if message.type is WSMsgType.TEXT:
                self.received.put_nowait(json.loads(message.data))
        return socket

    async def say(
        self,
        socket: web.WebSocketResponse,
        event: str,
        data: Any,
        channel: str | None = None,
        **more,
    ) -> None:
        frame = {
            "channel": channel,
            "event": event,
            "data": data,
            "timestamp": "2026-01-01T00:00:00Z",
        }
        await socket.send_json(frame | more)

    async def authenticate(self, socket: web.WebSocketResponse) -> dict[str, Any]:
        """Let the client in; gives its action."""
        asked = await self.next(self.received)
        assert asked["action"] == "auth"
        about = {"user_id": "7", "expires_at": "2030-01-01", "ref": asked["ref"]}
        await self.say(socket, "eb:authenticated", about)
        return asked

    async def refuse(self, socket: web.WebSocketResponse, asked: dict[str, Any], code: str) -> None:
        about = {"code": code, "message": "so be it", "ref": asked["ref"]}
        await self.say(socket, "eb:error", about, asked.get("channel"))

    async def message(self, socket: web.WebSocketResponse, offset: int, epoch: str = "e") -> None:
        await self.say(socket, "Shipped", offset, "orders.1", offset=offset, epoch=epoch)

    async def next(self, queue: asyncio.Queue[Any]) -> Any:
        async with asyncio.timeout(40):
            return await queue.get()

    async def asks(self, action: str) -> dict[str, Any]:
        """The client's next command, which must be this one."""
        asked: dict[str, Any] = await self.next(self.received)
        assert asked["action"] == action, asked
        return asked

    async def admit(
        self, socket: web.WebSocketResponse, asked: dict[str, Any], **data: object
    ) -> None:
        """Answer a command to subscribe."""
        about = {"kind": "private", "offset": 0, "epoch": "e", "ref": asked["ref"]} | data
        await self.say(socket, "eb:subscribed", about, asked.get("channel"))

    async def joined(self, offset: int | None, **more: object) -> web.WebSocketResponse:
        """Let the next connection in, and answer its subscription."""
        socket = await self.next(self.connections)
        await self.authenticate(socket)
        self.asked = await self.next(self.received)
        assert self.asked["action"] == "subscribe"
        data = {"kind": "private", "offset": offset, "epoch": "e", "ref": self.asked["ref"]} | more
        await self.say(socket, "eb:subscribed", data, "orders.1")
        return socket


async def state(page: Page, name: str) -> dict[str, Any]:
    """Wait for a state, and give it with its details."""
    await page.wait_for_function(f"states.some((each) => each.status === '{name}')")
    return await page.evaluate(f"states.findLast((each) => each.status === '{name}')")


async def received(page: Page, expected: list[object]) -> None:
    await page.wait_for_function(f"got.length >= {len(expected)}")
    assert await page.evaluate("got") == expected
