"""docs/troubleshooting.md: every case is tried on real servers, and quotes are exact.

A block under `<!-- seen: name -->` quotes the test that calls `seen(name, …)`: each of its lines is
there, `…` standing for what differs each time.
"""

import asyncio
import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eventbus.server import NatsServer
from eventbus.tokens import issue_token
from tests.edge.conftest import expired
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "troubleshooting.md"
SECRET = "a-secret-of-tests-that-is-32-bytes-long"
PATIENCE_S = 40
IMPATIENT = {"BROADCAST_CONNECT_TIMEOUT": "2"}
"""For servers that are not there."""
QUOTED = dict(
    re.findall(
        r"<!-- seen: (\S+) -->\n+```\w*\n(.*?)\n```",
        PAGE.read_text(encoding="utf-8"),
        re.DOTALL,
    )
)
SEEN = {
    "no-key-log", "no-key-doctor", "401", "401-expired", "401-inspect", "401-metric", "403-origin",
    "403-origin-log", "403-metric", "forbidden", "doctor-cors", "api-403", "test-other-prefix",
    "doctor-no-edges",
    "test-well", "quarantine-log", "quarantine-tail", "memory-503", "memory-metric", "slow-metric",
    "redis-refused", "redis-password", "redis-doctor", "redis-lost", "nats-refused", "nats-doctor",
    "nats-login", "nats-creds", "nats-creds-running", "nats-tls", "nats-permission",
    "nats-lost", "readyz-lost", "redis-deleted", "api-denied",
}  # fmt: skip


def collapsed(text):
    return " ".join(text.split())


def seen(name, text):
    """The text contains what the page quotes under that name."""
    assert name in QUOTED, f"not in the page: {name}:\n{text}"
    for line in QUOTED[name].splitlines():
        if not line.startswith("$ "):
            pattern = ".*?".join(map(re.escape, collapsed(line).split("…")))
            assert re.search(pattern, collapsed(text)), f"{name}: {line!r} is not in:\n{text}"


def test_every_quote_of_the_page_is_tried():
    assert QUOTED.keys() == SEEN
    tried = set(re.findall(r"""seen\(\s*"([\w-]+)\"""", Path(__file__).read_text(encoding="utf-8")))
    assert tried == SEEN


class Edge:
    """`python -m eventbus_edge`, its log in a file."""

    def __init__(self, process, port, log):
        self.process, self.port, self._log = process, port, log
        self.url = f"http://127.0.0.1:{port}"

    @property
    def log(self):
        return self._log.read_text(encoding="utf-8", errors="replace")

    def wait_for(self, text):
        deadline = time.monotonic() + PATIENCE_S
        while text not in self.log:
            assert time.monotonic() < deadline, f"{text!r} is not in:\n{self.log}"
            time.sleep(0.05)
        return self.log


@pytest.fixture
def environ(settings):
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "NATS_URL": settings.nats_url,
        "BROADCAST_CHANNELS_PREFIX": settings.namespace,
        "BROADCAST_HISTORY_BYTES": str(settings.history_bytes),
        "BROADCAST_WEBSOCKET_HOST": "127.0.0.1",
        "BROADCAST_CONNECT_TIMEOUT": "20",
        "BROADCAST_DRAIN_TIME": "0",
        "BROADCAST_MAX_CONNECTIONS": "100",
        "JWT_SECRET": SECRET,
        "NO_COLOR": "1",
        "COLUMNS": "100",
    }


@pytest.fixture
def start(environ, tmp_path):
    """Start an edge that listens: `start(JWT_SECRET="")`."""
    with contextlib.ExitStack() as stack:

        def start_edge(**changes):
            port = free_port()
            log = tmp_path / f"edge-{port}.log"
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", "eventbus_edge"],
                    env=environ | {"BROADCAST_WEBSOCKET_PORT": str(port)} | changes,
                    cwd=tmp_path,
                    stdout=subprocess.PIPE,
                    stderr=stack.enter_context(log.open("wb")),
                )
            )
            stack.callback(process.kill)
            assert process.stdout.readline(), log.read_text()
            return Edge(process, port, log)

        yield start_edge


@pytest.fixture
def run(run_command, environ, tmp_path):
    """Run a command to its end; gives all that it writes."""

    def run(*arguments, text="", **changes):
        env = {"BROADCAST_WEBSOCKET_PORT": "0"} | environ | changes
        done = run_command(*arguments, env=env, cwd=tmp_path, input=text)
        return f"{done.stdout}{done.stderr}(exit code {done.returncode})"

    return run


def curl(url, *arguments):
    """Headers and body of an answer, as curl shows them."""
    done = subprocess.run(
        ["curl", "-si", "--max-time", "40", *arguments, url],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout


UPGRADE = (
    *("-H", "Connection: Upgrade", "-H", "Upgrade: websocket", "-H", "Sec-WebSocket-Version: 13"),
    *("-H", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="),
)


def metrics(edge, *arguments):
    return curl(f"{edge.url}/metrics", *arguments)


# The connection fails


def test_edge_without_a_key_refuses_all_tokens(start, run):
    edge = start(JWT_SECRET="")
    seen("no-key-log", edge.wait_for("all tokens"))
    seen("no-key-doctor", run("doctor", JWT_SECRET=""))


def test_token_that_is_wrong_or_expired(start, run):
    edge = start()
    seen("401", curl(f"{edge.url}/ws/user.7", *UPGRADE))
    old = expired()
    answer = curl(f"{edge.url}/ws/user.7", *UPGRADE, "-H", f"Authorization: Bearer {old}")
    seen("401-expired", answer)
    other = issue_token("7", secret=SECRET[::-1])
    seen("401-inspect", run("token", "inspect", text=other))
    curl(f"{edge.url}/ws/user.7", *UPGRADE, "-H", f"Authorization: Bearer {other}")
    seen("401-metric", metrics(edge))


def test_origin_that_is_not_allowed(start, run):
    edge = start(CORS_ALLOWED_ORIGINS="https://app.example.com")
    origin = ("-H", "Origin: http://localhost:3000")
    seen("403-origin", curl(f"{edge.url}/ws", *UPGRADE, *origin))
    seen("403-origin-log", edge.wait_for("eventbus_edge.access.hosts"))
    seen("403-metric", metrics(edge))
    seen("doctor-cors", run("doctor", CORS_ALLOWED_ORIGINS="https://app.example.com/"))


def test_channel_that_the_token_does_not_allow(start):
    edge = start()
    token = issue_token("7", secret=SECRET)
    seen(
        "forbidden",
        curl(f"{edge.url}/sse?channel=user.8", "-H", f"Authorization: Bearer {token}"),
    )


def test_http_api_without_a_key_answers_loopback_only(start):
    edge = start()
    proxied = ("-H", "X-Forwarded-For: 203.0.113.7")
    seen("api-403", curl(f"{edge.url}/api/broadcast/stats", *proxied))


# Dispatched, and not received


def test_edge_with_another_prefix_receives_nothing(start, run, namespace):
    edge = start(BROADCAST_CHANNELS_PREFIX=f"{namespace}-b")
    seen("test-other-prefix", run("broadcast", "test", "--url", edge.url))
    run("setup")
    seen("doctor-no-edges", run("doctor"))


def test_way_of_a_message_that_works(start, run):
    start()
    seen("test-well", run("broadcast", "test"))


async def test_payload_that_is_not_a_message_is_quarantined(start, nats_server, namespace, environ):
    import nats  # noqa: PLC0415

    edge = await asyncio.to_thread(start)
    bus = await nats.connect(nats_server.url)
    received = await bus.subscribe(f"{namespace}.quarantine.>")
    reader = await asyncio.create_subprocess_exec(
        "curl", "-sN", f"{edge.url}/sse?channel=general", stdout=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(PATIENCE_S):
            while b"eb:subscribed" not in (line := await reader.stdout.readline()):
                assert line, "curl has ended"
        await bus.publish(f"{namespace}.event.general", b"not JSON")
        message = await received.next_msg(PATIENCE_S)
        lines = [f"Subject: eb{message.subject.removeprefix(namespace)}"]
        lines += [f"{name}: {value}" for name, value in message.headers.items()]
        seen("quarantine-tail", "\n".join(lines))
        log = await asyncio.to_thread(edge.wait_for, "quarantine")
        seen("quarantine-log", log.replace(namespace, "eb"))
    finally:
        reader.kill()
        await reader.communicate()
        await bus.close()


# Memory


def test_node_over_its_memory_refuses_new_connections(start):
    edge = start(BROADCAST_MAX_MEMORY="1000000")
    seen("memory-503", curl(f"{edge.url}/ws", *UPGRADE))
    seen("memory-metric", metrics(edge))


async def test_slow_client_is_cut_at_its_bound(start, nats_server, namespace):
    import nats  # noqa: PLC0415

    edge = await asyncio.to_thread(start, BROADCAST_MAX_UNSENT_BYTES="100000")
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", edge.port))
        slow.sendall(
            b"GET /ws/general HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        received = b""
        while b"eb:subscribed" not in received:
            received += await asyncio.to_thread(slow.recv, 4096)
        bus = await nats.connect(nats_server.url)
        body = json.dumps({"event": "e", "data": "x" * 30_000}).encode()
        try:
            async with asyncio.timeout(PATIENCE_S):
                while 'closes_total{code="4201"}' not in (output := await asyncio.to_thread(
                    metrics, edge
                )):  # fmt: skip
                    for _ in range(50):
                        await bus.publish(f"{namespace}.live.general", body)
                    await bus.flush()
        finally:
            await bus.close()
    seen("slow-metric", output)


# Redis refuses


@pytest.fixture
def redis(tmp_path):
    """A redis-server with a password: its port, and how to stop it."""
    port = free_port()
    options = [
        "--bind",
        "127.0.0.1",
        "--dir",
        str(tmp_path),
        "--save",
        "",
        "--requirepass",
        "right",
    ]
    process = subprocess.Popen(
        ["redis-server", "--port", str(port), *options], stdout=subprocess.DEVNULL
    )
    wait_for_port(port)
    yield port, process
    process.kill()
    process.wait()


def wait_for_port(port):
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        else:
            return


@pytest.mark.redis
def test_redis_that_is_not_there_or_wants_another_password(run, redis):
    on = IMPATIENT | {"BROADCAST_DRIVER": "redis", "BROADCAST_REDIS_PASSWORD": "wrong"}
    nobody = on | {"BROADCAST_REDIS_PORT": str(free_port())}
    seen("redis-refused", run("edge", "run", **nobody))
    wrong = on | {"BROADCAST_REDIS_PORT": str(redis[0])}
    seen("redis-password", run("edge", "run", **wrong))
    seen("redis-doctor", run("doctor", **wrong))


@pytest.mark.redis
def test_redis_that_goes_away(start, redis):
    port, process = redis
    edge = start(
        BROADCAST_DRIVER="redis", BROADCAST_REDIS_PORT=str(port), BROADCAST_REDIS_PASSWORD="right"
    )
    process.kill()
    seen("redis-lost", edge.wait_for("lost"))


@pytest.mark.redis
def test_redis_whose_user_is_deleted(start, redis):
    port, _ = redis

    def acl(*arguments):
        done = subprocess.run(
            ["redis-cli", "-p", str(port), "-a", "right", "--no-auth-warning", "ACL", *arguments],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert "ERR" not in done.stdout

    acl("SETUSER", "ada", "on", ">s", "~*", "&*", "+@all")
    edge = start(
        BROADCAST_DRIVER="redis", BROADCAST_REDIS_PORT=str(port),
        BROADCAST_REDIS_USERNAME="ada", BROADCAST_REDIS_PASSWORD="s",
    )  # fmt: skip
    acl("DELUSER", "ada")
    seen("redis-deleted", edge.wait_for("user is disabled"))


# NATS refuses


@pytest.fixture
async def own_server(tmp_path):
    async with contextlib.AsyncExitStack() as stack:

        async def start_server(**config):
            server = NatsServer(tmp_path / f"nats-{free_port()}", config=config)
            return await stack.enter_async_context(server)

        yield start_server


async def test_nats_that_is_not_there(run):
    nobody = IMPATIENT | {"NATS_URL": f"nats://127.0.0.1:{free_port()}"}
    seen("nats-refused", await asyncio.to_thread(run, "edge", "run", **nobody))
    seen("nats-doctor", await asyncio.to_thread(run, "doctor", **nobody))


async def test_nats_that_refuses_the_login_or_has_no_tls(run, own_server):
    server = await own_server(authorization={"users": [{"user": "ada", "password": "right"}]})
    url = server.url.replace("//", "//ada:wrong@")
    seen("nats-login", await asyncio.to_thread(run, "edge", "run", NATS_URL=url))
    plain = (await own_server()).url.replace("nats:", "tls:")
    seen("nats-tls", await asyncio.to_thread(run, "edge", "run", NATS_URL=plain, **IMPATIENT))


async def test_nats_that_does_not_permit_to_publish(run, own_server):
    may = {"publish": {"deny": ["eb.event.>"]}}
    user = {"user": "ada", "password": "right", "permissions": may}
    server = await own_server(authorization={"users": [user]})
    output = await asyncio.to_thread(
        run, "subjects", "publish", "orders.1", "shipped", "{}",
        NATS_URL=server.url.replace("//", "//ada:right@"), BROADCAST_CHANNELS_PREFIX="eb",
    )  # fmt: skip
    seen("nats-permission", output)


async def test_http_api_of_an_edge_that_may_not_publish(start, own_server):
    may = {"publish": {"deny": ["eb.event.>"]}}
    user = {"user": "ada", "password": "right", "permissions": may}
    server = await own_server(authorization={"users": [user]})
    url = server.url.replace("//", "//ada:right@")
    edge = await asyncio.to_thread(start, NATS_URL=url, BROADCAST_CHANNELS_PREFIX="eb")
    event = '{"channel":"orders.1","event":"shipped","data":1}'
    json_body = ("-H", "Content-Type: application/json", "-d", event)
    answer = await asyncio.to_thread(curl, f"{edge.url}/api/broadcast/events", *json_body)
    seen("api-denied", answer)


async def test_nats_that_goes_away(start, own_server):
    server = await own_server()
    edge = await asyncio.to_thread(start, NATS_URL=server.url)
    await server.stop()
    seen("nats-lost", await asyncio.to_thread(edge.wait_for, "is lost"))
    seen("readyz-lost", await asyncio.to_thread(curl, f"{edge.url}/readyz"))


async def test_nats_credentials_that_are_no_longer_good(start, run, jwt_server, operator, tmp_path):
    creds = tmp_path / "edge.creds"
    given = {"NATS_URL": jwt_server.url, "NATS_CREDS": str(creds)}
    creds.write_text(operator.user("admin", name="edge", exp=1), encoding="utf-8")
    seen("nats-creds", (await asyncio.to_thread(run, "edge", "run", **given)))
    creds.write_text(operator.user("admin", name="edge"), encoding="utf-8")
    edge = await asyncio.to_thread(start, **given)
    operator.revoke_all()
    jwt_server.renew()
    seen("nats-creds-running", await asyncio.to_thread(edge.wait_for, "refuses the credentials"))
