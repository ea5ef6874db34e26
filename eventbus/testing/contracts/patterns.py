"""Tests that drivers with PATTERN_HISTORY read the messages of all channels of a pattern."""

import asyncio
from typing import cast

from eventbus.channels import Pattern, Subjects
from eventbus.drivers import (
    Capability,
    Driver,
    MaintenanceDriver,
    MarkedPosition,
    Page,
    PatternHistoryDriver,
    Position,
)
from eventbus.testing.contracts.probes import (
    Contract,
    Inbox,
    MakeDriver,
)

__all__ = ["PatternHistoryContract"]


async def _read(
    driver: Driver, subject: str, position: Position, *, limit: int = 1000, max_bytes: int = 10**6
) -> Page:
    reader = cast(PatternHistoryDriver, driver)
    return await reader.read_pattern(subject, position, limit=limit, max_bytes=max_bytes)


async def _publish(driver: Driver, subject: str, payload: bytes = b"x") -> Position:
    published = await driver.publish(subject, payload)
    assert published is not None
    return published.position


class PatternHistoryContract(Contract):
    """Tests for the history of patterns. Drivers without the capability pass them."""

    async def test_messages_of_a_pattern_are_read_in_the_order_of_their_stream(
        self, make_driver: MakeDriver, subjects: Subjects
    ) -> None:
        driver, inbox = await make_driver(), Inbox()
        if Capability.PATTERN_HISTORY not in driver.capabilities:
            return
        subscription = await driver.subscribe(subjects.live_filter(Pattern("orders.*")), inbox)
        start = subscription.position
        assert start is not None
        wanted = []
        for i, channel in enumerate(("orders.2", "other.1", "orders.1", "orders.1.x", "orders.2")):
            position = await _publish(driver, subjects.event(channel), str(i).encode())
            if channel in ("orders.1", "orders.2"):
                wanted.append((subjects.live(channel), str(i).encode(), position))
        page = await _read(driver, subjects.live_filter(Pattern("orders.*")), start)
        assert [(one.subject, one.payload, one.position) for one in page.messages] == wanted
        assert page.complete
        assert all(one.time for one in page.messages)
        await inbox.until(3)
        assert [one.position for one in inbox.deliveries] == [one[2] for one in wanted]
        everything = await _read(driver, subjects.live_filter(Pattern(">")), start)
        assert [one.payload for one in everything.messages] == [b"0", b"1", b"2", b"3", b"4"]
        assert everything.position.offset >= wanted[-1][2].offset

    async def test_pattern_continues_after_any_of_its_messages(
        self, make_driver: MakeDriver, subjects: Subjects
    ) -> None:
        driver, inbox = await make_driver(), Inbox()
        if Capability.PATTERN_HISTORY not in driver.capabilities:
            return
        live = subjects.live_filter(Pattern("a.*"))
        await driver.subscribe(live, inbox)
        for number in range(9):
            await _publish(driver, subjects.event(f"a.{number % 3}"), str(number).encode())
        await inbox.until(9)
        for number, seen in enumerate(inbox.deliveries):
            assert seen.position is not None
            assert seen.time is not None
            page = await _read(driver, live, MarkedPosition(*seen.position, seen.time))
            assert page.complete
            assert [one.payload for one in page.messages] == inbox.payloads[number + 1 :]

    async def test_position_of_a_pattern_in_another_stream_or_in_the_future_proves_nothing(
        self, make_driver: MakeDriver, subjects: Subjects
    ) -> None:
        driver, inbox = await make_driver(), Inbox()
        if Capability.PATTERN_HISTORY not in driver.capabilities:
            return
        live = subjects.live_filter(Pattern("a.*"))
        await driver.subscribe(live, inbox)
        for _ in range(3):
            await _publish(driver, subjects.event("a.1"))
        await inbox.until(3)
        offset, epoch = inbox.deliveries[1].position or (0, "")
        for wrong in (
            Position(offset, "another"),
            MarkedPosition(offset, epoch, "2020-01-01T00:00:00Z"),
            MarkedPosition(offset + 1000, epoch, "2020-01-01T00:00:00Z"),
        ):
            page = await _read(driver, live, wrong)
            assert not page.complete, wrong

    async def test_page_of_a_pattern_is_incomplete_if_one_channel_may_have_lost_messages(
        self, make_driver: MakeDriver, subjects: Subjects
    ) -> None:
        """By default, every driver keeps 100 messages per channel."""
        driver = await make_driver()
        if Capability.PATTERN_HISTORY not in driver.capabilities:
            return
        live = subjects.live_filter(Pattern("many.*"))
        start = await _publish(driver, subjects.event("many.quiet"))
        await asyncio.gather(*(_publish(driver, subjects.event("many.busy")) for _ in range(100)))
        page = await _read(driver, live, start)
        assert (len(page.messages), page.complete) == (100, True)
        later = await _publish(driver, subjects.event("many.busy"))
        assert not (await _read(driver, live, start)).complete
        assert (await _read(driver, subjects.live("many.quiet"), start)).complete
        assert (await _read(driver, live, later)).complete

    async def test_page_of_a_pattern_is_incomplete_after_a_purge_of_one_channel(
        self, make_driver: MakeDriver, subjects: Subjects
    ) -> None:
        driver = await make_driver()
        needed = {Capability.PATTERN_HISTORY, Capability.MAINTENANCE}
        if not needed <= driver.capabilities:
            return
        live = subjects.live_filter(Pattern("many.*"))
        start = await _publish(driver, subjects.event("many.1"))
        await _publish(driver, subjects.event("many.2"))
        after = await _publish(driver, subjects.event("many.1"))
        assert (await _read(driver, live, start)).complete
        await cast(MaintenanceDriver, driver).purge(subjects.live("many.2"))
        assert not (await _read(driver, live, start)).complete
        page = await _read(driver, live, after)
        assert (page.messages, page.complete) == ((), True)

    async def test_page_of_a_pattern_is_incomplete_beyond_its_limits(
        self, make_driver: MakeDriver, subjects: Subjects
    ) -> None:
        driver = await make_driver()
        if Capability.PATTERN_HISTORY not in driver.capabilities:
            return
        live = subjects.live_filter(Pattern("many.*"))
        start = await _publish(driver, subjects.event("many.start"))
        await asyncio.gather(
            *(_publish(driver, subjects.event(f"many.{i}"), b"x" * 10) for i in range(250))
        )
        for limit, max_bytes, complete in (
            (250, 2500, True), (249, 2500, False), (250, 2499, False),
        ):  # fmt: skip
            page = await _read(driver, live, start, limit=limit, max_bytes=max_bytes)
            assert page.complete is complete, (limit, max_bytes)
            assert len(page.messages) <= limit

    async def test_complete_page_of_a_busy_pattern_has_no_gaps(
        self, make_driver: MakeDriver, subjects: Subjects
    ) -> None:
        """Messages are evicted while they are read: a page that misses one must not be complete."""
        driver, publisher, inbox = await make_driver(), await make_driver(), Inbox()
        if Capability.PATTERN_HISTORY not in driver.capabilities:
            return
        live = subjects.live_filter(Pattern("busy.*"))
        await driver.subscribe(live, inbox)
        done = False

        async def publish() -> None:
            number = 0
            while not done:
                # Two channels are much busier than the third, and so evict their messages first.
                channels = [f"busy.{'aabbabbabc'[(number + i) % 10]}" for i in range(10)]
                await asyncio.gather(
                    *(publisher.publish(subjects.event(channel), b"x") for channel in channels)
                )
                number += 10
                await asyncio.sleep(0)

        publishing = asyncio.create_task(publish())
        try:
            await inbox.until(300)
            outcomes = set()
            for number in range(150):
                here = inbox.deliveries[-(10 + number * 13 % 250)]
                assert here.position is not None
                assert here.time is not None
                page = await _read(driver, live, MarkedPosition(*here.position, here.time))
                outcomes.add(page.complete)
                if page.complete:
                    offsets = [d.position.offset for d in page.messages if d.position is not None]
                    first = here.position.offset + 1
                    assert offsets == list(range(first, first + len(offsets)))
        finally:
            done = True
            await publishing
        assert outcomes == {True, False}
