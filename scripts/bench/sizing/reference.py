"""What an edge is compared with: the shortest broadcaster that aiohttp allows.

`python -m scripts.bench.sizing.reference`: what comes on a WebSocket to /publish is sent to each of
those to /ws. No channels, tokens, history, bounds or checks.
"""

import asyncio

import uvloop
from aiohttp import WSMsgType, web

_GREETING = '{"channel":null,"event":"eb:subscribed","data":null}'


class Broadcaster:
    """All clients, and one loop over them."""

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
    """Serve until a signal ends the process."""
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
