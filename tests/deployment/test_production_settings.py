"""A deployment on Redis by the documented settings: two edges and a service, as processes."""

import asyncio
import contextlib
import json
import os
import secrets
import subprocess
import sys
import time
from pathlib import Path

import aiohttp
import pytest
import yaml
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from eventbus.tokens import issue_token
from tests.ports import free_port

pytestmark = [
    pytest.mark.redis,
    pytest.mark.xdist_group("production-settings"),
    pytest.mark.timeout(240),
]
ROOT = Path(__file__).parents[2]
ORIGIN = "https://app.example.com"
PASSWORD = f"a-password-for-{secrets.token_hex(4)}"
JWT_SECRET = secrets.token_urlsafe(32)
SOON = {"BROADCAST_CONNECT_TIMEOUT": "1"}
PUBLISHER = """
import asyncio, os
from eventbus import Event, EventBus, ShouldBroadcast

class OrderShipped(Event, ShouldBroadcast, channel="user.{user_id}"):
    user_id: int
    carrier: str

async def main():
    async with EventBus.from_env():
        await OrderShipped(user_id=7, carrier=os.environ.get("CARRIER", "DHL")).dispatch()

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def redis(tmp_path_factory):
    """A redis-server with a password; gives its port."""
    port = free_port()
    folder = tmp_path_factory.mktemp("redis")
    options = ["--bind", "127.0.0.1", "--dir", folder, "--save", "", "--requirepass", PASSWORD]
    process = subprocess.Popen(
        ["redis-server", "--port", str(port), *options], stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 20
    while redis_cli(port, 0, "PING") != "PONG":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    yield port
    process.kill()
    process.wait()


def redis_cli(port, database, *command):
    done = subprocess.run(
        ["redis-cli", "-p", str(port), "-n", str(database), *command],
        env={"PATH": os.environ["PATH"], "REDISCLI_AUTH": PASSWORD},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip()


@pytest.fixture(scope="module")
def environ(redis):
    """What all processes of the deployment have."""
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "BROADCAST_ENVIRONMENT": "production",
        "BROADCAST_DRIVER": "redis",
        "BROADCAST_REDIS_HOST": "127.0.0.1",
        "BROADCAST_REDIS_PORT": str(redis),
        "BROADCAST_REDIS_PASSWORD": PASSWORD,
        "BROADCAST_REDIS_DATABASE": "3",
        "BROADCAST_CHANNELS_PREFIX": "shop",
        "BROADCAST_CONNECT_TIMEOUT": "30",
    }


@pytest.fixture(scope="module")
def edges(environ):
    """Two edges; gives the ports that were set."""
    with contextlib.ExitStack() as stack:
        ports = [free_port(), free_port()]
        for port, workers in zip(ports, ("1", "2"), strict=True):
            own = {
                "JWT_SECRET": JWT_SECRET,
                "CORS_ALLOWED_ORIGINS": ORIGIN,
                "BROADCAST_WEBSOCKET_HOST": "127.0.0.1",
                "BROADCAST_WEBSOCKET_PORT": str(port),
                "BROADCAST_WORKERS": workers,
                "BROADCAST_DRAIN_TIME": "0",
            }
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", "eventbus_edge"],
                    env=environ | own,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                )
            )
            stack.callback(process.terminate)
            assert f":{port} " in process.stdout.readline()
        yield ports


def publish(environ, **changes):
    return subprocess.run(
        [sys.executable, "-c", PUBLISHER],
        env=environ | changes,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def client(port, token=None, origin=ORIGIN):
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return connect(
        f"ws://127.0.0.1:{port}/ws/user.7",
        origin=origin,
        additional_headers=headers,
        proxy=None,
        open_timeout=40,
    )


async def subscribed(stack, port):
    """A client of user.7, once it receives messages published there."""
    opened = await stack.enter_async_context(client(port, issue_token("7", secret=JWT_SECRET)))
    async with asyncio.timeout(40):
        while json.loads(await opened.recv())["event"] != "eb:subscribed":
            pass
    return opened


async def event(socket):
    """The next event that is not of the protocol's own."""
    async with asyncio.timeout(40):
        while (frame := json.loads(await socket.recv()))["event"].startswith("eb:"):
            pass
    return frame


async def test_event_of_a_service_reaches_clients_of_both_edges(environ, edges):
    async with contextlib.AsyncExitStack() as stack:
        sockets = [await subscribed(stack, port) for port in (*edges, *edges)]
        done = await asyncio.to_thread(publish, environ)
        assert done.returncode == 0, done.stderr
        for opened in sockets:
            frame = await event(opened)
            assert (frame["channel"], frame["data"]["carrier"]) == ("user.7", "DHL")


def test_prefix_and_database_are_where_the_messages_are(environ, edges, redis):
    assert publish(environ).returncode == 0
    keys = redis_cli(redis, 3, "--scan").splitlines()
    assert keys
    assert all("shop" in key for key in keys)
    assert redis_cli(redis, 0, "--scan") == ""


async def test_other_prefix_on_the_same_redis_is_another_deployment(environ, edges):
    async with contextlib.AsyncExitStack() as stack:
        opened = await subscribed(stack, edges[0])
        for prefix, carrier in (("another", "UPS"), ("shop", "DHL")):
            done = await asyncio.to_thread(
                publish, environ, BROADCAST_CHANNELS_PREFIX=prefix, CARRIER=carrier
            )
            assert done.returncode == 0, done.stderr
        assert (await event(opened))["data"]["carrier"] == "DHL"


@pytest.mark.parametrize("is_forged", [True, False])
async def test_without_a_good_token_there_is_401(edges, is_forged):
    token = issue_token("7", secret=secrets.token_urlsafe(32)) if is_forged else None
    with pytest.raises(InvalidStatus) as refused:
        await client(edges[0], token)
    assert refused.value.response.status_code == 401


async def test_page_of_another_origin_gets_403(edges):
    for port in edges:
        with pytest.raises(InvalidStatus) as refused:
            await client(port, issue_token("7", secret=JWT_SECRET), origin="https://evil.example")
        assert refused.value.response.status_code == 403


async def test_page_of_an_origin_that_is_named_may_read_events_and_others_may_not(edges):
    headers = {"Authorization": f"Bearer {issue_token('7', secret=JWT_SECRET)}"}
    for port in edges:
        url = f"http://127.0.0.1:{port}/sse?channel=user.7"
        async with aiohttp.ClientSession(headers=headers) as session:
            async with session.get(url, headers={"Origin": ORIGIN}) as response:
                assert response.status == 200
                assert response.headers["Access-Control-Allow-Origin"] == ORIGIN
            async with session.get(url, headers={"Origin": "https://evil.example"}) as response:
                assert response.status == 403
                assert "Access-Control-Allow-Origin" not in response.headers


def run_edge(environ, **changes):
    return subprocess.run(
        [sys.executable, "-m", "eventbus_edge"],
        env=environ | {"BROADCAST_WEBSOCKET_PORT": "0", "JWT_SECRET": JWT_SECRET} | changes,
        capture_output=True, text=True, timeout=150, check=False,
    )  # fmt: skip


def secret_of_development():
    """What everybody can read in the compose file for development."""
    text = (ROOT / "compose" / "compose.dev.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)["services"]["edge"]["environment"]["JWT_SECRET"]


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize(
    ("secret", "why"),
    [
        ("", "no key to check tokens with is set"),
        (secret_of_development(), "JWT_SECRET contains 'development'"),
    ],
    ids=["no secret", "that of development"],
)
def test_start_without_a_secret_of_its_own_is_refused_with_the_reason(
    environ, secret, why, workers
):
    done = run_edge(environ, JWT_SECRET=secret, BROADCAST_WORKERS=workers)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"BROADCAST_ENVIRONMENT=production: {why}" in done.stderr
    assert not secret or secret not in done.stderr


def test_port_in_use_is_reported_with_the_name_of_its_setting(environ, edges):
    for workers in ("1", "2"):
        done = run_edge(
            environ, BROADCAST_WEBSOCKET_HOST="127.0.0.1", BROADCAST_WORKERS=workers,
            BROADCAST_WEBSOCKET_PORT=str(edges[0]),
        )  # fmt: skip
        assert done.returncode == 2
        assert f"BROADCAST_WEBSOCKET_PORT={edges[0]}" in done.stderr


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"BROADCAST_REDIS_PASSWORD": "another"}, "BROADCAST_REDIS_PASSWORD"),
        ({"BROADCAST_REDIS_HOST": "nowhere.invalid", **SOON}, "BROADCAST_REDIS_HOST"),
        ({"BROADCAST_REDIS_PORT": "1", **SOON}, "BROADCAST_REDIS_PORT"),
        ({"BROADCAST_REDIS_DATABASE": "99"}, "BROADCAST_REDIS_DATABASE"),
        ({"BROADCAST_REDIS_ENABLED": "false"}, "BROADCAST_REDIS_ENABLED"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_edge_that_may_not_or_cannot_use_redis_ends_and_names_the_setting(environ, changes, named):
    done = run_edge(environ, **changes)
    assert done.returncode in {1, 2}
    assert named in done.stderr
    assert PASSWORD not in done.stderr


def test_wrong_password_ends_the_publisher_with_the_reason(environ):
    done = publish(environ, BROADCAST_REDIS_PASSWORD="another")
    assert done.returncode != 0
    assert "BROADCAST_REDIS_PASSWORD" in done.stderr
    assert PASSWORD not in done.stderr
