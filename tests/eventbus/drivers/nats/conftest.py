"""What the tests of the NATS driver share: drivers that are closed in the end, and waits."""

import asyncio
import contextlib
import json
import os
import re
import signal
import time

import nats
import psutil
import pytest

from eventbus.config import Settings
from eventbus.drivers.nats.driver import NatsDriver

BYTES = 4 * 1024**2
PATIENCE_S = 20.0


@contextlib.asynccontextmanager
async def opened(settings):
    """A driver that is open, and closed in the end."""
    driver = NatsDriver(settings)
    await driver.open()
    try:
        yield driver
    finally:
        await driver.aclose()


async def until(condition, seconds=PATIENCE_S):
    """Wait for what has no event."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.005)


async def kill(server, *drivers):
    """Kill a server; return when the drivers have noticed."""
    os.kill(server.pid, signal.SIGKILL)
    await until(lambda: not any(driver.is_connected for driver in drivers))
    await server.stop()


@contextlib.contextmanager
def paused(server):
    """A server that keeps its connections open and does nothing."""
    process = psutil.Process(server.pid)
    process.suspend()
    while process.status() != psutil.STATUS_STOPPED:  # the signal takes a moment
        time.sleep(0.001)
    try:
        yield
    finally:
        process.resume()


async def api(client, what, question=None):
    """Request `$JS.API.<what>` as another tool does; returns the whole answer."""
    payload = b"" if question is None else json.dumps(question).encode()
    answer = await client.request(f"$JS.API.{what}", payload, timeout=30)
    return json.loads(answer.data)


@contextlib.asynccontextmanager
async def connected(url):
    """A client of nats-py itself."""
    client = await nats.connect(url)
    try:
        yield client
    finally:
        await client.close()


@contextlib.asynccontextmanager
async def posing_as(server, version):
    """The address of a proxy to a server, behind which the server says it is another version."""

    async def copy(reader, writer):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def serve(reader, writer):
        there, back = await asyncio.open_connection(server.host, server.port)
        first = await there.readline()
        writer.write(re.sub(rb'"version":"[^"]*"', b'"version":"%b"' % version.encode(), first))
        with contextlib.suppress(OSError):
            await asyncio.gather(copy(reader, back), copy(there, writer))
        for each in (writer, back):
            each.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as proxy:
        yield f"nats://127.0.0.1:{proxy.sockets[0].getsockname()[1]}"


@pytest.fixture
def own_settings(own_nats_server):
    """Settings for a server of this test alone."""
    return Settings(nats_url=own_nats_server.url, namespace="own", history_bytes=BYTES)
