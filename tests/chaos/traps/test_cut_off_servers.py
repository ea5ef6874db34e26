"""A nats-server of a cluster that is cut off from the others, but not from its clients.

They are not disconnected. They have to find out, and go on at another server while the cut lasts.
"""

import asyncio
import contextlib
import json
import time

import pytest

from eventbus.bus import EventBus
from eventbus.config import Settings
from eventbus.drivers.base import counters_of
from eventbus.drivers.nats.connection import cutoff
from eventbus.errors import PublishFailed
from eventbus.events import Event, ShouldBroadcast, ShouldQueue
from eventbus.queue import Worker
from scripts.chaos_lab.brokers import Cluster

pytestmark = [pytest.mark.server, pytest.mark.timeout(300)]
PATIENCE_S = 90.0


class Noted(Event, ShouldBroadcast, name="cut.noted", channel="notes"):
    number: int


class WorkedElsewhere(Event, ShouldQueue, tries=5, backoff=0):
    number: int


@pytest.fixture
async def cluster(tmp_path, clients, runners):
    cluster = Cluster(tmp_path)
    try:
        await cluster.start()
        yield cluster
    finally:
        cluster.mend()
        await clients.aclose()
        await runners.aclose()
        await cluster.aclose()


def settings_of(cluster):
    return Settings(
        nats_url=cluster.url, namespace="own", history_replicas=3, history_bytes=16 * 1024**2,
        history_messages=10_000, connect_timeout=30, publish_timeout=PATIENCE_S, queue_lease=5,
        failed_bytes=1024**2,
    )  # fmt: skip


def server_of(bus):
    """The address of the server that a bus is connected to; None without a connection."""
    url = bus.driver._connection.client.connected_url
    return None if url is None else (url.hostname, url.port)


def moves(bus):
    return counters_of(bus.driver)["moves"]


@contextlib.asynccontextmanager
async def bus_at(cluster, node):
    """A bus that is connected to a node; the client chooses at random."""
    while True:
        async with EventBus(settings_of(cluster)) as bus:
            if server_of(bus) == node.address:
                yield bus
                return


async def leader_of(cluster, stream="OWN_EVENTS"):
    """The node that leads a stream."""
    async with EventBus(settings_of(cluster)) as bus:
        info = (await bus.driver._stream.stream.ask("INFO")).body
    return next(each for each in cluster.all if each.name == info["cluster"]["leader"])


async def until(condition, seconds=PATIENCE_S):
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.02)


class Sender:
    """Publishes numbers to a channel, each after the previous one was acknowledged."""

    def __init__(self, bus, channel):
        self.acknowledged = []
        self._bus, self._channel = bus, channel

    async def run(self):
        number = 0
        while True:
            number += 1
            try:
                await self._bus.publish(self._channel, "tick", number)
            except PublishFailed:
                continue
            self.acknowledged.append(number)
            await asyncio.sleep(0.02)


class Services:
    """What a durable subscription and a worker have handled."""

    def __init__(self, bus):
        self.noted, self.worked = set(), set()
        self._bus = bus

    async def note(self, event, _context):
        self.noted.add(event.number)

    @contextlib.asynccontextmanager
    async def running(self):
        await self._bus.subscribe(Noted, self.note, group="notes", durable=True)
        self._bus.listen(WorkedElsewhere)(lambda event: self.worked.add(event.number))
        worker = Worker(self._bus)
        task = asyncio.create_task(worker.run())
        try:
            yield
        finally:
            worker.stop(at_once=True)
            await asyncio.wait_for(task, PATIENCE_S)

    async def handle(self, bus, number):
        """An event and a job that are dispatched now are handled."""
        await bus.dispatch(Noted(number=number))
        await bus.dispatch(WorkedElsewhere(number=number))
        await until(lambda: number in self.noted and number in self.worked)


async def read(client, numbers):
    """Add what a client receives to `numbers`, until cancelled."""
    while True:
        with contextlib.suppress(TimeoutError):
            frame = await client.next()
            assert frame["event"] == "tick", frame
            numbers.append(frame["data"])


# A leader that is only deaf goes on to send heartbeats, so nobody else can lead before it gives up
# after 20 s. Only a proxy can do that: without acknowledgements, TCP stops sending.
CUTS = {
    "follower": ("follower", {}),
    "deaf follower": ("follower", {"sends": True}),
    "mute follower": ("follower", {"hears": True}),
    "leader": ("leader", {}),
    "mute leader": ("leader", {"hears": True}),
}


@pytest.mark.parametrize("cut", CUTS)
async def test_clients_of_a_server_that_is_cut_off_go_on_at_another(
    cluster, start_edge, token, cut
):
    role, directions = CUTS[cut]
    async with EventBus(settings_of(cluster)) as bus:
        await bus.driver.prepare()
    leader = await leader_of(cluster)
    others = [each for each in cluster.all if each is not leader]
    node, outside = (leader, others[0]) if role == "leader" else others
    async with contextlib.AsyncExitStack() as stack:
        enter = stack.enter_async_context
        inside, served, handling = [await enter(bus_at(cluster, node)) for _ in range(3)]
        other = await enter(bus_at(cluster, outside))
        edge = await start_edge(served)
        services = Services(handling)
        await enter(services.running())
        senders = {"in": Sender(inside, "in"), "out": Sender(other, "out")}
        numbers = {name: [] for name in senders}
        for name, got in numbers.items():
            client = await edge.connect(token=token(name, channels=[name]))
            await client.subscribe(name)
            reading = asyncio.create_task(read(client, got))
            stack.callback(reading.cancel)
        sending = [asyncio.create_task(each.run()) for each in senders.values()]
        stack.callback(lambda: [task.cancel() for task in sending])

        async def all_received():
            for name, sender in senders.items():
                last, got = sender.acknowledged[-1], numbers[name]
                await until(lambda last=last, got=got: bool(got) and got[-1] >= last)

        await services.handle(other, 1)
        await until(lambda: all(each.acknowledged for each in senders.values()))
        await all_received()

        cluster.cut_off(node, **directions)
        counts = [len(each.acknowledged) for each in senders.values()]
        await until(
            lambda: all(
                len(each.acknowledged) > count + 10
                for each, count in zip(senders.values(), counts, strict=True)
            )
        )
        await all_received()
        await services.handle(other, 2)
        await until(lambda: [moves(bus) for bus in (inside, served, handling)] == [1, 1, 1])
        assert moves(other) == 0
        assert node.address not in [server_of(bus) for bus in (inside, served, handling)]

        cluster.mend()
        await node.healthy()
        await services.handle(other, 3)
        for task in sending:
            task.cancel()
        await asyncio.gather(*sending, return_exceptions=True)
        await all_received()
        for name, sender in senders.items():
            assert numbers[name] == sorted(set(numbers[name]))
            assert set(sender.acknowledged) <= set(numbers[name])
        assert services.noted == services.worked == {1, 2, 3}
        # While routes come back, a server may know of no leader yet, and another one does.
        assert max(map(moves, (inside, served, handling, other))) <= 2


async def test_service_that_starts_at_a_server_that_is_cut_off_opens_at_another(cluster):
    async with EventBus(settings_of(cluster)):
        pass  # creates the stream
    leader = await leader_of(cluster)
    node = next(each for each in cluster.all if each is not leader)
    cluster.cut_off(node)
    # The client chooses at random, so this is repeated until it has chosen that one.
    for _ in range(50):
        async with EventBus(settings_of(cluster)) as bus:
            await bus.publish("in", "tick", 1)
            if moves(bus):
                break
    assert moves(bus) == 1


async def test_election_of_a_leader_makes_no_client_move(cluster):
    async with EventBus(settings_of(cluster)):
        pass
    leader = await leader_of(cluster)
    others = [each for each in cluster.all if each is not leader]
    async with contextlib.AsyncExitStack() as stack:
        buses = [await stack.enter_async_context(bus_at(cluster, each)) for each in others]
        await leader.kill()
        for bus in buses:
            await bus.publish("in", "tick", 1)
        assert [moves(bus) for bus in buses] == [0, 0]
        assert [counters_of(bus.driver)["losses"] for bus in buses] == [0, 0]


async def test_nobody_moves_when_the_whole_cluster_has_lost_jetstream(cluster, monkeypatch, caplog):
    monkeypatch.setattr(cutoff, "_COMPARE_S", 6.0)
    async with EventBus(settings_of(cluster)):
        pass
    leader = await leader_of(cluster)
    others = [each for each in cluster.all if each is not leader]
    async with contextlib.AsyncExitStack() as stack:
        buses = [await stack.enter_async_context(bus_at(cluster, each)) for each in others]
        for number, node in enumerate(cluster.all):
            if number:
                cluster.cut_off(node)  # so that each is alone
        await until(lambda: caplog.text.count("staying there") == len(buses))
        assert [moves(bus) for bus in buses] == [0, 0]
        cluster.mend()
        for bus in buses:
            await bus.publish("in", "tick", 1)
        assert [moves(bus) for bus in buses] == [0, 0]


async def test_volatile_message_that_a_healed_network_brings_late_is_not_delivered_twice(cluster):
    async with EventBus(settings_of(cluster)):
        pass  # creates the stream
    leader = await leader_of(cluster)
    node, outside = [each for each in cluster.all if each is not leader]
    async with contextlib.AsyncExitStack() as stack:
        inside, sender = [await stack.enter_async_context(bus_at(cluster, node)) for _ in range(2)]
        other = await stack.enter_async_context(bus_at(cluster, outside))
        numbers, late = [], []
        for bus, got in ((inside, numbers), (other, late)):
            await bus.driver.subscribe(
                "own.live.in",
                lambda delivery, got=got: got.append(json.loads(delivery.payload)["data"]),
            )

        async def publish_until(condition, bus, number):
            """Publish from a number on until it holds, as routes take a while; the last number."""
            while not condition():
                number += 1
                await bus.publish("in", "tick", number, volatile=True)
                await asyncio.sleep(0.1)
            return number

        last = await publish_until(lambda: numbers and late, sender, 0)
        await until(lambda: numbers[-1] == late[-1] == last)

        cluster.cut_off(node)
        held = await publish_until(lambda: numbers[-1] >= last + 3, sender, last)
        await until(lambda: numbers[-1] == held)
        await until(lambda: moves(inside) == 1 and inside.driver._connection.is_connected)
        assert late[-1] == last

        cluster.mend()
        await until(lambda: late[-1] == held)
        await publish_until(lambda: numbers[-1] > held, other, held)
        assert set(range(last + 1, held + 1)) <= set(numbers)
        assert numbers == sorted(set(numbers))


async def test_process_that_was_suspended_stays_where_it_is(cluster, caplog, monkeypatch):
    monkeypatch.setattr(cutoff, "_SILENT_S", 10.0)  # longer than an election takes
    async with EventBus(settings_of(cluster)) as bus:
        server = server_of(bus)
        time.sleep(12.0)  # noqa: ASYNC251 - answers arrive, and nothing reads them
        for number in range(3):
            await bus.publish("in", "tick", number)
            await asyncio.sleep(3.0)  # the pause between two checks
        assert moves(bus) == 0
        if not counters_of(bus.driver)["losses"]:  # unanswered pings may have ended the connection
            assert server_of(bus) == server
    assert "does not reach JetStream" not in caplog.text
