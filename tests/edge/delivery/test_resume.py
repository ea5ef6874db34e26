"""History and resume: exactly the missed messages, in order, then live ones; or a clear refusal."""

import asyncio
import os
import random
import signal

import msgspec
import pytest

from eventbus.attempts import Backoff
from eventbus.bus import EventBus
from eventbus.config import Settings
from eventbus.drivers.base import NO_HEADERS, Delivery, Position
from eventbus.drivers.marks import MarkedPosition
from eventbus.drivers.memory import MemoryBroker, MemoryDriver
from eventbus_edge.delivery import history as history_module
from eventbus_edge.delivery.history import History
from eventbus_edge.delivery.traffic import to_message
from eventbus_edge.protocols.vocabulary import Subscribe

RECONNECT = "eventbus.drivers.nats.connection.connection._SERVER_BACKOFF"


@pytest.fixture
def kept():
    """How many messages of a channel are kept."""
    return 100


@pytest.fixture(params=["memory", "nats", pytest.param("redis", marks=pytest.mark.redis)])
async def bus(request, settings, start_redis, kept):
    if request.param == "memory":
        settings = msgspec.structs.replace(settings, driver="memory")
    elif request.param == "redis":
        settings = start_redis()
    async with EventBus(msgspec.structs.replace(settings, history_messages=kept)) as opened:
        yield opened


async def publish(bus, numbers, channel="general"):
    receipts = [await bus.publish(channel, "tick", number) for number in numbers]
    return Position(receipts[-1].offset, receipts[-1].epoch) if receipts else None


async def messages(client, count):
    return [await client.next() for _ in range(count)]


def data_of(frames):
    return [frame["data"] for frame in frames]


async def test_resuming_client_gets_what_it_missed_in_order_then_live_messages(edge, bus):
    cursor = await publish(bus, [0])
    await publish(bus, range(1, 51))
    client = await edge.connect()
    answer = await client.subscribe(
        "general", data={"offset": cursor.offset, "epoch": cursor.epoch}
    )
    assert answer["recovered"] is True
    assert answer["offset"] == cursor.offset
    await publish(bus, [51])
    frames = await messages(client, 51)
    assert data_of(frames) == list(range(1, 52))
    offsets = [frame["offset"] for frame in frames]
    assert offsets == sorted(set(offsets))
    assert {frame["epoch"] for frame in frames} == {cursor.epoch}
    assert await client.receives_nothing()


async def test_client_that_missed_nothing_is_recovered_with_nothing(edge, bus):
    cursor = await publish(bus, [0])
    await publish(bus, [1], channel="announcements")
    client = await edge.connect()
    answer = await client.subscribe("general", data=cursor._asdict())
    assert answer["recovered"] is True
    assert await client.receives_nothing()


async def test_evicted_messages_are_reported_as_not_recovered_and_live_continues(edge, bus):
    cursor = await publish(bus, [0])
    last = await publish(bus, range(1, 150))
    client = await edge.connect()
    answer = await client.subscribe("general", data=cursor._asdict())
    assert answer["recovered"] is False
    assert (answer["offset"], answer["epoch"]) == last
    await publish(bus, [150])
    assert (await client.next())["data"] == 150


@pytest.mark.parametrize("change", [{"epoch": "another"}, {"offset": 10**9}])
async def test_foreign_epoch_or_offset_is_not_recovered(edge, bus, change):
    cursor = await publish(bus, [0])
    await publish(bus, [1])
    client = await edge.connect()
    answer = await client.subscribe("general", data=cursor._asdict() | change)
    assert answer["recovered"] is False
    assert await client.receives_nothing()


async def test_history_gives_the_last_few_then_live_messages(edge, bus):
    await publish(bus, range(10))
    client = await edge.connect()
    answer = await client.subscribe("general", data={"history": 3})
    assert "recovered" not in answer
    await publish(bus, [10])
    frames = await messages(client, 4)
    assert data_of(frames) == [7, 8, 9, 10]
    assert answer["offset"] < frames[0]["offset"]


async def test_history_of_an_empty_channel_is_empty(edge, bus):
    client = await edge.connect()
    answer = await client.subscribe("general", data={"history": 5})
    assert answer["kind"] == "public"
    assert await client.receives_nothing()


async def test_payload_in_quarantine_is_not_replayed(edge, bus):
    cursor = await publish(bus, [0])
    await bus.driver.publish(bus.subjects.event("general"), b"not json")
    await publish(bus, [1])
    client = await edge.connect()
    await client.subscribe("general", data=cursor._asdict())
    assert data_of(await messages(client, 1)) == [1]
    assert await client.receives_nothing()


async def test_payload_in_quarantine_does_not_take_the_place_of_a_message(edge, bus):
    await publish(bus, [0, 1])
    await bus.driver.publish(bus.subjects.event("general"), b"not json")
    client = await edge.connect()
    await client.subscribe("general", data={"history": 1})
    assert data_of(await messages(client, 1)) == [1]
    await publish(bus, [2])
    assert data_of(await messages(client, 1)) == [2]


async def test_replayed_history_larger_than_the_bound_does_not_cut_its_reader(start_edge, bus):
    edge = await start_edge(bus, max_unsent_bytes=16_384)
    cursor = await publish(bus, [0])
    for _ in range(40):
        await bus.publish("general", "tick", "x" * 4000)
    client = await edge.connect()
    answer = await client.subscribe("general", data=cursor._asdict())
    assert answer["recovered"] is True
    assert len(await messages(client, 40)) == 40


@pytest.mark.timeout(180)
@pytest.mark.parametrize("kept", [1200])
async def test_many_random_disconnects_leave_no_gap_and_no_duplicate(edge, bus, kept):
    total, clients, rounds = kept, 10, 20

    async def feed():
        for number in range(total):
            await bus.publish("general", "tick", number)
            if number % 20 == 0:
                await asyncio.sleep(0)  # the memory driver never waits, and others have to run

    async def follow(seed):
        rng = random.Random(seed)
        received, cursor = [], None
        for turn in range(rounds):
            client = await edge.connect()
            asked = {} if cursor is None else {"data": cursor}
            answer = await client.subscribe("general", **asked)
            assert answer.get("recovered", True), f"{seed} was {len(received)} in at turn {turn}"
            cursor = {"offset": answer["offset"], "epoch": answer["epoch"]}
            for _ in range(rng.randrange(50)):
                if cursor["offset"] == total:  # offsets begin at 1 and are this channel's alone
                    break
                frame = await client.next()
                received.append(frame["data"])
                cursor = {"offset": frame["offset"], "epoch": frame["epoch"]}
            client.socket.transport.abort()  # a disconnect, not a goodbye
        return received

    lists, _ = await asyncio.gather(
        asyncio.gather(*(follow(seed) for seed in range(clients))), feed()
    )
    for received in lists:
        assert received
        assert received == list(range(received[0], received[0] + len(received)))


async def test_message_that_history_has_before_the_bus_delivers_it_arrives_once(start_edge):
    held = []

    class Lagging(MemoryDriver):
        """Its stream is ahead of what is delivered, as on another connection to a broker."""

        is_behind = False

        async def subscribe(self, subject, handler):
            def receive(delivery):
                if self.is_behind:
                    held.append(lambda: handler(delivery))
                else:
                    handler(delivery)

            return await super().subscribe(subject, receive)

    driver = Lagging()
    async with EventBus(Settings(driver="memory"), driver) as bus:
        edge = await start_edge(bus)
        live = await edge.connect("/ws/general")
        await live.next()
        cursor = await publish(bus, [0])
        assert (await live.next())["data"] == 0
        driver.is_behind = True
        await publish(bus, [1, 2, 3])
        resumed, with_history = await edge.connect(), await edge.connect()
        assert (await resumed.subscribe("general", data=cursor._asdict()))["recovered"] is True
        assert data_of(await messages(resumed, 3)) == [1, 2, 3]
        await with_history.subscribe("general", data={"history": 2})
        assert data_of(await messages(with_history, 2)) == [2, 3]
        driver.is_behind = False
        for deliver in held:
            deliver()
        await publish(bus, [4])
        assert data_of(await messages(live, 4)) == [1, 2, 3, 4]
        for client in (resumed, with_history):
            assert data_of(await messages(client, 1)) == [4]
            assert await client.receives_nothing()
        assert edge.node._hub._ahead == {}


async def test_reads_for_clients_that_come_together_are_shared():
    reads = []

    class Counting(MemoryDriver):
        async def read(self, subject, *, after, limit):
            reads.append(after)
            await asyncio.sleep(0.01)
            return await super().read(subject, after=after, limit=limit)

    driver = Counting()
    async with EventBus(Settings(driver="memory"), driver) as bus:
        cursor = await publish(bus, [0])
        await publish(bus, [1])
        history = History(driver, bus.subjects, lambda channel, delivery: None)
        command = Subscribe("general", cursor, 0, None)
        results = await asyncio.gather(*(history.catch_up(command, cursor) for _ in range(100)))
    assert all(result.recovered for result in results)
    assert len(reads) <= 2


class CountingReads(MemoryDriver):
    """Counts its reads."""

    reads = 0

    async def read(self, subject, *, after, limit):
        self.reads += 1
        return await super().read(subject, after=after, limit=limit)


async def resume(history, since, at):
    return await history.catch_up(Subscribe("general", since, 0, None), at)


async def test_client_that_comes_a_moment_later_shares_the_read_if_nothing_was_delivered():
    driver = CountingReads()
    async with EventBus(Settings(driver="memory"), driver) as bus:
        cursor = await publish(bus, [0])
        end = await publish(bus, [1])
        history = History(driver, bus.subjects, to_message)
        first, second = [await resume(history, cursor, end) for _ in range(2)]
        assert second.messages is first.messages
        assert driver.reads == 1
        await publish(bus, [2])
        third = await resume(history, cursor, end)  # it will be delivered
        assert third.messages is first.messages
        # The channel's position has moved, or its mark has: a stream may go back to an offset.
        marked = MarkedPosition(*end, "2026-01-01T00:00:00Z")
        for at in (await publish(bus, [3]), marked):
            later = await resume(history, cursor, at)
            assert len(later.messages) == 3
        await history.catch_up(Subscribe("general", None, 2, None), end)
        assert driver.reads == 4


async def test_shared_read_is_forgotten_after_a_moment(monkeypatch):
    monkeypatch.setattr("eventbus_edge.delivery.history.FRESH_S", 0.01)
    driver = CountingReads()
    async with EventBus(Settings(driver="memory"), driver) as bus:
        cursor = await publish(bus, [0])
        end = await publish(bus, [1])
        history = History(driver, bus.subjects, to_message)
        await resume(history, cursor, end)
        async with asyncio.timeout(40):
            while driver.reads < 2:
                await asyncio.sleep(0.005)
                await resume(history, cursor, end)
            while history._fresh:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.005)
        assert history._fresh_bytes == 0


@pytest.mark.parametrize(("most", "most_bytes"), [(2, 10_000), (1000, 400)])
async def test_shared_reads_are_bounded_in_number_and_bytes(monkeypatch, most, most_bytes):
    monkeypatch.setattr("eventbus_edge.delivery.history.MAX_FRESH", most)
    monkeypatch.setattr("eventbus_edge.delivery.history.MAX_FRESH_BYTES", most_bytes)
    driver = CountingReads()
    async with EventBus(Settings(driver="memory"), driver) as bus:
        cursors = [await publish(bus, [number]) for number in range(5)]
        history = History(driver, bus.subjects, to_message)
        for cursor in cursors:
            caught_up = await resume(history, cursor, cursors[-1])
            assert caught_up.recovered is True
        assert 0 < len(history._fresh) < 5
        assert len(history._fresh) <= most
        assert history._fresh_bytes <= most_bytes


async def test_client_that_resumes_does_not_wait_for_those_that_read_much_history():
    may_go_on = asyncio.Event()
    reading = []

    class Held(MemoryDriver):
        """Holds the pages that were asked for."""

        async def read(self, subject, *, after, limit):
            if limit == 1000:
                reading.append(subject)
                await may_go_on.wait()
            return await super().read(subject, after=after, limit=limit)

    driver = Held()
    async with EventBus(Settings(driver="memory"), driver) as bus:
        cursor = await publish(bus, [0])
        end = await publish(bus, [1])
        history = History(driver, bus.subjects, to_message)
        greedy = [
            asyncio.create_task(history.page(f"user.{number}", None, 1000)) for number in range(50)
        ]
        await asyncio.sleep(0)
        async with asyncio.timeout(40):
            assert (await resume(history, cursor, end)).recovered is True
        assert 1 <= len(reading) <= history_module.QUERIES
        may_go_on.set()
        await asyncio.gather(*greedy)
        assert len(reading) == 50


async def test_clients_that_share_a_read_share_its_messages_and_frames():
    checked, encoded = [], []

    class Slow(MemoryDriver):
        async def read(self, subject, *, after, limit):
            await asyncio.sleep(0.01)
            return await super().read(subject, after=after, limit=limit)

    class Counting:
        is_shared = True

        def message(self, message):
            encoded.append(message)
            return None if message.event == "unknown" else message.body + b";"

    def check(channel, delivery):
        checked.append(delivery)
        return to_message(channel, delivery)

    driver = Slow()
    async with EventBus(Settings(driver="memory"), driver) as bus:
        cursor = await publish(bus, [0])
        end = await publish(bus, range(1, 51))
        history = History(driver, bus.subjects, check)
        command = Subscribe("general", cursor, 0, None)
        results = await asyncio.gather(*(history.catch_up(command, end) for _ in range(100)))
    one, other = Counting(), Counting()
    joined = [result.messages.joined(wire) for wire in (one, other) for result in results]
    assert {len(result.messages) for result in results} == {50}
    assert joined[0] == (b"".join(m.body + b";" for m in results[0].messages), 50)
    assert set(joined) == {joined[0]}
    assert len(checked) <= 2 * 50
    assert len(encoded) <= 2 * 2 * 50


@pytest.mark.parametrize("most", [16 * 1024, 1024 * 1024])
async def test_missed_messages_come_whole_whatever_may_be_unsent(start_edge, most):
    async with EventBus(Settings(driver="memory")) as bus:
        edge = await start_edge(bus, max_unsent_bytes=most)
        cursor = await publish(bus, [0])
        texts = [f"{number}" + "x" * 500 for number in range(60)]
        await publish(bus, texts)
        client = await edge.connect()
        answer = await client.subscribe("general", data=cursor._asdict())
        assert answer["recovered"] is True
        assert data_of(await messages(client, 60)) == texts
        assert await client.receives_nothing()


async def test_client_that_missed_more_than_a_node_keeps_in_memory_starts_over(monkeypatch):
    driver = MemoryDriver()
    async with EventBus(Settings(driver="memory"), driver) as bus:
        cursor = await publish(bus, [0])
        end = await publish(bus, range(1, 6))
        history = History(driver, bus.subjects, to_message)
        command = Subscribe("general", cursor, 0, None)
        whole = await history.catch_up(command, end)
        assert (whole.start, whole.recovered, len(whole.messages)) == (cursor, True, 5)
        size = sum(len(message.body) for message in whole.messages)
        monkeypatch.setattr(history_module, "PAGE", 2)
        monkeypatch.setattr(history_module, "MAX_CATCH_UP_BYTES", size)
        assert await history.catch_up(command, end) == whole
        monkeypatch.setattr(history_module, "MAX_CATCH_UP_BYTES", size - 1)
        fresh = await history.catch_up(command, end)
    assert (fresh.start, fresh.recovered, fresh.messages) == (end, False, [])


async def test_clients_see_no_gap_when_nats_is_killed_and_comes_back(start_edge, own_nats_server):
    settings = Settings(
        nats_url=own_nats_server.url, history_bytes=4 * 1024**2, history_messages=1000
    )
    async with EventBus(settings) as bus:
        edge = await start_edge(settings)
        client = await edge.connect("/ws/general")
        await client.next()
        await publish(bus, range(20))
        publishing = asyncio.create_task(publish(bus, range(20, 300)))
        await messages(client, 60)
        os.kill(own_nats_server.pid, signal.SIGKILL)
        await own_nats_server.stop()
        await own_nats_server.start()
        await publishing
        assert data_of(await messages(client, 240)) == list(range(60, 300))
        assert await client.receives_nothing()


async def test_client_is_notified_of_messages_that_the_edge_missed_for_good(
    start_edge, own_nats_server, monkeypatch
):
    monkeypatch.setattr(RECONNECT, Backoff(0.5, 0.5, jitter=0))
    settings = Settings(nats_url=own_nats_server.url, history_bytes=4 * 1024**2, history_messages=3)
    async with EventBus(settings) as bus, EventBus(settings) as away:
        edge = await start_edge(away)
        client = await edge.connect("/ws/general")
        await client.next()
        await publish(bus, [0])
        assert (await client.next())["data"] == 0
        await away.driver._connection.client.force_reconnect()
        last = await publish(bus, range(1, 11))
        frame = await client.next()
        assert frame["event"] == "eb:subscribed"
        assert frame["data"] == {
            "kind": "public",
            "offset": last.offset - 3,
            "epoch": last.epoch,
            "recovered": False,
        }
        assert data_of(await messages(client, 3)) == [8, 9, 10]
        assert edge.node.metrics.total("eventbus_edge_gaps_total") == 1


async def test_eviction_between_the_pages_of_a_resume_is_not_recovered(monkeypatch):
    monkeypatch.setattr(history_module, "PAGE", 5)
    evicting = asyncio.Event()

    class Full(MemoryDriver):
        """Between two pages of a reader, others publish as many messages as are kept."""

        async def read(self, subject, *, after, limit):
            page = await super().read(subject, after=after, limit=limit)
            if evicting.is_set() and len(page.messages) == limit:
                evicting.clear()
                await publish(bus, range(100, 110))
            return page

    driver = Full(MemoryBroker(history_messages=10))
    async with EventBus(Settings(driver="memory"), driver) as bus:
        cursor = await publish(bus, [0])
        end = await publish(bus, range(1, 9))
        history = History(driver, bus.subjects, to_message)
        command = Subscribe("general", cursor, 0, None)
        whole = await history.catch_up(command, end)
        assert (whole.recovered, len(whole.messages)) == (True, 8)
        evicting.set()
        history = History(driver, bus.subjects, to_message)  # it has no fresh read
        broken = await history.catch_up(command, end)
    assert (broken.recovered, broken.messages) == (False, [])


async def test_gap_while_a_client_catches_up_is_reported_to_it_too(start_edge):
    reading, go_on = asyncio.Event(), asyncio.Event()

    handlers = []

    class Slow(MemoryDriver):
        async def subscribe(self, subject, handler):
            handlers.append(handler)
            return await super().subscribe(subject, handler)

        async def read(self, subject, *, after, limit):
            page = await super().read(subject, after=after, limit=limit)
            reading.set()
            await go_on.wait()
            return page

    driver = Slow()
    async with EventBus(Settings(driver="memory"), driver) as bus:
        edge = await start_edge(bus)
        cursor = await publish(bus, [0, 1])
        client = await edge.connect()
        joining = asyncio.create_task(client.subscribe("general", data=cursor._asdict()))
        await reading.wait()
        # The node has missed offset 3 for good, as the message after it shows.
        position = Position(4, cursor.epoch)
        body = b'{"channel":"general","event":"tick","data":"after"}'
        for handler in handlers:
            handler(Delivery(bus.subjects.live("general"), body, NO_HEADERS, position, previous=3))
        go_on.set()
        assert (await joining)["recovered"] is True  # up to here
        frame = await client.next()
        assert (frame["event"], frame["data"]["recovered"]) == ("eb:subscribed", False)
        assert frame["data"]["offset"] == 3
        assert (await client.next())["data"] == "after"


async def test_resume_with_marks_is_recovered_and_with_the_mark_of_another_message_not(edge, bus):
    client = await edge.connect()
    here = await client.subscribe("general")
    await publish(bus, range(3))
    frames = await messages(client, 3)
    marks = [frame["mark"] for frame in frames]
    assert len(set(marks)) == 3
    for number in range(3):
        place = {key: frames[number][key] for key in ("offset", "epoch", "mark")}
        other = await edge.connect()
        answer = await other.subscribe("general", data=place)
        assert answer["recovered"] is True
        assert {key: answer[key] for key in place} == place
        assert data_of(await messages(other, 2 - number)) == list(range(number + 1, 3))
        wrong = place | {"mark": marks[number - 1]}
        other = await edge.connect()
        assert (await other.subscribe("general", data=wrong))["recovered"] is False
    place = {key: here[key] for key in ("offset", "epoch", "mark") if key in here}
    other = await edge.connect()
    assert (await other.subscribe("general", data=place))["recovered"] is True
    assert len(await messages(other, 3)) == 3


@pytest.mark.parametrize("mark", ["", "no time", "~", "9999-99-99T00:00:00Z", "x" * 1000, "\u0000"])
async def test_mark_that_nobody_has_given_does_no_harm(edge, bus, mark):
    cursor = await publish(bus, [0])
    await publish(bus, [1])
    client = await edge.connect()
    answer = await client.subscribe("general", data=cursor._asdict() | {"mark": mark})
    assert answer["recovered"] in {True, False}
    await publish(bus, [2])
    assert data_of(await messages(client, 1 + answer["recovered"]))[-1] == 2


async def test_quiet_channel_gets_no_notice_of_a_gap_when_the_bus_is_lost_twice(
    start_edge, own_nats_server, monkeypatch
):
    monkeypatch.setattr(RECONNECT, Backoff(0.5, 0.5, jitter=0))
    settings = Settings(nats_url=own_nats_server.url, history_bytes=4 * 1024**2, history_messages=9)
    async with EventBus(settings) as bus, EventBus(settings) as away:
        edge = await start_edge(away)
        quiet, busy = await edge.connect("/ws/general"), await edge.connect("/ws/announcements")
        await quiet.next()
        await busy.next()
        await publish(bus, [0])
        assert (await quiet.next())["data"] == 0
        await away.driver._connection.client.force_reconnect()
        await publish(bus, range(9), "announcements")
        assert data_of(await messages(busy, 9)) == list(range(9))
        await away.driver._connection.client.force_reconnect()
        await publish(bus, [1])
        frame = await quiet.next()
        assert (frame["event"], frame["data"]) == ("tick", 1)
        assert edge.node.metrics.total("eventbus_edge_gaps_total") == 0


async def test_quiet_channel_whose_messages_have_expired_is_recovered_where_a_node_has_followed_it(
    start_edge, own_nats_server
):
    settings = Settings(
        nats_url=own_nats_server.url, history_bytes=4 * 1024**2, history_seconds=1.0
    )
    async with EventBus(settings) as bus:
        edge = await start_edge(settings)
        staying, leaving = await edge.connect("/ws/general"), await edge.connect("/ws/general")
        await staying.next()
        await leaving.next()
        await publish(bus, [0])
        frame = await leaving.next()
        place = {key: frame[key] for key in ("offset", "epoch", "mark")}
        leaving.socket.transport.abort()
        live = bus.subjects.live("general")
        while (await bus.driver.read(live, after=None, limit=1)).messages:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        at = MarkedPosition(*place.values())
        while (await bus.driver.resume(live, at, 9)).complete:  # others' messages expire as well
            await publish(bus, [1], "announcements")
            await asyncio.sleep(0.1)
        back = await edge.connect()
        assert (await back.subscribe("general", data=place))["recovered"] is True
        # A node that has not followed it cannot know.
        other = await (await start_edge(settings)).connect()
        assert (await other.subscribe("general", data=place))["recovered"] is False
        await publish(bus, [4])
        assert (await back.next())["data"] == 4


@pytest.mark.timeout(180)
async def test_resumes_of_a_busy_full_channel_that_are_recovered_lack_nothing(edge, bus):
    """About as far back as messages are kept, so that some are evicted while they are read."""
    total, done, seen = 0, asyncio.Event(), []
    watcher = await edge.connect("/ws/general")
    await watcher.next()

    async def feed():
        nonlocal total
        while not done.is_set():
            await asyncio.gather(*(bus.publish("general", "tick", total + i) for i in range(5)))
            total += 5
            await asyncio.sleep(0.002)

    async def watch():
        while True:
            seen.append(await watcher.next())

    async def resume(number):
        frame = seen[-(40 + number % 62)]
        client = await edge.connect()
        place = {key: frame[key] for key in ("offset", "epoch", "mark")}
        answer = await client.subscribe("general", data=place)
        if answer["recovered"]:
            offsets = [each["offset"] for each in await messages(client, 110)]
            assert offsets == list(range(frame["offset"] + 1, frame["offset"] + 111))
        await client.socket.close()
        return answer["recovered"]

    tasks = [asyncio.create_task(feed()), asyncio.create_task(watch())]
    try:
        async with asyncio.timeout(150):
            while len(seen) < 150:  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(0.01)
            outcomes = [
                outcome
                for start in range(0, 120, 6)
                for outcome in await asyncio.gather(*map(resume, range(start, start + 6)))
            ]
    finally:
        done.set()
        await tasks[0]
        tasks[1].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert True in outcomes


async def test_last_messages_are_read_up_to_where_the_channel_is_when_they_are_read():
    asked = []

    class Following(CountingReads):
        async def read_last(self, subject, limit, followed):
            asked.append(followed)
            return await self.read(subject, after=None, limit=limit)

    driver = Following()
    async with EventBus(Settings(driver="memory"), driver) as bus:
        start = await publish(bus, [0])
        now = await publish(bus, [1])
        history = History(driver, bus.subjects, to_message, position=lambda channel: now)
        await history.catch_up(Subscribe("general", None, 5, None), start)
        assert asked == [now]
        await history.page("general", None, 5)  # by somebody who need not follow the channel
        await resume(history, start, now)
        assert asked == [now]
        assert driver.reads == 3
