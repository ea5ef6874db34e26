"""The Host of a request: whose name it is, and who may use the HTTP API without a key."""

import asyncio
import json
import socket

import pytest
from aiohttp import web
from multidict import CIMultiDict

from eventbus.environment import load
from eventbus.errors import ConfigError
from eventbus_edge.access.hosts import (
    Hosts,
    is_loopback_host,
)
from eventbus_edge.config import EdgeSettings
from tests.ports import free_port

STATS = "/api/broadcast/stats"
EVIL = "evil.example:8080"
LOCAL = [
    "localhost", "localhost:8080", "LocalHost:9999", "localhost.", "localhost.:8080",
    "127.0.0.1", "127.0.0.1:8080", "127.0.0.2:8080", "[::1]", "[::1]:8080", "[::ffff:127.0.0.1]:80",
]  # fmt: skip
FOREIGN = [
    "", EVIL, "evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "evil-localhost",
    "evil.localhost", "192.168.1.5:8080", "0.0.0.0:8080", "[::]:8080", "2130706433", "127.1",
    "0x7f.0.0.1", "017700000001", "localhost:0", "localhost:99999", "localhost:x",
    "localhost:80:80", "localhost@evil.example", "user@localhost", "localhost/x",
    "localhost, evil.example", "localhost evil.example",
    "::1", "[::1", "[::1]x", "löcalhost", "localhost..", ".",
    "localhost\x00",
]  # fmt: skip


def why(hosts=None, *, peer="127.0.0.1", version=(1, 1), target=STATS, headers=()):
    given = CIMultiDict(headers or {"Host": "localhost:8080"})
    return (hosts or Hosts()).why_a_key_is_needed(peer, version, target, given)


# Who needs no key


@pytest.mark.parametrize("host", LOCAL)
def test_a_client_on_this_machine_needs_no_key(host):
    assert why(headers={"Host": host}) == ""
    assert Hosts().is_own(host)


@pytest.mark.parametrize("host", FOREIGN)
def test_a_host_that_is_not_this_machine_needs_a_key(host):
    assert "Host" in why(headers={"Host": host})


@pytest.mark.parametrize(
    "headers",
    [
        [("X", "y")],
        [("Host", "localhost"), ("Host", "localhost")],
        [("Host", "localhost"), ("host", EVIL)],
    ],
)
def test_a_request_without_exactly_one_host_needs_a_key(headers):
    assert "Host" in why(headers=headers)


@pytest.mark.parametrize(
    "peer", ["10.0.0.7", "::ffff:10.0.0.7", "2001:db8::1", "", None, "localhost", "0.0.0.0"]
)
def test_a_client_on_another_machine_needs_a_key(peer):
    assert why(peer=peer) == "its address is not a loopback address"


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"])
def test_every_loopback_address_is_this_machine(peer):
    assert why(peer=peer) == ""


@pytest.mark.parametrize(
    ("origin", "host", "expected"),
    [
        ("http://localhost:8080", "localhost:8080", ""),
        ("https://localhost", "localhost", ""),
        ("http://[::1]:8080", "[::1]:8080", ""),
        ("http://127.0.0.1:8080", "localhost:8080", "its Origin is another host's"),
        ("http://localhost:3000", "localhost:8080", "its Origin is another host's"),
        ("http://evil.example:8080", "localhost:8080", "its Origin is another host's"),
        ("null", "localhost:8080", "its Origin is another host's"),
        ("", "localhost:8080", "its Origin is another host's"),
        ("capacitor://localhost", "localhost", "its Origin is another host's"),
    ],
)
def test_a_page_of_another_host_needs_a_key(origin, host, expected):
    assert why(headers={"Host": host, "Origin": origin}) == expected


def test_each_of_several_origins_counts():
    two = [("Host", "localhost"), ("Origin", "http://localhost"), ("Origin", "http://evil.example")]
    assert why(headers=two) == "its Origin is another host's"


@pytest.mark.parametrize(
    "header",
    [
        "X-Forwarded-For", "x-forwarded-host", "X-Forwarded-Proto", "X-Real-IP", "Forwarded", "Via",
        "X-Client-IP", "True-Client-IP", "CF-Connecting-IP", "X-Envoy-External-Address",
    ],
)  # fmt: skip
def test_a_header_that_proxies_add_needs_a_key(header):
    refused = why(headers={"Host": "localhost", header: "127.0.0.1"})
    assert refused == f"it came through a proxy (header {header.lower()})"


@pytest.mark.parametrize(
    "changes",
    [
        {"version": (1, 0)},
        {"target": f"http://localhost:8080{STATS}"},
        {"target": f"http://{EVIL}{STATS}"},
        {"headers": {"Host": "localhost", "Connection": "upgrade"}},
    ],
)
def test_a_request_of_the_form_that_proxies_send_needs_a_key(changes):
    assert why(**changes).startswith("it came through a proxy")


def test_a_node_behind_proxies_and_one_in_production_always_need_a_key():
    assert "BROADCAST_TRUSTED_PROXIES" in why(Hosts(behind_proxies=True))
    assert "production" in why(Hosts(["localhost"], without_key=False))


def test_a_name_that_is_configured_is_this_machines():
    hosts = Hosts(["Node.test."])
    assert why(hosts, headers={"Host": "node.TEST:8080"}) == ""
    assert why(hosts, headers={"Host": "node.test.:8080"}) == ""
    assert "Host" in why(hosts, headers={"Host": "other.node.test:8080"})


# Whose name it is


def test_names_are_the_nodes_own_as_far_as_they_are_known():
    for hosts in (Hosts(), Hosts(["edge.example"])):
        assert all(
            hosts.is_own(host) for host in ("192.168.1.5:8080", "[fe80::1]:80", "edge:80", *LOCAL)
        )
        assert not any(hosts.is_own(host) for host in (EVIL, "", "evil.localhost", "a b"))
    assert Hosts(["edge.example"]).is_own("EDGE.example.:443")
    assert Hosts(any_name=True).is_own("app.example")


def test_loopback_hosts_are_known_without_a_port():
    assert all(map(is_loopback_host, ("localhost", "LOCALHOST.", "::1", "127.3.2.1")))
    assert not any(map(is_loopback_host, ("evil.example", "10.0.0.7", "", "0.0.0.0")))


@pytest.mark.parametrize(
    "text", ["https://edge.example", "edge.example:8080", "*", ".a", "a..b", "a..", "a b", "ä"]
)
def test_a_setting_that_names_no_host_stops_the_start(text):
    with pytest.raises(ConfigError, match="BROADCAST_ALLOWED_HOSTS"):
        load(EdgeSettings, {"BROADCAST_ALLOWED_HOSTS": text})


# On a node


async def raw(port, text):
    """The status and body of the answer to a request sent byte for byte."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(text.replace("\n", "\r\n").encode())
        async with asyncio.timeout(40):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            length = [line for line in head.splitlines() if line.lower().startswith("content-l")]
            body = await reader.readexactly(int(length[0].split(":")[1])) if length else b""
    finally:
        writer.close()
    return int(head.split()[1]), body


GUARDED = {
    "stats": "GET /api/broadcast/stats",
    "ticket": "POST /dashboard/ticket",
    "metrics": "GET /metrics",
    "openapi": "GET /api/openapi.json",
    "contract": "GET /api/asyncapi.json",
    "failed jobs": "GET /api/queue/failed",
    "revocations": "DELETE /api/broadcast/revocations?user=7",
    "publish": "POST /api/broadcast/events",
}


@pytest.mark.parametrize("begin", GUARDED.values(), ids=GUARDED)
async def test_a_page_that_has_bound_its_name_to_this_machine_gets_nothing(edge, begin):
    for headers in (f"Host: {EVIL}", f"Host: {EVIL}\nOrigin: http://{EVIL}"):
        status, body = await raw(edge.port, f"{begin} HTTP/1.1\n{headers}\nContent-Length: 0\n\n")
        assert (status, json.loads(body)["code"]) == (403, "forbidden")


async def test_a_refusal_names_the_reason_and_the_setting(edge):
    _, body = await raw(edge.port, f"GET {STATS} HTTP/1.1\nHost: {EVIL}\n\n")
    detail = json.loads(body)["detail"]
    assert "no BROADCAST_API_KEY is configured" in detail
    assert "BROADCAST_ALLOWED_HOSTS" in detail


async def test_an_absolute_request_target_does_not_hide_its_host(edge):
    for target, host in ((EVIL, "localhost"), ("localhost", EVIL), ("localhost", "localhost")):
        status, _ = await raw(edge.port, f"GET http://{target}{STATS} HTTP/1.1\nHost: {host}\n\n")
        assert status == 403


@pytest.mark.parametrize(
    "host", ["localhost", "localhost.:1", "LOCALHOST:8080", "127.0.0.2", "[::1]"]
)
async def test_a_program_on_this_machine_gets_what_it_asks_for(edge, host):
    for path in (STATS, "/metrics", "/api/openapi.json"):
        assert (await raw(edge.port, f"GET {path} HTTP/1.1\nHost: {host}\n\n"))[0] == 200
    request = f"POST /dashboard/ticket HTTP/1.1\nHost: {host}\nOrigin: http://{host}\n"
    assert (await raw(edge.port, f"{request}Content-Length: 0\n\n"))[0] == 200


async def test_an_edge_on_all_interfaces_knows_ipv4_clients_of_this_machine(start_edge, bus):
    edge = await start_edge(bus)
    both = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    await web.SockSite(edge.runner, both).start()
    port = both.getsockname()[1]
    assert (await raw(port, f"GET {STATS} HTTP/1.1\nHost: localhost\n\n"))[0] == 200


async def test_in_production_the_api_always_needs_a_key(start_edge, bus, token):
    edge = await start_edge(bus, environment="production")
    admin = f"Authorization: Bearer {token('7', roles=['admin'])}"
    for begin in GUARDED.values():
        for more in ("", f"{admin}\n"):
            request = f"{begin} HTTP/1.1\nHost: localhost\n{more}Content-Length: 0\n\n"
            status, body = await raw(edge.port, request)
            assert (status, json.loads(body)["code"]) == (403, "forbidden")
    assert (await raw(edge.port, "GET /healthz HTTP/1.1\nHost: localhost\n\n"))[0] == 200


async def test_with_a_key_the_host_does_not_matter(start_edge, bus):
    key = "the-key-of-this-test"
    edge = await start_edge(bus, api_key=key, environment="production")
    request = (
        f"GET {STATS} HTTP/1.1\nHost: app.example\nVia: 1.1 p\nAuthorization: Bearer {key}\n\n"
    )
    assert (await raw(edge.port, request))[0] == 200


# Streams

UPGRADE = (
    "Connection: Upgrade\nUpgrade: websocket\nSec-WebSocket-Version: 13\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\n"
)


async def begin(port, text):
    """The status of an answer that may continue."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(text.replace("\n", "\r\n").encode())
        async with asyncio.timeout(40):
            return int((await reader.readline()).split()[1])
    finally:
        writer.close()


def websocket(host, origin):
    return f"GET /ws/general HTTP/1.1\nHost: {host}\nOrigin: {origin}\n{UPGRADE}\n"


def stream(host, more=""):
    return f"GET /sse?channel=general HTTP/1.1\nHost: {host}\n{more}\n"


async def test_a_page_that_has_bound_its_name_opens_no_stream_in_development(edge):
    assert await begin(edge.port, websocket(EVIL, f"http://{EVIL}")) == 403
    # Browsers send no Origin with a GET for the page's own host.
    assert await begin(edge.port, stream(EVIL)) == 403
    assert await begin(edge.port, stream(EVIL, f"Origin: http://{EVIL}\n")) == 403
    body = '[{"action":"subscribe","channel":"general"}]'
    post = f"POST /sse HTTP/1.1\nHost: {EVIL}\nOrigin: http://{EVIL}\n"
    post += f"Content-Type: application/json\nContent-Length: {len(body)}\n\n{body}"
    assert await begin(edge.port, post) == 403


@pytest.mark.parametrize("host", ["localhost:8080", "edge:80", "192.168.1.5", "[::1]:8080"])
async def test_the_nodes_own_pages_open_streams_in_development(edge, host):
    assert await begin(edge.port, websocket(host, f"http://{host}")) == 101
    assert await begin(edge.port, stream(host)) == 200


async def test_a_name_that_is_configured_may_open_streams(start_edge, bus):
    edge = await start_edge(bus, allowed_hosts=("edge.test",))
    assert await begin(edge.port, websocket("edge.test", "https://edge.test")) == 101
    assert await begin(edge.port, stream("edge.test")) == 200
    assert await begin(edge.port, websocket(EVIL, f"http://{EVIL}")) == 403


async def test_allowed_origins_may_open_streams_whatever_the_host(start_edge, bus):
    for allowed in ("https://app.example", "*"):
        edge = await start_edge(bus, cors_allowed_origins=(allowed,))
        assert await begin(edge.port, websocket("app.example", "https://app.example")) == 101
        assert await begin(edge.port, stream("app.example")) == 200


async def test_programs_with_a_token_or_a_websocket_need_no_known_host(edge, token):
    bearer = f"Authorization: Bearer {token('7')}\n"
    assert await begin(edge.port, stream("edge.internal:8080", bearer)) == 200
    upgrade = f"GET /ws/general HTTP/1.1\nHost: edge.internal:8080\n{UPGRADE}\n"
    assert await begin(edge.port, upgrade) == 101


async def test_in_production_a_proxys_host_is_the_nodes_own_unless_names_are_set(start_edge, bus):
    edge = await start_edge(bus, environment="production")
    assert await begin(edge.port, websocket("app.example", "https://app.example")) == 101
    assert await begin(edge.port, stream("app.example")) == 200
    edge = await start_edge(bus, environment="production", allowed_hosts=("app.example",))
    assert await begin(edge.port, websocket("app.example", "https://app.example")) == 101
    assert await begin(edge.port, websocket(EVIL, f"http://{EVIL}")) == 403
    assert await begin(edge.port, stream(EVIL)) == 403


# Behind a proxy on the same machine that says nothing of its clients

PROXIES = {
    "as it comes": "",
    "with the client's Host": "proxy_set_header Host $host;",
    "with HTTP/1.1 for WebSockets": (
        "proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; "
        'proxy_set_header Connection "upgrade";'
    ),
    "with HTTP/1.1 and the client's Host": (
        'proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $host;'
    ),
}


@pytest.fixture
async def start_nginx(tmp_path):
    """`await start_nginx(port, options)`: the port of an nginx in front of another port."""
    started = []

    async def start(port, options):
        own = free_port()
        temp = " ".join(
            f"{kind}_temp_path {tmp_path}/{kind};"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (tmp_path / "nginx.conf").write_text(
            f"daemon off; pid {tmp_path}/pid; error_log stderr; events {{}} "
            f"http {{ access_log off; {temp} server {{ listen 127.0.0.1:{own}; "
            f"location / {{ proxy_pass http://127.0.0.1:{port}; {options} }} }} }}"
        )
        command = ("nginx", "-e", "stderr", "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf"))
        process = await asyncio.create_subprocess_exec(*command)
        started.append(process)
        async with asyncio.timeout(40):
            while True:
                assert process.returncode is None
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", own)
                except OSError:
                    await asyncio.sleep(0.02)
                else:
                    writer.close()
                    return own

    yield start
    for process in started:
        process.terminate()
        await process.wait()


@pytest.mark.nginx
@pytest.mark.parametrize("options", PROXIES.values(), ids=PROXIES)
async def test_a_proxy_that_says_nothing_makes_nobody_an_admin(edge, start_nginx, options):
    port = await start_nginx(edge.port, options)
    for path in (STATS, "/metrics"):
        request = f"GET {path} HTTP/1.1\nHost: app.example\nConnection: close\n\n"
        status, body = await raw(port, request)
        assert (status, json.loads(body)["code"]) == (403, "forbidden")
    assert (await raw(port, "GET /healthz HTTP/1.1\nHost: app.example\n\n"))[0] == 200
