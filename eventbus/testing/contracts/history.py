"""Tests that drivers with HISTORY number the messages they store, and read them back."""

import asyncio
from typing import cast

import pytest_asyncio

from eventbus.channels import Subjects
from eventbus.drivers import (
    Capability,
    HistoryDriver,
    MarkedPosition,
    Position,
    Subscription,
    read_from,
)
from eventbus.messages import HEADER_EVENT, HEADER_ID, new_id
from eventbus.testing.contracts.probes import (
    Contract,
    Inbox,
    MakeDriver,
)

__all__ = ["HistoryContract"]


class HistoryContract(Contract):
    """Tests for history. Drivers without the capability skip them."""

    @pytest_asyncio.fixture
    async def history(self, make_driver: MakeDriver) -> HistoryDriver:
        """A driver with history."""
        return cast(HistoryDriver, await self.driver_with(Capability.HISTORY, make_driver))

    async def test_positions_of_stored_messages_rise_and_link_to_the_previous_one(
        self, history: HistoryDriver, subjects: Subjects
    ) -> None:
        inbox = Inbox()
        subscription = await history.subscribe(subjects.live("a"), inbox)
        start = subscription.position
        assert start is not None
        published = []
        for channel in ("a", "b", "a", "b", "a"):
            result = await history.publish(subjects.event(channel), b"x")
            assert result is not None
            if channel == "a":
                published.append(result.position)
        # A stream can hold one channel or all: offsets are only comparable within a channel.
        assert start.offset < published[0].offset < published[1].offset < published[2].offset
        assert {p.epoch for p in published} == {start.epoch}
        await inbox.until(3)
        assert [d.position for d in inbox.deliveries] == published
        first, second, third = inbox.deliveries
        assert first.previous == 0
        assert second.previous == published[0].offset
        assert third.previous == published[1].offset

    async def test_second_message_with_the_same_id_is_a_duplicate_and_not_stored(
        self, history: HistoryDriver, make_driver: MakeDriver, subjects: Subjects
    ) -> None:
        other_driver, inbox = await make_driver(), Inbox()
        await history.subscribe(subjects.live("a"), inbox)
        headers = {HEADER_ID: new_id()}
        first = await history.publish(subjects.event("a"), b"x", headers)
        second = await other_driver.publish(subjects.event("a"), b"x", headers)
        other = await history.publish(subjects.event("a"), b"y", {HEADER_ID: new_id()})
        assert first is not None
        assert second is not None
        assert other is not None
        assert (first.duplicate, second.duplicate, other.duplicate) == (False, True, False)
        assert second.position == first.position
        assert other.position.offset == first.position.offset + 1
        await inbox.until(2)
        assert inbox.payloads == [b"x", b"y"]

    async def test_subscription_starts_after_the_last_stored_message(
        self, history: HistoryDriver, subjects: Subjects
    ) -> None:
        inbox = Inbox()
        before = await history.publish(subjects.event("a"), b"before")
        subscription = await history.subscribe(subjects.live("a"), inbox)
        assert before is not None
        assert subscription.position == before.position
        await history.publish(subjects.event("a"), b"after")
        await inbox.until(1)
        assert inbox.payloads == [b"after"]

    async def test_subscribing_while_others_publish_leaves_no_gaps_or_duplicates(
        self, history: HistoryDriver, make_driver: MakeDriver, subjects: Subjects
    ) -> None:
        publisher = await make_driver()
        done = False

        async def publish() -> list[int]:
            offsets: list[int] = []
            while not done:
                results = await asyncio.gather(
                    *(publisher.publish(subjects.event("busy"), b"x") for _ in range(20))
                )
                offsets += sorted(r.position.offset for r in results if r is not None)
                await asyncio.sleep(0)
            return offsets

        publishing = asyncio.create_task(publish())
        joined: list[tuple[Inbox, Subscription]] = []
        for _ in range(10):
            inboxes = [Inbox() for _ in range(5)]
            subscriptions = await asyncio.gather(
                *(history.subscribe(subjects.live("busy"), inbox) for inbox in inboxes)
            )
            joined += zip(inboxes, subscriptions, strict=True)
            await inboxes[0].until(30)
        done = True
        offsets = await publishing
        for inbox, subscription in joined:
            assert subscription.position is not None
            expected = [offset for offset in offsets if offset > subscription.position.offset]
            await inbox.until(len(expected))
            assert inbox.offsets == expected

    async def test_stored_messages_can_be_read_from_an_offset_or_from_the_end(
        self, history: HistoryDriver, subjects: Subjects
    ) -> None:
        offsets = []
        end = Position(0, "")
        for i in range(10):
            for channel in ("other", "read"):
                published = await history.publish(
                    subjects.event(channel), str(i).encode(), {HEADER_EVENT: "größe"}
                )
                assert published is not None
                end = published.position
            offsets.append(end.offset)
        live = subjects.live("read")

        last = await history.read(live, after=None, limit=3)
        assert [d.payload for d in last.messages] == [b"7", b"8", b"9"]
        assert last.complete
        assert last.position == end

        page = await history.read(live, after=offsets[3], limit=4)
        assert [d.position for d in page.messages] == [
            Position(offset, end.epoch) for offset in offsets[4:8]
        ]
        assert {d.subject for d in page.messages} == {live}
        assert {d.headers[HEADER_EVENT] for d in page.messages} == {"größe"}
        assert [d.previous for d in page.messages[1:]] == offsets[4:7]
        assert all(d.time for d in page.messages)
        assert page.complete

        assert len((await history.read(live, after=None, limit=100)).messages) == 10
        assert len((await history.read(live, after=0, limit=100)).messages) == 10
        for after in (offsets[-1], offsets[-1] + 1):
            none = await history.read(live, after=after, limit=100)
            assert none.messages == ()
            assert none.complete
        empty = await history.read(subjects.live("never"), after=None, limit=100)
        assert empty.messages == ()
        assert empty.complete

    async def test_page_is_incomplete_if_messages_may_have_been_evicted(
        self, history: HistoryDriver, subjects: Subjects
    ) -> None:
        """By default, every driver keeps 100 messages per channel."""
        await asyncio.gather(*(history.publish(subjects.event("full"), b"x") for _ in range(150)))
        live = subjects.live("full")
        all_ = await history.read(live, after=None, limit=1000)
        first = all_.messages[0].position
        assert len(all_.messages) == 100
        assert first is not None
        for after, complete in (
            (0, False),
            (first.offset - 2, False),
            (first.offset, True),
            (first.offset + 50, True),
        ):
            page = await history.read(live, after=after, limit=1000)
            assert page.complete is complete, after
            assert len(page.messages) == min(100, all_.position.offset - after)

    async def test_page_is_complete_if_all_missed_messages_are_still_stored(
        self, history: HistoryDriver, subjects: Subjects
    ) -> None:
        """By default, every driver keeps 100 messages per channel."""
        live = subjects.live("full")
        await history.publish(subjects.event("full"), b"x")
        first = await history.publish(subjects.event("full"), b"x")
        await asyncio.gather(*(history.publish(subjects.event("full"), b"x") for _ in range(100)))
        assert first is not None
        page = await history.read(live, after=first.position.offset, limit=1000)
        assert (len(page.messages), page.complete) == (100, True)
        await history.publish(subjects.event("full"), b"x")
        page = await history.read(live, after=first.position.offset, limit=1000)
        assert (len(page.messages), page.complete) == (100, False)

    async def test_position_is_recognized_by_its_mark(
        self, history: HistoryDriver, subjects: Subjects
    ) -> None:
        inbox = Inbox()
        live = subjects.live("a")
        subscription = await history.subscribe(live, inbox)
        start = subscription.position
        assert start is not None
        for _ in range(3):
            await history.publish(subjects.event("a"), b"x")
        await inbox.until(3)
        page = await read_from(history, live, start, 100)
        assert (len(page.messages), page.complete) == (3, True)
        second = inbox.deliveries[1]
        assert second.position is not None
        assert second.time is not None
        page = await read_from(history, live, MarkedPosition(*second.position, second.time), 100)
        assert [d.position for d in page.messages] == [inbox.deliveries[2].position]
        assert page.complete
        assert page.messages[0].time == inbox.deliveries[2].time
        for other in (
            MarkedPosition(*second.position, "2020-01-01T00:00:00Z"),
            Position(second.position.offset, "another"),
        ):
            assert not (await read_from(history, live, other, 100)).complete

    async def test_complete_page_of_a_busy_full_channel_has_no_gaps(
        self, history: HistoryDriver, make_driver: MakeDriver, subjects: Subjects
    ) -> None:
        publisher, inbox = await make_driver(), Inbox()
        live = subjects.live("busy")
        await history.subscribe(live, inbox)
        done = False

        async def publish() -> None:
            number = 0
            while not done:
                await asyncio.gather(
                    *(
                        publisher.publish(subjects.event("busy"), b"%d" % (number + i))
                        for i in range(10)
                    )
                )
                number += 10
                await asyncio.sleep(0)

        publishing = asyncio.create_task(publish())
        try:
            await inbox.until(110)
            outcomes = set()
            for number in range(300):
                # Near the oldest stored message: some are evicted while they are read.
                here = inbox.deliveries[-(30 + number * 7 % 71)]
                assert here.position is not None
                assert here.time is not None
                place = MarkedPosition(*here.position, here.time)
                page = await read_from(history, live, place, 500)
                outcomes.add(page.complete)
                if page.complete:
                    offsets = [d.position.offset for d in page.messages if d.position is not None]
                    # No other channel has messages, so offsets are consecutive.
                    expected = range(place.offset + 1, place.offset + 1 + len(offsets))
                    assert offsets == list(expected)
        finally:
            done = True
            await publishing
        assert True in outcomes
