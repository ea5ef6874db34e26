"""What has ended is freed at once, and not by a collection of garbage, which is rare on a node."""

import asyncio
import collections
import gc
import socket

import pytest

from eventbus.bus import EventBus
from eventbus.config import Settings
from scripts.benchmark.bystanders.floods import APP, handshake, request

pytestmark = pytest.mark.server
TIMES = 5
PATIENCE_S = 60.0
CLOSE = b"\x88\x82\0\0\0\0\x03\xe8"


def with_token(path):
    return lambda token: handshake(f"{path}?auth_token={token}")


# What a client sends, what it waits for, and what it sends then.
CLIENTS = {
    "a WebSocket that closes": (with_token("/ws/chat.7"), b"eb:subscribed", CLOSE),
    "a WebSocket that breaks off": (with_token("/ws/chat.7"), b"eb:subscribed", b""),
    "a handshake that aiohttp reads": (
        lambda token: handshake(f"/ws/chat.7?auth_token={token}&a=%41"), b"eb:subscribed", CLOSE,
    ),
    "a broken frame": (with_token("/ws/chat.7"), b"eb:subscribed", b"\xf1\x80\0\0\0\0"),
    "a wrong token": (lambda _: handshake("/ws?auth_token=a.b.c"), b" 401 ", b""),
    "a stream": (
        lambda token: request(f"GET /sse?channel=chat.7&auth_token={token}"), b"eb:subscribed", b"",
    ),
    "Pusher": (lambda _: handshake(f"/app/{APP.key}?protocol=7"), b"connection_established", CLOSE),
    "an unknown app of Pusher": (lambda _: handshake("/app/nobody?protocol=7"), b"4001", CLOSE),
    "a request": (lambda _: request("GET /healthz"), b" 200 ", b""),
    "a path that is not served": (lambda _: request("GET /nothing"), b" 404 ", b""),
    "a method that is not served": (lambda _: request("DELETE /healthz"), b" 405 ", b""),
    "no right to use the API": (lambda _: request("GET /api/broadcast/stats"), b" 401 ", b""),
    "not HTTP": (lambda _: b"\x16\x03\x01\x02\r\n\r\n", b" 400 ", b""),
}  # fmt: skip


def come_and_go(port, data, answer, last):
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as plain:
        plain.sendall(data)
        got = b""
        while answer not in got:
            received = plain.recv(65536)
            assert received, got
            got += received
        if last:
            plain.sendall(last)
            while plain.recv(65536):
                pass


@pytest.mark.parametrize("kind", CLIENTS)
async def test_nothing_of_a_client_waits_for_the_collection_of_garbage(start_edge, token, kind):
    data, answer, last = CLIENTS[kind]
    claims = token(channels=["chat.7"])
    async with EventBus(Settings(driver="memory")) as bus:
        edge = await start_edge(
            bus, api_key="a" * 32, pusher_app_id=APP.id, pusher_app_key=APP.key,
            pusher_app_secret=APP.secret, max_requests_per_address=1000,
        )  # fmt: skip
        connections = edge.node.connections

        async def all_come_and_go():
            for _ in range(TIMES):
                await asyncio.to_thread(come_and_go, edge.port, data(claims), answer, last)
            async with asyncio.timeout(PATIENCE_S):
                while connections._sockets or list(connections.values()):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)

        await all_come_and_go()  # whatever is made only once
        gc.collect()
        gc.disable()
        try:
            await all_come_and_go()
            await asyncio.sleep(0.1)  # tasks that have ended are freed
            gc.set_debug(gc.DEBUG_SAVEALL)
            gc.collect()
            found = collections.Counter(
                type(each).__qualname__
                for each in gc.garbage
                if type(each).__module__.startswith("eventbus_edge")
            )
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
        assert not [name for name, count in found.items() if count >= TIMES]
