"""TLS handshakes that are never completed: slowloris, one layer below."""

import asyncio
import contextlib
import functools
import socket
import ssl

import pytest
import trustme
import uvloop

from eventbus_edge.access import Admission
from eventbus_edge.config import EdgeSettings
from eventbus_edge.metrics import Metrics
from eventbus_edge.process.handshakes import TlsServer

PATIENCE_S = 40.0
BEGUN = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
"""The first bytes of a ClientHello (RFC 8446, 4.1.2)."""


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
def tls(authority):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


@pytest.fixture
def trusting(authority):
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request):
    """Run a coroutine in a loop of each kind."""

    def run_one(work):
        with asyncio.Runner(loop_factory=request.param) as runner:
            return runner.run(work)

    return run_one


class Echo(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.transport.write(data)


class Server:
    def __init__(self, port, admission, tls_server):
        self.port = port
        self.admission = admission
        self.tls_server = tls_server
        self.open = functools.partial(asyncio.open_connection, "127.0.0.1", port)

    async def echoes(self, trusting):
        async with asyncio.timeout(PATIENCE_S):
            reader, writer = await self.open(ssl=trusting)
            writer.write(b"hello")
            answer = await reader.readexactly(5)
            writer.close()
        return answer == b"hello"

    async def handshakes(self, count):
        """Wait until this many handshakes are in progress."""
        async with asyncio.timeout(PATIENCE_S):
            while self.admission._handshakes.total() != count:  # noqa: ASYNC110 - no event says
                await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def serving(tls, *, connections=2, timeout_s=60.0, **settings):
    """A server that allows twice as many sockets per address as connections."""
    admission = Admission(
        EdgeSettings(max_connections_per_address=connections, **settings), Metrics()
    )
    server = TlsServer(Echo, tls, admission, timeout_s=timeout_s)
    listening = socket.create_server(("127.0.0.1", 0))
    listening.setblocking(False)
    server.listen(listening)
    try:
        yield Server(listening.getsockname()[1], admission, server)
    finally:
        await server.aclose()


async def is_cut(reader):
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(PATIENCE_S):
            return await reader.read() == b""
    return True


def test_address_has_its_number_of_handshakes_and_others_are_served(run, tls, trusting):
    async def attack():
        async with serving(tls, connections=2) as server:
            silent = [await server.open() for _ in range(4)]
            await server.handshakes(4)
            refused, writer = await server.open()
            assert await is_cut(refused)
            writer.close()
            assert server.admission._metrics.limits_reached.labels("sockets")._value.get() == 1
            silent.pop()[1].close()
            await server.handshakes(3)
            assert await server.echoes(trusting)
            for _, writer in silent:
                writer.close()
            await server.handshakes(0)

    run(attack())


def test_handshakes_of_a_trusted_proxy_are_not_limited(run, tls, trusting):
    async def attack():
        async with serving(tls, connections=1, trusted_proxies=("127.0.0.1",)) as server:
            silent = [await server.open() for _ in range(8)]
            assert await server.echoes(trusting)
            for _, writer in silent:
                writer.close()

    run(attack())


@pytest.mark.parametrize("sent", [b"", BEGUN], ids=["nothing", "half a ClientHello"])
def test_handshake_that_is_not_completed_in_time_is_cut(run, tls, sent):
    async def attack():
        async with serving(tls, timeout_s=0.3) as server:
            reader, writer = await server.open()
            writer.write(sent)
            assert await is_cut(reader)
            writer.close()
            await server.handshakes(0)

    run(attack())


def test_handshake_that_fails_does_not_count_any_more(run, tls, trusting):
    async def attack():
        async with serving(tls, connections=1) as server:
            for _ in range(5):
                reader, writer = await server.open()
                writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                await is_cut(reader)
                writer.close()
                await server.handshakes(0)
            assert await server.echoes(trusting)

    run(attack())


def test_closing_ends_handshakes_in_progress_and_leaves_connections_open(run, tls, trusting):
    async def close():
        async with serving(tls) as server:
            reader, writer = await server.open(ssl=trusting)
            silent, other = await server.open()
            await server.handshakes(1)
            await server.tls_server.aclose()
            assert await is_cut(silent)
            writer.write(b"still there")
            async with asyncio.timeout(PATIENCE_S):
                assert await reader.readexactly(11) == b"still there"
            for each in (writer, other):
                each.close()

    run(close())


async def test_node_with_tls_limits_silent_sockets(start_process, authority, trusting, tmp_path):
    path = tmp_path / "edge.pem"
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(path)
    edge = await start_process(
        BROADCAST_TLS_CERT=str(path), BROADCAST_MAX_CONNECTIONS_PER_ADDRESS="3"
    )
    server = Server(edge.port, None, None)
    sockets = [await server.open() for _ in range(7)]
    ends = [asyncio.ensure_future(is_cut(reader)) for reader, _ in sockets]
    cut, _ = await asyncio.wait(ends, timeout=PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
    assert len(cut) == 1
    for _, writer in sockets:
        writer.close()
    await asyncio.wait(ends)
