"""Subscriptions to filters: messages during a lost connection arrive too, or are reported as a
gap."""

import asyncio
import contextlib
import os
import signal

import msgspec
import pytest

from eventbus.attempts import Backoff
from eventbus.config import Settings
from eventbus.drivers.nats.client import PROBE
from eventbus.drivers.nats.subscriptions import resync
from eventbus.testing.contracts.driver import Inbox
from tests.eventbus.drivers.nats.conftest import opened, until

RECONNECT = "eventbus.drivers.nats.connection.connection._SERVER_BACKOFF"


@pytest.fixture
def own_settings(own_nats_server, monkeypatch):
    monkeypatch.setattr(RECONNECT, Backoff(0.5, 0.5, jitter=0))
    return Settings(
        nats_url=own_nats_server.url, namespace="own", history_bytes=2**22, history_messages=5000
    )


async def lose(driver):
    await driver._connection.client.force_reconnect()
    await until(lambda: not driver.is_connected)


@contextlib.asynccontextmanager
async def absent(driver):
    """A driver that loses its connection, and gets none before the end of the block.

    However long it takes on a busy machine to store what the driver is to miss.
    """
    client, is_over = driver._connection.client, asyncio.Event()
    connect = client._connect_to_server

    async def connect_later(*arguments):
        await is_over.wait()
        await connect(*arguments)

    client._connect_to_server = connect_later
    try:
        await lose(driver)
        yield
        assert not driver.is_connected
    finally:
        client._connect_to_server = connect
        is_over.set()


@contextlib.asynccontextmanager
async def listening(settings, subject):
    """A driver that subscribes to a filter, another one, the inbox, and how often a gap was
    reported."""
    async with opened(settings) as away, opened(settings) as there:
        inbox, received = Inbox(), []
        subscription = await away.subscribe(subject, inbox)
        subscription.on_gap = lambda: received.append(len(inbox.deliveries))
        yield away, there, inbox, received


async def test_messages_stored_while_away_arrive_once_and_in_order(own_settings):
    async with listening(own_settings, "own.live.orders.*") as (away, there, inbox, received):
        await there.publish("own.event.orders.1", b"1")
        await inbox.until(1)
        async with absent(away):
            forged = {"Nats-Subject": "own.event.orders.9"}
            await there.publish("own.event.orders.2", b"2", forged)
            await there.publish("own.event.others.1", b"not heard")
            await there.publish("own.event.orders.1", b"3")
        await until(lambda: away.is_connected)
        await there.publish("own.event.orders.3", b"4")
        await inbox.until(4)
        assert inbox.payloads == [b"1", b"2", b"3", b"4"]
        subjects = [each.subject for each in inbox.deliveries]
        assert subjects == [f"own.live.orders.{number}" for number in (1, 2, 1, 3)]
        assert all(each.position.epoch for each in inbox.deliveries)
        assert not received
        # The last one too, when it was stored before the stream was read.
        assert away.counters["filled"] in {2, 3}


async def test_last_message_is_found_without_a_later_one(own_settings):
    async with listening(own_settings, "own.live.>") as (away, there, inbox, received):
        async with absent(away):
            await there.publish("own.event.new", b"only")
        await inbox.until(1)
        assert inbox.payloads == [b"only"]
        assert not received


async def test_connection_lost_again_and_again_leaves_no_gap_and_no_duplicate(own_settings):
    async with listening(own_settings, "own.live.>") as (away, there, inbox, received):
        total = 1500

        async def publish():
            for number in range(total):
                await there.publish(f"own.event.a.{number % 7}", b"%d" % number)

        publishing = asyncio.create_task(publish())
        for _ in range(5):
            seen = len(inbox.deliveries)
            await inbox.until(min(seen + 50, total))
            await away._connection.client.force_reconnect()
        await publishing
        await inbox.until(total)
        assert inbox.payloads == [b"%d" % number for number in range(total)]
        assert not received


async def test_server_killed_and_started_again_loses_nothing(own_nats_server, own_settings):
    async with listening(own_settings, "own.live.a.*") as (_, there, inbox, received):
        for number in range(50):
            await there.publish(f"own.event.a.{number % 3}", b"%d" % number)
        os.kill(own_nats_server.pid, signal.SIGKILL)
        await own_nats_server.stop()
        await own_nats_server.start()
        for number in range(50, 100):
            await there.publish(f"own.event.a.{number % 3}", b"%d" % number)
        await inbox.until(100)
        assert inbox.payloads == [b"%d" % number for number in range(100)]
        assert not received


async def test_full_channel_that_evicted_messages_is_reported_before_what_follows(own_settings):
    few = msgspec.structs.replace(own_settings, history_messages=3)
    async with listening(few, "own.live.a.*") as (away, there, inbox, received):
        await there.publish("own.event.a.1", b"0")
        await inbox.until(1)
        async with absent(away):
            for number in range(1, 7):
                await there.publish("own.event.a.1", b"%d" % number)
        await inbox.until(5)
        # The stream has one more of a channel than readers of its history are given.
        assert inbox.payloads == [b"0", b"3", b"4", b"5", b"6"]
        assert received == [1]
        assert away.counters["gaps"] == 1


async def test_full_channel_that_evicted_nothing_new_is_not_reported(own_settings):
    few = msgspec.structs.replace(own_settings, history_messages=3)
    async with listening(few, "own.live.a.*") as (away, there, inbox, received):
        await there.publish("own.event.a.1", b"0")
        await inbox.until(1)
        async with absent(away):
            for number in range(1, 4):
                await there.publish("own.event.a.1", b"%d" % number)
        await inbox.until(4)
        assert inbox.payloads == [b"0", b"1", b"2", b"3"]
        assert not received


async def test_purge_while_away_is_reported(own_settings):
    async with listening(own_settings, "own.live.a.*") as (away, there, inbox, received):
        await there.prepare()
        async with absent(away):
            await there.publish("own.event.a.1", b"purged")
            await there.purge("own.live.a.1")
            await there.publish("own.event.a.2", b"kept")
        await inbox.until(1)
        assert inbox.payloads == [b"kept"]
        assert received == [0]


async def test_purge_of_what_the_filter_does_not_have_is_not_reported(own_settings):
    async with listening(own_settings, "own.live.a.*") as (away, there, inbox, received):
        await there.prepare()
        await there.publish("own.event.a.1", b"before")
        await inbox.until(1)
        async with absent(away):
            await there.publish("own.event.b.1", b"purged")
            await there.purge("own.live.b.1")
            await there.publish("own.event.a.2", b"kept")
        await inbox.until(2)
        assert not received


async def test_more_than_is_read_at_once_is_reported_and_continues_with_the_newest(
    own_settings, monkeypatch
):
    monkeypatch.setattr(resync, "_FILTER_READS", 500)
    async with listening(own_settings, "own.live.>") as (away, there, inbox, received):
        async with absent(away):
            for number in range(700):
                await there.publish("own.event.a", b"%d" % number)
        await until(lambda: away.is_connected and received)
        await until(lambda: away._subscriptions.is_verified and not away._subscriptions._filling)
        await there.publish("own.event.a", b"live")
        await until(lambda: inbox.payloads[-1:] == [b"live"])
        assert len(received) == 1
        numbers = [int(payload) for payload in inbox.payloads[:-1]]
        assert numbers == sorted(set(numbers))


async def test_recreated_stream_is_reported(own_settings):
    async with listening(own_settings, "own.live.>") as (away, there, inbox, received):
        await there.publish("own.event.a", b"old")
        await inbox.until(1)
        client = there._connection.client
        await client.request("$JS.API.STREAM.DELETE.OWN_EVENTS")
        await lose(away)
        await until(lambda: received)
        await there.publish("own.event.a", b"new")
        await inbox.until(2)
        assert inbox.payloads == [b"old", b"new"]


@pytest.mark.parametrize("subject", ["own.live.quiet.*", "own.live.quiet.1"])
async def test_quiet_listener_is_not_notified_of_what_other_channels_gave_up(
    own_settings, monkeypatch, subject
):
    monkeypatch.setattr("eventbus.drivers.nats.driver._CONFIRM_S", 0.05)
    # Long enough for what is stored while it is away to be read before that expires, too.
    short = msgspec.structs.replace(own_settings, history_seconds=3.0)
    async with listening(short, subject) as (away, there, inbox, received):
        await there.publish("own.event.quiet.1", b"1")
        await inbox.until(1)
        first = inbox.deliveries[0].position.offset
        # By age, the stream gives up all that there was; the listener has seen none of it go.
        for _ in range(3):
            await there.publish("own.event.busy", b"x")
        await until(lambda: min(each.confirmed for each in away._subscriptions._all) >= first + 3)
        while (await there._stream.first()) <= first + 2:  # noqa: ASYNC110 - expiry has no event
            await asyncio.sleep(0.05)
        async with absent(away):
            await there.publish("own.event.busy", b"x")
            await there.publish("own.event.quiet.1", b"2")
        await inbox.until(2)
        assert inbox.payloads == [b"1", b"2"]
        assert not received
        assert away.counters["gaps"] == 0


async def test_member_of_a_group_does_not_read_what_went_to_others(own_settings):
    async with opened(own_settings) as driver:
        inbox = Inbox()
        await driver.subscribe_group("own.live.>", "workers", inbox)
        await lose(driver)
        async with opened(own_settings) as there:
            await there.publish("own.event.a", b"missed")
            await until(lambda: driver.is_connected)
            await until(lambda: driver._subscriptions.is_verified)
            await there.publish("own.event.a", b"next")
        await inbox.until(1)
        assert inbox.payloads[-1] == b"next"
        assert driver.counters["filled"] == 0


async def test_missed_and_evicted_messages_show_at_the_next_message_of_the_subject(own_settings):
    async with listening(own_settings, "own.live.a") as (away, there, inbox, _):
        await there.prepare()
        first = await there.publish("own.event.a", b"1")
        await inbox.until(1)
        async with absent(away):
            await there.publish("own.event.a", b"purged")
            await there.purge("own.live.a")
        await until(lambda: away.counters["gaps"] == 1)
        await there.publish("own.event.a", b"2")
        await there.publish("own.event.a", b"3")
        await inbox.until(3)
        assert inbox.payloads == [b"1", b"2", b"3"]
        _, second, third = inbox.deliveries
        assert second.previous > first.position.offset
        assert third.previous == second.position.offset


async def test_subject_that_was_quiet_at_one_loss_names_its_own_last_message_after_the_next(
    own_settings,
):
    async with listening(own_settings, "own.live.a") as (away, there, inbox, _):
        first = await there.publish("own.event.a", b"1")
        await inbox.until(1)
        subscription = next(iter(away._subscriptions._all))
        async with absent(away):
            last = [await there.publish("own.event.busy", b"x") for _ in range(5)][-1]
        await until(lambda: subscription.last == last.position.offset)
        async with absent(away):
            await there.publish("own.event.a", b"2")
        await inbox.until(2)
        assert inbox.deliveries[1].previous == first.position.offset
        assert away.counters["gaps"] == 0


async def test_probes_of_the_stream_are_no_messages_of_a_pattern(own_settings):
    settings = msgspec.structs.replace(own_settings, history_messages=5)
    async with opened(settings) as driver:
        start = (await driver.publish("own.event.a", b"1")).position
        for _ in range(10):  # more than are kept of a channel
            await driver.publish(f"own.event.{PROBE}", b"")
        await driver.publish("own.event.b", b"2")
        page = await driver.read_pattern("own.live.>", start, limit=100, max_bytes=1000)
        assert ([one.payload for one in page.messages], page.complete) == ([b"2"], True)
