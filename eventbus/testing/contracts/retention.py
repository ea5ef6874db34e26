"""Tests that drivers with HISTORY apply retention classes.

The fixture `make_driver` is like that of DriverContract, but makes drivers with the classes in
`RETENTION` and a default of 100 messages for ten minutes.
"""

import asyncio
from typing import (
    Final,
    cast,
)

import pytest

from eventbus.channels import Subjects
from eventbus.drivers import HistoryDriver, Page
from eventbus.testing.contracts.probes import (
    TIMEOUT_S,
    Contract,
    MakeDriver,
)

__all__ = ["RETENTION", "RetentionContract"]


RETENTION: Final = "few.*:3/10m many.*:250/10m long.*:5/1d/8MiB brief.*:10/1s"


class RetentionContract(Contract):
    """Tests for retention classes."""

    @pytest.mark.parametrize(
        ("channel", "published", "held"),
        [("few.a", 10, 3), ("many.a", 300, 250), ("long.a", 20, 5), ("default", 150, 100)],
    )
    async def test_class_keeps_its_own_number_of_messages(
        self, make_driver: MakeDriver, subjects: Subjects, channel: str, published: int, held: int
    ) -> None:
        driver, offsets = await self._published(make_driver, subjects, channel, published)
        live = subjects.live(channel)
        every = await driver.read(live, after=None, limit=1000)
        assert _offsets(every) == offsets[-held:]
        assert every.complete
        for limit in (1, 2, held):
            assert _offsets(await driver.read(live, after=None, limit=limit)) == offsets[-limit:]

    @pytest.mark.parametrize(
        ("channel", "published", "held"),
        [("few.a", 10, 3), ("many.a", 300, 250), ("long.a", 20, 5), ("default", 150, 100)],
    )
    async def test_page_is_complete_if_the_class_still_has_all_missed_messages(
        self, make_driver: MakeDriver, subjects: Subjects, channel: str, published: int, held: int
    ) -> None:
        driver, offsets = await self._published(make_driver, subjects, channel, published)
        live = subjects.live(channel)
        for index, complete in (
            (0, False),
            (published - held - 2, False),
            (published - held - 1, True),
            (published - held, True),
            (published - 2, True),
            (published - 1, True),
        ):
            page = await driver.read(live, after=offsets[index], limit=1000)
            assert page.complete is complete, index
            assert _offsets(page) == offsets[max(index + 1, published - held) :]
            if complete:
                few = await driver.read(live, after=offsets[index], limit=2)
                assert _offsets(few) == offsets[index + 1 : index + 3]
                assert few.complete

    async def test_messages_of_a_class_expire_at_its_age(
        self, make_driver: MakeDriver, subjects: Subjects
    ) -> None:
        driver, offsets = await self._published(make_driver, subjects, "brief.a", 4)
        kept, kept_offsets = await self._published(make_driver, subjects, "kept", 4)
        live = subjects.live("brief.a")
        loop = asyncio.get_running_loop()
        deadline = loop.time() + TIMEOUT_S
        page = await driver.read(live, after=offsets[0], limit=100)
        while page.messages and loop.time() < deadline:
            await asyncio.sleep(0.05)
            page = await driver.read(live, after=offsets[0], limit=100)
        assert page.messages == ()
        assert not page.complete
        assert (await driver.read(live, after=None, limit=100)).messages == ()
        assert (await driver.read(live, after=offsets[-1], limit=100)).complete
        every = await kept.read(subjects.live("kept"), after=None, limit=100)
        assert _offsets(every) == kept_offsets

    async def _published(
        self, make_driver: MakeDriver, subjects: Subjects, channel: str, count: int
    ) -> tuple[HistoryDriver, list[int]]:
        """Publish `count` messages. Returns the driver and the offsets."""
        driver = await make_driver()
        offsets = []
        for _ in range(count):
            published = await driver.publish(subjects.event(channel), b"{}")
            assert published is not None, "a stored message has a position"
            offsets.append(published.position.offset)
        return cast(HistoryDriver, driver), offsets


def _offsets(page: Page) -> list[int]:
    return [one.position.offset for one in page.messages if one.position is not None]
