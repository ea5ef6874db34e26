"""What is noted in the stream when a channel is purged."""

import asyncio

import msgspec
import pytest

from eventbus.bus import EventBus
from eventbus.drivers.nats import purges
from eventbus.drivers.nats.purges import purged_of


@pytest.fixture
async def bus(settings):
    async with EventBus(settings) as opened:
        yield opened


async def _publish(bus, *channels):
    return [await bus.publish(channel, "e", {}) for channel in channels]


async def _complete(bus, channel, after):
    page = await bus.driver.read(bus.subjects.live(channel), after=after, limit=10)
    return page.complete


async def test_purges_at_once_each_leave_their_mark(bus, settings):
    channels = [f"c{n}" for n in range(6)]
    await _publish(bus, *channels)
    async with EventBus(settings) as other:
        works = [
            (bus if n % 2 else other).driver.purge(bus.subjects.live(channel))
            for n, channel in enumerate(channels)
        ]
        assert await asyncio.gather(*works) == [1] * 6
    assert [await _complete(bus, channel, 0) for channel in channels] == [False] * 6


async def test_marks_outlive_the_server(own_nats_server, namespace, settings):
    there = msgspec.structs.replace(settings, nats_url=own_nats_server.url)
    async with EventBus(there) as bus:
        await _publish(bus, "b", "a")
        await bus.driver.purge(bus.subjects.live("a"))
    await own_nats_server.stop()
    await own_nats_server.start()
    again = msgspec.structs.replace(settings, nats_url=own_nats_server.url)
    async with EventBus(again) as bus:
        assert not await _complete(bus, "a", 0)
        assert await _complete(bus, "b", 0)


async def test_more_purged_channels_than_marks_make_one_mark_for_all(bus, monkeypatch):
    monkeypatch.setattr(purges, "MAX_PURGE_RECORDS", 2)
    _, first, _, third = await _publish(bus, "d", "a", "b", "c")
    for channel in ("a", "b", "c"):
        await bus.driver.purge(bus.subjects.live(channel))
    assert [await _complete(bus, channel, 0) for channel in "abc"] == [False] * 3
    assert await _complete(bus, "c", third.offset)
    # A client of another channel that was away since then may get a false notice.
    assert not await _complete(bus, "d", 0)
    assert await _complete(bus, "d", first.offset)


def test_mark_of_a_subject_is_its_own_or_the_one_for_all():
    config = {"metadata": {"eventbus.purged.x.event.a": "7", "eventbus.purged": "3"}}
    assert purged_of(config, "x.event.a") == 7
    assert purged_of(config, "x.event.b") == 3
    assert purged_of({}, "x.event.a") == 0
