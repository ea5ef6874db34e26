"""The opening handshake of RFC 6455, as bytes: what is accepted, and what is refused and how."""

import asyncio
import json

import pytest
import pytest_asyncio
from aiohttp import web

from eventbus.bus import EventBus
from eventbus.config import Settings
from eventbus_edge.access.rules import ChannelRules
from eventbus_edge.app import (
    create_app,
    make_runner,
)
from eventbus_edge.config import EdgeSettings
from eventbus_edge.keys import NODE

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
HEADERS = {
    "Host": "a",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": KEY,
}
PING, PONG = b"\x89\x81\0\0\0\0p", b"\x8a\x01p"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def nodes():
    """The runners of nodes without and with compression."""
    async with EventBus(Settings(driver="memory")) as bus:
        started = []
        for compression in (False, True):
            settings = EdgeSettings(compression=compression, max_requests_per_address=1e6)
            runner = make_runner(create_app(settings, bus, rules=ChannelRules()))
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            started.append(runner)
        yield started
        for runner in started:
            await runner.cleanup()


def request(line="GET /ws HTTP/1.1", **changes):
    """A handshake; a header that is None is left out, and one of a list comes several times."""
    headers = HEADERS | {name.replace("_", "-"): value for name, value in changes.items()}
    lines = [
        f"{name}: {each}\r\n"
        for name, value in headers.items()
        if value is not None
        for each in (value if isinstance(value, list) else [value])
    ]
    return f"{line}\r\n{''.join(lines)}\r\n".encode()


async def ask(runner, data):
    """The status, the headers in lower case, and the problem or what follows an upgrade."""
    reader, writer = await asyncio.open_connection("127.0.0.1", runner.addresses[0][1])
    try:
        writer.write(data)
        async with asyncio.timeout(40):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            version, status = head[0].split()[:2]
            assert version in {"HTTP/1.0", "HTTP/1.1"}
            headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
            if int(status) == 101:
                writer.write(PING)
                await reader.readuntil(PONG)
                return 101, headers, None
            problem = json.loads(await reader.readexactly(int(headers["content-length"])))
            assert problem["status"] == int(status)
            return int(status), headers, problem
    finally:
        writer.transport.abort()


TAKEN = {
    "4.1 as it is": request(),
    "4.2.1 upgrade in capitals": request(Upgrade="WEBSOCKET", Connection="UPGRADE"),
    "4.2.1 upgrade among others": request(Upgrade="h2c, websocket"),
    "4.2.1 upgrade before others": request(Upgrade="websocket,h2c"),
    "4.2.1 upgrade in two lines": request(Upgrade=["h2c", "websocket"]),
    "4.2.1 connection among others": request(Connection="keep-alive, Upgrade"),
    "4.2.1 connection in two lines": request(Connection=["keep-alive", "Upgrade"]),
    "4.2.1 other headers": request(Cookie="a=b", X_Any="ü"),
    "9.1 an unknown extension": request(Sec_WebSocket_Extensions='x-any; a; b=1; c="d"'),
    "9.1 no extension": request(Sec_WebSocket_Extensions=""),
    "9.1 an extension in two lines": request(
        Sec_WebSocket_Extensions=["x-any", "permessage-deflate"]
    ),
    "11.3.4 the subprotocol among others": request(Sec_WebSocket_Protocol="a, eventbus.v1"),
    "11.3.4 the subprotocol in the second line": request(
        Sec_WebSocket_Protocol=["a", "eventbus.v1"]
    ),
}  # fmt: skip


@pytest.mark.parametrize("compression", [0, 1], ids=["plain", "compression"])
@pytest.mark.parametrize("data", TAKEN.values(), ids=TAKEN)
async def test_valid_handshake_is_answered_with_101(nodes, data, compression):
    status, headers, _ = await ask(nodes[compression], data)
    assert status == 101
    assert headers["upgrade"] == "websocket"
    assert headers["connection"] == "upgrade"
    assert headers["server"] == "eventbus"
    assert headers["sec-websocket-accept"] == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=".lower()  # 1.3
    assert ("sec-websocket-protocol" in headers) == (b"eventbus.v1" in data)
    offers_deflate = b"permessage-deflate" in data
    assert ("sec-websocket-extensions" in headers) == (offers_deflate and bool(compression))
    assert not nodes[compression].app[NODE].metrics.refusals.labels("internal")._value.get()


REFUSED = {
    "4.2.1 no upgrade": (request(Upgrade=None), 426),
    "4.2.1 another upgrade": (request(Upgrade="h2c"), 400),
    "4.2.1 an upgrade that begins alike": (request(Upgrade="websocket2"), 400),
    "4.2.1 no connection": (request(Connection=None), 426),
    "4.2.1 another connection": (request(Connection="keep-alive"), 426),
    "4.2.1 HTTP/1.0": (request("GET /ws HTTP/1.0"), 400),
    "4.2.1 a body": (request(Content_Length="5") + b"hello", 400),
    "4.2.1 a chunked body": (request(Transfer_Encoding="chunked") + b"0\r\n\r\n", 400),
    "11.3.1 no key": (request(Sec_WebSocket_Key=None), 400),
    "11.3.1 an empty key": (request(Sec_WebSocket_Key=""), 400),
    "11.3.1 a key that is not ASCII": (request(Sec_WebSocket_Key="é"), 400),
    "11.3.1 a key that is no base64": (request(Sec_WebSocket_Key="!" * 22 + "=="), 400),
    "11.3.1 a key of the URL's base64": (request(Sec_WebSocket_Key="-_" * 11 + "=="), 400),
    "11.3.1 a key of 15 bytes": (request(Sec_WebSocket_Key="A" * 20), 400),
    "11.3.1 a key of 17 bytes": (request(Sec_WebSocket_Key="A" * 23 + "="), 400),
    "11.3.1 a key without padding": (request(Sec_WebSocket_Key=KEY[:-2]), 400),
    "11.3.1 a key twice": (request(Sec_WebSocket_Key=[KEY, KEY]), 400),
    "11.3.1 two keys in a line": (request(Sec_WebSocket_Key=f"{KEY}, {KEY}"), 400),
    "9.1 an extension without a name": (request(Sec_WebSocket_Extensions="; a=b"), 400),
    "9.1 a parameter without a name": (
        request(Sec_WebSocket_Extensions="permessage-deflate; ="), 400,
    ),
    "9.1 nothing behind a semicolon": (
        request(Sec_WebSocket_Extensions="permessage-deflate;"), 400,
    ),
    "9.1 two words": (request(Sec_WebSocket_Extensions="permessage deflate"), 400),
    "9.1 an open quote": (request(Sec_WebSocket_Extensions='x; a="b'), 400),
    "9.1 malformed in the second line": (
        request(Sec_WebSocket_Extensions=["permessage-deflate", "@"]), 400,
    ),
    **{
        f"4.4 version {version!r}": (request(Sec_WebSocket_Version=version), 426)
        for version in (None, "", "0", "7", "8", "12", "14", "013", "13, 8", "13.0", "é")
    },
    "11.3.5 the version twice": (request(Sec_WebSocket_Version=["13", "13"]), 426),
    **{
        f"9112 2.3 {version}": (request(f"GET /ws {version}"), 505)
        for version in ("HTTP/2.0", "HTTP/0.9")
    },
    **{
        f"9112 3.2 host {host!r}": (request(Host=host), 400)
        for host in ("a b", "a\tb", "a/b", "u@a", "a?b", "<a>", "é", "::1", "[::1", "a:b", "a:1:2")
    },
}  # fmt: skip


@pytest.mark.parametrize("compression", [0, 1], ids=["plain", "compression"])
@pytest.mark.parametrize(("data", "refusal"), REFUSED.values(), ids=REFUSED)
async def test_invalid_handshake_is_refused_with_a_problem(
    nodes, data, refusal, compression, caplog
):
    status, headers, problem = await ask(nodes[compression], data)
    lacks_upgrade = problem["code"] == "upgrade_required"
    assert (status, problem["code"]) == (
        refusal,
        "upgrade_required" if lacks_upgrade else "bad_request",
    )
    assert lacks_upgrade == (b"Upgrade: " not in data or b"Connection: Upgrade" not in data)
    assert headers.get("upgrade") == ("websocket" if refusal == 426 else None)
    is_version = refusal == 426 and not lacks_upgrade
    assert headers.get("sec-websocket-version") == ("13" if is_version else None)
    assert [record for record in caplog.records if record.exc_info] == []


@pytest.mark.parametrize("host", ["", "a", "a.b:80", "a:", "[::1]:80", "127.0.0.1", "a_b", "a%20b"])
async def test_host_may_be_whatever_rfc_3986_allows(nodes, host):
    assert (await ask(nodes[0], request(Host=host)))[0] == 101


async def test_other_requests_are_refused_for_their_host_and_version_too(nodes):
    for line, host, refusal in (
        ("GET /healthz HTTP/2.0", "a", 505),
        ("POST /sse HTTP/2.0", "a", 505),
        ("GET /healthz HTTP/1.1", "a b", 400),
        ("GET /healthz HTTP/1.0", "a b", 400),
    ):
        data = f"{line}\r\nHost: {host}\r\n\r\n".encode()
        assert (await ask(nodes[0], data))[0] == refusal
