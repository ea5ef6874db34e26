"""Edges as processes on a port that they keep, and the bus that publishes to their clients."""

import asyncio
import os
import re
import signal
import sys

import pytest

from eventbus.bus import EventBus
from eventbus.client import ClientOptions
from eventbus.tokens import issue_token
from tests.ports import free_port

START_S = 45
"""For a process to start or end on a busy machine."""
SECRET = "a-secret-of-tests-that-is-32-bytes-long"


class EdgeAt:
    """`python -m eventbus_edge`; started again, it listens where it did."""

    def __init__(self, environ):
        self.port = free_port()
        self.url = f"ws://127.0.0.1:{self.port}/ws"
        self.environ = environ | {"BROADCAST_WEBSOCKET_PORT": str(self.port)}
        self.process = None

    async def start(self, **environ):
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "eventbus_edge"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self.environ | environ,
        )
        async with asyncio.timeout(START_S):
            line = (await self.process.stdout.readline()).decode()
        if not re.search(r"ready on https?://127\.0\.0\.1", line):
            out, err = await self.process.communicate()
            raise AssertionError(f"the edge did not start: {line}{out.decode()}{err.decode()}")
        self._log = asyncio.create_task(self.process.stderr.read())

    async def end(self, number=signal.SIGKILL):
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(number)
            async with asyncio.timeout(START_S):
                await self.process.wait()
                await self._log


@pytest.fixture
async def new_edge(nats_server, namespace):
    """Make edge processes: `await new_edge(BROADCAST_HEARTBEAT="1")`."""
    made = []

    async def new(**environ):
        edge = EdgeAt(
            {
                "PATH": os.environ["PATH"],
                "NATS_URL": nats_server.url,
                "BROADCAST_CHANNELS_PREFIX": namespace,
                "BROADCAST_HISTORY_BYTES": str(64 * 1024**2),
                "BROADCAST_HISTORY_MESSAGES": "100000",
                "BROADCAST_WEBSOCKET_HOST": "127.0.0.1",
                "BROADCAST_DRAIN_TIME": "0",
                "JWT_SECRET": SECRET,
            }
            | environ
        )
        made.append(edge)
        await edge.start()
        return edge

    yield new
    for edge in made:
        await edge.end()


@pytest.fixture
async def publisher(settings):
    """An open bus whose stream keeps all that a test publishes."""
    import msgspec  # noqa: PLC0415

    deep = msgspec.structs.replace(
        settings, history_messages=100_000, history_bytes=64 * 1024**2, history_seconds=600.0
    )
    async with EventBus(deep) as bus:
        yield bus


@pytest.fixture
def token():
    def issue(user="7", **claims):
        return issue_token(user, secret=SECRET, **{"channels": ["orders.>"]} | claims)

    return issue


@pytest.fixture
def quick():
    """Options of a client that does not let a test wait."""
    return ClientOptions(first_delay=0.05, last_delay=0.5, steady_after=0.2)
