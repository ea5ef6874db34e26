"""Tests that drivers with MAINTENANCE count and purge stored messages."""

from typing import cast

import pytest_asyncio

from eventbus.channels import (
    Pattern,
    Subjects,
)
from eventbus.drivers import Capability, MaintenanceDriver
from eventbus.testing.contracts.probes import (
    Contract,
    Inbox,
    MakeDriver,
)

__all__ = ["MaintenanceContract"]


class MaintenanceContract(Contract):
    """Tests for maintenance. Drivers without the capability skip them."""

    @pytest_asyncio.fixture
    async def maintenance(self, make_driver: MakeDriver) -> MaintenanceDriver:
        """A driver with maintenance."""
        return cast(MaintenanceDriver, await self.driver_with(Capability.MAINTENANCE, make_driver))

    async def test_purged_channel_has_no_messages_and_resuming_is_incomplete(
        self, maintenance: MaintenanceDriver, subjects: Subjects
    ) -> None:
        inbox = Inbox()
        await maintenance.subscribe(subjects.live("a"), inbox)
        stored = [await maintenance.publish(subjects.event("a"), b"x") for _ in range(3)]
        other = await maintenance.publish(subjects.event("b"), b"other")
        offsets = [one.position.offset for one in stored if one is not None]
        assert await maintenance.purge(subjects.live("a")) == 3
        assert await maintenance.purge(subjects.live("a")) == 0
        assert await maintenance.purge(subjects.live("never")) == 0

        assert not (await maintenance.read(subjects.live("a"), after=None, limit=9)).messages
        missed = await maintenance.read(subjects.live("a"), after=offsets[0], limit=9)
        assert not missed.messages
        assert not missed.complete
        assert (await maintenance.read(subjects.live("a"), after=offsets[-1], limit=9)).complete
        untouched = await maintenance.read(subjects.live("b"), after=0, limit=9)
        assert [d.payload for d in untouched.messages] == [b"other"]

        later = await maintenance.publish(subjects.event("a"), b"later")
        assert later is not None
        assert other is not None
        assert later.position.offset > offsets[-1]
        assert later.position.epoch == stored[0].position.epoch if stored[0] else False
        await inbox.until(4)
        assert inbox.payloads == [b"x", b"x", b"x", b"later"]
        page = await maintenance.read(subjects.live("a"), after=offsets[1], limit=9)
        assert [d.payload for d in page.messages] == [b"later"]
        assert not page.complete
        page = await maintenance.read(subjects.live("a"), after=offsets[2], limit=9)
        assert [d.payload for d in page.messages] == [b"later"]
        assert page.complete

    async def test_stored_channels_are_counted_by_a_filter(
        self, maintenance: MaintenanceDriver, subjects: Subjects
    ) -> None:
        for channel in ("orders.1", "orders.1", "orders.2", "orders.eu.3", "general"):
            await maintenance.publish(subjects.event(channel), b"x")
        some = await maintenance.stored(subjects.live_filter(Pattern("orders.*")), 10)
        assert some == {subjects.live("orders.1"): 2, subjects.live("orders.2"): 1}
        every = subjects.live_filter(Pattern(">"))
        assert len(await maintenance.stored(every, 10)) == 4
        assert len(await maintenance.stored(every, 3)) == 3
        await maintenance.purge(subjects.live("general"))
        assert subjects.live("general") not in await maintenance.stored(every, 10)
