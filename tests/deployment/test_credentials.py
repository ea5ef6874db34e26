"""NATS in operator mode: users are JWTs, with the very lists of compose/nats/permissions.conf."""

import asyncio
import os
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from eventbus.bus import EventBus
from eventbus.config import Settings
from eventbus.errors import ConnectionFailed, EventBusError, PublishFailed

COMPOSE = Path(__file__).parents[2] / "compose"
ROLES = ("publisher", "edge", "worker", "cli", "backup")
MESSAGE = b'{"event":"x","data":1}'


@pytest.fixture
def login(operator, jwt_server, tmp_path):
    """Settings of a bus that logs in as a kind of user, by a file of credentials."""

    def make(role, text=None, **changes):
        path = tmp_path / f"{role}.creds"
        path.write_text(operator.user(role) if text is None else text, encoding="utf-8")
        given = {
            "nats_url": jwt_server.url, "nats_creds": str(path), "history_bytes": 4 * 1024**2,
            "nats_inbox_prefix": "_INBOX" if role == "admin" else f"_INBOX.{role}",
        }  # fmt: skip
        return Settings(**given | changes)

    return make


@pytest.fixture
async def streams(login):
    """Made by the only user who may."""
    async with EventBus(login("admin")) as bus:
        await bus.driver.prepare()


async def published(bus, channel="general"):
    return await bus.driver.publish(bus.subjects.event(channel), MESSAGE)


@pytest.mark.usefixtures("streams")
async def test_publisher_logs_in_by_credentials_and_cannot_read(login):
    async with EventBus(login("publisher")) as bus:
        assert (await published(bus)).position.offset == 1
        for subject in (bus.subjects.live("general"), bus.subjects.event("general"), "eb.live.>"):
            with pytest.raises(ConnectionFailed, match="no permission to subscribe"):
                await bus.driver.subscribe(subject, print)
        with pytest.raises(EventBusError, match="no permission"):
            await bus.driver.read(bus.subjects.live("general"), after=None, limit=1)


@pytest.mark.usefixtures("streams")
async def test_edge_logs_in_by_credentials_subscribes_reads_and_cannot_publish_events(login):
    received = asyncio.Queue()
    async with EventBus(login("edge")) as edge, EventBus(login("publisher")) as publisher:
        live = edge.subjects.live("orders.1")
        await edge.driver.subscribe(live, received.put_nowait)
        await published(publisher, "orders.1")
        async with asyncio.timeout(40):
            assert (await received.get()).payload == MESSAGE
        assert len((await edge.driver.read(live, after=None, limit=1)).messages) == 1
        with pytest.raises(PublishFailed, match=r"no permission to publish to eb\.event\.orders"):
            await published(edge, "orders.1")


@pytest.mark.usefixtures("streams")
async def test_worker_logs_in_by_credentials_and_takes_jobs(login):
    async with EventBus(login("worker")) as worker, EventBus(login("publisher")) as publisher:
        await (await publisher.queues()).push("default", "job-1", b"{}", 0)
        reader = (await worker.queues()).reader("default")
        async with asyncio.timeout(40):
            await (await reader.wait()).done()
        await reader.aclose()


def test_an_edge_with_credentials_that_have_expired_ends_and_says_why(login, operator):
    settings = login("edge", operator.user("edge", exp=1))
    done = subprocess.run(
        [sys.executable, "-c", "from eventbus.cli.app import main; main()", "edge", "run"],
        env={
            "PATH": os.environ["PATH"],
            "NATS_URL": settings.nats_url,
            "NATS_CREDS": settings.nats_creds,
            "NATS_INBOX_PREFIX": settings.nats_inbox_prefix,
            "BROADCAST_WEBSOCKET_PORT": "0",
        },
        cwd=Path(settings.nats_creds).parent,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 1
    assert "NATS_CREDS" in done.stderr
    assert "user 'edge' expired at 1970-01-01T00:00:01Z" in done.stderr


@pytest.mark.parametrize("namespace", ["eb", "shop"])
def test_commands_of_nsc_grant_what_permissions_conf_does(namespace):
    made = runpy.run_path(str(COMPOSE / "nsc_users.py"))
    text = (COMPOSE / "nats" / "permissions.conf").read_text(encoding="utf-8")
    permissions = made["read_permissions"](text, namespace)
    assert tuple(permissions) == ROLES
    printed = [shlex.split(line) for line in made["commands"](permissions, "ACME")]
    reported = {line[line.index("--name") + 1]: line for line in printed}
    assert set(reported) == {*ROLES, "admin"}
    assert "--allow-pub" not in reported["admin"]
    for role in ROLES:
        line = reported[role]
        for flag, rights in (("--allow-pub", "publish"), ("--allow-sub", "subscribe")):
            allowed = permissions[role][rights]["allow"]
            assert line[line.index(flag) + 1].split(",") == allowed
            subjects = [each.replace(f"{namespace}.", "eb.", 1) for each in allowed]
            renamed = [each.replace(f"{namespace.upper()}_", "EB_") for each in subjects]
            assert all(f'"{each}"' in text for each in renamed)
        assert ("--allow-pub-response=1" in line) == (role == "edge")
    assert all(len(permissions[role]["publish"]["allow"]) > 3 for role in ROLES)


@pytest.mark.parametrize("text", ["A {", 'A { b: [ "c" }', "A { b: 'c' }", "} A"])
def test_permissions_that_are_not_understood_are_refused(text):
    read = runpy.run_path(str(COMPOSE / "nsc_users.py"))["read_permissions"]
    with pytest.raises(ValueError, match=r"permissions\.conf"):
        read(text)
