"""What every driver must do, as a test class to inherit; needs pytest and pytest-asyncio.

    class TestMyDriver(DriverContract):
        @pytest_asyncio.fixture
        async def make_driver(self):
            async with AsyncExitStack() as stack:
                async def make():
                    driver = MyDriver(...)
                    await driver.open()
                    stack.push_async_callback(driver.aclose)
                    return driver
                yield make

Each call of `make_driver` gives an opened driver; all those of one test share a broker and the
namespace that the fixture `subjects` names. A driver without HISTORY passes the tests of history by
having none.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, cast

import pytest

from eventbus.channels import Pattern, Subjects
from eventbus.drivers.base import (
    Capability,
    Delivery,
    Driver,
    Handler,
    HistoryDriver,
    Position,
    StateDriver,
    Subscription,
)
from eventbus.drivers.base_store import MaintenanceDriver
from eventbus.errors import DriverError
from eventbus.message import HEADER_EVENT, HEADER_ID, new_id

__all__ = ["Changes", "DriverContract", "Inbox", "MakeDriver"]

MakeDriver = Callable[[], Awaitable[Driver]]
TIMEOUT_S: Final = 10.0
_MANY: Final = 1000


class Inbox:
    """A handler that keeps what it gets."""

    def __init__(self) -> None:
        self.deliveries: list[Delivery] = []
        self._arrived = asyncio.Event()

    def __call__(self, delivery: Delivery) -> None:
        self.deliveries.append(delivery)
        self._arrived.set()

    @property
    def payloads(self) -> list[bytes]:
        """What came, in its order."""
        return [delivery.payload for delivery in self.deliveries]

    @property
    def offsets(self) -> list[int]:
        """The offsets of what came and has one."""
        return [d.position.offset for d in self.deliveries if d.position is not None]

    async def until(self, count: int) -> list[Delivery]:
        """All deliveries, as soon as there are `count` of them."""
        await self.until_payload(lambda payloads: len(payloads) >= count)
        return self.deliveries

    async def until_payload(self, enough: Callable[[list[bytes]], bool]) -> None:
        """Wait until what came is enough."""
        try:
            async with asyncio.timeout(TIMEOUT_S):
                while not enough(self.payloads):
                    self._arrived.clear()
                    await self._arrived.wait()
        except TimeoutError:
            raise AssertionError(f"only {len(self.deliveries)} messages came") from None


class Changes:
    """A watcher that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, bytes | None]] = []
        self._arrived = asyncio.Event()

    def __call__(self, key: str, value: bytes | None) -> None:
        self.told.append((key, value))
        self._arrived.set()

    async def until(self, key: str, value: bytes | None) -> None:
        """Wait until that change was told."""
        try:
            async with asyncio.timeout(TIMEOUT_S):
                while (key, value) not in self.told:
                    self._arrived.clear()
                    await self._arrived.wait()
        except TimeoutError:
            raise AssertionError(f"{key} {value!r} is not in {self.told}") from None


class DriverContract:
    """The suite; a subclass gives the fixture `make_driver`, and `subjects` where it differs."""

    @pytest.fixture
    def subjects(self) -> Subjects:
        """The namespace of the drivers under test."""
        return Subjects()

    async def settled(self, driver: Driver, inbox: Inbox, subject: str) -> None:
        """Wait until what was published before on `driver` has come, by one message more."""
        last = new_id().encode()
        await driver.publish(subject, last)
        await inbox.until_payload(lambda payloads: last in payloads)
        inbox.deliveries[:] = [d for d in inbox.deliveries if d.payload != last]

    async def test_event_reaches_a_listener_of_its_live_subject(
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

    async def test_volatile_message_arrives_without_a_place_in_the_stream(
        self, make_driver: MakeDriver, subjects: Subjects
    ) -> None:
        driver, inbox = await make_driver(), Inbox()
        await driver.subscribe(subjects.live("cursor"), inbox)
        assert await driver.publish(subjects.live("cursor"), b"1") is None
        [delivery] = await inbox.until(1)
        assert delivery.position is None
        assert delivery.previous is None
        assert delivery.time is None

    async def test_message_on_another_root_goes_to_who_listens_to_it(
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

    async def test_nobody_listening_is_no_error(
        self, make_driver: MakeDriver, subjects: Subjects
    ) -> None:
        driver = await make_driver()
        await driver.publish(subjects.event("empty.room"), b"x")
        assert await driver.publish(subjects.live("empty.room"), b"x") is None

    async def test_handler_that_raises_harms_nobody(
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
        assert called == 2, "it gets the next message all the same"
        assert "on purpose, 1" in caplog.text

    async def test_close_is_idempotent_and_says_so(
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

    async def test_positions_of_stored_messages_rise_and_name_what_came_before(
        self, make_driver: MakeDriver, subjects: Subjects
    ) -> None:
        driver, inbox = await make_driver(), Inbox()
        if Capability.HISTORY not in driver.capabilities:
            return
        subscription = await driver.subscribe(subjects.live("a"), inbox)
        start = subscription.position
        assert start is not None
        published = []
        for channel in ("a", "b", "a", "b", "a"):
            result = await driver.publish(subjects.event(channel), b"x")
            assert result is not None
            if channel == "a":
                published.append(result.position)
        # A stream may be all channels' or each channel's own: offsets compare within a channel.
        assert start.offset < published[0].offset < published[1].offset < published[2].offset
        assert {p.epoch for p in published} == {start.epoch}
        await inbox.until(3)
        assert [d.position for d in inbox.deliveries] == published
        first, second, third = inbox.deliveries
        assert first.previous == 0
        assert second.previous == published[0].offset
        assert third.previous == published[1].offset

    async def test_second_message_of_one_id_is_flagged_and_stored_once(
        self, make_driver: MakeDriver, subjects: Subjects
    ) -> None:
        one, two, inbox = await make_driver(), await make_driver(), Inbox()
        if Capability.HISTORY not in one.capabilities:
            return
        await one.subscribe(subjects.live("a"), inbox)
        headers = {HEADER_ID: new_id()}
        first = await one.publish(subjects.event("a"), b"x", headers)
        second = await two.publish(subjects.event("a"), b"x", headers)
        other = await one.publish(subjects.event("a"), b"y", {HEADER_ID: new_id()})
        assert first is not None
        assert second is not None
        assert other is not None
        assert (first.duplicate, second.duplicate, other.duplicate) == (False, True, False)
        assert second.position == first.position
        assert other.position.offset == first.position.offset + 1
        await inbox.until(2)
        assert inbox.payloads == [b"x", b"y"]

    async def test_subscription_begins_after_what_was_stored_before(
        self, make_driver: MakeDriver, subjects: Subjects
    ) -> None:
        driver, inbox = await make_driver(), Inbox()
        if Capability.HISTORY not in driver.capabilities:
            return
        before = await driver.publish(subjects.event("a"), b"before")
        subscription = await driver.subscribe(subjects.live("a"), inbox)
        assert before is not None
        assert subscription.position == before.position
        await driver.publish(subjects.event("a"), b"after")
        await inbox.until(1)
        assert inbox.payloads == [b"after"]

    async def test_subscribing_while_others_publish_leaves_no_gap_and_no_double(
        self, make_driver: MakeDriver, subjects: Subjects
    ) -> None:
        driver, publisher = await make_driver(), await make_driver()
        if Capability.HISTORY not in driver.capabilities:
            return
        done = False

        async def publish() -> int:
            last = 0
            while not done:
                results = await asyncio.gather(
                    *(publisher.publish(subjects.event("busy"), b"x") for _ in range(20))
                )
                last = max(r.position.offset for r in results if r is not None)
                await asyncio.sleep(0)
            return last

        publishing = asyncio.create_task(publish())
        joined: list[tuple[Inbox, Subscription]] = []
        for _ in range(10):
            inboxes = [Inbox() for _ in range(5)]
            subscriptions = await asyncio.gather(
                *(driver.subscribe(subjects.live("busy"), inbox) for inbox in inboxes)
            )
            joined += zip(inboxes, subscriptions, strict=True)
            await inboxes[0].until(30)
        done = True
        last = await publishing
        for inbox, subscription in joined:
            assert subscription.position is not None
            expected = list(range(subscription.position.offset + 1, last + 1))
            await inbox.until(len(expected))
            assert inbox.offsets == expected

    async def test_stored_messages_can_be_read_from_an_offset_or_from_the_end(
        self, make_driver: MakeDriver, subjects: Subjects
    ) -> None:
        driver = await make_driver()
        if Capability.HISTORY not in driver.capabilities:
            return
        history = cast(HistoryDriver, driver)
        offsets = []
        end = Position(0, "")
        for i in range(10):
            for channel in ("other", "read"):
                published = await driver.publish(
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

    async def test_reading_says_when_messages_may_have_been_evicted(
        self, make_driver: MakeDriver, subjects: Subjects
    ) -> None:
        """Both drivers keep 100 messages of a channel by default."""
        driver = await make_driver()
        if Capability.HISTORY not in driver.capabilities:
            return
        history = cast(HistoryDriver, driver)
        await asyncio.gather(*(driver.publish(subjects.event("full"), b"x") for _ in range(150)))
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

    async def test_entries_are_seen_by_all_and_told_to_who_watches(
        self, make_driver: MakeDriver
    ) -> None:
        one, two, changes, others = await make_driver(), await make_driver(), Changes(), Changes()
        if Capability.PRESENCE not in one.capabilities:
            return
        mine, theirs = cast(StateDriver, one).state, cast(StateDriver, two).state
        key = "node.0-A." + "x" * 200 + "." + "=" * 60
        await mine.put("room.before", b"0")
        await mine.put(key, bytes(range(256)))
        subscription = await theirs.watch("room.*", changes)
        await theirs.watch("other.>", others)
        await mine.put("room.a", b"1")
        await mine.put("room.a", b"")
        await mine.put("room.a.b", b"deeper")
        await mine.delete("room.never")
        await mine.delete("room.before")
        await changes.until("room.before", None)
        assert [told for told in changes.told if told != ("room.never", None)] == [
            ("room.a", b"1"), ("room.a", b""), ("room.before", None),
        ]  # fmt: skip
        assert await theirs.entries("room.*") == {"room.a": b""}
        assert await theirs.entries("room.>") == {"room.a": b"", "room.a.b": b"deeper"}
        assert await theirs.entries("*.0-A.>") == {key: bytes(range(256))}
        assert await theirs.entries("nothing.>") == {}
        assert mine.losses == theirs.losses == 0
        await subscription.aclose()
        await subscription.aclose()
        count = len(changes.told)
        last = Changes()
        await theirs.watch("room.*", last)
        await mine.put("room.late", b"x")
        await last.until("room.late", b"x")
        assert len(changes.told) == count
        assert others.told == []

    async def test_an_entry_with_a_time_ends_unless_it_is_set_again(
        self, make_driver: MakeDriver
    ) -> None:
        one, two, changes = await make_driver(), await make_driver(), Changes()
        if Capability.PRESENCE not in one.capabilities:
            return
        mine, theirs = cast(StateDriver, one).state, cast(StateDriver, two).state
        await mine.put("node.before", b"1", ttl_s=1)
        await theirs.watch("node.*", changes)
        loop = asyncio.get_running_loop()
        await mine.put("node.short", b"1", ttl_s=1)
        start = loop.time()
        await mine.put("node.long", b"1", ttl_s=1)
        await mine.put("node.long", b"2", ttl_s=30)
        await mine.put("node.kept", b"1", ttl_s=1)
        await mine.put("node.kept", b"2")
        await changes.until("node.short", None)
        assert 0.9 < loop.time() - start < 2.5
        await changes.until("node.before", None)
        assert await theirs.entries("node.*") == {"node.long": b"2", "node.kept": b"2"}
        assert ("node.long", None) not in changes.told
        assert ("node.kept", None) not in changes.told

    async def test_of_all_who_claim_an_entry_at_once_one_has_it_until_its_time_is_over(
        self, make_driver: MakeDriver
    ) -> None:
        drivers = [await make_driver() for _ in range(3)]
        if Capability.PRESENCE not in drivers[0].capabilities:
            return
        states = [cast(StateDriver, driver).state for driver in drivers]
        changes, loop = Changes(), asyncio.get_running_loop()
        await states[0].watch("lease.*", changes)
        for turn in range(5):
            key = f"lease.{turn}"
            results = await asyncio.gather(
                *(
                    state.claim(key, f"{i}-{again}".encode(), ttl_s=30)
                    for i, state in enumerate(states)
                    for again in range(3)
                )
            )
            assert results.count(True) == 1
        assert not await states[0].claim("lease.0", b"late", ttl_s=30)
        await states[0].delete("lease.0")
        assert await states[1].claim("lease.0", b"next", ttl_s=30)
        await changes.until("lease.0", b"next")
        assert await states[0].claim("lease.short", b"mine", ttl_s=1)
        await asyncio.sleep(0.5)
        start = loop.time()
        assert await states[0].claim("lease.short", b"mine", ttl_s=1), "it is prolonged"
        while not await states[1].claim("lease.short", b"other", ttl_s=30):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        assert 0.8 < loop.time() - start < 2.5
        assert not await states[0].claim("lease.short", b"mine", ttl_s=1)
        assert await states[2].entries("lease.short") == {"lease.short": b"other"}

    async def test_thousands_of_entries_are_read_whole(self, make_driver: MakeDriver) -> None:
        driver = await make_driver()
        if Capability.PRESENCE not in driver.capabilities:
            return
        state = cast(StateDriver, driver).state
        expected = {f"many.{i}": str(i).encode() for i in range(_MANY + 7)}
        await asyncio.gather(*(state.put(key, value) for key, value in expected.items()))
        assert await state.entries("many.*") == expected

    async def test_purged_channel_has_no_messages_and_says_so_to_who_resumes(
        self, make_driver: MakeDriver, subjects: Subjects
    ) -> None:
        driver, inbox = await make_driver(), Inbox()
        if Capability.MAINTENANCE not in driver.capabilities:
            return
        keeper = cast(MaintenanceDriver, driver)
        await driver.subscribe(subjects.live("a"), inbox)
        stored = [await driver.publish(subjects.event("a"), b"x") for _ in range(3)]
        other = await driver.publish(subjects.event("b"), b"other")
        offsets = [one.position.offset for one in stored if one is not None]
        assert await keeper.purge(subjects.live("a")) == 3
        assert await keeper.purge(subjects.live("a")) == 0
        assert await keeper.purge(subjects.live("never")) == 0

        assert not (await keeper.read(subjects.live("a"), after=None, limit=9)).messages
        missed = await keeper.read(subjects.live("a"), after=offsets[0], limit=9)
        assert not missed.messages
        assert not missed.complete
        assert (await keeper.read(subjects.live("a"), after=offsets[-1], limit=9)).complete
        untouched = await keeper.read(subjects.live("b"), after=0, limit=9)
        assert [d.payload for d in untouched.messages] == [b"other"]

        later = await driver.publish(subjects.event("a"), b"later")
        assert later is not None
        assert other is not None
        assert later.position.offset > offsets[-1]
        assert later.position.epoch == stored[0].position.epoch if stored[0] else False
        await inbox.until(4)
        assert inbox.payloads == [b"x", b"x", b"x", b"later"]
        page = await keeper.read(subjects.live("a"), after=offsets[1], limit=9)
        assert [d.payload for d in page.messages] == [b"later"]
        assert not page.complete
        page = await keeper.read(subjects.live("a"), after=offsets[2], limit=9)
        assert [d.payload for d in page.messages] == [b"later"]
        assert page.complete

    async def test_stored_channels_are_counted_by_a_filter(
        self, make_driver: MakeDriver, subjects: Subjects
    ) -> None:
        driver = await make_driver()
        if Capability.MAINTENANCE not in driver.capabilities:
            return
        keeper = cast(MaintenanceDriver, driver)
        for channel in ("orders.1", "orders.1", "orders.2", "orders.eu.3", "general"):
            await driver.publish(subjects.event(channel), b"x")
        some = await keeper.stored(subjects.live_filter(Pattern("orders.*")), 10)
        assert some == {subjects.live("orders.1"): 2, subjects.live("orders.2"): 1}
        every = subjects.live_filter(Pattern(">"))
        assert len(await keeper.stored(every, 10)) == 4
        assert len(await keeper.stored(every, 3)) == 3
        await keeper.purge(subjects.live("general"))
        assert subjects.live("general") not in await keeper.stored(every, 10)
