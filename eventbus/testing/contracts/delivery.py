"""Tests that every driver delivers messages to its subscribers, in order and only to them."""

import asyncio
from typing import Final

import pytest

from eventbus.channels import (
    Pattern,
    Subjects,
)
from eventbus.drivers import Capability, Delivery, Handler
from eventbus.errors import DriverError
from eventbus.messages import HEADER_EVENT
from eventbus.testing.contracts.probes import (
    Contract,
    Inbox,
    MakeDriver,
)

__all__ = ["DeliveryContract"]


_MANY: Final = 1000


class DeliveryContract(Contract):
    """Tests for delivery."""

    async def test_event_reaches_a_subscriber_of_its_live_subject(
        self, make_driver: MakeDriver, subjects: Subjects
    ) -> None:
        driver, inbox = await make_driver(), Inbox()
        await driver.subscribe(subjects.live("orders.7"), inbox)
        published = await driver.publish(subjects.event("orders.7"), b"{}")
        [delivery] = await inbox.until(1)
        assert delivery.subject == subjects.live("orders.7")
        assert delivery.payload == b"{}"
        if Capability.HISTORY not in driver.capabilities:
            return
        assert published is not None
        assert published.duplicate is False
        assert delivery.position == published.position
        assert delivery.previous == 0
        assert delivery.time is not None
        assert delivery.time.endswith("Z")

    async def test_volatile_message_arrives_without_a_position(
        self, make_driver: MakeDriver, subjects: Subjects
    ) -> None:
        driver, inbox = await make_driver(), Inbox()
        await driver.subscribe(subjects.live("cursor"), inbox)
        assert await driver.publish(subjects.live("cursor"), b"1") is None
        [delivery] = await inbox.until(1)
        assert delivery.position is None
        assert delivery.previous is None
        assert delivery.time is None

    async def test_message_on_another_prefix_reaches_its_subscribers_only(
        self, make_driver: MakeDriver, subjects: Subjects
    ) -> None:
        driver, inbox, other = await make_driver(), Inbox(), Inbox()
        subscription = await driver.subscribe(subjects.control("nodes"), inbox)
        await driver.subscribe(subjects.live("nodes"), other)
        assert subscription.position is None
        assert await driver.publish(subjects.control("nodes"), b"ask") is None
        assert (await inbox.until(1))[0].subject == subjects.control("nodes")
        await self.settled(driver, other, subjects.live("nodes"))
        assert other.deliveries == []

    async def test_many_messages_keep_their_order(
        self, make_driver: MakeDriver, subjects: Subjects
    ) -> None:
        driver, inbox = await make_driver(), Inbox()
        await driver.subscribe(subjects.live("many"), inbox)
        sent = [str(i).encode() for i in range(_MANY)]
        for payload in sent:
            await driver.publish(subjects.event("many"), payload)
        await inbox.until(_MANY)
        assert inbox.payloads == sent

    async def test_concurrent_publishes_are_all_delivered_once(
        self, make_driver: MakeDriver, subjects: Subjects
    ) -> None:
        driver, inbox = await make_driver(), Inbox()
        await driver.subscribe(subjects.live("many"), inbox)
        sent = [str(i).encode() for i in range(_MANY)]
        published = await asyncio.gather(
            *(driver.publish(subjects.event("many"), payload) for payload in sent)
        )
        await inbox.until(_MANY)
        assert sorted(inbox.payloads) == sorted(sent)
        if Capability.HISTORY in driver.capabilities:
            offsets = {p.position.offset for p in published if p is not None}
            assert len(offsets) == _MANY
            assert inbox.offsets == sorted(offsets)

    @pytest.mark.parametrize("root", ["event", "live"])
    async def test_filters_deliver_what_they_match_and_nothing_else(
        self, make_driver: MakeDriver, subjects: Subjects, root: str
    ) -> None:
        driver = await make_driver()
        star, rest, every = Inbox(), Inbox(), Inbox()
        for pattern, inbox in (("a.*", star), ("a.>", rest), (">", every)):
            await driver.subscribe(subjects.live_filter(Pattern(pattern)), inbox)
        channels = ("a", "a.b", "a.b.c", "b.a")
        for channel in channels:
            subject = subjects.event(channel) if root == "event" else subjects.live(channel)
            await driver.publish(subject, channel.encode())
        await every.until(len(channels))
        await rest.until(2)
        await star.until(1)
        assert every.payloads == [b"a", b"a.b", b"a.b.c", b"b.a"]
        assert rest.payloads == [b"a.b", b"a.b.c"]
        assert star.payloads == [b"a.b"]
        assert star.deliveries[0].subject == subjects.live("a.b")

    async def test_two_drivers_of_one_broker_see_each_other(
        self, make_driver: MakeDriver, subjects: Subjects
    ) -> None:
        one, two = await make_driver(), await make_driver()
        inbox_one, inbox_two = Inbox(), Inbox()
        await one.subscribe(subjects.live("both"), inbox_one)
        await two.subscribe(subjects.live("both"), inbox_two)
        await one.publish(subjects.event("both"), b"from one")
        await two.publish(subjects.event("both"), b"from two")
        for inbox in (inbox_one, inbox_two):
            await inbox.until(2)
            assert inbox.payloads == [b"from one", b"from two"]

    async def test_subscriptions_of_one_subject_each_get_every_message(
        self, make_driver: MakeDriver, subjects: Subjects
    ) -> None:
        driver = await make_driver()
        inboxes = [Inbox(), Inbox(), Inbox()]
        for inbox in inboxes:
            await driver.subscribe(subjects.live("same"), inbox)
        await driver.publish(subjects.event("same"), b"x")
        for inbox in inboxes:
            assert len(await inbox.until(1)) == 1

    async def test_nothing_is_delivered_after_unsubscribing(
        self, make_driver: MakeDriver, subjects: Subjects
    ) -> None:
        driver, gone, stays = await make_driver(), Inbox(), Inbox()
        subscription = await driver.subscribe(subjects.live("room"), gone)
        await driver.subscribe(subjects.live("room"), stays)
        await driver.publish(subjects.event("room"), b"before")
        await gone.until(1)
        await subscription.aclose()
        await subscription.aclose()
        await driver.publish(subjects.event("room"), b"after")
        await driver.publish(subjects.live("room"), b"volatile")
        await stays.until(3)
        assert gone.payloads == [b"before"]

    async def test_unsubscribing_at_speed_ends_deliveries_at_once(
        self, make_driver: MakeDriver, subjects: Subjects
    ) -> None:
        driver, gone, stays = await make_driver(), Inbox(), Inbox()
        subscription = await driver.subscribe(subjects.live("room"), gone)
        await driver.subscribe(subjects.live("room"), stays)
        publishing = asyncio.gather(
            *(driver.publish(subjects.event("room"), b"x") for _ in range(_MANY))
        )
        await stays.until(1)
        await subscription.aclose()
        count = len(gone.deliveries)
        await publishing
        await stays.until(_MANY)
        assert len(gone.deliveries) == count

    async def test_bytes_and_headers_arrive_as_they_were_sent(
        self, make_driver: MakeDriver, subjects: Subjects
    ) -> None:
        driver, inbox = await make_driver(), Inbox()
        await driver.subscribe(subjects.live("raw"), inbox)
        payloads = [b"", bytes(range(256)), b"\r\nMSG x 1 3\r\nabc\r\n", "größe €".encode() * 500]
        headers = {HEADER_EVENT: "größer", "Eb-Number": "7", "traceparent": "00-ab-cd-01"}
        for root in (subjects.event, subjects.live):
            for payload in payloads:
                await driver.publish(root("raw"), payload, headers)
        await inbox.until(2 * len(payloads))
        assert inbox.payloads == payloads * 2
        for delivery in inbox.deliveries:
            assert headers.items() <= dict(delivery.headers).items()
            assert delivery.headers[HEADER_EVENT] == "größer"
            assert delivery.headers.get("Absent") is None

    async def test_message_without_headers_has_an_empty_mapping_or_the_brokers_own(
        self, make_driver: MakeDriver, subjects: Subjects
    ) -> None:
        driver, inbox = await make_driver(), Inbox()
        await driver.subscribe(subjects.live("bare"), inbox)
        await driver.publish(subjects.live("bare"), b"x")
        assert dict((await inbox.until(1))[0].headers) == {}

    async def test_publishing_without_subscribers_is_not_an_error(
        self, make_driver: MakeDriver, subjects: Subjects
    ) -> None:
        driver = await make_driver()
        await driver.publish(subjects.event("empty.room"), b"x")
        assert await driver.publish(subjects.live("empty.room"), b"x") is None

    async def test_handler_that_raises_does_not_affect_others(
        self,
        make_driver: MakeDriver,
        subjects: Subjects,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        driver, before, after = await make_driver(), Inbox(), Inbox()
        called = 0

        def fail(_delivery: Delivery) -> None:
            nonlocal called
            called += 1
            raise RuntimeError(f"on purpose, {called}")

        handlers: list[Handler] = [before, fail, after]
        for handler in handlers:
            await driver.subscribe(subjects.live("room"), handler)
        for root in (subjects.event, subjects.live):
            await driver.publish(root("room"), b"x")
        await before.until(2)
        await after.until(2)
        assert called == 2, "a handler that raised still gets the next message"
        assert "on purpose, 1" in caplog.text

    async def test_close_is_idempotent_and_disconnects(
        self, make_driver: MakeDriver, subjects: Subjects
    ) -> None:
        driver = await make_driver()
        await driver.subscribe(subjects.live("room"), Inbox())
        states = [driver.is_connected]
        for _ in range(2):
            await driver.aclose()
            states.append(driver.is_connected)
        assert states == [True, False, False]

    async def test_use_after_close_is_an_error_naming_the_driver(
        self, make_driver: MakeDriver, subjects: Subjects
    ) -> None:
        driver = await make_driver()
        await driver.aclose()
        with pytest.raises(DriverError, match="not open") as caught:
            await driver.publish(subjects.event("room"), b"x")
        assert caught.value.driver == driver.name
        with pytest.raises(DriverError, match="not open"):
            await driver.publish(subjects.live("room"), b"x")
        with pytest.raises(DriverError, match="not open"):
            await driver.subscribe(subjects.live("room"), Inbox())

    async def test_closed_driver_delivers_nothing_and_leaves_others_alone(
        self, make_driver: MakeDriver, subjects: Subjects
    ) -> None:
        closed, open_ = await make_driver(), await make_driver()
        inbox_closed, inbox_open = Inbox(), Inbox()
        subscription = await closed.subscribe(subjects.live("room"), inbox_closed)
        await open_.subscribe(subjects.live("room"), inbox_open)
        await closed.aclose()
        await subscription.aclose()
        await open_.publish(subjects.event("room"), b"x")
        await inbox_open.until(1)
        assert inbox_closed.deliveries == []
