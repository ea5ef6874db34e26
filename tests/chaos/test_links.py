"""Links between programs: they pass bytes on, slowly, or not at all."""

import asyncio

import pytest

from scripts.chaos_lab.links import Link

PATIENCE_S = 30.0


@pytest.fixture
async def echo():
    """A server that sends back what it gets, and the address of it."""

    async def serve(reader, writer):
        while data := await reader.read(100):
            writer.write(data)
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()


@pytest.fixture
async def link(echo):
    link = Link(echo)
    await link.start()
    yield link
    await link.aclose()


@pytest.fixture
async def client(link):
    reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
    yield reader, writer
    writer.transport.abort()


async def answer(reader):
    async with asyncio.timeout(PATIENCE_S):
        return await reader.read(100)


async def is_ended(reader):
    try:
        return await answer(reader) == b""
    except ConnectionError:
        return True


async def test_bytes_pass_in_both_directions(client):
    reader, writer = client
    writer.write(b"hello")
    assert await answer(reader) == b"hello"


async def test_slow_link_takes_its_time_in_each_direction(link, client):
    reader, writer = client
    link.delay_s = 0.1
    loop = asyncio.get_running_loop()
    began = loop.time()
    writer.write(b"hello")
    assert await answer(reader) == b"hello"
    assert loop.time() - began >= 0.2


async def test_bytes_that_wait_at_a_cut_link_pass_when_it_is_mended(link, client):
    reader, writer = client
    link.cut()
    writer.write(b"hello")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await reader.read(100)
    link.mend()
    assert await answer(reader) == b"hello"


@pytest.mark.parametrize("direction", ["there", "back"])
async def test_cut_of_one_direction_holds_back_what_passes_in_it(link, client, direction):
    reader, writer = client
    writer.write(b"hello")
    assert await answer(reader) == b"hello"
    link.cut(there=direction == "there", back=direction == "back")
    writer.write(b"again")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await reader.read(100)
    link.mend()
    assert await answer(reader) == b"again"


async def test_reset_ends_connections_and_new_ones_work(link, client):
    reader, writer = client
    writer.write(b"hello")
    assert await answer(reader) == b"hello"
    link.reset()
    assert await is_ended(reader)
    other, again = await asyncio.open_connection("127.0.0.1", link.port)
    again.write(b"hello")
    assert await answer(other) == b"hello"
    again.transport.abort()


async def test_end_of_the_server_ends_the_connection(link, echo, client):
    reader, writer = client
    writer.write(b"hello")
    assert await answer(reader) == b"hello"
    writer.write_eof()
    assert await is_ended(reader)
