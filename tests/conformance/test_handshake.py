"""The opening handshake (RFC 6455, 4), by both of its readers.

The first protocol of a socket reads ordinary handshakes, and aiohttp reads all others. Each case is
sent to such a node and to one where aiohttp reads everything: the answers must be the same, and
conform to the RFC.
"""

import asyncio
import re

import pytest
from aiohttp import web
from hypothesis import given, settings, strategies as st

from tests.conformance.edges import serving
from tests.conformance.wire import ACCEPT, APP, KEY, NATIVE, PATIENCE_S, PUSHER

LINES = {
    "Host": "a",
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": KEY,
}
REQUEST_TIMEOUT_S = 1.0


@web.middleware
async def of_an_application(request, handler):
    """Sends all requests through aiohttp, because it must see each of them."""
    return await handler(request)


@pytest.fixture(scope="module")
def ways():
    """A node whose first protocol reads handshakes, and one where aiohttp reads all of them."""
    options = {"request_timeout": REQUEST_TIMEOUT_S, "compression": True}
    with (
        serving(**options) as front,
        serving(middlewares=[of_an_application], **options) as aiohttp,
    ):
        yield front, aiohttp


def head(changes=None, *, line="GET {path} HTTP/1.1", more=()):
    """The head of a handshake; None omits a header, and a list repeats it."""
    lines = [line]
    for name, value in (LINES | (changes or {})).items():
        values = value if isinstance(value, list) else [] if value is None else [value]
        lines += [f"{name}: {each}" for each in values]
    return "\r\n".join([*lines, *more, "", ""]).encode("latin-1")


OK, BAD, UPGRADE, METHOD = 101, 400, 426, 405
CASES = {
    "6455-4.2.1 a minimal handshake": (head(), OK),
    "6455-4.2.1 names of headers have no case": (head().swapcase().replace(
        b"get {PATH} http", b"GET {path} HTTP").replace(KEY.swapcase().encode(), KEY.encode()), OK),
    "6455-4.2.1 websocket has no case": (head({"Upgrade": "WebSocket"}), OK),
    "6455-4.2.1 upgrade has no case": (head({"Connection": "UPGRADE"}), OK),
    "6455-4.2.1 other connection options": (head({"Connection": "keep-alive, Upgrade"}), OK),
    "6455-4.2.1 several headers Connection": (head({"Connection": ["keep-alive", "Upgrade"]}), OK),
    "9110-5.6.1 empty elements": (head({"Connection": ", ,Upgrade, ,"}), OK),
    "9110-7.8 other protocols beside": (head({"Upgrade": "h2c, websocket"}), OK),
    "9110-7.8 several headers Upgrade": (head({"Upgrade": ["h2c", "websocket"]}), OK),
    "9110-7.8 only another protocol": (head({"Upgrade": "h2c"}), BAD),
    "6455-4.2.1 no Upgrade": (head({"Upgrade": None}), UPGRADE),
    "6455-4.2.1 an empty Upgrade": (head({"Upgrade": ""}), BAD),
    "6455-4.2.1 no Connection": (head({"Connection": None}), UPGRADE),
    "6455-4.2.1 Connection without upgrade": (head({"Connection": "keep-alive"}), UPGRADE),
    "6455-4.2.1 an option that contains upgrade": (head({"Connection": "upgraded"}), UPGRADE),
    **{
        f"6455-4.4 version {version}": (head({"Sec-WebSocket-Version": version}), UPGRADE)
        for version in ("0", "7", "8", "12", "14", "013", "+13", "13.0", "13, 8", "13 13", "x", "")
    },
    "6455-4.4 no version": (head({"Sec-WebSocket-Version": None}), UPGRADE),
    "6455-4.4 two versions": (head({"Sec-WebSocket-Version": ["13", "13"]}), UPGRADE),
    "9112-5.1 spaces around a value": (head({"Sec-WebSocket-Version": " \t13 \t"}), OK),
    **{
        f"6455-4.2.1 key {key!r}": (head({"Sec-WebSocket-Key": key}), BAD)
        for key in ("", "a", KEY[:-1], KEY[:-2], KEY + "=", KEY[:-4] + "====", "*" * 24,
                    KEY[:5] + " " + KEY[6:], KEY.replace("=", "A"), KEY * 2, "AAAA", f'"{KEY}"')
    },
    "6455-4.2.1 no key": (head({"Sec-WebSocket-Key": None}), BAD),
    "6455-4.2.1 two keys": (head({"Sec-WebSocket-Key": [KEY, KEY]}), BAD),
    **{
        f"6455-4.1 method {method}": (head(line=f"{method} {{path}} HTTP/1.1"), METHOD)
        for method in ("POST", "HEAD", "PUT", "DELETE", "PATCH", "TRACE")
    },
    "6455-4.1 HTTP/1.0": (head(line="GET {path} HTTP/1.0"), BAD),
    "9112-2.3 HTTP/1.2": (head(line="GET {path} HTTP/1.2"), {BAD, 505}),
    "9112-2.3 HTTP/2.0": (head(line="GET {path} HTTP/2.0"), {BAD, 505}),
    "9112-3.2 no Host": (head({"Host": None}), BAD),
    "9112-3.2 two Hosts": (head({"Host": ["a", "b"]}), BAD),
    "9112-3.2 an invalid Host": (head({"Host": "a b"}), BAD),
    "9112-3.2 a Host with a port": (head({"Host": "a:80"}), OK),
    "9112-3.2 an IPv6 Host": (head({"Host": "[::1]:80"}), OK),
    "9112-3.2 user information in a Host": (head({"Host": "a@b"}), BAD),
    "9112-3.2.2 an absolute target": (head(line="GET http://a{path} HTTP/1.1"), OK),
    "9112-3 two spaces": (head(line="GET  {path} HTTP/1.1"), {OK, BAD}),
    "9112-3 a tab": (head(line="GET\t{path} HTTP/1.1"), BAD),
    "9112-3 a space behind": (head(line="GET {path} HTTP/1.1 "), BAD),
    "9112-3 no version": (head(line="GET {path}"), {BAD, 505}),
    "9112-3 a fragment": (head(line="GET {path}#a HTTP/1.1"), {OK, BAD}),
    "9112-2.2 line feeds alone": (head().replace(b"\r\n", b"\n"), BAD),
    "9112-2.2 one line feed alone": (head(more=["X-A: b\nX-B: c"]), BAD),
    "9112-2.2 a carriage return alone": (head(more=["X-A: b\rX-B: c"]), BAD),
    "9112-2.2 an empty line before": (b"\r\n" + head(), OK),
    "9112-5.1 a space before a colon": (head(more=["X-A : b"]), BAD),
    "9112-5.1 a line without a colon": (head(more=["X-A"]), BAD),
    "9112-5.1 an empty name": (head(more=[": b"]), BAD),
    "9112-5.2 a folded line": (head(more=["X-A: b", " c"]), BAD),
    "9110-5.5 NUL": (head(more=["X-A: \0"]), BAD),
    "9110-5.5 a control character": (head(more=["X-A: \x01"]), {OK, BAD}),
    "9110-5.5 bytes beyond ASCII": (head(more=["X-A: \xe9"]), OK),
    "9110-5.6.2 any token as a name": (head(more=["!#$%&'*+-.^_`|~0aA: b"]), OK),
    "6455-4.2.1 a body": (head({"Content-Length": "1"}) + b"x", BAD),
    "6455-4.2.1 a body of no bytes": (head({"Content-Length": "0"}), OK),
    "6455-4.2.1 a chunked body": (head({"Transfer-Encoding": "chunked"}) + b"0\r\n\r\n", BAD),
    "9112-6.1 two lengths": (
        head({"Content-Length": "1", "Transfer-Encoding": "chunked"}) + b"0\r\n\r\n", BAD),
    "6455-9.1 a malformed extension": (head({"Sec-WebSocket-Extensions": "; ;"}), BAD),
    "6455-9.1 an unknown extension": (head({"Sec-WebSocket-Extensions": "x-unknown"}), OK),
    "6455-9.1 extensions in two headers": (
        head({"Sec-WebSocket-Extensions": ["x-unknown", "permessage-deflate"]}), OK),
    "6455-1.9 a handshake of an old draft": (head(more=["Sec-WebSocket-Key1: a"]), BAD),
    **{
        f"9110-5.3 {name} twice": (head(more=[f"{name}: a", f"{name}: b"]), BAD)
        for name in ("Content-Location", "Content-Range", "Content-Type", "ETag", "Max-Forwards",
                     "Server", "User-Agent", "Transfer-Encoding")
    },
    **{
        f"9110-5.3 {name} twice": (head(more=[f"{name}: a", f"{name}: b"]), OK)
        for name in ("Accept", "Cookie", "Via", "X-Forwarded-For", "X-A")
    },
}  # fmt: skip


async def answer(edge, data, *, tls=False):
    """Status, headers and body of the first answer; None if the socket ends without one."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", edge.port(tls), ssl=edge.context(tls)
    )
    try:
        writer.write(data)
        async with asyncio.timeout(PATIENCE_S):
            try:
                lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            except (asyncio.IncompleteReadError, ConnectionResetError):
                return None
            headers = {}
            for line in lines[1:-2]:
                name, _, value = line.partition(": ")
                assert name.lower() not in headers, f"{name} is given twice"
                headers[name.lower()] = value
            status = int(lines[0].split()[1])
            headers.pop("date", None)
            is_bare = status == 101 or data.startswith(b"HEAD")
            size = 0 if is_bare else int(headers["content-length"])
            return status, headers, await reader.readexactly(size)
    finally:
        writer.transport.abort()


@pytest.mark.parametrize("name", CASES)
async def test_handshake_is_answered_as_the_rfcs_say_by_both_readers(ways, summarize, name):
    summarize("Opening handshake, RFC 6455 and 9112", 4 + 2)
    data, expected = CASES[name]
    for dialect in (NATIVE, PUSHER):
        sent = data.replace(b"{path}", dialect.path.encode())
        answers = await asyncio.gather(
            *(answer(way, sent) for way in ways), answer(ways[0], sent, tls=True)
        )
        assert answers[0] == answers[1] == answers[2]
        status, headers, body = answers[0]
        assert status in (expected if isinstance(expected, set) else {expected})
        if status == 101:
            assert headers["sec-websocket-accept"] == ACCEPT
            assert (headers["upgrade"], headers["connection"]) == ("websocket", "Upgrade")
            assert "content-length" not in headers
            assert "transfer-encoding" not in headers
        elif not data.startswith(b"HEAD"):
            assert headers["content-type"] == "application/problem+json"
            assert b'"code"' in body
        if status == UPGRADE:  # RFC 9110, 15.5.22
            assert (headers["upgrade"], headers["connection"]) == ("websocket", "Upgrade")
            if "version" in name:
                assert headers["sec-websocket-version"] == "13"
        if status == METHOD:  # RFC 9110, 15.5.6
            assert set(headers["allow"].split(", ")) == {"GET", "OPTIONS"}


# Any handshake that is damaged

WHOLE = head(
    {"Origin": "http://a", "Sec-WebSocket-Protocol": "eventbus.v1"},
    more=["X-A: b", "User-Agent: a", "Cookie: a=b", "Content-Type: text/plain"],
)
PATHS = ("/ws", "/ws/general", "/ws?channel=general", f"/app/{APP}?protocol=7")
BYTES = st.sampled_from([bytes((byte,)) for byte in b'\0\t\n\r !"#%&,/:;=?@[]\x7f\x80\xff0aZ'])


@st.composite
def damaged(draw):
    """A handshake with a few changed bytes, or with lines that are missing, repeated or moved."""
    data = WHOLE.replace(b"{path}", draw(st.sampled_from(PATHS)).encode())
    lines = data.split(b"\r\n")[:-2]
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(1, len(lines) - 1))
        line = lines.pop(at)
        if draw(st.booleans()):
            to = draw(st.integers(1, len(lines)))
            lines[to:to] = [line] * draw(st.integers(0, 2))
    data = b"\r\n".join([*lines, b"", b""])
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(data) - 5))
        data = data[:at] + draw(st.just(b"") | BYTES) + data[at + draw(st.integers(0, 1)) :]
    return data


@settings(max_examples=150, derandomize=True)
@given(data=damaged())
def test_both_readers_answer_a_damaged_handshake_alike(ways, data):
    async def ask():
        return await asyncio.gather(*(answer(way, data) for way in ways))

    first, second = asyncio.run(ask())
    assert (first is None) == (second is None)
    if first is not None:
        assert first[0] == second[0]
        assert first[1] == second[1]
        assert re.sub(rb"\d", b"", first[2]) == re.sub(rb"\d", b"", second[2])
