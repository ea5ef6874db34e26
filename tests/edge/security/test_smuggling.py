"""Requests that a proxy and the edge might divide in different places (RFC 9112, 6.3 and 11.2).

Each is followed by a second request in what could be its body. Whatever the edge answers to the
first, it must never answer the second as if it stood alone, unless the body ends before it for
everybody.
"""

import asyncio
import re

import pytest

SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
KEY = "the-api-key-of-smugglers"
PUBLISH = (
    b"POST /api/broadcast/events HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    b"Authorization: Bearer " + KEY.encode() + b"\r\n"
)
LENGTH = b"Content-Length: %d\r\n" % len(SMUGGLED)
SHORT = b"Content-Length: 4\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
EMPTY = b"0\r\n\r\n"

AMBIGUOUS = {
    "both lengths, chunks first": CHUNKED + LENGTH + b"\r\n" + EMPTY,
    "both lengths, chunks last": LENGTH + CHUNKED + b"\r\n" + EMPTY,
    "two different lengths": SHORT + LENGTH + b"\r\n",
    "a list of lengths": b"Content-Length: 0, %d\r\n\r\n" % len(SMUGGLED),
    "a signed length": b"Content-Length: +0\r\n\r\n",
    "a negative length": b"Content-Length: -1\r\n\r\n",
    "a length in other digits": "Content-Length: \u0660\r\n\r\n".encode(),
    "a length with an underscore": b"Content-Length: 0_0\r\n\r\n",
    "a length in hexadecimal": b"Content-Length: 0x0\r\n\r\n",
    "a space before the colon": b"Content-Length : 0\r\n\r\n",
    "a tab before the colon": b"Transfer-Encoding\t: chunked\r\n\r\n" + EMPTY,
    "an unknown coding": b"Transfer-Encoding: chunke\r\n\r\n" + EMPTY,
    "a coding after chunked": b"Transfer-Encoding: chunked, identity\r\n\r\n" + EMPTY,
    "chunked twice": CHUNKED + CHUNKED + b"\r\n" + EMPTY,
    "a vertical tab before the coding": b"Transfer-Encoding: \x0bchunked\r\n\r\n" + EMPTY,
    "a control character in the coding": b"Transfer-Encoding: chunked\x00\r\n\r\n" + EMPTY,
    "a folded header": b"Transfer-Encoding:\r\n chunked\r\n\r\n" + EMPTY,
    "a header without a name": b": x\r\nContent-Length: 0\r\n\r\n",
    "a bare line feed before a header": b"X: y\nContent-Length: 0\r\n\r\n",
    "a bare carriage return in a header": b"X: y\rContent-Length: 0\r\n\r\n",
    "a chunk size with a sign": CHUNKED + b"\r\n+0\r\n\r\n",
    "a chunk size in hexadecimal form": CHUNKED + b"\r\n0x0\r\n\r\n",
    "a chunk size with an underscore": CHUNKED + b"\r\n0_0\r\n\r\n",
    "a chunk size that ends with a bare line feed": CHUNKED + b"\r\n0\n\r\n",
    "a chunk that is longer than its size": CHUNKED + b"\r\n1\r\nab\r\n0\r\n\r\n",
    "chunks in a request of HTTP/1.0": b"",
}


async def statuses(port, data):
    """The statuses of all answers on one socket, until the edge closes it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        async with asyncio.timeout(40):
            received = await reader.read()
    finally:
        writer.close()
    return [int(status) for status in re.findall(rb"HTTP/1\.[01] (\d{3}) ", received)]


@pytest.fixture
async def port(start_edge, bus):
    return (await start_edge(bus, request_timeout=1.0, api_key=KEY)).port


@pytest.mark.parametrize("framing", AMBIGUOUS)
async def test_request_that_could_be_divided_in_two_ways_ends_the_connection(port, framing):
    if framing == "chunks in a request of HTTP/1.0":
        head = PUBLISH.replace(b"HTTP/1.1", b"HTTP/1.0") + CHUNKED + LENGTH + b"\r\n" + EMPTY
    else:
        head = PUBLISH + AMBIGUOUS[framing]
    answers = await statuses(port, head + SMUGGLED)
    assert answers[1:] == [], "the second request was answered"
    assert answers == [] or answers[0] in {400, 501}


@pytest.mark.parametrize(
    "body", [b"Content-Length: 2\r\n\r\n{}", CHUNKED + b"\r\n2\r\n{}\r\n0\r\n\r\n"]
)
async def test_request_with_one_length_is_followed_by_the_next(port, body):
    assert await statuses(port, PUBLISH + body + SMUGGLED) == [400, 404]


@pytest.mark.parametrize(
    "upgrade",
    [
        b"Content-Length: %d\r\n" % len(SMUGGLED),
        CHUNKED,
        b"Sec-WebSocket-Version: 13\r\n",
        b"Upgrade: h2c\r\n",
    ],
    ids=["with a body", "with chunks", "with two versions", "with two protocols"],
)
async def test_upgrade_does_not_open_a_way_around_a_proxy(port, upgrade):
    """A proxy that takes a refused upgrade for an accepted one passes on all that follows."""
    head = (
        b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 12\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    )
    answers = await statuses(port, head + upgrade + b"\r\n" + SMUGGLED)
    assert 101 not in answers
    assert answers[0] in {400, 426}
