"""Servers that die, hang, forget, or fail over."""

import asyncio
import logging
import signal
import time

import psutil
import pytest

from eventbus.channels import Pattern
from eventbus.config import Settings
from eventbus.drivers.redis import (
    driver as redis_driver,
    link as redis_link,
    nodes as redis_nodes,
)
from eventbus.errors import ConnectionFailed, PublishDenied, PublishFailed
from eventbus.testing.contracts.driver import Inbox


@pytest.fixture
def own_settings(own_redis, namespace):
    return Settings(
        driver="redis", redis_port=own_redis.port, namespace=namespace, history_messages=100_000
    )


async def until(true, seconds=30.0):
    async with asyncio.timeout(seconds):
        while not true():  # noqa: ASYNC110 - the state of a connection has no event
            await asyncio.sleep(0.01)


def cut(driver):
    """End the driver's connections as a network does, without a word to the server."""
    for node in driver._nodes.all:
        for link in (node.commands, node.messages):
            link._connection._writer.transport.abort()


class Gate:
    """Keeps a driver from reconnecting until it is opened."""

    def __init__(self, driver, monkeypatch):
        self._open = asyncio.Event()
        settle = driver._nodes.settle

        async def wait_and_settle():
            await self._open.wait()
            return await settle()

        monkeypatch.setattr(driver._nodes, "settle", wait_and_settle)

    def open(self):
        self._open.set()


async def test_nothing_acknowledged_is_lost_or_duplicated_when_the_server_is_killed(
    make_redis, own_settings, own_redis, subjects
):
    publisher, listener = await make_redis(own_settings), await make_redis(own_settings)
    inbox, every, acked, number = Inbox(), Inbox(), {}, 0
    start = await listener.subscribe(subjects.live("room"), inbox)
    await listener.subscribe(subjects.live_filter(Pattern("*")), every)
    stop = asyncio.Event()

    async def publish():
        nonlocal number
        while not stop.is_set():
            number += 1
            payload = str(number).encode()
            acked[payload] = (await publisher.publish(subjects.event("room"), payload)).position

    tasks = [asyncio.create_task(publish()) for _ in range(20)]
    for _ in range(2):
        await inbox.until(len(inbox.deliveries) + 500)
        await own_redis.kill()
        await until(lambda: not publisher.is_connected and not listener.is_connected)
        await own_redis.start()
    await inbox.until(len(inbox.deliveries) + 500)
    stop.set()
    await asyncio.gather(*tasks)
    await inbox.until(len(acked))
    await every.until(len(acked))
    for box in (inbox, every):
        assert box.offsets == sorted(set(box.offsets))
        assert {d.payload: d.position for d in box.deliveries} == acked
    assert {position.epoch for position in acked.values()} == {start.position.epoch}
    assert publisher.counters["losses"] == 2
    assert publisher.counters["publish_retries"] > 0
    assert listener.counters["gaps"] == 0


async def test_offsets_jump_after_a_restart_and_what_is_in_between_is_not_proved(
    make_redis, own_settings, own_redis, subjects
):
    driver = await make_redis(own_settings)
    stored = [await driver.publish(subjects.event("room"), b"x") for _ in range(3)]
    one, two, three = [result.position.offset for result in stored]
    await own_redis.kill()
    await own_redis.start()
    after = await driver.publish(subjects.event("room"), b"y")
    assert after.position.epoch == stored[0].position.epoch
    assert after.position.offset > three + 1
    for offset, complete in (
        (two, True), (three, True), (three + 1, False), (after.position.offset, True)
    ):  # fmt: skip
        page = await driver.read(subjects.live("room"), after=offset, limit=9)
        assert page.complete is complete, offset
    page = await driver.read(subjects.live("room"), after=two, limit=9)
    assert [(d.payload, d.previous) for d in page.messages] == [(b"x", two), (b"y", three)]
    assert one < two


async def test_restart_without_an_append_only_file_is_another_epoch(
    make_redis, start_redis, subjects, namespace, caplog
):
    server = await start_redis("--save", "1 1")
    driver, inbox = await make_redis(Settings(redis_port=server.port, namespace=namespace)), Inbox()
    await driver.subscribe(subjects.live("room"), inbox)
    first = await driver.publish(subjects.event("room"), b"saved")
    assert "OK" in await server.command("SAVE")
    second = await driver.publish(subjects.event("room"), b"lost")
    await inbox.until(2)
    await server.kill()
    await server.start()
    third = await driver.publish(subjects.event("room"), b"new")
    assert third.position.epoch != first.position.epoch
    assert third.position.offset > second.position.offset
    await inbox.until(3)
    assert inbox.payloads == [b"saved", b"lost", b"new"]
    assert inbox.deliveries[2].position == third.position
    assert driver.counters["gaps"] == 1
    page = await driver.read(subjects.live("room"), after=0, limit=9)
    assert [d.payload for d in page.messages] == [b"saved", b"new"]
    assert not page.complete
    assert "lost messages" in caplog.text


async def test_flushall_changes_the_epoch_and_listeners_continue(
    make_redis, own_settings, own_redis, subjects
):
    driver, inbox, every = await make_redis(own_settings), Inbox(), Inbox()
    await driver.subscribe(subjects.live("room"), inbox)
    await driver.subscribe(subjects.live_filter(Pattern("*")), every)
    before = [await driver.publish(subjects.event("room"), b"old") for _ in range(5)]
    await own_redis.command("FLUSHALL")
    after = [await driver.publish(subjects.event("room"), b"new") for _ in range(3)]
    assert after[0].position.epoch != before[0].position.epoch
    first = after[0].position.offset
    assert [p.position.offset for p in after] == [first, first + 1, first + 2]
    for box in (inbox, every):
        await box.until(8)
        assert [d.position for d in box.deliveries] == [p.position for p in (*before, *after)]


@pytest.mark.parametrize("command", ["FLUSHALL", "FLUSHDB"])
async def test_flush_is_noticed_although_nothing_is_published(
    make_redis, own_settings, own_redis, subjects, monkeypatch, command
):
    for module in (redis_driver, redis_nodes):
        monkeypatch.setattr(module, "CHECK_S", 0.1)
    driver, inbox, gaps = await make_redis(own_settings), Inbox(), []
    subscription = await driver.subscribe(subjects.live("room"), inbox)
    subscription.on_gap = lambda: gaps.append(subscription.position)
    before = await driver.publish(subjects.event("room"), b"old")
    await inbox.until(1)
    await own_redis.command(command)
    await until(lambda: gaps)
    assert gaps[0].epoch != before.position.epoch
    assert driver.counters["losses"] == 1
    after = await driver.publish(subjects.event("room"), b"new")
    assert after.position.epoch == gaps[0].epoch
    await inbox.until(2)


async def test_subscriber_learns_that_all_of_a_quiet_channel_is_gone(
    make_redis, own_settings, own_redis, subjects
):
    driver, other, inbox, gaps = (
        await make_redis(own_settings), await make_redis(own_settings), Inbox(), []
    )  # fmt: skip
    subscription = await driver.subscribe(subjects.live("room"), inbox)
    subscription.on_gap = lambda: gaps.append(subscription.position)
    before = await driver.publish(subjects.event("room"), b"old")
    await inbox.until(1)
    for part in "smij":
        await own_redis.command("DEL", f"{{{subjects.live('room')}}}:{part}")
    cut(driver)
    await until(lambda: gaps)
    assert gaps[0].epoch != before.position.epoch
    page = await other.read(subjects.live("room"), after=before.position.offset, limit=9)
    assert (page.position.epoch, page.complete) == (gaps[0].epoch, False)
    after = await other.publish(subjects.event("room"), b"new")
    assert after.position.epoch == gaps[0].epoch
    assert after.position.offset > before.position.offset
    await inbox.until(2)
    assert inbox.deliveries[-1].position == after.position
    assert driver.counters["gaps"] == 1


async def test_messages_missed_while_disconnected_arrive_before_newer_ones(
    make_redis, subjects, monkeypatch
):
    listener, publisher, inbox, every = await make_redis(), await make_redis(), Inbox(), Inbox()
    await listener.subscribe(subjects.live("room"), inbox)
    await listener.subscribe(subjects.live_filter(Pattern(">")), every)
    await publisher.publish(subjects.event("room"), b"0")
    await inbox.until(1)
    await every.until(1)
    gate = Gate(listener, monkeypatch)
    cut(listener)
    await until(lambda: not listener.is_connected)
    for i in range(1, 51):
        await publisher.publish(subjects.event("room"), str(i).encode())
    gate.open()
    for i in range(51, 60):
        await publisher.publish(subjects.event("room"), str(i).encode())
    for box in (inbox, every):
        await box.until(60)
        assert box.payloads == [str(i).encode() for i in range(60)]
    counters = {"losses": 1, "refusals": 0, "publish_retries": 0, "gaps": 0, "foreign": 0}
    assert listener.counters == counters


async def test_gap_that_cannot_be_filled_is_counted_logged_and_seen_by_the_listener(
    make_redis, subjects, monkeypatch, caplog
):
    listener, publisher = await make_redis(), await make_redis(history_messages=5)
    inbox = Inbox()
    await listener.subscribe(subjects.live("room"), inbox)
    await publisher.publish(subjects.event("room"), b"0")
    await inbox.until(1)
    gate = Gate(listener, monkeypatch)
    cut(listener)
    await until(lambda: not listener.is_connected)
    for i in range(1, 20):
        await publisher.publish(subjects.event("room"), str(i).encode())
    gate.open()
    await inbox.until(6)
    await publisher.publish(subjects.event("room"), b"20")
    await inbox.until(7)
    assert inbox.payloads == [b"0", b"15", b"16", b"17", b"18", b"19", b"20"]
    assert inbox.deliveries[1].previous == inbox.deliveries[0].position.offset + 14
    assert listener.counters["gaps"] == 1
    assert "evicted" in caplog.text


async def test_filter_learns_that_it_may_have_missed_channels_that_it_did_not_know(
    make_redis, subjects, monkeypatch
):
    listener, publisher = await make_redis(), await make_redis()
    inbox, received = Inbox(), []
    subscription = await listener.subscribe(subjects.live_filter(Pattern("room.*")), inbox)
    subscription.on_gap = lambda: received.append(listener.is_connected)
    await publisher.publish(subjects.event("room.1"), b"0")
    await inbox.until(1)
    gate = Gate(listener, monkeypatch)
    cut(listener)
    await until(lambda: not listener.is_connected)
    await publisher.publish(subjects.event("room.1"), b"1")
    await publisher.publish(subjects.event("room.new"), b"unknown")
    assert not received
    gate.open()
    await inbox.until(2)
    await until(lambda: received)
    assert inbox.payloads == [b"0", b"1"]
    await publisher.publish(subjects.event("room.new"), b"2")
    await inbox.until(3)
    assert inbox.payloads == [b"0", b"1", b"2"]
    assert len(received) == 1


async def test_message_that_pubsub_dropped_is_read_from_the_stream(make_redis, subjects):
    driver, inbox = await make_redis(), Inbox()
    subscription = await driver.subscribe(subjects.live("room"), inbox)
    receive, dropped = subscription.cursor.receive, []

    class Lossy:
        """The cursor, behind a connection that loses every third message."""

        def __getattr__(self, name):
            return getattr(subscription_cursor, name)

        def receive(self, delivery):
            if int(delivery.payload) % 3 != 2:
                receive(delivery)
            else:
                dropped.append(delivery)

    subscription_cursor = subscription.cursor
    subscription._cursors[subscription.subject] = Lossy()
    for i in range(10):
        await driver.publish(subjects.event("room"), str(i).encode())
    await inbox.until(10)
    assert len(dropped) == 3
    assert inbox.offsets == list(range(inbox.offsets[0], inbox.offsets[0] + 10))


async def test_server_that_hangs_is_noticed_and_used_again_when_it_wakes(
    make_redis, own_settings, own_redis, subjects, monkeypatch, caplog
):
    monkeypatch.setattr(redis_link, "PING_S", 0.1)
    monkeypatch.setattr(redis_link, "DEAD_S", 0.4)
    driver = await make_redis(own_settings, publish_timeout=1.0, connect_timeout=1.0)
    inbox = Inbox()
    await driver.subscribe(subjects.live("room"), inbox)
    own_redis.signal(signal.SIGSTOP)
    try:
        await until(lambda: not driver.is_connected)
        with pytest.raises(PublishFailed, match=f"within 1 s.*127.0.0.1:{own_redis.port}"):
            await driver.publish(subjects.event("room"), b"x")
        with pytest.raises(PublishFailed, match=str(own_redis.port)):
            await driver.publish(subjects.live("room"), b"x")
        with pytest.raises(ConnectionFailed, match="within 1 s"):
            await driver.subscribe(subjects.live("other"), Inbox())
        with pytest.raises(ConnectionFailed, match="within 1 s"):
            await driver.read(subjects.live("other"), after=None, limit=1)
        assert not driver._listeners._listeners.get(("SUBSCRIBE", subjects.live("other").encode()))
    finally:
        own_redis.signal(signal.SIGCONT)
    await until(lambda: driver.is_connected)
    await driver.publish(subjects.event("room"), b"y")
    await until(lambda: "connected to Redis again, after " in caplog.text)
    await inbox.until_payload(lambda payloads: b"y" in payloads)


async def test_loop_that_was_busy_does_not_blame_the_server(make_redis, subjects, monkeypatch):
    monkeypatch.setattr(redis_link, "PING_S", 0.05)
    monkeypatch.setattr(redis_link, "DEAD_S", 0.2)
    driver = await make_redis()
    await asyncio.sleep(0.2)  # pings are on their way
    time.sleep(0.6)  # noqa: ASYNC251 - the loop is held up on purpose
    await driver.publish(subjects.event("room"), b"x")
    assert driver.counters["losses"] == 0


async def test_closing_while_the_server_is_gone_takes_little_time(
    make_redis, own_settings, own_redis, subjects
):
    driver = await make_redis(own_settings, publish_timeout=60)
    subscription = await driver.subscribe(subjects.live("room"), Inbox())
    await own_redis.kill()
    publishing = asyncio.create_task(driver.publish(subjects.event("room"), b"x"))
    await until(lambda: not driver.is_connected and driver._publisher._window._taken)
    async with asyncio.timeout(30):
        await subscription.aclose()
        await driver.aclose()
    with pytest.raises(PublishFailed):
        await publishing


async def test_full_memory_is_retried_and_then_reported(
    make_redis, own_settings, own_redis, subjects
):
    driver = await make_redis(own_settings, publish_timeout=2.0)
    await own_redis.command("CONFIG", "SET", "maxmemory", "1")
    with pytest.raises(PublishFailed, match="maxmemory"):
        await driver.publish(subjects.event("room"), b"x")
    publishing = asyncio.create_task(driver.publish(subjects.event("room"), b"y"))
    await own_redis.command("CONFIG", "SET", "maxmemory", "0")
    assert not (await publishing).duplicate


async def test_many_subscriptions_come_back_together(make_redis, subjects, monkeypatch):
    listener, publisher = await make_redis(), await make_redis()
    inboxes = {f"room.{i}": Inbox() for i in range(500)}
    await asyncio.gather(
        *(listener.subscribe(subjects.live(name), inbox) for name, inbox in inboxes.items())
    )
    gate = Gate(listener, monkeypatch)
    cut(listener)
    await until(lambda: not listener.is_connected)
    await asyncio.gather(*(publisher.publish(subjects.event(name), b"x") for name in inboxes))
    gate.open()
    for inbox in inboxes.values():
        assert len(await inbox.until(1)) == 1


async def test_user_who_is_deleted_or_loses_all_rights_is_reported_loudly_and_comes_back(
    start_redis, make_redis, namespace, caplog, monkeypatch
):
    for module in (redis_driver, redis_nodes):
        monkeypatch.setattr(module, "CHECK_S", 0.2)
    server = await start_redis()
    rights = ("~*", "&*", "+@all")
    assert await server.command("ACL", "SETUSER", "ada", "on", ">s", *rights) == "OK"
    driver = await make_redis(
        Settings(
            driver="redis", redis_port=server.port, namespace=namespace,
            redis_username="ada", redis_password="s",
        )
    )  # fmt: skip
    received = asyncio.Queue()
    await driver.subscribe(f"{namespace}.live.a", received.put_nowait)
    for revoke in (("DELUSER", "ada"), ("SETUSER", "ada", "-@all")):
        before = driver.counters["refusals"]
        caplog.clear()
        await server.command("ACL", *revoke)
        async with asyncio.timeout(30):
            while driver.counters["refusals"] == before:  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(0.02)
        assert not driver.is_connected
        errors = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
        assert any("BROADCAST_REDIS_USERNAME" in error for error in errors)
        await server.command("ACL", "SETUSER", "ada", "on", ">s", *rights)
        async with asyncio.timeout(30):
            while not driver.is_connected:  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(0.02)
        await driver.publish(f"{namespace}.event.a", b"1")
        async with asyncio.timeout(30):
            await received.get()


@pytest.mark.parametrize(
    "change", [("resetkeys",), ("-evalsha",), ("-xadd",), ("resetchannels",), ("-publish",)],
    ids=lambda change: change[0],
)  # fmt: skip
async def test_publish_without_permission_is_denied_at_once(
    start_redis, make_redis, namespace, change
):
    server = await start_redis()
    await server.command("ACL", "SETUSER", "ada", "on", ">s", "~*", "&*", "+@all", *change)
    driver = await make_redis(
        Settings(
            driver="redis", redis_port=server.port, namespace=namespace,
            redis_username="ada", redis_password="s", publish_timeout=60,
        )
    )  # fmt: skip
    with pytest.raises(PublishDenied, match=rf"no permission to publish to {namespace}\.live\.a"):
        await driver.publish(f"{namespace}.event.a", b"1")


def _redis_tasks():
    return [task for task in asyncio.all_tasks() if "Redis" in task.get_name()]


async def test_close_while_the_server_hangs_is_bounded_shared_and_outlasts_its_caller(
    make_redis, own_settings, own_redis, subjects, monkeypatch
):
    monkeypatch.setattr(redis_driver, "DRAIN_S", 0.3)
    driver = await make_redis(own_settings)
    await driver.subscribe(subjects.live("room"), Inbox())
    await driver.state.watch(">", lambda _key, _value: None)
    assert len(_redis_tasks()) > 3
    own_redis.signal(signal.SIGSTOP)
    try:
        publishing = asyncio.create_task(driver.publish(subjects.event("room"), b"x"))
        await asyncio.sleep(0)
        async with asyncio.timeout(30):
            patient = asyncio.create_task(driver.aclose())
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(driver.aclose(), 0.05)
            assert _redis_tasks() == []
            await patient
            await driver.aclose()
        publishing.cancel()
        await asyncio.gather(publishing, return_exceptions=True)
        with pytest.raises(ConnectionFailed, match="not open"):
            await driver.publish(subjects.event("room"), b"x")
    finally:
        own_redis.signal(signal.SIGCONT)


async def test_driver_that_is_closed_while_it_opens_leaves_nothing_open(own_settings, own_redis):
    own_redis.signal(signal.SIGSTOP)
    try:
        driver = redis_driver.RedisDriver(own_settings)
        opening = asyncio.create_task(driver.open())
        await until(lambda: _open_sockets(own_redis.port) > 0)
        await driver.aclose()
    finally:
        own_redis.signal(signal.SIGCONT)
    with pytest.raises(ConnectionFailed):
        await opening
    await driver.aclose()
    assert not driver.is_connected
    assert _redis_tasks() == []


def _open_sockets(port):
    """How many connections of this process there are to a port."""
    found = psutil.Process().net_connections("tcp")
    return sum(bool(each.raddr) and each.raddr.port == port for each in found)
