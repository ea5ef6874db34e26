"""What a node listens to: one subscription for each channel, as long as it is in use."""

import asyncio

import pytest

from eventbus.channels import Subjects
from eventbus.drivers import mark_of
from eventbus.drivers.base import Delivery, Position
from eventbus.drivers.memory import MemoryBroker, MemoryDriver
from eventbus.errors import ConnectionFailed
from eventbus_edge.delivery.interest import Interest

SUBJECTS = Subjects("t")
LINGER_S = 0.05


class Watched(MemoryDriver):
    """The memory driver; it records subscriptions, and can be held up or made to fail."""

    def __init__(self, broker):
        super().__init__(broker)
        self.log = []
        self.faults = []
        self.may_subscribe = asyncio.Event()
        self.may_subscribe.set()
        self.may_close = asyncio.Event()
        self.may_close.set()
        self.changed = asyncio.Event()

    def note(self, entry):
        self.log.append(entry)
        self.changed.set()

    async def until(self, *entries):
        """Wait until the log says just this."""
        while tuple(self.log) != entries:
            assert entries[: len(self.log)] == tuple(self.log)
            self.changed.clear()
            await asyncio.wait_for(self.changed.wait(), 40)

    async def subscribe(self, subject, handler):
        self.note("subscribe")
        await self.may_subscribe.wait()
        if self.faults:
            raise self.faults.pop()
        return Closing(self, await super().subscribe(subject, handler))


class Closing:
    def __init__(self, driver, subscription):
        self.driver = driver
        self.subscription = subscription
        self.position = subscription.position

    async def aclose(self):
        self.driver.note("close")
        await self.driver.may_close.wait()
        await self.subscription.aclose()


@pytest.fixture
async def driver():
    made = Watched(MemoryBroker(SUBJECTS))
    await made.open()
    yield made
    await made.aclose()


@pytest.fixture
def received():
    return []


@pytest.fixture
async def interest(driver, received):
    def on_delivery(channel, delivery):
        received.append((channel, delivery.payload))

    made = Interest(driver, SUBJECTS, on_delivery, LINGER_S)
    yield made
    await made.aclose()


async def publish(driver, payload=b"1", channel="a"):
    published = await driver.publish(SUBJECTS.event(channel), payload)
    await asyncio.sleep(0)  # memory delivers in the next turn
    return published.position


async def gone(interest):
    """Wait until released subscriptions have ended, and check that none is left."""
    await interest._tasks.join(40)
    assert len(interest) == 0


async def test_the_first_holder_subscribes_and_further_ones_share(driver, interest, received):
    for _ in range(3):
        await interest.acquire("a")
    assert driver.log == ["subscribe"]
    await publish(driver, b"1")
    assert received == [("a", b"1")]  # once, however many hold it


async def test_channels_are_subscribed_one_by_one_and_exactly(driver, interest, received):
    await interest.acquire("a")
    await interest.acquire("b")
    await publish(driver, b"1", "b")
    await publish(driver, b"2", "a.b")
    assert received == [("b", b"1")]
    assert len(interest) == 2


async def test_the_last_one_leaving_unsubscribes_after_the_linger(driver, interest, received):
    await interest.acquire("a")
    await interest.acquire("a")
    interest.release("a")
    await asyncio.sleep(2 * LINGER_S)
    assert driver.log == ["subscribe"]  # one still holds it
    interest.release("a")
    assert driver.log == ["subscribe"]  # not at once
    await driver.until("subscribe", "close")
    await gone(interest)
    await publish(driver)
    assert received == []


async def test_coming_back_within_the_linger_keeps_the_subscription(driver, interest, received):
    await interest.acquire("a")
    interest.release("a")
    await interest.acquire("a")
    await asyncio.sleep(3 * LINGER_S)
    assert driver.log == ["subscribe"]
    await publish(driver)
    assert received == [("a", b"1")]


async def test_the_linger_counts_from_the_last_leaving():
    driver = Watched(MemoryBroker(SUBJECTS))
    await driver.open()
    interest = Interest(driver, SUBJECTS, lambda *_: None, 4.0)
    await interest.acquire("a")
    interest.release("a")
    await asyncio.sleep(1.0)
    await interest.acquire("a")
    interest.release("a")
    left = asyncio.get_running_loop().time()
    await driver.until("subscribe", "close")
    assert asyncio.get_running_loop().time() - left >= 3.99
    await interest.aclose()
    await driver.aclose()


async def test_concurrent_holders_subscribe_once_and_all_wait_for_it(driver, interest):
    driver.may_subscribe.clear()
    tasks = [asyncio.create_task(interest.acquire("a")) for _ in range(20)]
    await driver.until("subscribe")
    assert not any(task.done() for task in tasks)
    driver.may_subscribe.set()
    await asyncio.gather(*tasks)
    assert driver.log == ["subscribe"]


async def test_a_subscription_that_fails_leaves_nothing_and_the_next_one_works(
    driver, interest, received
):
    driver.faults = [ConnectionFailed("down", driver="memory")]
    with pytest.raises(ConnectionFailed):
        await interest.acquire("a")
    await interest.acquire("a")
    await publish(driver)
    assert received == [("a", b"1")]
    interest.release("a")
    await driver.until("subscribe", "subscribe", "close")
    await gone(interest)


async def test_holders_that_wait_for_a_failing_subscription_fail_with_it(driver, interest):
    driver.may_subscribe.clear()
    driver.faults = [ConnectionFailed("down", driver="memory")]
    tasks = [asyncio.create_task(interest.acquire("a")) for _ in range(20)]
    await driver.until("subscribe")
    driver.may_subscribe.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [str(result) for result in results] == ["down"] * 20
    assert driver.log == ["subscribe"]
    await interest.acquire("a")  # the next one tries again
    assert driver.log == ["subscribe", "subscribe"]


async def test_a_subscription_that_fails_is_forgotten(driver, interest):
    driver.faults = [ConnectionFailed("down", driver="memory")]
    with pytest.raises(ConnectionFailed):
        await interest.acquire("a")
    await gone(interest)
    assert driver.log == ["subscribe"]


async def test_one_that_is_cancelled_while_it_waits_does_not_hold_the_channel(driver, interest):
    driver.may_subscribe.clear()
    first = asyncio.create_task(interest.acquire("a"))
    await driver.until("subscribe")
    second = asyncio.create_task(interest.acquire("a"))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait({first})
    driver.may_subscribe.set()
    await second
    interest.release("a")
    await driver.until("subscribe", "subscribe", "close")
    await gone(interest)


async def test_the_position_is_where_a_new_listener_continues(driver, interest):
    await publish(driver)
    assert await interest.acquire("a") == Position(1, driver.broker.epoch)
    await publish(driver)
    assert await interest.acquire("a") == Position(2, driver.broker.epoch)
    assert interest.position("a") == Position(2, driver.broker.epoch)
    assert interest.position("b") is None


async def test_volatile_messages_do_not_move_the_position(driver, interest, received):
    await interest.acquire("a")
    await driver.publish(SUBJECTS.live("a"), b"1")
    await asyncio.sleep(0)
    assert received == [("a", b"1")]
    assert interest.position("a") == Position(0, driver.broker.epoch)


async def test_messages_that_come_while_subscribing_move_the_position(driver, interest, received):
    class Early(Watched):
        async def subscribe(self, subject, handler):
            subscription = await super().subscribe(subject, handler)
            await publish(self)
            return subscription

    early = Early(driver.broker)
    await early.open()
    made = Interest(early, SUBJECTS, lambda *_: received.append(1), LINGER_S)
    assert await made.acquire("a") == Position(1, driver.broker.epoch)
    assert received == [1]
    await made.aclose()
    await early.aclose()


async def test_coming_while_the_old_subscription_is_closed_subscribes_again(
    driver, interest, received
):
    await interest.acquire("a")
    interest.release("a")
    driver.may_close.clear()
    await driver.until("subscribe", "close")
    coming = asyncio.create_task(interest.acquire("a"))
    await asyncio.sleep(0)
    driver.may_close.set()
    await coming
    assert driver.log == ["subscribe", "close", "subscribe"]
    await publish(driver)
    assert received == [("a", b"1")]
    await asyncio.sleep(2 * LINGER_S)
    assert len(interest) == 1


async def test_the_position_of_the_new_subscription_is_not_that_of_the_old_one(driver, interest):
    await interest.acquire("a")
    interest.release("a")
    driver.may_close.clear()
    await driver.until("subscribe", "close")
    await publish(driver)  # the old subscription still receives this one
    coming = asyncio.create_task(interest.acquire("a"))
    await asyncio.sleep(0)
    driver.may_subscribe.clear()
    driver.may_close.set()
    await driver.until("subscribe", "close", "subscribe")
    for _ in range(3):
        await publish(driver)  # nobody receives these
    driver.may_subscribe.set()
    assert await coming == Position(4, driver.broker.epoch)


async def test_closing_ends_all_subscriptions_held_or_not(driver, received):
    interest = Interest(driver, SUBJECTS, lambda *_: received.append(1), LINGER_S)
    await interest.acquire("a")
    await interest.acquire("b")
    interest.release("b")
    await interest.aclose()
    assert sorted(driver.log) == ["close", "close", "subscribe", "subscribe"]
    await publish(driver)
    assert received == []
    await interest.aclose()


async def test_leaving_after_the_end_is_harmless(driver, interest):
    await interest.acquire("a")
    await interest.aclose()
    interest.release("a")
    assert len(interest) == 0


async def test_a_driver_that_cannot_unsubscribe_is_logged_and_the_channel_is_released(
    driver, interest, caplog
):
    class Stubborn(Closing):
        async def aclose(self):
            await super().aclose()
            raise ConnectionFailed("down", driver="memory")

    await interest.acquire("a")
    entry = interest._channels["a"]
    entry.subscription = Stubborn(driver, entry.subscription.subscription)
    interest.release("a")
    await gone(interest)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    await interest.acquire("a")
    assert driver.log == ["subscribe", "close", "subscribe"]


class Replaceable:
    """A driver whose only subscription may belong to another history."""

    def __init__(self):
        self.position = Position(7, "first")
        self.on_gap = None

    async def subscribe(self, _subject, handler):
        self.deliver = handler
        return self

    async def aclose(self):
        pass


async def test_new_history_is_reported_once_the_driver_knows_where_it_continues():
    driver, gaps = Replaceable(), []
    interest = Interest(
        driver, SUBJECTS, lambda *_: None, LINGER_S, on_gap=lambda _channel, at: gaps.append(at)
    )
    await interest.acquire("a")
    driver.on_gap()
    driver.deliver(Delivery("t.live.a", b"", position=Position(9, "second"), previous=0))
    driver.on_gap()  # its own position is still that of the first history
    assert gaps == [Position(8, "second")]
    driver.position = Position(3, "third")
    driver.on_gap()
    assert gaps[1:] == [Position(3, "third")]
    assert interest.position("a") == Position(3, "third")
    await interest.aclose()


@pytest.mark.parametrize(("offset", "mark"), [(3, None), (7, "2026-01-01T00:00:07Z")])
async def test_mark_of_a_lost_message_does_not_name_a_position_in_the_new_history(offset, mark):
    driver = Replaceable()
    interest = Interest(driver, SUBJECTS, lambda *_: None, LINGER_S, on_gap=lambda *_: None)
    await interest.acquire("a")
    at, time = Position(7, "first"), "2026-01-01T00:00:07Z"
    driver.deliver(Delivery("t.live.a", b"", position=at, previous=6, time=time))
    assert mark_of(interest.position("a")) == time
    driver.position = Position(offset, "second")
    driver.on_gap()
    assert interest.position("a") == Position(offset, "second")
    assert mark_of(interest.position("a")) == mark
    await interest.aclose()
