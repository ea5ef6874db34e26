"""Presence over real nodes: who is in a channel, whichever node they came by."""

import asyncio
import json
import random
import time

import jwt
import pytest

from eventbus.bus import EventBus
from eventbus.channels import ChannelKind, Pattern
from eventbus.config import Settings
from eventbus_edge.access.rules import (
    ChannelRules,
    Rule,
)
from eventbus_edge.protocols.vocabulary import CloseReason

SECRET = "a-secret-of-tests-that-is-32-bytes-long"
ROOM = "presence.room"


class Attendee:
    """A client in the room, and the members that it was notified of."""

    def __init__(self, client, room, members):
        self.client = client
        self.room = room
        self.members = {member["user_id"]: member["info"] for member in members}
        assert len(self.members) == len(members), members
        self.notices = []

    async def receive(self):
        """Take in the next frame, which must be a change of the room's members."""
        return self.take(await self.client.next())

    def take(self, frame):
        assert frame["channel"] == self.room, frame
        assert frame["timestamp"].endswith("Z")
        kind, user = frame["event"].removeprefix("eb:presence."), frame["data"]["user_id"]
        if kind == "left":
            del self.members[user]
        else:
            assert (user in self.members) == (kind == "updated"), (frame, self.members)
            self.members[user] = frame["data"]["info"]
        self.notices.append((kind, user))
        return kind, user

    async def until(self, *users):
        while self.members.keys() != set(users):
            await self.receive()

    async def asks(self):
        answer = await self.client.ask("presence", channel=self.room)
        assert answer["event"] == "eb:presence", answer
        assert answer["data"]["count"] == len(answer["data"]["members"])
        return {m["user_id"]: m["info"] for m in answer["data"]["members"]}


@pytest.fixture
def informed():
    """Make a token with claims that `eventbus token issue` does not know."""

    def issue(user, **claims):
        claims = {"sub": user, "aud": "websocket", "exp": time.time() + 60, **claims}
        return jwt.encode(claims, SECRET, "HS256")

    return issue


@pytest.fixture
def attend(informed):
    """Join the room: `await attend(edge, "alice")`; the rest are the token's claims."""

    async def join(edge, user, room=ROOM, **claims):
        client = await edge.connect(token=informed(user, **claims))
        data = await client.subscribe(room)
        assert data["kind"] == "presence"
        return Attendee(client, room, data["members"])

    return join


@pytest.fixture
async def memory_bus():
    async with EventBus(Settings(driver="memory")) as bus:
        yield bus


@pytest.fixture
async def memory_edge(memory_bus, start_edge):
    return await start_edge(memory_bus, presence_grace=0.3)


@pytest.fixture
def grace():
    """The grace time; tests of what happens at once have a long one."""
    return 0.5


@pytest.fixture(params=["nats", "memory"])
async def nodes(request, memory_bus, start_edge, grace):
    """Two nodes, each with a bus of its own where there is a broker."""
    bus = memory_bus if request.param == "memory" else None
    return [await start_edge(bus, presence_grace=grace) for _ in range(2)]


async def test_members_see_each_other_come_and_go_on_all_nodes(nodes, attend):
    alice = await attend(nodes[0], "alice", name="Alice", info={"age": 30})
    assert alice.members == {"alice": {"name": "Alice", "age": 30}}
    bob = await attend(nodes[1], "bob")
    assert bob.members == {"alice": {"name": "Alice", "age": 30}, "bob": {}}
    assert await alice.receive() == ("joined", "bob")
    carol = await attend(nodes[0], "carol", name="Carol")
    for one in (alice, bob):
        assert await one.receive() == ("joined", "carol")
        assert one.members["carol"] == {"name": "Carol"}
    assert (await bob.client.ask("unsubscribe", channel=ROOM))["event"] == "eb:unsubscribed"
    for one in (alice, carol):
        assert await one.receive() == ("left", "bob")
        assert await one.asks() == one.members == {
            "alice": {"name": "Alice", "age": 30}, "carol": {"name": "Carol"},
        }  # fmt: skip
    assert await bob.client.receives_nothing()


async def test_a_user_with_several_connections_counts_once(nodes, attend):
    watcher = await attend(nodes[0], "watcher")
    tabs = [await attend(node, "alice") for node in (*nodes, *nodes)]
    assert await watcher.receive() == ("joined", "alice")
    for tab in tabs:
        assert tab.members.keys() == {"watcher", "alice"}
    for tab in tabs[:3]:
        await tab.client.ask("unsubscribe", channel=ROOM)
    assert await watcher.client.receives_nothing()
    assert (await watcher.asks()).keys() == {"watcher", "alice"}
    await tabs[3].client.ask("unsubscribe", channel=ROOM)
    assert await watcher.receive() == ("left", "alice")


async def test_joining_twice_is_answered_again_with_the_members(nodes, attend):
    alice = await attend(nodes[0], "alice")
    data = await alice.client.subscribe(ROOM)
    assert data["members"] == [{"user_id": "alice", "info": {}}]


@pytest.mark.parametrize("grace", [6.0])
async def test_a_reload_is_silent_on_the_same_node_and_on_the_other(nodes, attend, grace):
    watcher = await attend(nodes[1], "watcher")
    alice = await attend(nodes[0], "alice")
    assert await watcher.receive() == ("joined", "alice")
    for node in (nodes[0], nodes[1], nodes[0]):
        alice.client.socket.transport.abort()
        await alice.client.closed()
        alice = await attend(node, "alice")
        assert alice.members.keys() == {"alice", "watcher"}
    await asyncio.sleep(grace + 0.5)  # what must not happen, would have by then
    assert await watcher.client.receives_nothing()
    await alice.client.ask("unsubscribe", channel=ROOM)
    assert await watcher.receive() == ("left", "alice"), "at once, though she was lost before"


@pytest.mark.parametrize("grace", [60.0])
async def test_grace_time_ends_when_a_member_returns_on_another_node(nodes, attend, grace):
    watcher = await attend(nodes[0], "watcher")
    alice = await attend(nodes[0], "alice")
    await watcher.receive()
    await alice.client.socket.close()
    alice = await attend(nodes[1], "alice")
    start = asyncio.get_running_loop().time()
    await alice.client.ask("unsubscribe", channel=ROOM)
    assert await watcher.receive() == ("left", "alice")
    assert asyncio.get_running_loop().time() - start < grace / 2


async def test_a_lost_member_leaves_after_the_grace_time_and_not_before(nodes, attend):
    watcher = await attend(nodes[1], "watcher")
    alice = await attend(nodes[0], "alice")
    assert await watcher.receive() == ("joined", "alice")
    start = asyncio.get_running_loop().time()
    alice.client.socket.transport.abort()
    assert await watcher.receive() == ("left", "alice")
    assert asyncio.get_running_loop().time() - start > 0.4
    assert await watcher.asks() == {"watcher": {}}


async def test_two_that_join_on_two_nodes_in_the_same_instant_both_see_both(nodes, attend):
    for i in range(20):
        room = f"presence.room.{i}"
        both = await asyncio.gather(attend(nodes[0], "a", room), attend(nodes[1], "b", room))
        for one in both:
            await one.until("a", "b")
            assert len(one.notices) <= 1
            assert await one.client.receives_nothing()


async def test_info_is_updated_for_the_others_and_kept_through_a_reload(nodes, attend):
    alice = await attend(nodes[0], "alice", name="Alice")
    bob, carol = await attend(nodes[1], "bob"), await attend(nodes[0], "carol")
    await alice.until("alice", "bob", "carol")
    await bob.until("alice", "bob", "carol")
    answer = await alice.client.ask("presence", channel=ROOM, data={"status": "away"}, ref=7)
    assert (answer["event"], answer["data"]["ref"]) == ("eb:presence", 7)
    away = {"name": "Alice", "status": "away"}
    assert {"user_id": "alice", "info": away} in answer["data"]["members"]
    for other in (bob, carol):
        assert await other.receive() == ("updated", "alice")
        assert other.members["alice"] == away
    second = await attend(nodes[1], "alice", name="Alice")
    assert second.members["alice"] == away
    await second.client.ask("presence", channel=ROOM, data={"status": None, "mood": "good"})
    for other in (bob, carol, alice):
        assert await other.receive() == ("updated", "alice")
        assert other.members["alice"] == {"name": "Alice", "mood": "good"}
    await second.client.ask("unsubscribe", channel=ROOM)
    for other in (bob, carol, alice):
        assert await other.client.receives_nothing(), "what was said last outlasts its connection"
        assert (await other.asks())["alice"] == {"name": "Alice", "mood": "good"}


async def test_unchanged_info_is_not_announced(nodes, attend):
    alice, bob = await attend(nodes[0], "alice"), await attend(nodes[1], "bob")
    await alice.receive()
    for _ in range(2):
        await alice.client.ask("presence", channel=ROOM, data={"status": "away"})
    await alice.client.ask("presence", channel=ROOM, data={})
    assert await bob.receive() == ("updated", "alice")
    assert await bob.client.receives_nothing()


async def test_an_authorizer_adds_to_the_info(start_edge, bus, token):
    team = "presence.team.{team_id}"
    rules = ChannelRules([Rule(Pattern(team), ChannelKind.PRESENCE, None)])

    @rules.authorize(team)
    def in_team(user, team_id):
        return {"role": f"captain of {team_id}"}

    edge = await start_edge(bus, rules=rules)
    for path in ("/ws", "/ws/presence.team.7"):
        client = await edge.connect(path, token=token("alice", name="Alice"))
        if path == "/ws":
            data = await client.subscribe("presence.team.7")
        else:
            data = (await client.next())["data"]
        info = {"name": "Alice", "role": "captain of 7"}
        assert data["members"] == [{"user_id": "alice", "info": info}]


@pytest.mark.parametrize("user", ["a b", "a.b.>", "*", "ä€𝄞", "x" * 255, '"\\\n', "a\x00b"])
async def test_any_user_id_may_be_a_member(nodes, attend, user):
    watcher = await attend(nodes[0], "watcher")
    one = await attend(nodes[1], user)
    assert one.members.keys() == {"watcher", user}
    assert await watcher.receive() == ("joined", user)
    await one.client.ask("unsubscribe", channel=ROOM)
    assert await watcher.receive() == ("left", user)


async def test_invalid_presence_actions_get_an_error(memory_edge, attend, token):
    alice = await attend(memory_edge, "alice")
    bob = await attend(memory_edge, "bob")
    await alice.receive()
    error = alice.client.error
    assert await error("presence", channel="general") == "bad_request"
    await alice.client.subscribe("general")
    assert await error("presence", channel="general") == "bad_request"
    assert await error("presence") == "bad_request"
    changes = {"mood": "merry"}
    assert await error("presence", channel="presence.other", data=changes) == "not_subscribed"
    assert await error("presence", channel="a b") == "invalid_channel"
    for data in (1, "x", [], True, [{}]):
        assert await error("presence", channel=ROOM, data=data) == "bad_request"
    deep = json.loads("[" * 20 + "]" * 20)
    assert await error("presence", channel=ROOM, data={"deep": deep}) == "bad_request"
    large = {"text": "x" * 2048}
    assert await error("presence", channel=ROOM, data=large) == "payload_too_large"
    assert await alice.asks() == {"alice": {}, "bob": {}}
    assert await bob.client.receives_nothing()


async def test_info_of_a_token_that_is_too_large_is_refused_and_the_others_receive_nothing(
    memory_edge, attend, informed
):
    alice = await attend(memory_edge, "alice")
    client = await memory_edge.connect(token=informed("bob", info={"text": "x" * 2048}))
    assert await client.error("subscribe", channel=ROOM) == "payload_too_large"
    assert await alice.client.receives_nothing()
    assert await alice.asks() == {"alice": {}}


async def test_a_full_channel_refuses_further_members_but_not_their_further_tabs(
    memory_bus, start_edge, attend, token
):
    edge = await start_edge(memory_bus, presence_max_members=2)
    a, b = await attend(edge, "a"), await attend(edge, "b")
    client = await edge.connect(token=token("c"))
    assert await client.error("subscribe", channel=ROOM) == "limit_exceeded"
    assert (await attend(edge, "b")).members.keys() == {"a", "b"}
    await a.client.ask("unsubscribe", channel=ROOM)
    assert await b.receive() == ("left", "a")
    assert {m["user_id"] for m in (await client.subscribe(ROOM))["members"]} == {"b", "c"}


async def test_a_list_too_large_for_a_client_is_refused_and_does_not_cut_it(
    memory_bus, start_edge, attend, informed
):
    edge = await start_edge(memory_bus, max_unsent_bytes=8192)
    for i in range(3):
        await attend(edge, f"u{i}", info={"text": "x" * 1900})
    client = await edge.connect(token=informed("late"))
    assert await client.error("subscribe", channel=ROOM) == "limit_exceeded"
    assert await client.receives_nothing()


@pytest.mark.parametrize("grace", [60.0])
async def test_member_that_is_disconnected_for_good_leaves_at_once(nodes, attend, grace):
    watcher = await attend(nodes[1], "watcher")
    alice = await attend(nodes[0], "alice")
    await watcher.receive()
    start = asyncio.get_running_loop().time()
    [connection] = [
        c for c in nodes[0].node.connections.values() if c.session.claims.sub == "alice"
    ]
    connection.close(CloseReason.DISCONNECTED, "disconnected by an administrator")
    assert await alice.client.closed() == 4003
    assert await watcher.receive() == ("left", "alice")
    assert asyncio.get_running_loop().time() - start < grace / 2


async def test_a_channel_that_nobody_is_in_is_forgotten_and_can_be_joined_again(nodes, attend):
    keeper = nodes[0].node.presence._keeper
    for _ in range(2):
        alice = await attend(nodes[0], "alice")
        assert alice.members == {"alice": {}}
        await alice.client.ask("unsubscribe", channel=ROOM)
        async with asyncio.timeout(40):
            while keeper._watched:  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.02)


async def test_members_can_be_looked_up_by_a_node_that_nobody_joined_on(nodes, attend):
    await attend(nodes[0], "alice", name="Alice")
    expected = [{"user_id": "alice", "info": {"name": "Alice"}}]
    for node in nodes:
        members = await node.node.presence.fetch(ROOM)
        assert [
            {"user_id": member.user_id, "info": json.loads(member.info)} for member in members
        ] == expected
        assert len(await node.node.presence.fetch("presence.empty")) == 0


async def test_entries_that_no_node_wrote_are_ignored(nodes, attend, caplog):
    alice = await attend(nodes[0], "alice")
    state = nodes[0].node.bus.driver.state
    await state.put("node.forger", b"")
    for i, value in enumerate([b"", b"x", b"{}", b'{"user_id":"eve","info":{},"at":1}', b"\xff"]):
        await state.put(f"members.forger.{ROOM}.{i}", value)
    async with asyncio.timeout(40):
        while f"members.forger.{ROOM}.4 is ignored" not in caplog.text:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert await alice.client.receives_nothing()
    assert await alice.asks() == {"alice": {}}


@pytest.mark.timeout(180)
async def test_a_node_killed_loses_its_members_everywhere_within_its_ttl(
    start_edge, start_process, attend, connect, informed
):
    nodes = [await start_edge(presence_grace=60.0) for _ in range(2)]
    process = await start_process(BROADCAST_PRESENCE_TTL="4", BROADCAST_PRESENCE_GRACE="60")
    watchers = [await attend(node, f"w{i}") for i, node in enumerate(nodes)]
    for user in ("alice", "bob"):
        client = await connect(process.port, token=informed(user))
        await client.next()
        await client.subscribe(ROOM)
    bob = await attend(nodes[0], "bob")
    for one in (*watchers, bob):
        await one.until("w0", "w1", "alice", "bob")
        one.notices.clear()
    process.process.kill()
    start = asyncio.get_running_loop().time()
    for one in (*watchers, bob):
        await one.until("w0", "w1", "bob")
        assert one.notices == [("left", "alice")], "and bob is here by another node"
    assert asyncio.get_running_loop().time() - start < 40
    for one in (*watchers, bob):
        assert (await one.asks()).keys() == {"w0", "w1", "bob"}
        assert await one.client.receives_nothing()


@pytest.mark.timeout(180)
async def test_clients_of_a_node_that_drains_are_not_missed_when_they_go_to_another(
    start_edge, start_process, attend, connect, informed
):
    edge = await start_edge()
    environ = {"BROADCAST_PRESENCE_TTL": "2", "BROADCAST_PRESENCE_GRACE": "10"}
    process = await start_process(**environ, BROADCAST_DRAIN_TIME="0")
    watcher = await attend(edge, "watcher")
    clients = [await connect(process.port, token=informed(user)) for user in ("alice", "bob")]
    for client in clients:
        await client.next()
        await client.subscribe(ROOM)
    await watcher.until("watcher", "alice", "bob")
    process.terminate()
    await process.end()
    await asyncio.sleep(2.5)  # longer than the TTL: what must not happen, would have
    assert await watcher.client.receives_nothing()
    alice = await attend(edge, "alice")
    assert alice.members.keys() == {"watcher", "alice", "bob"}
    for one in (watcher, alice):
        assert await one.receive() == ("left", "bob"), "he did not come back"
        assert one.members.keys() == {"watcher", "alice"}
        assert await one.client.receives_nothing()


@pytest.mark.timeout(180)
async def test_when_nats_lost_its_memory_the_nodes_put_their_members_back(
    own_nats_server, start_edge, attend
):
    settings = Settings(nats_url=own_nats_server.url, history_bytes=2**22)
    nodes = [await start_edge(settings, presence_ttl=8.0) for _ in range(2)]
    members = [await attend(nodes[i % 2], f"u{i}", info={"n": i}) for i in range(4)]
    everybody = {f"u{i}": {"n": i} for i in range(4)}
    for one in members:
        await one.until(*everybody)
    await own_nats_server.stop()
    for one in members:
        assert await one.asks() == everybody, "stale, not empty"
    await own_nats_server.start()
    await asyncio.sleep(9)  # until missing members would count as gone
    for one in members:
        assert await one.client.receives_nothing()
        assert await one.asks() == everybody
    late = await attend(nodes[1], "late")
    assert late.members == everybody | {"late": {}}
    for one in members:
        assert await one.receive() == ("joined", "late")


@pytest.mark.timeout(180)
async def test_a_node_that_died_while_nats_was_away_is_found_out_afterwards(
    own_nats_server, start_edge, start_process, attend, connect, informed
):
    settings = Settings(nats_url=own_nats_server.url, history_bytes=2**22)
    edge = await start_edge(settings, presence_ttl=4.0)
    process = await start_process(
        NATS_URL=own_nats_server.url,
        BROADCAST_CHANNELS_PREFIX="eb",
        BROADCAST_PRESENCE_TTL="4",
        BROADCAST_HISTORY_BYTES=str(2**22),
    )
    watcher = await attend(edge, "watcher")
    client = await connect(process.port, token=informed("alice"))
    await client.next()
    await client.subscribe(ROOM)
    await watcher.until("watcher", "alice")
    await own_nats_server.stop()
    process.process.kill()
    await own_nats_server.start()
    assert await watcher.receive() == ("left", "alice")
    assert await watcher.asks() == {"watcher": {}}


@pytest.mark.timeout(180)
async def test_members_that_change_while_nats_is_down_are_announced_when_it_is_back(
    own_nats_server, start_edge, attend
):
    settings = Settings(nats_url=own_nats_server.url, history_bytes=2**22)
    nodes = [await start_edge(settings, presence_ttl=8.0, presence_grace=0) for _ in range(2)]
    watcher = await attend(nodes[0], "watcher")
    gone, stays = await attend(nodes[1], "gone"), await attend(nodes[1], "stays")
    await watcher.until("watcher", "gone", "stays")
    await own_nats_server.stop()
    await gone.client.ask("unsubscribe", channel=ROOM)
    await stays.until("watcher", "stays")
    await own_nats_server.start()
    await watcher.until("watcher", "stays")
    assert watcher.notices[-1] == ("left", "gone")
    assert await watcher.client.receives_nothing()


@pytest.mark.parametrize("seed", range(3))
async def test_whatever_happens_all_end_with_the_same_members(start_edge, attend, seed):
    """Users with several tabs come, go, vanish, and change, on three nodes, at random."""
    chance = random.Random(seed)
    nodes = [await start_edge(presence_grace=0.3) for _ in range(3)]
    watchers = [await attend(node, f"w{i}") for i, node in enumerate(nodes)]
    tabs, infos = [], {}
    for step in range(60):
        match chance.choice(["join", "join", "leave", "vanish", "change"]) if tabs else "join":
            case "join":
                user = f"u{chance.randrange(6)}"
                tabs.append((user, await attend(chance.choice(nodes), user)))
            case "change":
                user, tab = chance.choice(tabs)
                infos[user] = {"step": step}
                await tab.client.send("presence", channel=ROOM, data=infos[user])
                while (await tab.client.next())["event"] != "eb:presence":
                    pass
            case what:
                user, tab = tabs.pop(chance.randrange(len(tabs)))
                if what == "leave":
                    await tab.client.send("unsubscribe", channel=ROOM)
                else:
                    tab.client.socket.transport.abort()
    present = {user for user, _ in tabs} | {"w0", "w1", "w2"}
    lists = [{}]
    async with asyncio.timeout(40):
        while lists[0].keys() != present or any(each != lists[0] for each in lists):
            await asyncio.sleep(0.05)
            lists = [await answered(watcher) for watcher in watchers]
    for watcher in watchers:
        assert watcher.members == lists[0], "the events add up to the list"


async def answered(attendee):
    """The room's members by a query, with the events before it taken in."""
    await attendee.client.send("presence", channel=attendee.room)
    while True:
        frame = await attendee.client.next()
        if frame["event"] == "eb:presence":
            return {m["user_id"]: m["info"] for m in frame["data"]["members"]}
        attendee.take(frame)


async def test_a_join_costs_the_others_one_event_each_and_no_list(nodes, attend):
    watcher = await attend(nodes[0], "watcher")
    users = [f"u{i}" for i in range(100)]
    others = []
    for start in range(0, 100, 20):
        some = users[start : start + 20]
        others += await asyncio.gather(*(attend(nodes[i % 2], u) for i, u in enumerate(some)))
    await watcher.until("watcher", *users)
    assert sorted(watcher.notices) == sorted(("joined", user) for user in users)
    assert (await watcher.asks()).keys() == {"watcher", *users}
    for other in others:  # which have not read: a handshake at the close would wait for them
        other.client.socket.transport.abort()
