"""Clients that are never quite silent: a byte now and then does not keep a connection alive."""

import asyncio
import contextlib
import struct

UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
MASK = b"\x01\x02\x03\x04"
PATIENCE_S = 40.0
MIB = 1024**2
FRAME = b"\x81\xfe" + struct.pack("!H", 60_000) + MASK
FRAGMENT = b"\x01\x81" + MASK + b"\x00"
CONTINUED = b"\x00\x81" + MASK + b"\x00"


async def trickle(port, begun, piece):
    """Open a WebSocket, begin a message, and send pieces until the edge ends the socket."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(UPGRADE)
    assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
    writer.write(begun)
    received = asyncio.ensure_future(reader.read())
    async with asyncio.timeout(PATIENCE_S):
        while not received.done():
            with contextlib.suppress(ConnectionError):
                writer.write(piece)
                await writer.drain()
            await asyncio.wait({received}, timeout=0.02)
    writer.close()
    with contextlib.suppress(ConnectionError):
        return received.result()


async def test_client_that_trickles_bytes_of_a_frame_is_closed(start_edge, bus):
    edge = await start_edge(bus, heartbeat=2.0)
    bystander = await edge.connect()
    await trickle(edge.port, FRAME, b"\x00")
    assert edge.node.metrics.closes.labels("4203")._value.get() == 1
    assert await bystander.receives_nothing()


async def test_message_in_endless_parts_is_closed(start_edge, bus):
    edge = await start_edge(bus, heartbeat=10.0, max_actions_per_second=5.0, action_burst=5)
    await trickle(edge.port, FRAGMENT, CONTINUED)
    assert edge.node.metrics.closes.labels("4008")._value.get() == 1


async def test_requests_of_a_client_that_reads_no_answer_are_not_read(start_edge, bus):
    edge = await start_edge(bus)
    request = b"GET /static/vendor/uplot/uPlot.iife.min.js HTTP/1.1\r\nHost: a\r\n\r\n"
    _, writer = await asyncio.open_connection("127.0.0.1", edge.port)
    try:
        writer.transport.pause_reading()
        async with asyncio.timeout(PATIENCE_S):
            while writer.transport.get_write_buffer_size() < MIB:
                writer.write(request * 1000)
                await asyncio.sleep(0.005)
        [handler] = edge.runner.server.connections
        assert handler.transport.get_write_buffer_size() < MIB
        assert len(handler._messages) < 100
    finally:
        writer.transport.abort()
