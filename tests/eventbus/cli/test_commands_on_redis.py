"""The commands over Redis: the cluster is asked, shown and purged there too."""

import contextlib
import json
import re
import socket
import subprocess
import time

import pytest

from tests.ports import free_port

pytestmark = pytest.mark.redis


@pytest.fixture
def redis_port(tmp_path):
    port = free_port()
    options = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(tmp_path), "--save", ""]
    with subprocess.Popen(["redis-server", *options], stdout=subprocess.DEVNULL) as server:
        ends = time.monotonic() + 30
        while time.monotonic() < ends:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
        yield port
        server.kill()


@pytest.fixture
def cli_environment(cli_environment, redis_port):
    return {
        **cli_environment,
        "BROADCAST_DRIVER": "redis",
        "BROADCAST_REDIS_URL": f"redis://127.0.0.1:{redis_port}",
        "NATS_URL": "",
    }


def test_message_comes_back_and_is_listed_tailed_and_purged(eventbus, start_node):
    address = start_node()
    shown = eventbus("broadcast", "test")
    assert shown.returncode == 0, shown.stderr
    assert f"delivered by {address}" in shown.stdout
    published = re.match(r"published test on general: offset (\d+),", shown.stdout)
    assert published is not None, shown.stdout
    offset = int(published[1])  # those of a new epoch do not begin at 1
    assert "redis: 1 node" in eventbus("broadcast", "stats").stdout
    rows = json.loads(eventbus("subjects", "list", "--json").stdout)["channels"]
    assert [(row["channel"], row["kind"], row["stored"]) for row in rows] == [
        ("general", "public", 1)
    ]
    tail = eventbus("subjects", "tail", "*", "--last", "5", "--count", "1", "--json")
    assert json.loads(tail.stdout)["event"] == "test"
    inspected = json.loads(eventbus("subjects", "inspect", "general", "--json").stdout)
    assert (inspected["history"]["messages"], inspected["history"]["offset"]) == (1, offset)
    assert "deleted 1 message" in eventbus("subjects", "purge", "general", "--yes").stdout
    assert f"offset {offset + 1}," in eventbus("broadcast", "test").stdout
    pinged = eventbus("broadcast", "ping", "--count", "1").stdout
    assert re.search(r"1 sent, 1 received, 0% lost", pinged)


def test_unreachable_redis_is_reported(eventbus, cli_environment):
    away = {"BROADCAST_REDIS_URL": "redis://127.0.0.1:1", "BROADCAST_CONNECT_TIMEOUT": "0.3"}
    shown = eventbus("broadcast", "stats", env=cli_environment | away)
    assert shown.returncode == 1
    assert "BROADCAST_REDIS" in shown.stderr
    assert "Traceback" not in shown.stderr
