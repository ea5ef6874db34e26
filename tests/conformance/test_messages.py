"""HTTP messages on whose end a proxy and a node could disagree (RFC 9112).

A node that takes a body for a request, or vice versa, lets a client smuggle requests past its
proxy. So ambiguous messages are refused, and the connection ends with the refusal: the bytes that
follow are never read as a request.
"""

import asyncio

import pytest

from tests.conformance.edges import KEY
from tests.conformance.wire import PATIENCE_S

SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
BODY = b'{"channel":"general","event":"e","data":1}'


def post(*lines, body=b"", version="HTTP/1.1", more=b""):
    head = [
        f"POST /api/broadcast/events {version}",
        "Host: a",
        f"Authorization: Bearer {KEY}",
        "Content-Type: application/json",
        *lines,
        "",
        "",
    ]
    return "\r\n".join(head).encode("latin-1") + body + more


def chunked(*chunks, end=b"0\r\n\r\n"):
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + end


def one_chunk(size):
    """A body in one chunk, whose size is sent as the text `size`."""
    return size + b"\r\n" + BODY + b"\r\n0\r\n\r\n"


LENGTH = f"Content-Length: {len(BODY)}"
CHUNKED = "Transfer-Encoding: chunked"
REFUSED = {
    # 6.3: the length of a body
    "9112-6.1 a length and chunks": post(LENGTH, CHUNKED, body=chunked(BODY)),
    "9112-6.1 chunks and a length": post(CHUNKED, "Content-Length: 4", body=chunked(BODY)),
    "9112-6.3 two lengths": post(LENGTH, "Content-Length: 4", body=BODY),
    "9112-6.3 two lengths in a list": post("Content-Length: 4, 5", body=b"12345"),
    **{
        f"9110-8.6 length {value!r}": post(f"Content-Length: {value}", body=BODY)
        for value in (
            "-1", "+42", "0x2a", "42.0", "4 2", "42;", "'42'", "", "4_2", "\xb2", "9" * 30, "1e1",
        )
    },
    # 6.1: transfer codings
    "9112-6.1 an unknown coding": post("Transfer-Encoding: xchunked", body=chunked(BODY)),
    "9112-6.1 identity": post("Transfer-Encoding: identity", LENGTH, body=BODY),
    "9112-6.1 gzip behind chunked": post("Transfer-Encoding: chunked, gzip", body=chunked(BODY)),
    "9112-6.1 chunked twice": post("Transfer-Encoding: chunked, chunked", body=chunked(BODY)),
    "9112-6.1 an obscured coding": post("Transfer-Encoding: \x0bchunked", body=chunked(BODY)),
    "9112-6.1 a quoted coding": post('Transfer-Encoding: "chunked"', body=chunked(BODY)),
    "9112-5.1 a space before the colon": post("Transfer-Encoding : chunked", body=chunked(BODY)),
    "9112-5.1 a tab before the colon": post("Content-Length\t: 42", body=BODY),
    "9112-5.2 a folded coding": post("Transfer-Encoding:", " chunked", body=chunked(BODY)),
    "9110-5.1 a name that is no token": post("Content Length: 42", body=BODY),
    "9110-5.5 NUL in a length": post("Content-Length: 4\x002", body=BODY),
    "9112-2.2 a line feed alone": post("X: a\nContent-Length: 0", LENGTH, body=BODY),
    "9112-2.2 a carriage return alone": post("X: a\rContent-Length: 0", LENGTH, body=BODY),
    # 7.1: chunks
    **{
        f"9112-7.1 chunk size {size!r}": post(CHUNKED, body=one_chunk(size))
        for size in (
            b"0x2a", b"-2a", b"+2a", b" 2a", b"2_a", b"", b"zz", b"f" * 20, b"2a\n", b"2a\r",
        )
    },
    "9112-7.1 a chunk without its end": post(CHUNKED, body=b"2a\r\n" + BODY + b"0\r\n\r\n"),
    "9112-7.1 a chunk longer than its size": post(CHUNKED, body=one_chunk(b"4")),
    # 3: request lines
    **{
        f"9112-3 {line!r}": line + b"\r\nHost: a\r\n\r\n"
        for line in (
            b"GET", b"GET /", b"GET / HTTP", b"GET / HTTP/1", b"GET / HTTP/1.1.1",
            b"GET / HTTP/x.y",
            b"GET / http/1.1", b"GET /a b HTTP/1.1", b"GET\t/ HTTP/1.1",
            b"G@T / HTTP/1.1", b"G\0T / HTTP/1.1", b"GET /\0 HTTP/1.1", b"GET / HTTP/1.1\tx",
            b" GET / HTTP/1.1", b"GET HTTP/1.1", b"GET example HTTP/1.1", b"/ GET HTTP/1.1",
        )
    },
}  # fmt: skip


async def answers(edge, data, *, tls=False):
    """The status of each answer up to the end of the stream."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", edge.port(tls), ssl=edge.context(tls)
    )
    try:
        writer.write(data)
        async with asyncio.timeout(PATIENCE_S):
            received = await reader.read()
    finally:
        writer.transport.abort()
    statuses = []
    while received:
        head, _, rest = received.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").lower().split("\r\n")
        statuses.append(int(lines[0].split()[1]))
        headers = dict(line.split(": ", 1) for line in lines[1:])
        assert "server" not in headers or headers["server"] == "eventbus"
        received = rest[int(headers.get("content-length", 0)) :]
    return statuses


@pytest.mark.parametrize("name", REFUSED)
async def test_ambiguous_message_is_refused_and_nothing_behind_it_is_read(edges, summarize, name):
    summarize("HTTP messages, RFC 9112", 2)
    for tls in (False, True):
        statuses = await answers(edges[False], REFUSED[name] + SMUGGLED, tls=tls)
        assert statuses, "it is answered"
        assert set(statuses) <= {400, 431, 501, 505}, statuses
        assert 404 not in statuses, "the smuggled request is answered"


CLOSE = "Connection: close"
SERVED = {
    "9112-6.2 a length": post(LENGTH, CLOSE, body=BODY),
    "9112-6.3 zeros before a length": post(f"Content-Length: 00{len(BODY)}", CLOSE, body=BODY),
    "9112-7.1 chunks": post(CHUNKED, CLOSE, body=chunked(BODY[:9], BODY[9:])),
    "9112-7.1 chunked has no case": post("Transfer-Encoding: Chunked", CLOSE, body=chunked(BODY)),
    "9112-7.1 sizes in upper case": post(CHUNKED, CLOSE, body=one_chunk(b"2A")),
    "9112-7.1 zeros before a size": post(CHUNKED, CLOSE, body=one_chunk(b"002a")),
    "9112-7.1.1 extensions of chunks": post(
        CHUNKED, CLOSE, body=one_chunk(b"2a;name=value")
    ),
    "9112-7.1.2 trailers are dropped": post(
        CHUNKED, CLOSE, body=chunked(BODY, end=b"0\r\nAuthorization: Bearer x\r\nX: y\r\n\r\n")
    ),
    "9112-2.2 empty lines before": b"\r\n\r\n" + post(LENGTH, CLOSE, body=BODY),
    "9112-9.3 HTTP/1.0 ends the connection": post(LENGTH, body=BODY, version="HTTP/1.0"),
    "9112-3.2.2 an absolute target": post(LENGTH, CLOSE, body=BODY).replace(
        b"POST /", b"POST http://a/", 1
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SERVED)
async def test_message_with_one_meaning_is_served(edges, summarize, name):
    summarize("HTTP messages, RFC 9112", 2)
    for tls in (False, True):
        assert await answers(edges[False], SERVED[name], tls=tls) == [200]


@pytest.mark.parametrize("close", [True, False], ids=["close", "keep-alive"])
async def test_9112_9_3_persistence_is_what_the_client_asks_for(edges, summarize, close):
    summarize("HTTP messages, RFC 9112", 2)
    connection = CLOSE if close else "Connection: keep-alive"
    first = post(LENGTH, connection, body=BODY)
    last = post(LENGTH, CLOSE, body=BODY)
    for tls in (False, True):
        statuses = await answers(edges[False], first + last, tls=tls)
        assert statuses == ([200] if close else [200, 200])


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_9110_10_1_1_body_that_will_be_refused_is_not_asked_for(edges, summarize, tls):
    """A client with Expect: 100-continue waits, and is spared an upload in vain."""
    summarize("HTTP messages, RFC 9112", 1)
    edge = edges[False]
    for size, first in ((len(BODY), 100), (9_999_999_999, 413)):
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", edge.port(tls), ssl=edge.context(tls)
        )
        writer.write(post(f"Content-Length: {size}", "Expect: 100-continue"))
        async with asyncio.timeout(PATIENCE_S):
            assert int((await reader.readline()).split()[1]) == first
            if first == 100:
                assert await reader.readline() == b"\r\n"
                writer.write(BODY)
                assert int((await reader.readline()).split()[1]) == 200
        writer.transport.abort()


async def test_9110_9_3_7_options_of_the_server_names_no_resource(edges, summarize):
    summarize("HTTP messages, RFC 9112", 1)
    sent = b"OPTIONS * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    assert (await answers(edges[False], sent))[0] in (200, 204, 400, 404)


async def test_9110_9_3_6_node_is_no_proxy(edges, summarize):
    summarize("HTTP messages, RFC 9112", 1)
    sent = b"CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\nConnection: close\r\n\r\n"
    assert (await answers(edges[False], sent))[0] in (400, 404, 405)
