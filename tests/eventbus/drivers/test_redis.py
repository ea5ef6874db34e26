"""The redis driver on one server: the contract, offsets and epochs, ids, reading, frames."""

from contextlib import AsyncExitStack
from functools import partial

import msgspec
import pytest
import pytest_asyncio

from eventbus.channels import Pattern, Subjects
from eventbus.drivers.base import Position
from eventbus.drivers.redis import RedisDriver
from eventbus.message import HEADER_EVENT
from eventbus.testing.driver_contract import DriverContract, Inbox


@pytest_asyncio.fixture
async def make_driver(redis_settings):
    """Drivers for the settings given, or changed in some fields."""
    async with AsyncExitStack() as stack:

        async def make(settings=redis_settings, **changes):
            driver = RedisDriver(msgspec.structs.replace(settings, **changes))
            stack.push_async_callback(driver.aclose)
            await driver.open()
            return driver

        yield make


@pytest.fixture
def subjects(namespace):
    return Subjects(namespace)


class TestContractOnOneServer(DriverContract):
    """Offsets and epochs are each channel's own: see RedisDriver."""

    @pytest.fixture
    def subjects(self, namespace):
        return Subjects(namespace)

    async def test_positions_of_stored_messages_rise_and_name_what_came_before(
        self, make_driver, subjects
    ):
        driver, inbox = await make_driver(), Inbox()
        start = (await driver.subscribe(subjects.live("a"), inbox)).position
        published = {"a": [], "b": []}
        for channel in ("a", "b", "a", "b", "a"):
            published[channel].append(
                (await driver.publish(subjects.event(channel), b"x")).position
            )
        assert [p.offset - start.offset for p in published["a"]] == [1, 2, 3]
        assert {p.epoch for p in published["a"]} == {start.epoch}
        assert len({p.epoch for p in published["b"]}) == 1
        await inbox.until(3)
        assert [d.position for d in inbox.deliveries] == published["a"]
        assert [d.previous for d in inbox.deliveries] == [0, 1, 2]

    async def test_stored_messages_can_be_read_from_an_offset_or_from_the_end(
        self, make_driver, subjects
    ):
        driver, offsets, end = await make_driver(), [], Position(0, "")
        for i in range(10):
            for channel in ("other", "read"):
                published = await driver.publish(
                    subjects.event(channel), str(i).encode(), {HEADER_EVENT: "größe"}
                )
            end = published.position
            offsets.append(end.offset)
        live = subjects.live("read")

        last = await driver.read(live, after=None, limit=3)
        assert [d.payload for d in last.messages] == [b"7", b"8", b"9"]
        assert last.complete
        assert last.position == end

        page = await driver.read(live, after=offsets[3], limit=4)
        assert [d.position for d in page.messages] == [
            Position(offset, end.epoch) for offset in offsets[4:8]
        ]
        assert {d.subject for d in page.messages} == {live}
        assert {d.headers[HEADER_EVENT] for d in page.messages} == {"größe"}
        assert [d.previous for d in page.messages] == offsets[3:7]
        assert all(d.time for d in page.messages)
        assert page.complete

        assert len((await driver.read(live, after=None, limit=100)).messages) == 10
        assert len((await driver.read(live, after=0, limit=100)).messages) == 10
        for after in (offsets[-1], offsets[-1] + 1):
            none = await driver.read(live, after=after, limit=100)
            assert none.messages == ()
            assert none.complete
        empty = await driver.read(subjects.live("never"), after=None, limit=100)
        assert empty.messages == ()
        assert empty.position.offset == 0


class TestContractOnACluster(TestContractOnOneServer):
    """Nor is there an order between channels, whose nodes are different servers."""

    @pytest.fixture
    def make_driver(self, make_driver, cluster_settings):
        return partial(make_driver, cluster_settings)

    @pytest.mark.parametrize("root", ["event", "live"])
    async def test_filters_deliver_what_they_match_and_nothing_else(
        self, make_driver, subjects, root
    ):
        driver = await make_driver()
        star, rest, every = Inbox(), Inbox(), Inbox()
        for pattern, inbox in (("a.*", star), ("a.>", rest), (">", every)):
            await driver.subscribe(subjects.live_filter(Pattern(pattern)), inbox)
        for channel in ("a", "a.b", "a.b.c", "b.a"):
            await driver.publish(getattr(subjects, root)(channel), channel.encode())
        await every.until(4)
        await rest.until(2)
        await star.until(1)
        for channel in ("a.b", "b.a"):  # whose nodes have sent all before, once
            await self.settled(driver, every, subjects.live(channel))
        assert sorted(every.payloads) == [b"a", b"a.b", b"a.b.c", b"b.a"]
        assert sorted(p for p in rest.payloads if p.startswith(b"a.")) == [b"a.b", b"a.b.c"]
        assert star.payloads[0] == b"a.b"
        assert star.deliveries[0].subject == subjects.live("a.b")
