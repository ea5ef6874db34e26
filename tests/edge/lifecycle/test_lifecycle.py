"""Lifecycle events of a cluster: each once, whatever happens to whichever node."""

import asyncio
import datetime
import random

import msgspec
import pytest

from eventbus.bus import EventBus
from eventbus.config import Settings
from eventbus.errors import ConfigError
from eventbus.webhooks import listen_lifecycle

FAST = {
    "lifecycle": "on",
    "lifecycle_linger": 0.2,
    "presence_grace": 0.2,
    "webhook_wait": 0.0,
}
DYING_TTL_S = 3.0
"""Of processes that are killed."""
LOSING = FAST | {"presence_ttl": 7.0}
"""Of nodes whose server is stopped: they wait for each other for that long afterwards."""
ROOM = "presence.room"


class Told:
    """What was announced on the control subjects, in order."""

    def __init__(self):
        self.events = []
        self._came = asyncio.Event()

    def take(self, event):
        self.events.append(event)
        self._came.set()

    @property
    def words(self):
        return [(e.event.partition("_")[2], e.user_id or e.channel) for e in self.events]

    async def until(self, *words, seconds=40):
        """Wait for these, in any order, and check that there was nothing else; then forget."""
        try:
            async with asyncio.timeout(seconds):
                while len(self.events) < len(words):
                    self._came.clear()
                    await self._came.wait()
        except TimeoutError:
            pass
        assert sorted(self.words) == sorted(words)
        assert len({event.id for event in self.events}) == len(words)
        events, self.events = self.events, []
        return events

    async def nothing(self, seconds):
        """Check that nothing is announced in that time, which is longer than it would take."""
        await asyncio.sleep(seconds)
        assert self.words == []


async def listening(bus):
    received = Told()
    await listen_lifecycle(bus, received.take)
    return received


@pytest.fixture
async def received(bus):
    return await listening(bus)


@pytest.fixture
async def nodes(start_edge, bus, settings):
    return [await start_edge(bus, **FAST), await start_edge(settings, **FAST)]


@pytest.fixture
async def patient_nodes(start_edge, bus, settings):
    """Nodes that keep the channels of clients which have left for a while."""
    patient = FAST | {"lifecycle_linger": 8.0}
    return [await start_edge(bus, **patient), await start_edge(settings, **patient)]


async def leave(*clients):
    for client in clients:
        await client.socket.close()


async def test_first_of_the_cluster_occupies_and_the_last_of_the_cluster_vacates(nodes, received):
    clients = []
    for node in nodes:
        for path in ("/ws/general", "/ws"):
            client = await node.connect(path)
            if path == "/ws":
                await client.subscribe("general")
            clients.append(client)
            if len(clients) == 1:
                [event] = await received.until(("occupied", "general"))
                assert (event.event, event.user_id) == ("channel_occupied", None)
    for client in clients[:-1]:
        await leave(client)
    await received.nothing(2)
    await leave(clients[-1])
    await received.until(("vacated", "general"))
    await received.nothing(0.5)


async def test_two_nodes_that_join_in_the_same_instant_occupy_once(nodes, received):
    names = ["public", "general", "announcements"]
    clients = await asyncio.gather(*(node.connect() for node in nodes for _ in range(3)))
    await asyncio.gather(
        *(client.subscribe(name) for client in clients for name in names[:1]),
    )
    await received.until(("occupied", "public"))
    for name in names[1:]:
        await asyncio.gather(*(client.subscribe(name) for client in clients))
    await received.until(("occupied", "general"), ("occupied", "announcements"))
    await received.nothing(1)


async def test_a_reload_is_silent_also_on_another_node(patient_nodes, received):
    client = await patient_nodes[0].connect("/ws/general")
    await received.until(("occupied", "general"))
    for turn in range(6):
        await leave(client)
        client = await patient_nodes[turn % 2].connect("/ws/general")
    await received.nothing(9)
    await leave(client)
    await received.until(("vacated", "general"))


async def test_patterns_occupy_nothing_and_sse_does(nodes, received, token):
    import aiohttp  # noqa: PLC0415 - of this test alone

    granted = token("7", channels=["orders.>"])
    watcher = await nodes[0].connect(token=granted)
    assert (await watcher.ask("subscribe", pattern="orders.*"))["event"] == "eb:subscribed"
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {granted}"}) as http:
        async with http.get(f"{nodes[1].url}/sse?channel=orders.1") as response:
            assert response.status == 200
            await received.until(("occupied", "orders.1"))
        await received.until(("vacated", "orders.1"))
    await received.nothing(0.5)


async def test_members_join_once_and_leave_with_their_last_tab(nodes, received, token):
    tabs = [await node.connect(token=token("ann", name="Ann")) for node in nodes for _ in range(2)]
    for tab in tabs:
        await tab.subscribe(ROOM)
    _, joined = sorted(await received.until(("occupied", ROOM), ("joined", "ann")), key=_name)
    assert (joined.channel, joined.info) == (ROOM, {"name": "Ann"})
    bob = await nodes[1].connect(token=token("bob"))
    await bob.subscribe(ROOM)
    await received.until(("joined", "bob"))
    await leave(*tabs[:3])
    await received.nothing(2)
    await leave(tabs[3])
    [left] = await received.until(("left", "ann"))
    assert (left.channel, left.info) == (ROOM, {"name": "Ann"})
    await bob.ask("unsubscribe", channel=ROOM)
    await received.until(("left", "bob"), ("vacated", ROOM))


def _name(event):
    return event.event


@pytest.fixture
async def start_other(start_process):
    async def start(**environ):
        usual = {
            "BROADCAST_LIFECYCLE": "on",
            "BROADCAST_LIFECYCLE_LINGER": "0.2",
            "BROADCAST_PRESENCE_GRACE": "0.2",
            "BROADCAST_PRESENCE_TTL": str(DYING_TTL_S),
            "BROADCAST_WEBHOOK_WAIT": "0",
        }
        return await start_process(**usual | environ)

    return start


@pytest.mark.timeout(180)
@pytest.mark.parametrize("leads", [True, False], ids=["that leads", "that follows"])
async def test_a_node_killed_vacates_within_the_ttl_what_no_other_holds(
    start_edge, start_other, bus, received, connect, token, leads
):
    if leads:
        process = await start_other()
        probe = await connect(process.port, "/ws/general")
        await received.until(("occupied", "general"))
        edge = await start_edge(bus, **FAST)
    else:
        edge = await start_edge(bus, **FAST)
        probe = await edge.connect("/ws/general")
        await received.until(("occupied", "general"))
        process = await start_other()
    there = await connect(process.port, token=token("ann"))
    await there.next()
    for channel in ("public", "announcements", ROOM):
        await there.subscribe(channel)
    here = await edge.connect("/ws/public")
    await received.until(
        ("occupied", "public"), ("occupied", "announcements"), ("occupied", ROOM), ("joined", "ann")
    )
    process.process.kill()
    gone = [("vacated", "announcements"), ("vacated", ROOM), ("left", "ann")]
    await received.until(*gone, *([("vacated", "general")] if leads else []))
    await received.nothing(1)
    assert here.socket.state.name == "OPEN"
    assert probe


@pytest.mark.timeout(180)
async def test_a_restarted_node_announces_nothing_again(
    start_edge, start_other, bus, received, connect
):
    process = await start_other(BROADCAST_DRAIN_TIME="0")
    there = await connect(process.port, "/ws/general")
    await received.until(("occupied", "general"))
    edge = await start_edge(bus, **FAST)
    here = await edge.connect("/ws/general")
    process.terminate()
    await process.end()
    again = await start_other()
    back = await connect(again.port, "/ws/general")
    await received.nothing(4)
    await leave(here, back)
    await received.until(("vacated", "general"))
    assert there


@pytest.mark.timeout(180)
async def test_one_node_alone_that_is_killed_is_silent_when_its_clients_are_back_in_time(
    start_other, received, connect
):
    # A new process takes some seconds to start on a busy machine.
    patient = {"BROADCAST_LIFECYCLE_LINGER": "4", "BROADCAST_PRESENCE_TTL": "6"}
    process = await start_other(**patient)
    await connect(process.port, "/ws/general")
    await connect(process.port, "/ws/public")
    await received.until(("occupied", "general"), ("occupied", "public"))
    process.process.kill()
    process = await start_other(**patient)
    client = await connect(process.port, "/ws/general")
    await received.until(("vacated", "public"))
    await received.nothing(1.5)
    await leave(client)
    await received.until(("vacated", "general"))


@pytest.mark.timeout(180)
async def test_when_nats_lost_its_memory_there_is_no_storm(own_nats_server, start_edge, token):
    settings = Settings(nats_url=own_nats_server.url, history_bytes=2**22)
    nodes = [await start_edge(settings, **LOSING) for _ in range(2)]
    async with EventBus(settings) as bus:
        received = await listening(bus)
        clients = [await nodes[i % 2].connect(token=token(f"u{i}")) for i in range(4)]
        for client in clients:
            await client.subscribe(ROOM)
        stays = await nodes[1].connect("/ws/general")
        users = [f"u{i}" for i in range(4)]
        await received.until(
            ("occupied", ROOM), ("occupied", "general"), *(("joined", user) for user in users)
        )
        await own_nats_server.stop()
        await asyncio.sleep(LOSING["presence_ttl"] + 0.5)  # leases and signs of life are over
        await own_nats_server.start()
        await received.nothing(9)
        late = await nodes[0].connect("/ws/public")
        await received.until(("occupied", "public"))
        await leave(late, stays)
        await received.until(("vacated", "public"), ("vacated", "general"))


@pytest.mark.timeout(180)
async def test_when_nats_loses_its_memory_and_the_leader_dies_current_items_count_as_announced(
    own_nats_server, start_edge, start_other, connect
):
    settings = Settings(nats_url=own_nats_server.url, history_bytes=2**22)
    environ = {"NATS_URL": own_nats_server.url, "BROADCAST_CHANNELS_PREFIX": "eb"}
    process = await start_other(**environ, BROADCAST_HISTORY_BYTES=str(2**22))
    async with EventBus(settings) as bus:
        received = await listening(bus)
        there = await connect(process.port, "/ws/public")
        await received.until(("occupied", "public"))
        edge = await start_edge(settings, **LOSING)
        here = await edge.connect("/ws/general")
        await received.until(("occupied", "general"))
        await own_nats_server.stop()
        process.process.kill()
        await own_nats_server.start()
        async with asyncio.timeout(80):  # until it leads, and has counted them
            while not ((leader := edge.node._lifecycle._leader) and leader._is_ready):  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(0.05)
        await received.nothing(1)
        late = await edge.connect("/ws/announcements")
        await received.until(("occupied", "announcements"))
        await leave(here, late)
        await received.until(("vacated", "general"), ("vacated", "announcements"))
        assert there


@pytest.mark.timeout(180)
@pytest.mark.parametrize("seed", range(2))
async def test_whatever_happens_vacated_is_never_false_and_all_adds_up(nodes, received, seed, bus):
    """Clients of two nodes come, go and vanish at random; each channel's events alternate."""
    chance = random.Random(seed)
    names = ["general", "public", "announcements"]
    held = {name: [] for name in names}
    """The clients that certainly receive it: from the answer on, until they are about to leave."""
    since = {}
    false = []

    def look(event):
        """An event may arrive late: it is false if a client was there when it was announced."""
        there = [since[client] for client in held[event.channel]]
        if event.event == "channel_vacated" and there and min(there) < event.timestamp:
            false.append(event)

    await listen_lifecycle(bus, look)
    for _ in range(60):
        there = [(name, client) for name in names for client in held[name]]
        if there and chance.random() < (0.3 if len(there) < 2 else 0.6):
            name, client = chance.choice(there)
            held[name].remove(client)
            match chance.choice(["unsubscribe", "close", "abort"]):
                case "unsubscribe":
                    await client.ask("unsubscribe", channel=name)
                case "close":
                    await leave(client)
                case "abort":
                    client.socket.transport.abort()
        else:
            name, client = chance.choice(names), await chance.choice(nodes).connect()
            await client.subscribe(name)
            since[client] = datetime.datetime.now(datetime.UTC)
            held[name].append(client)
        await asyncio.sleep(chance.choice([0, 0, 0, 0, 0.05, 0.05, 0.4, 1.3]))
    for last in (False, True):
        if last:
            await leave(*(held[name].pop() for name in names for _ in list(held[name])))
        expected = {name for name in names if held[name]}
        async with asyncio.timeout(40):
            while occupied(received) != expected:  # noqa: ASYNC110 - of an event that may never come
                await asyncio.sleep(0.1)
    for name in names:
        words = [event.event for event in received.events if event.channel == name]
        assert words == (["channel_occupied", "channel_vacated"] * len(words))[: len(words)]
    assert false == []
    assert {event.channel for event in received.events} == set(names), "each was vacated in the end"


def occupied(received):
    """The channels that are occupied, according to their last events."""
    last = {event.channel: event.event for event in received.events}
    return {channel for channel, event in last.items() if event == "channel_occupied"}


async def test_memory_announces_the_same_events(start_edge, settings, token):
    own = msgspec.structs.replace(settings, driver="memory")
    async with EventBus(own) as bus:
        received = await listening(bus)
        nodes = [await start_edge(bus, **FAST) for _ in range(2)]
        clients = [await node.connect(token=token("ann")) for node in nodes]
        for client in clients:
            await client.subscribe(ROOM)
        await received.until(("occupied", ROOM), ("joined", "ann"))
        await leave(clients[0])
        await received.nothing(1.5)
        await leave(clients[1])
        await received.until(("vacated", ROOM), ("left", "ann"))


@pytest.mark.redis
async def test_redis_announces_the_same_events(start_edge, start_redis, token):
    settings = start_redis()
    async with EventBus(settings) as bus:
        received = await listening(bus)
        nodes = [await start_edge(bus, **FAST), await start_edge(settings, **FAST)]
        clients = [await node.connect(token=token("ann")) for node in nodes]
        await asyncio.gather(*(client.subscribe(ROOM) for client in clients))
        await received.until(("occupied", ROOM), ("joined", "ann"))
        await leave(clients[0])
        await received.nothing(1.5)
        await leave(clients[1])
        await received.until(("vacated", ROOM), ("left", "ann"))
        await nodes[0].runner.cleanup()  # whichever leads: the other continues
        client = await nodes[1].connect("/ws/general")
        await received.until(("occupied", "general"))
        await leave(client)
        await received.until(("vacated", "general"))


async def test_nothing_is_announced_or_stored_unless_lifecycle_events_are_enabled(
    edge, received, bus
):
    client = await edge.connect("/ws/general")
    await received.nothing(1)
    assert await bus.driver.state.entries("interest.>") == {}
    assert await bus.driver.state.entries("lifecycle.>") == {}
    assert client


@pytest.mark.parametrize("driver", ["log", "null"])
async def test_a_driver_without_state_is_refused(start_edge, settings, driver):
    own = msgspec.structs.replace(settings, driver=driver)
    with pytest.raises(ConfigError, match=rf"{driver} has none; allowed: nats"):
        await start_edge(own, lifecycle="on")


@pytest.mark.timeout(180)
async def test_thousands_of_channels_are_announced_once_each(nodes, received):
    lifecycles = [node.node._lifecycle for node in nodes]
    names = [f"many.{i}" for i in range(3000)]
    for name in names:
        for lifecycle in lifecycles:
            lifecycle.use(name, True)
    await received.until(*(("occupied", name) for name in names))
    for name in names:
        for lifecycle in lifecycles:
            lifecycle.use(name, False)
    await received.until(*(("vacated", name) for name in names))
