"""Starlette: a loop over the clients of a channel, with messages from Redis pub/sub."""

import contextlib
import os
from collections import defaultdict
from collections.abc import AsyncIterator

import anyio
from redis.asyncio import Redis
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

clients: defaultdict[str, set[WebSocket]] = defaultdict(set)


async def websocket(socket: WebSocket) -> None:
    """Subscribe to the channels of the address, until the client goes away."""
    names = socket.query_params.getlist("channel")
    await socket.accept()
    for name in names:
        clients[name].add(socket)
    try:
        while True:
            await socket.receive_text()
    except WebSocketDisconnect:
        pass
    finally:
        for name in names:
            clients[name].discard(socket)


async def forward() -> None:
    """Send what Redis delivers to the clients of its channel."""
    async with Redis.from_url(os.environ["REDIS_URL"], decode_responses=True) as redis:
        subscription = redis.pubsub()
        await subscription.psubscribe("*")
        async for message in subscription.listen():
            if message["type"] == "pmessage":
                for socket in list(clients[message["channel"]]):
                    await socket.send_text(message["data"])


@contextlib.asynccontextmanager
async def lifespan(_app: Starlette) -> AsyncIterator[None]:
    """Forward messages while the application runs."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(forward)
        yield
        tasks.cancel_scope.cancel()


app = Starlette(routes=[WebSocketRoute("/ws", websocket)], lifespan=lifespan)
