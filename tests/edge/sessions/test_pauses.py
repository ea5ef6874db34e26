"""Nodes that are suspended and continue: nothing that ended meanwhile comes back."""

import asyncio
import contextlib
import os
import signal
import socket
import time
from types import SimpleNamespace

import pytest

from eventbus.bus import EventBus
from eventbus.cluster.announcing import announce_revocation
from eventbus.cluster.revocation import Revocation
from eventbus.config import Settings
from eventbus.drivers.memory import MemoryDriver
from eventbus.errors import ConnectionFailed, PublishFailed
from eventbus.server import NatsServer
from eventbus.webhooks import listen_lifecycle
from eventbus_edge.lifecycle.holdings import (
    MARK,
    heartbeat_key,
    interest_key,
)
from eventbus_edge.lifecycle.interest import OwnChannels
from eventbus_edge.lifecycle.leader import (
    Leader,
    LeaderOptions,
)
from eventbus_edge.presence.keeper import (
    PresenceKeeper,
    PresenceSettings,
)
from eventbus_edge.presence.members import (
    key_of,
    token_of,
)
from eventbus_edge.presence.nodes import write_heartbeat
from eventbus_edge.sessions.pauses import (
    PAUSE_S,
    Pauses,
    closed_by_peer,
)

pytestmark = pytest.mark.timeout(180)
ROOM = "presence.room"
TTL_S = 6
FAST = {
    "BROADCAST_PRESENCE_TTL": str(TTL_S),
    "BROADCAST_PRESENCE_GRACE": "60",
    "BROADCAST_LIFECYCLE_LINGER": "60",
    "BROADCAST_WEBHOOK_WAIT": "0",
    "BROADCAST_DRAIN_TIME": "0",
}
LASTING = FAST | {"BROADCAST_PRESENCE_TTL": "20"}
"""Of nodes that are not stopped."""


@contextlib.contextmanager
def stopped(edge):
    """The process is suspended meanwhile."""
    edge.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        edge.process.send_signal(signal.SIGCONT)


async def close_unseen(client, how):
    """End a client whose node cannot see it."""
    transport = client.socket.transport
    if how == "after unread data":
        for _ in range(20):
            await client.send("ping", data="x" * 1000)
    if how == "reset":
        linger = b"\x01\x00\x00\x00\x00\x00\x00\x00"
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    transport.abort()
    async with asyncio.timeout(40):
        await client.socket.wait_closed()


def names(members):
    return sorted(member["user_id"] for member in members)


# Presence


@pytest.mark.parametrize("how", ["closed", "reset", "after unread data"])
async def test_members_whose_sockets_are_gone_do_not_come_back_with_a_node_that_was_stopped(
    start_process, connect, token, how
):
    stopping, other = await start_process(**FAST), await start_process(**LASTING)
    watcher = await connect(other.port, f"/ws/{ROOM}", token=token("watcher"))
    assert [(await watcher.next())["event"] for _ in range(2)][1] == "eb:subscribed"
    clients = {}
    for user in ("lost", "gone", "stays"):
        clients[user] = await connect(stopping.port, f"/ws/{ROOM}", token=token(user))
        assert [(await clients[user].next())["event"] for _ in range(2)][1] == "eb:subscribed"
    assert [(await watcher.next())["event"] for _ in range(3)] == ["eb:presence.joined"] * 3
    await close_unseen(clients["lost"], "closed")  # in its grace when the node stops
    assert (await clients["stays"].ask("ping"))["event"] == "pong"
    with stopped(stopping):
        left = [await watcher.next() for _ in range(3)]
        assert {each["event"] for each in left} == {"eb:presence.left"}
        assert names(each["data"] for each in left) == ["gone", "lost", "stays"]
        await close_unseen(clients["gone"], how)
    joined = await watcher.next()
    assert (joined["event"], joined["data"]["user_id"]) == ("eb:presence.joined", "stays")
    answer = (await watcher.ask("presence", channel=ROOM))["data"]
    assert names(answer["members"]) == ["stays", "watcher"]
    await asyncio.sleep(TTL_S)  # in which the node gives three signs
    assert await watcher.receives_nothing()
    mine = await clients["stays"].next()
    received = {(mine["event"], mine["data"]["user_id"])}
    mine = await clients["stays"].next()
    received.add((mine["event"], mine["data"]["user_id"]))
    assert received == {("eb:presence.left", "lost"), ("eb:presence.left", "gone")}


@pytest.mark.parametrize("path", ["/ws/presence.room", "/sse?channel=presence.room"])
async def test_client_that_gave_up_on_a_stopped_node_does_not_join(
    start_process, connect, token, path
):
    stopping, other = await start_process(**FAST), await start_process(**LASTING)
    watcher = await connect(other.port, f"/ws/{ROOM}", token=token("watcher"))
    assert [(await watcher.next())["event"] for _ in range(2)][1] == "eb:subscribed"
    stays = await connect(stopping.port, f"/ws/{ROOM}", token=token("stays"))
    assert (await watcher.next())["event"] == "eb:presence.joined"
    with stopped(stopping):
        assert (await watcher.next())["event"] == "eb:presence.left"
        for number in range(5):  # the kernel takes them, and the node reads them when it continues
            await asyncio.wait_for(give_up(stopping.port, path, token(f"gone{number}")), 40)
    joined = await watcher.next()
    assert (joined["event"], joined["data"]["user_id"]) == ("eb:presence.joined", "stays")
    assert [(await stays.next())["event"] for _ in range(2)] == ["eb:connected", "eb:subscribed"]
    await asyncio.sleep(1)
    assert await stays.receives_nothing()
    assert await watcher.receives_nothing()


async def give_up(port, path, token):
    """Ask for a connection, and close it before there is an answer."""
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(handshake(path, token))
    await writer.drain()
    writer.close()
    await writer.wait_closed()


def handshake(path, token):
    return (
        f"GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
        f"Authorization: Bearer {token}\r\n\r\n"
    ).encode()


async def test_a_member_who_was_lost_is_not_announced_again_after_a_loss_of_the_bus():
    """Whatever kept the node from giving signs: here, a bus that takes none."""
    driver = MemoryDriver()
    await driver.open()
    received, settings = [], PresenceSettings(grace_s=60, ttl_s=1)
    gone = set()
    keeper = PresenceKeeper(driver, "a", settings, lambda *each: received.append(each[1]))

    async def drop_gone():
        for user, connection in gone:
            keeper.leave(ROOM, user, connection, lost=True)

    keeper._drop_gone = drop_gone
    for user in ("lost", "gone", "stays"):
        await keeper.join(ROOM, user, {}, f"c-{user}")
    keeper.leave(ROOM, "lost", "c-lost", lost=True)
    gone.add(("gone", "c-gone"))
    signs = []

    def on_sign(_key, value):
        if value is not None:
            signs.append(set(driver.state._values))

    await driver.state.watch("node.a", on_sign)
    keeper._nodes._last_beat = time.monotonic() - 1.5
    keeper._nodes.beat_now()
    async with asyncio.timeout(40):
        while not signs:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.01)
    members = {key for key in signs[0] if key.startswith("members.")}
    assert members == {key_of("a", ROOM, token_of("stays"))}
    assert [(each.kind, each.user_id) for each in received[-2:]] == [
        ("left", "lost"),
        ("left", "gone"),
    ]
    await keeper.aclose()


async def test_a_heartbeat_that_is_late_is_cancelled():
    class Away:
        name = "away"
        state = SimpleNamespace(put=lambda *_, **__: asyncio.get_running_loop().create_future())

    with pytest.raises(PublishFailed, match="heartbeat"):
        await write_heartbeat(Away(), "node.a", 0.1, is_first=False)


# Lifecycle events


@pytest.mark.parametrize("which_leads", ["the stopped one", "the other"])
async def test_channels_of_sockets_that_are_gone_are_not_occupied_again(
    start_process, connect, bus, which_leads
):
    on = FAST | {"BROADCAST_LIFECYCLE": "on"}
    received, came = [], asyncio.Event()

    def take(event):
        received.append((event.event.partition("_")[2], event.channel))
        came.set()

    async def until(*words):
        async with asyncio.timeout(30):
            while len(received) < len(words):
                came.clear()
                await came.wait()
        assert sorted(received) == sorted(words)
        received.clear()

    await listen_lifecycle(bus, take)
    first = await start_process(**on)
    stops = await connect(first.port, "/ws/general")
    await until(("occupied", "general"))  # so the first one leads
    second = await start_process(**on)
    stopping = first if which_leads == "the stopped one" else second
    gone = await connect(stopping.port, "/ws/announcements")
    stays = await connect(stopping.port, "/ws/public")
    await stops.socket.close()
    await until(("occupied", "announcements"), ("occupied", "public"))
    with stopped(stopping):
        vacated = [("vacated", "announcements"), ("vacated", "public")]
        if stopping is first:  # where "general" still lingered
            vacated.append(("vacated", "general"))
        await until(*vacated)
        await close_unseen(gone, "closed")
    await until(("occupied", "public"))
    await asyncio.sleep(TTL_S + 1)
    assert received == []
    assert [(await stays.next())["event"] for _ in range(2)] == ["eb:connected", "eb:subscribed"]
    assert await stays.receives_nothing()


async def test_channels_that_lingered_end_before_a_node_counts_as_alive_again():
    driver = MemoryDriver()
    await driver.open()

    async def drop_gone():
        own.use("gone", False)

    own = OwnChannels(driver, "a", ttl_s=1, linger_s=60, drop_gone=drop_gone)
    for channel in ("lingers", "gone", "heard"):
        own.use(channel, True)
    own.use("lingers", False)
    await own.beat()
    keys = []
    await driver.state.watch(heartbeat_key("a"), lambda *_: keys.append(set(driver.state._values)))
    own._last_beat = time.monotonic() - 1.5
    await own.beat()
    await asyncio.sleep(0)
    assert keys[0] - {heartbeat_key("a")} == {interest_key("a", "heard")}
    await own.aclose()


async def test_a_node_that_leads_again_knows_whether_another_has_led_meanwhile():
    driver = MemoryDriver()
    await driver.open()
    may_lead = SimpleNamespace(a=True, b=True)

    def leader(node):
        return Leader(
            driver, LeaderOptions(("channel_occupied", "channel_vacated"), 10, 0.0, 1.0),
            NoAnnouncer(), node=node, may_lead=lambda: getattr(may_lead, node),
            confirm=no_subscribers,
        )  # fmt: skip

    one, two = leader("a"), leader("b")
    one.start(had_other_leader=False)
    await until_marked(driver, b"a")
    assert await one.is_last()
    two.start(had_other_leader=True)
    await until_marked(driver, b"b")
    assert not await one.is_last()
    await driver.state.delete(MARK)  # the bus has lost its memory: who led before puts it back
    assert await one.is_last()
    await one.aclose()
    await two.aclose()


async def test_a_ledger_is_not_written_by_a_node_that_may_not_lead():
    driver = MemoryDriver()
    await driver.open()
    leads = True
    one = Leader(
        driver, LeaderOptions(("channel_occupied", "channel_vacated"), 10, 0.0, 1.0), NoAnnouncer(),
        node="a", may_lead=lambda: leads, confirm=no_subscribers,
    )  # fmt: skip
    one.start(had_other_leader=False)
    await until_marked(driver, b"a")
    leads = False
    one._writer.put("lifecycle.told.c.general", b"x")
    assert not await one._writer.written("lifecycle.told.c.general", 0.2)
    assert await driver.state.entries("lifecycle.told.>") == {}
    leads = True
    assert await one._writer.written("lifecycle.told.c.general", 10)
    await one.aclose()


class NoAnnouncer:
    async def announce(self, batch, events):
        pass


async def no_subscribers(_channels):
    return frozenset()


async def until_marked(driver, mark):
    async with asyncio.timeout(40):
        while (await driver.state.entries(MARK)).get(MARK) != mark:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


# Revocations


async def test_a_node_that_was_stopped_reads_revocations_before_it_accepts_anybody(
    start_process, connect, tmp_path, namespace, token
):
    """It has lost the bus, too, and does not know it yet when the first handshake is read."""
    server = NatsServer(tmp_path / "nats")
    await server.start()
    environ = FAST | {"NATS_URL": server.url}
    edge = await start_process(**environ)
    old = token("7")
    assert await status(edge.port, old) == 101
    settings = Settings(nats_url=server.url, namespace=namespace, history_bytes=4 * 1024**2)
    with stopped(edge):
        await asyncio.sleep(PAUSE_S + 0.5)
        async with EventBus(settings) as bus:
            now = time.time()
            revocation = Revocation(at=now, until=now + 600, user_id="7")
            await announce_revocation(bus.driver, bus.subjects, revocation)
        os.kill(server.pid, signal.SIGKILL)
        await server.stop()
        await server.start()
        waiting = [asyncio.create_task(status(edge.port, old)) for _ in range(20)]
        waiting.append(asyncio.create_task(status(edge.port, token("8"))))
        await asyncio.sleep(0.5)  # they have been sent
    statuses = await asyncio.gather(*waiting)
    assert 101 not in statuses[:20], statuses
    async with asyncio.timeout(40):
        while (last := await status(edge.port, old)) == 503:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    assert last == 401
    assert await status(edge.port, token("8")) == 101
    await server.stop()


async def status(port, token):
    """The status of the answer to a handshake, by a socket of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(handshake("/ws", token))
    try:
        async with asyncio.timeout(30):
            return int((await reader.readline()).split()[1])
    finally:
        writer.close()


async def test_revocations_that_cannot_be_read_after_a_loss_keep_new_clients_out(
    start_edge, bus, token, monkeypatch
):
    edge = await start_edge(bus, heartbeat=60)
    refreshes = await edge.connect(token=token("7"))
    revoker = edge.node.access.revoker
    release = asyncio.Event()
    resync = revoker.resync

    async def wait():
        await release.wait()
        await resync()

    monkeypatch.setattr(revoker, "resync", wait)
    revoker.invalidate()
    assert not revoker.is_current
    connecting = asyncio.create_task(edge.connect(token=token("8")))
    answer = await refreshes.ask("auth", data={"token": token("7")})
    assert answer["event"] == "eb:authenticated"  # present clients continue
    assert not connecting.done()
    release.set()
    await (await connecting).subscribe("user.8")
    assert revoker.is_current


async def test_a_bus_that_does_not_answer_is_reported_as_unavailable(
    start_edge, bus, token, monkeypatch
):
    edge = await start_edge(bus)

    async def fail():
        raise ConnectionFailed("on purpose", driver="nats")

    monkeypatch.setattr(edge.node.access.revoker, "resync", fail)
    edge.node.access.revoker.invalidate()
    status_, _, problem = await edge.refusal(token=token("8"))
    assert (status_, problem["code"]) == (503, "unavailable")
    await edge.connect()  # who has no token cannot be refused one


# Clients of a node that was stopped


async def test_clients_that_answer_are_not_cut_for_the_time_in_which_the_node_was_suspended(
    start_process, connect, token
):
    edge = await start_process(BROADCAST_HEARTBEAT="1", **FAST)
    clients = [await connect(edge.port, "/ws", token=token(str(i))) for i in range(20)]
    for client in clients:
        await client.next()
    for _ in range(3):
        with stopped(edge):
            await asyncio.sleep(PAUSE_S + 0.7)
        await asyncio.sleep(0.4)
    for client in clients:
        assert (await client.ask("ping", ref="x"))["data"]["ref"] == "x"


async def test_a_token_that_ends_while_the_node_is_suspended_is_at_its_end_when_it_continues(
    start_process, connect, token
):
    edge = await start_process(JWT_LEEWAY="0", BROADCAST_TOKEN_GRACE="0.5", **FAST)
    client = await connect(edge.port, "/ws", token=token("7", lifetime=5))
    ends_at = time.monotonic() + 5
    await client.next()
    with stopped(edge):
        await asyncio.sleep(max(ends_at - time.monotonic(), PAUSE_S) + 1)
    assert await client.closed() == 4202


# Parts


def test_a_gap_is_noticed_once_and_a_clock_that_only_lags_has_none():
    pauses = Pauses(100.0)
    assert pauses.check(100.25) == 0
    assert pauses.check(100.25 + PAUSE_S) == 0
    assert pauses.check(140.0) == pytest.approx(140.0 - 100.25 - PAUSE_S)
    assert pauses.check(140.0) == 0


def test_sockets_are_closed_when_the_other_side_has_and_not_for_unread_data():
    pairs = [socket.socketpair() for _ in range(4)]
    mine = [one for one, _ in pairs]
    idle, unread, closed, both = (other for _, other in pairs)
    unread.send(b"x")
    closed.close()
    both.send(b"x")
    both.shutdown(socket.SHUT_WR)
    assert closed_by_peer(one.fileno() for one in mine) == {mine[2].fileno(), mine[3].fileno()}
    assert closed_by_peer([]) == set()
    for one in (*mine, idle, unread, both):
        one.close()
