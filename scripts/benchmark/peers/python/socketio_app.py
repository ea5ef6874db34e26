"""python-socketio: rooms, with messages from another process through its Redis manager."""

import os

import socketio

server = socketio.AsyncServer(
    async_mode="asgi",
    client_manager=socketio.AsyncRedisManager(os.environ["REDIS_URL"]),
    transports=["websocket"],
    http_compression=False,
)


@server.event
async def join(sid: str, names: list[str]) -> None:
    """Join rooms, and say so."""
    for name in names:
        await server.enter_room(sid, name)
    await server.emit("joined", to=sid)


app = socketio.ASGIApp(server)
