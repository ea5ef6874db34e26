"""HTTP as RFC 9110 and RFC 9112 define it: each case has its section in its id.

Requests are bytes on a socket, so that no client library repairs them.
"""

import asyncio
import json
from datetime import timedelta
from email.utils import format_datetime, parsedate_to_datetime
from typing import NamedTuple

import pytest
from aiohttp import web

from eventbus.bus import EventBus
from eventbus.config import Settings
from eventbus.events import event as events
from eventbus_edge.app import (
    create_app,
    make_runner,
)
from eventbus_edge.config import EdgeSettings
from eventbus_edge.http.api import ROUTES
from eventbus_edge.keys import NODE

KEY = "the-key-of-conformance"
APP = "https://app.example"
FILE = "/static/eventbus.js"
AUTHORIZED = ("Authorization", f"Bearer {KEY}")


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    """By names in lower case."""
    body: bytes

    @property
    def problem(self) -> dict[str, object]:
        """The body, which must be a problem of this status."""
        assert self.headers["content-type"] == "application/problem+json"
        problem = json.loads(self.body)
        assert problem["status"] == self.status
        assert problem["title"]
        assert problem["detail"]
        return problem


@pytest.fixture(autouse=True)
def counted(summarize):
    summarize("HTTP, RFC 9110", 1)


@pytest.fixture
async def runner(monkeypatch):
    monkeypatch.setattr(events, "_types", {})  # events of other tests may lack a contract
    async with EventBus(Settings(driver="memory")) as bus:
        settings = EdgeSettings(api_key=KEY, cors_allowed_origins=(APP,), drain_time=0.0)
        started = make_runner(create_app(settings, bus), settings.request_timeout)
        await started.setup()
        await web.TCPSite(started, "127.0.0.1", 0).start()
        yield started
        await started.cleanup()


@pytest.fixture
def port(runner):
    return runner.addresses[0][1]


@pytest.fixture
async def connection(port):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    yield reader, writer
    writer.close()
    await writer.wait_closed()


async def read(reader, method="GET") -> Answer:
    async with asyncio.timeout(40):
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {}
        for line in head[1:-2]:
            name, _, value = line.partition(":")
            assert name.lower() not in headers, f"{name} is given twice"
            headers[name.lower()] = value.strip()
        status = int(head[0].split()[1])
        bare = method == "HEAD" or status in (204, 304)
        length = 0 if bare else int(headers.get("content-length", 0))
        return Answer(status, headers, await reader.readexactly(length))


def request(method, target, *headers) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", "Host: a", *(f"{n}: {v}" for n, v in headers)]
    return "\r\n".join([*lines, "", ""]).encode()


@pytest.fixture
def ask(connection):
    """Send one request and read its answer; the connection stays usable."""
    reader, writer = connection

    async def send(method, target, *headers) -> Answer:
        writer.write(request(method, target, *headers))
        return await read(reader, method)

    return send


# Methods (RFC 9110 §9), for every route

GETS = {
    "/": 200, "/dashboard": 200, "/api/docs": 200, FILE: 200,
    "/healthz": 200, "/readyz": 200, "/metrics": 200, "/api/openapi.json": 200,
    "/api/asyncapi.json": 404,
}  # fmt: skip
METHODS = {path: {"GET", "HEAD"} for path in GETS} | {
    "/dashboard/ticket": {"POST"},
    "/sse": {"GET", "HEAD", "POST"},
    "/ws": {"GET"},
    "/ws/general": {"GET"},
}
for route in ROUTES:
    path = route.path.replace("{name}", "general").replace("{id}", "x" * 22)
    METHODS.setdefault(path, set()).add(route.method)
    if route.method == "GET":
        METHODS[path].add("HEAD")
        GETS[path] = 404 if path.endswith("/members") else 200


@pytest.mark.parametrize("path", GETS, ids=lambda path: f"9110-9.3.2 {path}")
async def test_head_is_answered_like_get_but_without_a_body(ask, path):
    got = await ask("GET", path, AUTHORIZED)
    head = await ask("HEAD", path, AUTHORIZED)
    assert (got.status, head.status) == (GETS[path], GETS[path])
    assert head.headers.keys() == got.headers.keys()
    assert head.headers["content-type"] == got.headers["content-type"]
    assert (await ask("GET", "/healthz")).status == 200  # no body is left in the connection


@pytest.mark.parametrize("path", METHODS, ids=lambda path: f"9110-9.3.7 {path}")
async def test_options_lists_the_methods_of_a_route_to_every_client(ask, path):
    answer = await ask("OPTIONS", path)
    assert (answer.status, answer.body) == (204, b"")
    assert set(answer.headers["allow"].split(", ")) == METHODS[path] | {"OPTIONS"}
    assert "content-length" not in answer.headers  # §8.6


@pytest.mark.parametrize("path", METHODS, ids=lambda path: f"9110-15.5.6 {path}")
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "TRACE"])
async def test_another_method_is_refused_with_those_that_are_allowed(ask, path, method):
    if method in METHODS[path]:
        return
    answer = await ask(method, path, AUTHORIZED)
    assert answer.status == 405
    assert set(answer.headers["allow"].split(", ")) == METHODS[path] | {"OPTIONS"}
    if method != "HEAD":
        assert answer.problem["code"] == "method_not_allowed"
    assert (await ask("GET", "/healthz")).status == 200


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS", "DELETE"])
@pytest.mark.parametrize("path", ["/nothing", "/static/nothing.js", "/api/nothing", "/ws2", "/wss"])
async def test_9110_15_5_5_unknown_path_is_a_problem_that_names_what_is_served(ask, method, path):
    answer = await ask(method, path)
    if path.startswith("/static/") and method not in ("GET", "HEAD"):
        assert answer.status == (204 if method == "OPTIONS" else 405)
        return
    assert answer.status == 404
    if method != "HEAD":
        assert answer.problem["code"] == "not_found"
        assert "static" in path or "/ws/<channel>" in answer.problem["detail"]


async def test_9110_9_3_2_head_of_a_stream_is_answered_without_one(ask):
    answer = await ask("HEAD", "/sse?channel=general")
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/event-stream")


async def test_9110_9_3_2_head_of_a_stream_is_refused_like_get(ask):
    for method in ("GET", "HEAD"):
        assert (await ask(method, "/sse?channel=user.7")).status == 401


# Pages of other origins (fetch.spec.whatwg.org, 3.3)

SHARED = [path for path in METHODS if path.startswith(("/api/", "/sse", "/healthz", "/readyz"))]
PREFLIGHT = ("Access-Control-Request-Method", "GET")


@pytest.mark.parametrize("path", SHARED, ids=lambda path: f"fetch-3.3 {path}")
async def test_page_of_an_allowed_origin_may_read_answers_and_send_what_routes_accept(ask, path):
    method = "GET" if "GET" in METHODS[path] else min(METHODS[path])
    if path != "/sse":  # a stream would follow
        got = await ask(method, path, ("Origin", APP))
        assert got.headers["access-control-allow-origin"] == APP
        assert got.headers["vary"] == "Origin"
    answer = await ask("OPTIONS", path, ("Origin", APP), ("Access-Control-Request-Method", method))
    assert answer.status == 204
    assert answer.headers["access-control-allow-origin"] == APP
    assert set(answer.headers["access-control-allow-methods"].split(", ")) >= METHODS[path]
    asked = {"authorization", "content-type", "idempotency-key", "last-event-id"}
    assert asked <= set(answer.headers["access-control-allow-headers"].lower().split(", "))


@pytest.mark.parametrize("path", SHARED, ids=lambda path: f"fetch-3.3 {path}")
async def test_page_of_another_origin_may_read_nothing(ask, path):
    origin = ("Origin", "https://evil.example")
    method = "GET" if "GET" in METHODS[path] else min(METHODS[path])
    answers = [await ask("OPTIONS", path, origin, PREFLIGHT), await ask(method, path, origin)]
    assert answers[0].problem["code"] == "forbidden"
    for answer in answers:
        assert "access-control-allow-origin" not in answer.headers
        assert answer.headers["vary"] == "Origin"


async def test_fetch_3_3_errors_are_readable_to_pages_of_allowed_origins(ask):
    for method, path in (("GET", "/api/nothing"), ("PUT", "/sse"), ("GET", "/sse")):
        answer = await ask(method, path, ("Origin", APP))
        assert answer.problem
        assert answer.headers["access-control-allow-origin"] == APP


async def test_fetch_3_3_every_page_may_read_why_it_cannot_open_a_websocket(ask):
    refused = ("GET", "/ws", "forbidden"), ("GET", "/ws/general", "forbidden")
    for method, path, code in (*refused, ("GET", "/wss", "not_found")):
        answer = await ask(method, path, ("Origin", "https://evil.example"))
        assert answer.problem["code"] == code
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in answer.headers


# Conditional and range requests (RFC 9110 §13 and §14)


async def test_9110_8_8_3_entity_tags_are_strong_and_the_same_each_time(ask):
    first, second = await ask("GET", FILE), await ask("GET", FILE)
    assert first.headers["etag"] == second.headers["etag"]
    assert first.headers["etag"].startswith('"')
    assert first.headers["accept-ranges"] == "bytes"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        pytest.param({"If-None-Match": "{etag}"}, 304, id="9110-13.1.2 the tag"),
        pytest.param({"If-None-Match": "W/{etag}"}, 304, id="9110-13.1.2 weak comparison"),
        pytest.param({"If-None-Match": '"a", {etag}'}, 304, id="9110-13.1.2 a list"),
        pytest.param({"If-None-Match": "*"}, 304, id="9110-13.1.2 any"),
        pytest.param({"If-None-Match": '"a"'}, 200, id="9110-13.1.2 another tag"),
        pytest.param({"If-Modified-Since": "{date}"}, 304, id="9110-13.1.3 its date"),
        pytest.param({"If-Modified-Since": "{later}"}, 304, id="9110-13.1.3 later"),
        pytest.param({"If-Modified-Since": "{earlier}"}, 200, id="9110-13.1.3 earlier"),
        pytest.param({"If-Modified-Since": "yesterday"}, 200, id="9110-13.1.3 no date"),
        pytest.param(
            {"If-None-Match": '"a"', "If-Modified-Since": "{later}"}, 200,
            id="9110-13.1.3 is ignored beside If-None-Match",
        ),
        pytest.param({"If-Match": "{etag}"}, 200, id="9110-13.1.1 the tag"),
        pytest.param({"If-Match": "*"}, 200, id="9110-13.1.1 any"),
        pytest.param({"If-Match": "W/{etag}"}, 412, id="9110-13.1.1 strong comparison"),
        pytest.param({"If-Match": '"a"'}, 412, id="9110-13.1.1 another tag"),
        pytest.param({"If-Unmodified-Since": "{date}"}, 200, id="9110-13.1.4 its date"),
        pytest.param({"If-Unmodified-Since": "{earlier}"}, 412, id="9110-13.1.4 earlier"),
        pytest.param({"If-Unmodified-Since": "never"}, 200, id="9110-13.1.4 no date"),
        pytest.param(
            {"If-Match": "{etag}", "If-Unmodified-Since": "{earlier}"}, 200,
            id="9110-13.1.4 is ignored beside If-Match",
        ),
        pytest.param({"If-Match": '"a"', "If-None-Match": "*"}, 412, id="9110-13.2.2 the order"),
        pytest.param({"Range": "bytes=0-9"}, 206, id="9110-14.1.2 first bytes"),
        pytest.param({"Range": "bytes=100-"}, 206, id="9110-14.1.2 the rest"),
        pytest.param({"Range": "bytes=-10"}, 206, id="9110-14.1.2 last bytes"),
        pytest.param({"Range": "bytes=-99999999"}, 206, id="9110-14.1.2 more than there are"),
        pytest.param({"Range": "bytes=0-99999999"}, 206, id="9110-14.1.2 beyond the end"),
        pytest.param({"Range": "BYTES=0-9"}, 206, id="9110-14.1 units have no case"),
        pytest.param({"Range": "lines=0-9"}, 200, id="9110-14.2 another unit is ignored"),
        pytest.param({"Range": "bytes=9-0"}, 200, id="9110-14.1.1 an invalid range is ignored"),
        pytest.param({"Range": "bytes=-"}, 200, id="9110-14.1.1 an empty range is ignored"),
        pytest.param({"Range": "bytes=a-b"}, 200, id="9110-14.1.1 no digits"),
        pytest.param({"Range": "bytes 0-9"}, 200, id="9110-14.1.1 no equals sign"),
        pytest.param({"Range": "bytes=0-1,4-5"}, 200, id="9110-14.2 several may be ignored"),
        pytest.param({"Range": "bytes=99999999-"}, 416, id="9110-15.5.17 beyond the end"),
        pytest.param({"Range": "bytes=-0"}, 416, id="9110-15.5.17 no bytes"),
        pytest.param({"Range": f"bytes={'9' * 90}-"}, 416, id="9110-15.5.17 far beyond the end"),
        pytest.param({"Range": f"bytes={'9' * 5000}-"}, 200, id="9110-14.2 an absurd range"),
        pytest.param({"Range": "bytes=0-9", "If-Range": "{etag}"}, 206, id="9110-13.1.5 the tag"),
        pytest.param({"Range": "bytes=0-9", "If-Range": "W/{etag}"}, 200, id="9110-13.1.5 weak"),
        pytest.param({"Range": "bytes=0-9", "If-Range": '"a"'}, 200, id="9110-13.1.5 another tag"),
        pytest.param({"Range": "bytes=0-9", "If-Range": "{date}"}, 206, id="9110-13.1.5 its date"),
        pytest.param({"Range": "bytes=0-9", "If-Range": "{later}"}, 200, id="9110-13.1.5 later"),
        pytest.param({"Range": "bytes=99999999-", "If-Range": '"a"'}, 200, id="9110-13.1.5 first"),
        pytest.param(
            {"Range": "bytes=0-9", "If-None-Match": "{etag}"}, 304, id="9110-13.2.2 before ranges"
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", [FILE, "/dashboard"])
async def test_files_are_served_by_their_conditions_and_ranges(ask, path, headers, status):
    whole = await ask("GET", path)
    modified = parsedate_to_datetime(whole.headers["last-modified"])
    facts = {
        "etag": whole.headers["etag"],
        "date": whole.headers["last-modified"],
        "later": format_datetime(modified + timedelta(hours=1), usegmt=True),
        "earlier": format_datetime(modified - timedelta(hours=1), usegmt=True),
    }
    conditions = [(name, value.format(**facts)) for name, value in headers.items()]
    answer = await ask("GET", path, *conditions)
    assert answer.status == status
    assert answer.headers["etag"] == whole.headers["etag"]
    size = len(whole.body)
    match status:
        case 200:
            assert answer.body == whole.body
        case 206:
            span, _, total = answer.headers["content-range"].removeprefix("bytes ").partition("/")
            first, last = map(int, span.split("-"))
            assert (answer.body, int(total)) == (whole.body[first : last + 1], size)
        case 416:
            assert answer.headers["content-range"] == f"bytes */{size}"
            assert answer.problem["code"] == "range_not_satisfiable"
        case 412:
            assert answer.problem["code"] == "precondition_failed"
    if path == FILE:
        assert answer.headers["access-control-allow-origin"] == "*"
    head = await ask("HEAD", path, *conditions)  # §14.2: HEAD has no ranges
    assert head.status == (200 if "Range" in headers and status in (206, 416) else status)


# Targets, messages and connections


@pytest.mark.parametrize(
    ("head", "status"),
    [
        pytest.param(b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414,
                     id="9110-15.5.15 a long path"),
        pytest.param(b"GET /ws?auth_token=" + b"x" * 70_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414,
                     id="9110-15.5.15 a long query"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\nX: /" + b"x" * 9000 + b"\r\n\r\n", 431,
                     id="6585-5 a long header"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 100 + b"\r\n", 431,
                     id="6585-5 many headers"),
        pytest.param(b"GET /ws HTTP/1.1\r\nHost: a\r\n\r\n", 426, id="9110-15.5.22 no upgrade"),
        pytest.param(b"GET /ws HTTP/1.0\r\nHost: a\r\n\r\n", 426, id="9110-15.5.22 HTTP/1.0"),
        pytest.param(b"GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n", 426,
                     id="9110-7.8 Upgrade that is no connection option"),
        pytest.param(b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\n\r\n", 426,
                     id="9110-7.8 a connection option without Upgrade"),
        pytest.param(b"POST /healthz HTTP/1.1\r\nHost: a\r\nExpect: nonsense\r\n\r\n", 417,
                     id="9110-15.5.18 an unknown expectation"),
    ],
)  # fmt: skip
async def test_refusal_has_the_status_that_names_the_fault(connection, head, status):
    reader, writer = connection
    writer.write(head)
    answer = await read(reader)
    assert answer.status == status
    assert answer.problem
    if status == 426:
        assert (answer.headers["upgrade"], answer.headers["connection"]) == ("websocket", "Upgrade")
        assert "proxy_set_header Upgrade" in answer.problem["detail"]


GARBAGE = b"\x00garbage\r\n\r\n"
VALID = request("GET", "/healthz")
BODY = (
    request(
        "POST", "/api/broadcast/events", AUTHORIZED, ("Content-Type", "application/json"),
        ("Content-Length", "45"),
    )
    + b'{"channel": "general", "event": "e","data":1}'
)  # fmt: skip


@pytest.mark.parametrize(
    ("data", "statuses"),
    [
        pytest.param(VALID + GARBAGE, [200, 400], id="9112-9.3.2 one request, then garbage"),
        pytest.param(VALID * 3 + GARBAGE, [200] * 3 + [400], id="9112-9.3.2 three, then garbage"),
        pytest.param(BODY + GARBAGE, [200, 400], id="9112-9.3.2 a body, then garbage"),
        pytest.param(VALID + BODY + VALID, [200, 200, 200], id="9112-9.3.2 pipelined"),
        pytest.param(VALID + b"GET / HTTP/1.1\r\n\r\n", [200, 400], id="9112-3.2 no host"),
        pytest.param(VALID + request("GET", "/" + "x" * 9000), [200, 414], id="9112-3 a target"),
        pytest.param(b"\r\n" + VALID + b"\r\n" + VALID, [200, 200], id="9112-2.2 empty lines"),
        pytest.param(VALID * 100, [200] * 100, id="9112-9.3.2 a hundred"),
    ],
)  # fmt: skip
async def test_requests_are_answered_in_order_and_a_fault_after_them(connection, data, statuses):
    reader, writer = connection
    writer.write(data)
    assert [(await read(reader)).status for _ in statuses] == statuses
    if statuses[-1] >= 400:  # the rest cannot be parsed (RFC 9112 §9.6)
        async with asyncio.timeout(40):
            assert await reader.read() == b""


@pytest.mark.parametrize("size", [1, 2, 7, 50])
async def test_9112_2_2_requests_may_arrive_in_pieces_of_any_size(connection, size):
    reader, writer = connection
    data = VALID + BODY + b"\r\n" + VALID + BODY
    for start in range(0, len(data), size):
        writer.write(data[start : start + size])
        await asyncio.sleep(0)
    assert [(await read(reader)).status for _ in range(4)] == [200] * 4


@pytest.mark.parametrize("sent_later", [b"", b"surplus", VALID])
async def test_9112_9_6_stream_that_ends_closes_its_connection(runner, connection, sent_later):
    reader, writer = connection
    writer.write(request("GET", "/sse?channel=general"))
    assert b"connection: close" in (await reader.readuntil(b"\r\n\r\n")).lower()
    await reader.readuntil(b"eb:subscribed")
    writer.write(sent_later)
    await runner.app[NODE].connections.drain()
    async with asyncio.timeout(40):
        assert (await reader.read()).endswith(b"\r\n0\r\n\r\n")
