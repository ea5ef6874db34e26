"""A Redis user who lacks a permission: only what it is for fails, and at once."""

import asyncio
import logging

import pytest

from eventbus.bus import EventBus
from eventbus.config import Settings
from eventbus.drivers.redis import driver as redis_driver, listeners as redis_listeners
from eventbus.drivers.redis.sentinel import SentinelEvents
from eventbus.errors import ConnectionFailed, PublishDenied, SubscribeDenied
from eventbus.events import Event, ShouldBroadcast
from eventbus.testing.contracts.driver import Inbox
from tests.eventbus.drivers.conftest import RedisCluster, RedisServer

pytestmark = pytest.mark.redis

SOON_S = 5.0
"""Well below `connect_timeout`, for which other failures are retried."""
PATIENCE_S = 30.0
EVERYTHING = ("~*", "&*", "+@all")


class PermissionUsed(Event, ShouldBroadcast, name="permission.used", channel="permissions"):
    n: int


async def until(true):
    async with asyncio.timeout(PATIENCE_S):
        while not true():  # noqa: ASYNC110 - the state of a connection has no event
            await asyncio.sleep(0.01)


async def until_check(driver, is_right):
    async with asyncio.timeout(PATIENCE_S):
        while not is_right(await driver.check()):  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.01)


def is_refused(fault):
    return "refuses 1 subscription" in fault


def is_fine(fault):
    return fault == ""


async def grant(servers, *rules):
    for server in servers:
        answer = await server.command(
            "ACL", "SETUSER", "ada", "reset", "on", ">s", *EVERYTHING, *rules
        )
        assert answer == "OK"


def only(namespace, *names):
    """The rules that allow no other channels than these."""
    return ("resetchannels", *(f"&{namespace}.{name}" for name in names))


@pytest.fixture(params=["server", "cluster"])
async def servers(request, tmp_path):
    if request.param == "server":
        server = RedisServer(tmp_path / "redis")
        await server.start()
        yield [server]
        await server.kill()
    else:
        cluster = RedisCluster(tmp_path / "cluster", timeout_ms=15_000)
        await cluster.start()
        yield cluster.nodes
        await cluster.kill()


@pytest.fixture
def settings(servers, namespace):
    return Settings(
        driver="redis",
        redis_port=servers[0].port,
        redis_cluster=len(servers) > 1,
        redis_username="ada",
        redis_password="s",
        namespace=namespace,
        connect_timeout=PATIENCE_S,
        publish_timeout=PATIENCE_S,
    )


@pytest.fixture
def admin(settings):
    return Settings(
        driver="redis",
        redis_port=settings.redis_port,
        redis_cluster=settings.redis_cluster,
        namespace=settings.namespace,
    )


@pytest.fixture
def quick_retries(monkeypatch):
    for module in (redis_listeners, redis_driver):
        monkeypatch.setattr(module, "RETRY_REFUSED_S", 0.2)


one_server = pytest.mark.parametrize("servers", ["server"], indirect=True)


@pytest.mark.parametrize("subject", ["live.private.a", "live.private.>", "control.private"])
async def test_subscription_without_permission_is_denied_at_once_and_others_are_unaffected(
    servers, settings, make_redis, namespace, subject
):
    await grant(servers, *only(namespace, "live.public.*", "control.public"))
    driver = await make_redis(settings)
    inboxes = {name: Inbox() for name in ("live.public.a", "live.public.>", "control.public")}
    for name, inbox in inboxes.items():
        if name != "live.public.>":  # on a cluster, publishing to other channels comes first
            await driver.subscribe(f"{namespace}.{name}", inbox)
    await driver.subscribe(f"{namespace}.live.public.>", inboxes["live.public.>"])
    for _ in range(2):
        async with asyncio.timeout(SOON_S):
            with pytest.raises(SubscribeDenied, match=rf"no permission .*{namespace}\."):
                await driver.subscribe(f"{namespace}.{subject}", Inbox())
    await driver.publish(f"{namespace}.event.public.a", b"1")
    await driver.publish(f"{namespace}.control.public", b"2")
    for name, payload in (
        ("live.public.a", b"1"), ("live.public.>", b"1"), ("control.public", b"2"),
    ):  # fmt: skip
        assert [each.payload for each in await inboxes[name].until(1)] == [payload]
    assert driver.counters["losses"] == 0
    assert await driver.check() == ""


async def test_each_of_many_subscriptions_under_way_gets_its_own_answer(
    servers, settings, make_redis, namespace
):
    rules = ("-ping", "-unsubscribe", "-sunsubscribe")
    await grant(servers, *only(namespace, "live.public.*"), *rules)
    driver = await make_redis(settings)
    names = [f"{'private' if i % 3 else 'public'}.{i}" for i in range(60)]

    async def subscribe(name):
        for node in driver._nodes.all:
            node.messages._ping()
        subscription = await driver.subscribe(f"{namespace}.live.{name}", Inbox())
        await subscription.aclose()

    results = await asyncio.gather(*map(subscribe, names), return_exceptions=True)
    for name, result in zip(names, results, strict=True):
        if name.startswith("public"):
            assert result is None
        else:
            assert type(result) is SubscribeDenied
            assert name in str(result)
    # The server has handled everything before this answer.
    await driver.subscribe(f"{namespace}.live.public.0", Inbox())
    assert driver.counters["losses"] == 0
    assert await driver.check() == ""


@one_server
async def test_bus_reports_a_denied_subscription_at_once_and_goes_on(servers, settings, namespace):
    await grant(servers, *only(namespace, "live.else"))
    async with EventBus(settings) as bus:
        async with asyncio.timeout(SOON_S):
            with pytest.raises(SubscribeDenied):
                await bus.subscribe(PermissionUsed, lambda _event: None)
            with pytest.raises(SubscribeDenied):
                await bus.ready()
        await grant(servers)
        received = asyncio.Queue()
        await bus.subscribe(PermissionUsed, received.put_nowait)
        await bus.dispatch(PermissionUsed(n=1))
        async with asyncio.timeout(PATIENCE_S):
            assert (await received.get()).n == 1


@pytest.mark.parametrize("subject", ["live.a", "live.>"])
async def test_subscription_that_is_revoked_is_reported_and_recovers_without_a_loss(
    servers, settings, admin, make_redis, namespace, subject, caplog, quick_retries
):
    others = ("live.other.*", "control.other")
    await grant(servers)
    driver, publisher = await make_redis(settings), await make_redis(admin)
    revoked, other, control, gaps = Inbox(), Inbox(), Inbox(), []
    subscription = await driver.subscribe(f"{namespace}.{subject}", revoked)
    subscription.on_gap = lambda: gaps.append(subject)
    await driver.subscribe(f"{namespace}.live.other.a", other)
    await driver.subscribe(f"{namespace}.control.other", control)
    await publisher.publish(f"{namespace}.event.a", b"before")
    await revoked.until(1)
    await grant(servers, *only(namespace, *others))  # Redis ends the connection
    await until_check(driver, is_refused)
    await until(
        lambda: any(
            "1 subscription" in record.getMessage() and "no permission" in record.getMessage()
            for record in caplog.records
            if record.levelno == logging.ERROR
        )
    )
    await publisher.publish(f"{namespace}.event.other.a", b"1")
    assert [each.payload for each in await other.until(1)] == [b"1"]
    async with asyncio.timeout(PATIENCE_S):
        while not control.payloads:  # it is not stored, so it may be missed before the reconnect
            await publisher.publish(f"{namespace}.control.other", b"2")
            await asyncio.sleep(0.01)
    await until(lambda: driver.is_connected)
    losses = driver.counters["losses"]
    nodes = driver._nodes.all
    await publisher.publish(f"{namespace}.event.a", b"meanwhile")
    retried = 0
    send = type(nodes[0].messages)._send

    def count(link, command, *args):
        nonlocal retried
        retried += command != "PING"
        send(link, command, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(nodes[0].messages), "_send", count)
        await until(lambda: retried >= 2 * len(servers))  # it is tried again, and denied again
    await grant(servers)
    await until_check(driver, is_fine)
    await publisher.publish(f"{namespace}.event.a", b"after")
    await until(lambda: b"after" in revoked.payloads)
    if subject == "live.a":
        assert revoked.payloads == [b"before", b"meanwhile", b"after"]
    else:
        assert gaps == [subject]
    assert driver.counters["losses"] == losses
    assert driver._nodes.all == nodes
    await until(lambda: "refuses no subscription any more" in caplog.text)


@one_server
async def test_refused_subscription_that_is_closed_is_forgotten(
    servers, settings, make_redis, namespace, quick_retries
):
    await grant(servers)
    driver = await make_redis(settings)
    subscription = await driver.subscribe(f"{namespace}.live.a", Inbox())
    await grant(servers, "resetchannels")
    await until_check(driver, is_refused)
    await subscription.aclose()
    assert await driver.check() == ""


@one_server
async def test_new_subscription_brings_a_refused_one_to_the_same_channel_up_to_date(
    servers, settings, admin, make_redis, namespace, monkeypatch
):
    monkeypatch.setattr(redis_listeners, "RETRY_REFUSED_S", 3600)
    await grant(servers)
    driver, publisher = await make_redis(settings), await make_redis(admin)
    old, new = Inbox(), Inbox()
    await driver.subscribe(f"{namespace}.live.a", old)
    await grant(servers, "resetchannels")
    await until_check(driver, is_refused)
    with pytest.raises(SubscribeDenied):
        await driver.subscribe(f"{namespace}.live.a", Inbox())
    await publisher.publish(f"{namespace}.event.a", b"missed")
    await grant(servers)
    await driver.subscribe(f"{namespace}.live.a", new)
    await until(lambda: old.payloads == [b"missed"])
    await publisher.publish(f"{namespace}.event.a", b"after")
    await new.until(1)
    assert new.payloads == [b"after"]
    assert old.payloads == [b"missed", b"after"]
    assert await driver.check() == ""


async def test_reading_without_permission_fails_at_once(servers, settings, make_redis, namespace):
    await grant(servers, "-xrange", "-xrevrange", "-xinfo", "resetkeys", f"~{{{namespace}.live.b*")
    driver = await make_redis(settings)
    async with asyncio.timeout(SOON_S):
        with pytest.raises(ConnectionFailed, match=rf"reading {namespace}\.live\.a .*grant it"):
            await driver.read(f"{namespace}.live.a", after=0, limit=1)
        with pytest.raises(SubscribeDenied, match=rf"no permission to read {namespace}\.live\.a"):
            await driver.subscribe(f"{namespace}.live.a", Inbox())
    assert driver.counters["losses"] == 0


@one_server
async def test_reads_that_are_revoked_are_reported_and_do_not_slow_down_reconnects(
    servers, settings, admin, make_redis, namespace, quick_retries
):
    await grant(servers)
    driver, publisher = await make_redis(settings), await make_redis(admin)
    unreadable, other = Inbox(), Inbox()
    subscription = await driver.subscribe(f"{namespace}.live.a", unreadable)
    await driver.subscribe(f"{namespace}.live.b", other)
    await publisher.publish(f"{namespace}.event.a", b"before")
    await unreadable.until(1)
    await grant(servers, "resetkeys", f"~{{{namespace}.live.b*", f"~{{{namespace}.live.}}*")
    for node in driver._nodes.all:
        node.messages._connection._writer.transport.abort()
    await publisher.publish(f"{namespace}.event.a", b"meanwhile")
    await publisher.publish(f"{namespace}.event.b", b"1")
    assert [each.payload for each in await other.until(1)] == [b"1"]
    await until_check(driver, is_refused)
    assert await driver._settle() is None  # so that a lost connection is not waited for
    await grant(servers)
    await until(lambda: unreadable.payloads == [b"before", b"meanwhile"])
    await until_check(driver, is_fine)
    await grant(servers, "resetkeys", f"~{{{namespace}.live.b*", f"~{{{namespace}.live.}}*")
    for node in driver._nodes.all:
        node.messages._connection._writer.transport.abort()
    await until_check(driver, is_refused)
    await subscription.aclose()
    await until_check(driver, is_fine)


@one_server
async def test_publish_without_permission_to_wait_for_replicas_is_denied_at_once(
    servers, settings, make_redis, namespace
):
    await grant(servers, "-wait")
    driver = await make_redis(settings, redis_wait_replicas=1)
    async with asyncio.timeout(SOON_S):
        with pytest.raises(PublishDenied, match="wait"):
            await driver.publish(f"{namespace}.event.a", b"1")


async def test_state_without_permission_is_denied_at_once(servers, settings, make_redis, namespace):
    await grant(servers, "resetkeys", "resetchannels")
    driver = await make_redis(settings)
    async with asyncio.timeout(SOON_S):
        with pytest.raises(PublishDenied, match="grant it"):
            await driver.state.put("a", b"1")
        with pytest.raises(PublishDenied, match="grant it"):
            await driver.state.delete("a")
        with pytest.raises(ConnectionFailed, match="grant it"):
            await driver.state.entries(">")
        with pytest.raises(SubscribeDenied):
            await driver.state.watch(">", lambda _key, _value: None)


async def test_sentinel_that_denies_its_events_is_reported_and_not_asked_in_a_loop(
    group, make_redis, namespace, monkeypatch, caplog
):
    for sentinel in group.sentinels:
        assert await sentinel.command("ACL", "SETUSER", "default", "resetchannels") == "OK"
    asked = []
    listen = SentinelEvents._listen

    async def count(events, address):
        asked.append(address)
        await listen(events, address)

    monkeypatch.setattr(SentinelEvents, "_listen", count)
    driver = await make_redis(
        Settings(driver="redis", redis_sentinels=group.addresses, namespace=namespace)
    )
    inbox = Inbox()
    await driver.subscribe(f"{namespace}.live.a", inbox)
    await driver.publish(f"{namespace}.event.a", b"1")
    await inbox.until(1)
    assert len(asked) <= 2 * len(group.sentinels)
    assert "no permission to subscribe to +promoted-slave" in caplog.text
