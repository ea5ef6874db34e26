"""A deployment on Redis by the documented settings: two edges and a service, as processes."""

import asyncio
import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from eventbus.cli.tokens import issue_token

pytestmark = [pytest.mark.redis, pytest.mark.timeout(120)]
ROOT = Path(__file__).parents[2]
ORIGIN = "https://app.example.com"
PASSWORD = f"a-password-for-{secrets.token_hex(4)}"
JWT_SECRET = secrets.token_urlsafe(32)
PUBLISHER = """
import asyncio, sys
from eventbus import Event, EventBus, ShouldBroadcast

class OrderShipped(Event, ShouldBroadcast, channel="user.{user_id}"):
    user_id: int
    carrier: str

async def main():
    async with EventBus.from_env():
        await OrderShipped(user_id=7, carrier="DHL").dispatch()

asyncio.run(main())
"""


def free_port():
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as free:
        return free.getsockname()[1]


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
        "BROADCAST_CONNECT_TIMEOUT": "5",
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
                    [sys.executable, "-m", "edge"],
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
        f"ws://127.0.0.1:{port}/ws/user.7", origin=origin, additional_headers=headers, proxy=None
    )


async def event(socket):
    """The next event that is not of the protocol's own."""
    async with asyncio.timeout(15):
        while (frame := json.loads(await socket.recv()))["event"].startswith("eb:"):
            pass
    return frame


async def test_event_of_a_service_reaches_clients_of_both_edges(environ, edges):
    async with contextlib.AsyncExitStack() as stack:
        sockets = []
        for port in (*edges, *edges):
            opened = await stack.enter_async_context(client(port, issue_token(JWT_SECRET, "7")))
            async with asyncio.timeout(15):
                while json.loads(await opened.recv())["event"] != "eb:subscribed":
                    pass
            sockets.append(opened)
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


@pytest.mark.parametrize("is_forged", [True, False])
async def test_without_a_good_token_there_is_401(edges, is_forged):
    token = issue_token(secrets.token_urlsafe(32), "7") if is_forged else None
    with pytest.raises(InvalidStatus) as refused:
        await client(edges[0], token)
    assert refused.value.response.status_code == 401


async def test_page_of_another_origin_gets_403(edges):
    for port in edges:
        with pytest.raises(InvalidStatus) as refused:
            await client(port, issue_token(JWT_SECRET, "7"), origin="https://evil.example")
        assert refused.value.response.status_code == 403


def test_wrong_password_ends_the_publisher_with_the_reason(environ):
    done = publish(environ, BROADCAST_REDIS_PASSWORD="another")
    assert done.returncode != 0
    assert "BROADCAST_REDIS_PASSWORD" in done.stderr
    assert PASSWORD not in done.stderr
