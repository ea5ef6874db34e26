"""What a stream proves to a reader: what was evicted, taken out by hand, or is another's."""

import asyncio
import json

import nats
import pytest
from msgspec.structs import replace

from eventbus.drivers.base import Position
from eventbus.drivers.marks import (
    MarkedPosition,
    nanoseconds,
    timestamp,
)
from eventbus.testing.contracts import Inbox
from tests.eventbus.drivers.nats.conftest import opened

STREAM, EVENT, LIVE = "OWN_EVENTS", "own.event.a", "own.live.a"


@pytest.fixture
async def driver(own_settings):
    async with opened(own_settings) as made:
        yield made


@pytest.fixture
async def api(own_nats_server):
    """JetStream's management, as another tool than ours uses it."""
    client = await nats.connect(own_nats_server.url)

    async def ask(what, question=None):
        answer = await client.request(f"$JS.API.{what}", json.dumps(question or {}).encode())
        body = json.loads(answer.data)
        assert "error" not in body, body
        return body

    yield ask
    await client.close()


async def publish(driver, count, channel="a"):
    for _ in range(count):
        await driver.publish(f"own.event.{channel}", b"x")


async def places(driver, channel="a"):
    """The positions of what the stream has, with and without their marks."""
    page = await driver.read(f"own.live.{channel}", after=None, limit=1000)
    return [MarkedPosition(*one.position, one.time) for one in page.messages]


async def is_whole(driver, place):
    with_mark = await driver.resume(LIVE, place, 500)
    without = await driver.read(LIVE, after=place.offset, limit=500)
    assert with_mark.complete is without.complete
    assert with_mark.messages == without.messages
    return with_mark.complete


async def test_channel_that_another_tool_has_purged_is_not_whole(driver, api):
    await publish(driver, 3, "other")  # older messages of others stay
    await publish(driver, 5)
    known = await places(driver)
    await api(f"STREAM.PURGE.{STREAM}", {"filter": EVENT})
    assert not await is_whole(driver, known[2])
    await publish(driver, 2)
    assert not await is_whole(driver, known[2])
    new = await places(driver)
    assert await is_whole(driver, new[0])


async def test_channel_of_which_another_tool_keeps_the_last_is_not_whole(driver, api):
    await publish(driver, 3, "other")
    await publish(driver, 9)
    known = await places(driver)
    await api(f"STREAM.PURGE.{STREAM}", {"filter": EVENT, "keep": 3})
    assert not await is_whole(driver, known[2])
    assert await is_whole(driver, known[6])


async def test_limit_that_was_lowered_for_a_while_is_noticed(driver, api):
    await publish(driver, 1, "other")
    await publish(driver, 20)
    known = await places(driver)
    config = (await api(f"STREAM.INFO.{STREAM}"))["config"]
    await api(f"STREAM.UPDATE.{STREAM}", config | {"max_msgs_per_subject": 5})
    await api(f"STREAM.UPDATE.{STREAM}", config)
    assert not await is_whole(driver, known[4])
    assert await is_whole(driver, known[15])


async def test_reader_of_a_quiet_channel_beside_a_full_one_has_missed_nothing(driver):
    """Its position is another channel's message, which is evicted."""
    await publish(driver, 1, "other")  # keeps the stream's beginning before the position
    await publish(driver, 200, "busy")
    subscription = await driver.subscribe(LIVE, Inbox())
    place = subscription.position
    await publish(driver, 3)
    await publish(driver, 200, "busy")
    assert await driver._stream.first() == 1
    page = await driver.resume(LIVE, place, 500)
    assert (len(page.messages), page.complete) == (3, True)
    # Without a mark, the message might have been the channel's own. Age and size remove the
    # stream's beginning first, so it would have been deleted by hand, perhaps with later ones.
    page = await driver.resume(LIVE, Position(*place), 500)
    assert (len(page.messages), page.complete) == (3, False)


async def test_position_just_before_the_streams_beginning_is_whole_without_a_mark(driver):
    """Age, size and count remove a channel's oldest first, and all after the position is there."""
    await publish(driver, 200, "busy")
    subscription = await driver.subscribe(LIVE, Inbox())
    place = subscription.position
    await publish(driver, 3)
    await publish(driver, 200, "busy")
    assert await driver._stream.first() == place.offset + 1
    for position in (place, Position(*place)):
        page = await driver.resume(LIVE, position, 500)
        assert (len(page.messages), page.complete) == (3, True)


async def test_quiet_channel_whose_messages_have_expired_is_whole_while_none_is_missed(
    own_settings,
):
    async with opened(replace(own_settings, history_seconds=4)) as driver:
        await publish(driver, 3)
        last = (await places(driver))[-1]
        while await places(driver):  # noqa: ASYNC110 - they expire
            await asyncio.sleep(0.1)
        assert await is_whole(driver, last)
        await publish(driver, 1)
        assert await is_whole(driver, last)  # this driver has watched the stream since


async def test_page_after_page_of_a_full_channel_is_proved_or_is_not_called_whole(own_settings):
    """What is evicted between and within readings is not passed over."""
    async with (
        opened(replace(own_settings, history_messages=600)) as driver,
        opened(own_settings) as publisher,
    ):
        inbox = Inbox()
        await driver.subscribe(LIVE, inbox)
        await publish(publisher, 600)
        await inbox.until(600)
        first = inbox.deliveries[0]
        place = MarkedPosition(*first.position, first.time)
        page = await driver.resume(LIVE, place, 500)
        assert page.complete
        await publish(publisher, 550)
        final = page.messages[-1]
        page = await driver.resume(LIVE, MarkedPosition(*final.position, final.time), 500)
        assert not page.complete


def test_times_are_read_to_the_nanosecond_and_written_as_they_were():
    for text in (
        "2026-11-30T18:55:02.52499475Z",
        "2026-11-30T18:55:02Z",
        "2026-11-30T18:55:02.000000001Z",
        "1970-01-01T00:00:00Z",
        "9999-12-31T23:59:59.999999999Z",
    ):
        assert timestamp(nanoseconds(text)) == text
    assert nanoseconds("2026-11-30T18:55:02.5+00:00") == nanoseconds("2026-11-30T18:55:02.50Z")
    for text in ("", "x", "2026-13-30T18:55:02Z", "0001-01-01T00:00:00Z", "2026-11-30T18:55:02"):
        assert nanoseconds(text) is None


@pytest.fixture
def requests(driver, monkeypatch):
    """The subjects of JetStream's API that the driver asks, in order."""
    asked, request = [], driver._connection.request

    def asking(subject, *args, **kwargs):
        asked.append(subject.removeprefix("$JS.API."))
        return request(subject, *args, **kwargs)

    monkeypatch.setattr(driver._connection, "request", asking)
    return asked


def contents(page):
    """A page without the headers, which say how many messages followed when it was read."""
    return page._replace(messages=[one._replace(headers=None) for one in page.messages])


async def test_subscriber_reads_the_last_messages_without_asking_again(driver, requests):
    await publish(driver, 5)
    inbox = Inbox()
    subscription = await driver.subscribe(LIVE, inbox)
    requests.clear()
    page = await driver.read_last(LIVE, 3, subscription.position)
    assert set(requests) == {f"DIRECT.GET.{STREAM}"}
    assert contents(page) == contents(await driver.read(LIVE, after=None, limit=3))
    assert [one.position.offset for one in page.messages] == [3, 4, 5]


async def test_what_a_subscriber_has_got_since_the_stream_was_asked_is_read(driver):
    await publish(driver, 2)
    inbox = Inbox()
    await driver.subscribe(LIVE, inbox)
    await publish(driver, 1)
    [delivery] = await inbox.until(1)
    page = await driver.read_last(LIVE, 5, delivery.position)
    assert [one.position.offset for one in page.messages] == [1, 2, 3]
    assert page.position.offset == 3


async def test_subscriber_of_another_history_gets_the_present_one(driver, requests):
    await publish(driver, 2)
    inbox = Inbox()
    subscription = await driver.subscribe(LIVE, inbox)
    requests.clear()
    page = await driver.read_last(LIVE, 5, Position(1, "another"))
    assert f"STREAM.INFO.{STREAM}" in requests
    assert page.position.epoch == subscription.position.epoch
    driver._stream.identity.invalidate()
    requests.clear()
    await driver.read_last(LIVE, 5, subscription.position)
    assert f"STREAM.INFO.{STREAM}" in requests


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 11, 12, 100])
async def test_subscriber_gets_the_last_messages_of_however_many_there_are(
    driver, monkeypatch, limit
):
    monkeypatch.setattr("eventbus.drivers.nats.direct._BATCH", 2)
    for _ in range(6):
        await publish(driver, 2)
        await publish(driver, 1, "b")
    inbox = Inbox()
    subscription = await driver.subscribe(LIVE, inbox)
    page = await driver.read_last(LIVE, limit, subscription.position)
    assert contents(page) == contents(await driver.read(LIVE, after=None, limit=limit))
    assert len(page.messages) == min(limit, 12)
    nothing = await driver.subscribe("own.live.c", inbox)
    assert (await driver.read_last("own.live.c", limit, nothing.position)).messages == ()
