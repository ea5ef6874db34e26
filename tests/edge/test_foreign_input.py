"""Anyone on the bus may write anything to it: no task of a node ends by it."""

import asyncio
import datetime
import json
import time

import msgspec
import pytest

from eventbus.bus import EventBus
from eventbus.cluster.answers import ListQuery
from eventbus.tasks import fault_count
from eventbus.webhooks import listen_lifecycle

FAST = {
    "lifecycle": "on",
    "lifecycle_linger": 0.2,
    "presence_grace": 0.2,
    "webhook_wait": 0.0,
    "api_key": "the-api-key-of-foreign-input",
}
ROOM = "presence.room"
NOW = datetime.datetime.now(datetime.UTC).isoformat()
PAYLOADS = [
    b"",
    b"\x00\xff\xfe",
    b"{",
    b"null",
    b"17",
    b"[]",
    b'"text"',
    b"{}",
    b"[" * 5000,
    b'{"a":' * 2000,
    b'{"user_id":"\\ud800","info":{},"at":1}',
    b'{"user_id":"7","info":{},"at":1e400}',
    msgspec.msgpack.encode({"type": "hello", "node": "n"}),
]
HEADERS = {
    "Unknown": "value",
    "Eb-Attempts": "\u00b2",
    "Nats-Sequence": "9" * 5000,
    "Nats-Last-Sequence": "-1",
    "Nats-Stream": "elsewhere",
    "Eb-Exclude": ",,,",
    "traceparent": "none",
}


def encode(*values):
    return [json.dumps(value).encode() for value in values]


def reported(event, channel, **more):
    """An entry of the lifecycle ledger."""
    body = {"id": "x", "event": event, "channel": channel, "timestamp": NOW, **more}
    return {"event": body, "batch": "b", "is_told": False}


NODES = encode(
    {"type": "hello"},
    {"type": "hello", "node": "not a token"},
    {"type": "hello", "node": "*"},
    {"type": "look", "node": ""},
    {"type": "bye", "node": "nobody"},
    {"type": "ask", "id": "1", "node": "n", "question": "unknown", "body": {}},
    {"type": "ask", "id": "1", "node": "n.n", "question": "channels", "body": {"pattern": "a..b"}},
    {"type": "ask", "id": "1", "node": "n", "question": "heard", "body": {"channels": 3}},
    {"type": "ask", "id": "1", "node": "n", "question": "disconnect", "body": {}},
    {"type": "answer", "id": "1", "node": "n", "part": -1, "parts": 10**6, "body": None},
    {"type": "unanswered", "id": "1", "node": "n", "reason": "x" * 10_000},
    {"type": "else", "node": "n"},
)
REVOKE = encode(
    {"at": time.time(), "until": 253_402_300_799, "user_id": "nobody"},
    {"at": 0, "until": 1e300, "user_id": "nobody"},
    {"at": 0, "until": time.time() + 60},
    {"at": 0, "until": time.time() + 60, "user_id": "nobody", "jti": "both"},
    {"at": 0, "until": time.time() + 60, "channel": "a..b"},
    {"at": 0, "until": time.time() + 60, "connection_id": "none", "lifted": True},
)
LEDGER = encode(
    reported("channel_occupied", "elsewhere"),
    reported("member_left", "general"),
    reported("channel_vacated", "not a channel"),
    reported("no such event", "general"),
)
KINDS = {
    "control of nodes": ("{ns}.control.nodes", NODES),
    "control of one node": ("{ns}.control.nodes.{node}", NODES),
    "control of revocations": ("{ns}.control.revoke", REVOKE),
    "control of lifecycle": ("{ns}.control.lifecycle.channel_occupied", NODES),
    "another control": ("{ns}.control.what.ever", NODES),
    "live": ("{ns}.live.general", NODES),
    "events": ("{ns}.event.general", NODES),
    "signs of nodes": ("$KV.{NS}_STATE.node.foreign", NODES),
    "a deep sign": ("$KV.{NS}_STATE.node.a.b.c", NODES),
    "members": (f"$KV.{{NS}}_STATE.members.foreign.{ROOM}.token", NODES),
    "members of a node": (f"$KV.{{NS}}_STATE.members.{{node}}.{ROOM}.token", NODES),
    "short members": ("$KV.{NS}_STATE.members.foreign", NODES),
    "signs of lifecycle": ("$KV.{NS}_STATE.lifecycle.node.foreign", NODES),
    "the lease": ("$KV.{NS}_STATE.lifecycle.leader", []),
    "the ledger of channels": ("$KV.{NS}_STATE.lifecycle.told.c.general", LEDGER),
    "the ledger of members": (f"$KV.{{NS}}_STATE.lifecycle.told.m.{ROOM}.token", LEDGER),
    "the ledger of nothing": ("$KV.{NS}_STATE.lifecycle.told.x", LEDGER),
    "the mark": ("$KV.{NS}_STATE.lifecycle.mark", []),
    "interests": ("$KV.{NS}_STATE.interest.foreign.general", []),
    "short interests": ("$KV.{NS}_STATE.interest.foreign", []),
    "revocations": ("$KV.{NS}_STATE.revocation.foreign", REVOKE),
    "another key": ("$KV.{NS}_STATE.some.thing", NODES),
    "changes of the state": (f"{{ns}}.state.members.foreign.{ROOM}.token", NODES),
    "replies": ("{replies}.1", NODES),
    "late replies": ("{replies}.99999999999999999999", NODES),
}


async def joined(client, user):
    """Wait until a client is notified that a user has joined."""
    while True:
        frame = await client.next()
        if frame["event"] == "eb:presence.joined" and frame["data"]["user_id"] == user:
            return


@pytest.fixture
async def announced_events(bus):
    events = asyncio.Queue()
    await listen_lifecycle(bus, events.put_nowait)
    return events


@pytest.mark.parametrize("kind", KINDS)
async def test_no_task_of_a_node_ends_by_what_others_write_to_the_bus(
    kind, start_edge, bus, settings, namespace, nats, token, announced_events, caplog
):
    node = await start_edge(bus, **FAST)
    early = await node.connect(token=token("1"))
    await early.subscribe(ROOM)
    await early.subscribe("general")
    before = fault_count()
    template, more = KINDS[kind]
    subject = template.format(
        ns=namespace,
        NS=namespace.upper(),
        node=node.node.id,
        replies=bus.driver._connection.replies.prefix,
    )
    for payload in [*PAYLOADS, *more]:
        await nats.publish(subject, payload)
        await nats.publish(subject, payload, headers=HEADERS)
    await nats.flush()
    # A node that starts later finds it all, and takes part: the clients of both see each other.
    async with EventBus(settings) as other_bus:
        other = await start_edge(other_bus, **FAST)
        late = await other.connect(token=token("2"))
        await late.subscribe(ROOM)
        async with asyncio.timeout(40):
            await joined(early, "2")
            await other.node.census.stats(ListQuery(limit=1))
            await late.subscribe("announcements")
            while (event := await announced_events.get()).channel != "announcements":
                pass
        assert event.event == "channel_occupied"
        # Revocations made on one node still end connections of the other.
        await other.node.access.revoker.revoke(user_id="1")
        assert await early.closed() == 4003
    assert fault_count() == before
    assert [r.getMessage() for r in caplog.records if r.name == "eventbus.tasks"] == []
