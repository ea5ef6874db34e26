"""The reference for the edge: a minimal broadcaster with aiohttp.

`python -m scripts.benchmark.sizing.reference` sends everything that it receives on a WebSocket at
/publish to all WebSockets at /ws. It has no channels, tokens, history, limits or checks.
"""

import asyncio

import uvloop
from aiohttp import WSMsgType, web

_GREETING = '{"channel":null,"event":"eb:subscribed","data":null}'


class Broadcaster:
    """Sends messages to all clients in a loop."""

    def __init__(self) -> None:
        self._clients: set[web.WebSocketResponse] = set()

    async def websocket(self, request: web.Request) -> web.WebSocketResponse:
        ws = web.WebSocketResponse(compress=False)
        await ws.prepare(request)
        self._clients.add(ws)
        await ws.send_str(_GREETING)
        try:
            async for message in ws:
                if message.type is WSMsgType.CLOSE:
                    break
        finally:
            self._clients.discard(ws)
        return ws

    async def publish(self, request: web.Request) -> web.WebSocketResponse:
        publisher = web.WebSocketResponse()
        await publisher.prepare(request)
        async for message in publisher:
            for ws in list(self._clients):
                await ws.send_str(message.data)
        return publisher


async def main() -> None:
    """Run until a signal ends the process."""
    broadcaster = Broadcaster()
    app = web.Application()
    app.router.add_get("/ws", broadcaster.websocket)
    app.router.add_get("/publish", broadcaster.publish)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=4096).start()
    print(f"reference ready on http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main())
