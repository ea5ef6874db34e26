"""Publishes the lines that arrive at a port (a channel, a tab, the payload), as a service does.

    publisher.py PORT channels|socketio

Django Channels publishes with `group_send` of its layer, python-socketio with the Redis manager
that only writes.
"""

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable

Publish = Callable[[str, str], Awaitable[object]]


def through_channels() -> Publish:
    """Return what sends to a group."""
    from channels_redis.pubsub import RedisPubSubChannelLayer  # noqa: PLC0415

    layer = RedisPubSubChannelLayer(hosts=[os.environ["REDIS_URL"]])
    return lambda channel, text: layer.group_send(channel, {"type": "tick", "text": text})


def through_socketio() -> Publish:
    """Return what emits to a room."""
    import socketio  # noqa: PLC0415

    manager = socketio.AsyncRedisManager(os.environ["REDIS_URL"], write_only=True)
    return lambda channel, text: manager.emit("tick", json.loads(text), room=channel)


async def main(port: int, kind: str) -> None:
    """Serve one publisher at a time, until the process is ended."""
    publish = {"channels": through_channels, "socketio": through_socketio}[kind]()

    async def serve(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            channel, _, text = line.decode().rstrip("\n").partition("\t")
            await publish(channel, text)

    server = await asyncio.start_server(serve, "127.0.0.1", port, limit=2**20)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2]))
