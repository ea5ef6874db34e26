"""A NATS user whose permissions change while it is connected.

nats-server ends a subscription that is no longer allowed, and says so in an error that names the
subject. The connection stays, and no message says that nothing will follow.
"""

import asyncio

import aiohttp
import pytest
from msgspec.structs import replace

from eventbus.bus import EventBus
from eventbus.config import Settings
from eventbus.drivers.nats.connection import subscriptions as server_subscriptions
from eventbus.errors import PublishDenied, PublishFailed, SubscribeDenied
from eventbus.server import NatsServer
from eventbus.testing.contracts import Inbox
from tests.eventbus.drivers.nats.conftest import opened, until

BYTES = 4 * 1024**2
PATIENCE_S = 30.0
PASSWORD = "a-password-for-nodes"


def users(*, publish=(), subscribe=()):
    """Two users: `node`, who is denied something, and `admin`, who is not."""
    permissions = {"publish": {"deny": list(publish)}, "subscribe": {"deny": list(subscribe)}}
    node = {"user": "node", "password": PASSWORD}
    if publish or subscribe:
        node["permissions"] = permissions
    return {"authorization": {"users": [node, {"user": "admin", "password": PASSWORD}]}}


@pytest.fixture
async def server(tmp_path):
    async with NatsServer(tmp_path / "nats", config=users()) as server:
        yield server


@pytest.fixture
def admin(server):
    url = server.url.replace("://", f"://admin:{PASSWORD}@")
    return Settings(nats_url=url, namespace="own", history_bytes=BYTES)


@pytest.fixture
def node(server, admin, monkeypatch):
    monkeypatch.setattr(server_subscriptions, "_RETRY_REFUSED_S", 0.2)
    url = server.url.replace("://", f"://node:{PASSWORD}@")
    return replace(admin, nats_url=url, publish_timeout=5)


def refused(driver):
    return driver._connection.subscriptions.refused


@pytest.mark.parametrize("subject", ["own.live.a", "own.live.>"])
async def test_subscription_that_is_revoked_is_reported_and_recovers_without_a_loss(
    server, admin, node, subject, caplog
):
    async with opened(node) as driver, opened(admin) as publisher:
        inbox, other = Inbox(), Inbox()
        await driver.subscribe(subject, inbox)
        await driver.subscribe("own.control.a", other)
        await publisher.publish("own.event.a", b"before")
        await inbox.until(1)
        server.reload(users(subscribe=[subject]))
        await until(lambda: refused(driver) == 1)
        assert "refuses 1 subscriptions" in await driver.check()
        assert subject in caplog.text
        await publisher.publish("own.event.a", b"meanwhile")
        await publisher.publish("own.control.a", b"others stay")
        await other.until(1)
        assert driver.counters["losses"] == 0
        server.reload(users())
        await until(lambda: refused(driver) == 0)
        await publisher.publish("own.event.a", b"after")
        await inbox.until(3)
        assert inbox.payloads == [b"before", b"meanwhile", b"after"]
        assert await driver.check() == ""
        assert driver.counters["gaps"] == 0


async def test_subscription_that_is_refused_after_a_reconnect_is_reported_and_recovers(
    server, admin, node
):
    async with opened(node) as driver, opened(admin) as publisher:
        inbox = Inbox()
        await driver.subscribe("own.live.a", inbox)
        await server.stop()
        server._config |= users(subscribe=["own.live.a"])
        await server.start()
        await until(lambda: refused(driver) == 1)
        await publisher.publish("own.event.a", b"meanwhile")
        assert "refuses 1 subscriptions" in await driver.check()
        server.reload(users())
        await inbox.until(1)
        await publisher.publish("own.event.a", b"after")
        await inbox.until(2)
        assert inbox.payloads == [b"meanwhile", b"after"]


async def test_subscription_that_is_not_allowed_is_refused_and_not_tried_again(server, node):
    async with opened(node) as driver:
        await driver.subscribe("own.live.b", Inbox())
        server.reload(users(subscribe=["own.live.a", "own.live.b"]))
        await until(lambda: refused(driver) == 1)  # so the new configuration applies
        with pytest.raises(SubscribeDenied, match=r"no permission to subscribe to own\.live\.a"):
            await driver.subscribe("own.live.a", Inbox())
        assert refused(driver) == 1


async def test_replies_that_are_revoked_fail_at_once_and_come_back(server, node):
    async with opened(node) as driver:
        server.reload(users(subscribe=["_INBOX.>"]))
        await until(lambda: refused(driver) == 1)
        with pytest.raises(PublishFailed, match="NATS_INBOX_PREFIX"):
            await driver.publish("own.event.a", b"x")
        assert await driver.check() != ""
        server.reload(users())
        await until(lambda: refused(driver) == 0)
        assert (await driver.publish("own.event.a", b"x")).position.offset >= 1


async def test_right_to_publish_that_is_revoked_is_an_error_at_once_and_comes_back(server, node):
    async with opened(node) as driver:
        await driver.publish("own.event.a", b"before")
        # The subscription shows when the new configuration applies.
        await driver.subscribe("own.control.a", Inbox())
        server.reload(users(publish=["own.event.a"], subscribe=["own.control.a"]))
        await until(lambda: refused(driver) == 1)
        with pytest.raises(PublishDenied, match=r"no permission to publish to own\.event\.a"):
            await driver.publish("own.event.a", b"denied")
        await driver.publish("own.event.b", b"others pass")
        server.reload(users())
        await until(lambda: refused(driver) == 0)
        assert (await driver.publish("own.event.a", b"after")).position.offset == 3


async def test_edge_whose_subscriptions_are_revoked_is_degraded_and_catches_up(
    server, admin, node, start_edge
):
    edge = await start_edge(node)
    async with EventBus(admin) as bus, aiohttp.ClientSession(edge.url) as http:
        client = await edge.connect("/ws/general")
        await client.next()
        await bus.publish("general", "tick", 1)
        assert (await client.next())["data"] == 1

        async def becomes(status):
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    async with http.get("/readyz") as response:
                        body = await response.json()
                    if body.get("status") == status:
                        return body
                    await asyncio.sleep(0.05)

        server.reload(users(subscribe=["own.live.general"]))
        assert (await becomes("degraded"))["reason"]
        await bus.publish("general", "tick", 2)
        server.reload(users())
        assert (await client.next())["data"] == 2
        await becomes("ready")
