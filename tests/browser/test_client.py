"""eventbus.js against a real edge, and against a server that misbehaves as no edge would."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import WSMsgType, web
from playwright.async_api import Page

from edge.app import STATIC

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]

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
        self.connections: asyncio.Queue[web.WebSocketResponse] = asyncio.Queue()
        self.received: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def socket(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(protocols=("eventbus.v1",))
        await socket.prepare(request)
        about = {"connection_id": "c", "node": "n", "heartbeat_s": self.heartbeat_s}
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

    async def message(self, socket: web.WebSocketResponse, offset: int, epoch: str = "e") -> None:
        await self.say(socket, "Shipped", offset, "orders.1", offset=offset, epoch=epoch)

    async def next(self, queue: asyncio.Queue[Any]) -> Any:
        async with asyncio.timeout(10):
            return await queue.get()

    async def joined(self, offset: int, **more: object) -> web.WebSocketResponse:
        """Let the next connection in, and answer its subscription."""
        socket = await self.next(self.connections)
        assert (await self.next(self.received))["action"] == "auth"
        await self.say(socket, "eb:authenticated", {"user_id": "7", "expires_at": "2030-01-01"})
        self.asked = await self.next(self.received)
        assert self.asked["action"] == "subscribe"
        data = {"kind": "private", "offset": offset, "epoch": "e"} | more
        await self.say(socket, "eb:subscribed", data, "orders.1")
        return socket


@pytest_asyncio.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()

    async def page(_: web.Request) -> web.Response:
        return web.Response(text=PAGE, content_type="text/html")

    async def script(_: web.Request) -> web.Response:
        return web.Response(text=SCRIPT, content_type="text/javascript")

    app = web.Application()
    app.router.add_get("/", page)
    app.router.add_get("/page.js", script)
    app.router.add_get("/ws", server.socket)
    app.router.add_static("/static", STATIC)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield server
    await runner.cleanup()


@pytest_asyncio.fixture
async def loaded(server, open_tab) -> Page:
    """A page that has the client, and has not called it."""
    page = await open_tab(server.url, ready="")
    await page.wait_for_function("document.title === 'ready'")
    return page


@pytest_asyncio.fixture
async def page(loaded) -> Page:
    await loaded.evaluate("start()")
    return loaded


async def state(page: Page, name: str) -> dict[str, Any]:
    """Wait for a state, and give it with its details."""
    await page.wait_for_function(f"states.some((each) => each.state === '{name}')")
    return await page.evaluate(f"states.findLast((each) => each.state === '{name}')")


async def received(page: Page, expected: list[object]) -> None:
    await page.wait_for_function(f"got.length >= {len(expected)}")
    assert await page.evaluate("got") == expected


async def test_token_goes_by_the_auth_action_and_subscriptions_follow_it(server, page):
    socket = await server.next(server.connections)
    assert await server.next(server.received) == {"action": "auth", "data": {"token": "token-1"}}
    await server.say(socket, "eb:authenticated", {"user_id": "7", "expires_at": "2030-01-01"})
    subscribe = {"action": "subscribe", "channel": "orders.1", "data": {"history": 5}}
    assert await server.next(server.received) == subscribe


async def test_reconnect_resumes_after_the_last_message_and_hands_on_none_twice(server, page):
    socket = await server.joined(3)
    for offset in (4, 5, 5, 4):
        await server.message(socket, offset)
    await received(page, [4, 5])
    await socket.close(code=4201)

    socket = await server.joined(5, recovered=True)
    assert server.asked["data"] == {"offset": 5, "epoch": "e"}
    for offset in (5, 6):
        await server.message(socket, offset)
    await received(page, [4, 5, 6])
    await server.message(socket, 1, epoch="another stream")
    await received(page, [4, 5, 6, 1])


@pytest.mark.parametrize("code", [4001, 4003, 4008])
async def test_code_that_says_stay_away_ends_it_for_good(server, page, code):
    socket = await server.joined(0)
    await socket.close(code=code, message=b"so be it")
    closed = await state(page, "closed")
    assert (closed["code"], closed["reason"]) == (code, "so be it")
    await page.evaluate("bus.reconnect(); dispatchEvent(new Event('online'))")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1.5):
            await server.connections.get()


@pytest.mark.parametrize(
    ("code", "shortest_ms", "longest_ms"), [(4100, 200, 500), (1001, 200, 500), (4200, -50, 500)]
)
async def test_code_that_says_come_back_sets_the_delay(server, page, code, shortest_ms, longest_ms):
    socket = await server.joined(0)
    before = await page.evaluate("Date.now()")
    await page.evaluate(
        "void bus.on('state', (state) => { state.in = state.retryAt - Date.now(); })"
    )
    await socket.close(code=code)
    lost = await state(page, "disconnected")
    assert lost["code"] == code
    assert lost["retryAt"] > before
    assert shortest_ms <= lost["in"] <= longest_ms
    await server.joined(0)


async def test_delay_grows_while_connections_fail_at_once(server, page):
    await page.evaluate(
        "globalThis.delays = [];"
        "void bus.on('state', ({ retryAt }) => retryAt && delays.push(retryAt - Date.now()))"
    )
    for _ in range(4):
        await (await server.next(server.connections)).close(code=4200)
    await page.wait_for_function("delays.length >= 4")
    delays = await page.evaluate("delays")
    assert delays[0] <= 500
    assert delays[1] < delays[3]
    assert 1900 <= delays[3] <= 4000


async def test_silent_server_is_given_up(server, loaded):
    server.heartbeat_s = 0.2
    await loaded.evaluate("start()")
    lost = await state(loaded, "disconnected")
    assert lost["reason"] == "the server fell silent"
    asked = []
    while not server.received.empty():
        asked.append(server.received.get_nowait()["action"])
    assert "ping" in asked, "it asks before it gives up"


async def test_going_offline_is_noticed_and_online_connects_at_once(server, page):
    await server.joined(0)
    await page.context.set_offline(True)
    assert (await state(page, "disconnected"))["reason"] == "the browser is offline"
    await page.context.set_offline(False)
    await server.joined(0)


async def test_expiring_token_is_refreshed_in_place(server, page):
    socket = await server.joined(0)
    await server.say(socket, "eb:token.expiring", {"expires_at": "2030-01-01", "in_s": 60})
    assert await server.next(server.received) == {"action": "auth", "data": {"token": "token-2"}}


async def test_refused_token_is_told_and_channels_are_asked_for_all_the_same(server, page):
    await page.evaluate("void bus.on('error', (data) => got.push(data.code))")
    socket = await server.next(server.connections)
    await server.next(server.received)
    await server.say(socket, "eb:error", {"code": "unauthorized", "message": "no"})
    assert (await server.next(server.received))["action"] == "subscribe"
    await received(page, ["unauthorized"])


async def test_subscription_refused_for_the_moment_is_asked_for_again(server, page):
    socket = await server.next(server.connections)
    await server.next(server.received)
    await server.say(socket, "eb:authenticated", {"user_id": "7", "expires_at": "2030-01-01"})
    assert (await server.next(server.received))["action"] == "subscribe"
    await server.say(socket, "eb:error", {"code": "unavailable", "message": "later"}, "orders.1")
    assert (await server.next(server.received))["action"] == "subscribe"


async def test_handler_that_throws_keeps_no_message_from_the_others(server, page):
    # The fault is reported as the page's own, which this listener takes note of.
    await page.evaluate(
        "addEventListener('error', (event) => { got.push('reported'); event.preventDefault(); });"
        "room.on('Shipped', () => { throw new Error('mine'); });"
        "void room.on('Shipped', (data) => got.push(`second ${data}`));"
    )
    socket = await server.joined(0)
    await server.message(socket, 1)
    await received(page, ["reported", "second 1", 1])


async def test_nothing_is_buffered_without_a_connection(server, page):
    assert await page.evaluate("room.whisper('typing', {})") is False
    await server.joined(0)
    await page.wait_for_function("room.active")
    assert await page.evaluate("room.whisper('typing', {})") is True
    sent = await server.next(server.received)
    assert sent == {"action": "whisper", "channel": "orders.1", "event": "typing", "data": {}}


async def test_unsubscribe_is_said_once_and_not_undone_by_a_reconnect(server, page):
    socket = await server.joined(0)
    await page.wait_for_function("room.active")
    await page.evaluate("room.unsubscribe(); room.unsubscribe()")
    assert await server.next(server.received) == {"action": "unsubscribe", "channel": "orders.1"}
    await socket.close(code=4200)
    again = await server.next(server.connections)
    assert (await server.next(server.received))["action"] == "auth"
    await server.say(again, "eb:authenticated", {"user_id": "7", "expires_at": "2030-01-01"})
    await page.wait_for_function("bus.state === 'connected'")
    assert server.received.empty()


def test_client_stays_small():
    assert len(gzip.compress((STATIC / "eventbus.js").read_bytes(), 9)) < 5_000
