"""The main job over real sockets: nats-server, edge, and a client of another make."""

import asyncio
import json

import pytest

from eventbus.events import Event, ShouldBroadcast
from eventbus.messages import HEADER_REASON


class EndToEndOrderShipped(Event, ShouldBroadcast, channel="general"):
    order_id: int


async def test_the_first_frame_greets_with_id_node_heartbeat_and_protocol(edge):
    client = await edge.connect()
    greeting = client.greeting
    assert set(greeting) == {"channel", "event", "data", "timestamp"}
    assert greeting["channel"] is None
    assert greeting["timestamp"].endswith("Z")
    reported = {"connection_id", "node", "heartbeat_s", "actions_per_s", "action_burst", "protocol"}
    assert set(greeting["data"]) == reported
    assert greeting["data"]["node"] == edge.node.id
    assert greeting["data"]["protocol"] == "eventbus.v1"
    assert greeting["data"]["heartbeat_s"] == 25
    assert (greeting["data"]["actions_per_s"], greeting["data"]["action_burst"]) == (50, 100)


async def test_message_published_in_python_reaches_a_client_as_its_envelope(edge, bus):
    client = await edge.connect("/ws?channel=general")
    subscribed = await client.next()
    assert subscribed["data"]["kind"] == "public"
    receipt = await bus.publish("general", "greeting", {"text": "héllo", "n": [1, None, 2.5]})
    message = await client.next()
    assert message.pop("timestamp").endswith("Z")
    assert message.pop("mark").endswith("Z")
    assert message == {
        "channel": "general",
        "event": "greeting",
        "data": {"text": "héllo", "n": [1, None, 2.5]},
        "id": receipt.id,
        "offset": receipt.offset,
        "epoch": receipt.epoch,
    }
    assert receipt.epoch == subscribed["data"]["epoch"]
    assert receipt.offset > subscribed["data"]["offset"]


async def test_a_dispatched_event_reaches_a_client(edge, bus):
    client = await edge.connect("/ws/general")
    await client.next()
    await EndToEndOrderShipped(order_id=42).dispatch()
    message = await client.next()
    assert message["data"] == {"order_id": 42}
    assert "offset" in message


async def test_a_volatile_message_has_an_id_but_no_offset(edge, bus):
    client = await edge.connect("/ws/general")
    await client.next()
    await bus.publish("general", "cursor", {"x": 1}, volatile=True)
    message = await client.next()
    assert message["data"] == {"x": 1}
    assert "offset" not in message
    assert "epoch" not in message


async def test_plain_json_of_a_raw_nats_client_reaches_clients_wrapped(edge, nats, namespace):
    client = await edge.connect("/ws/general")
    subscribed = await client.next()
    await nats.publish(f"{namespace}.event.general", b'{"hello":1}')
    await nats.flush()
    message = await client.next()
    assert (message["channel"], message["event"]) == ("general", "message")
    assert message["data"] == {"hello": 1}
    assert message["timestamp"].endswith("Z")
    assert message["epoch"] == subscribed["data"]["epoch"]
    assert message["id"]
    headers = {"Eb-Event": "tick"}
    await nats.publish(f"{namespace}.event.general", b"[1, 2.50]", headers=headers)
    message = await client.next()
    assert (message["event"], message["data"]) == ("tick", [1, 2.5])


async def test_a_whole_envelope_of_a_raw_nats_client_arrives_byte_for_byte(edge, nats, namespace):
    client = await edge.connect("/ws/general")
    await client.next()
    envelope = (
        '{ "id":"own-1", "channel":"general","event":"é", "data": {"b":1.0,"a":[ ]},'
        '"timestamp":"2026-01-01T00:00:00Z","more":"kept" }'
    )
    await nats.publish(f"{namespace}.event.general", envelope.encode())
    text = await client.socket.recv()
    assert text.startswith(envelope.rstrip("}"))
    added = set(json.loads(text)) - set(json.loads(envelope))
    assert added == {"offset", "epoch", "mark"}


QUARANTINED = [
    (b"not json", "not_json"),
    (b"", "not_json"),
    (b'{"a":', "not_json"),
    (b"\xff\xfe", "not_utf8"),
    (b'"\xed\xa0\x80"', "not_utf8"),
    (b'{"event":"eb:connected","data":{}}', "reserved_event"),
    (b'{"event":"pong","data":{}}', "reserved_event"),
    (b'{"event":"e","data":1,"channel":"user.8"}', "other_channel"),
    (b'{"event":1,"data":1}', "bad_envelope"),
    (b'{"event":"e","data":' + b"[" * 20_000 + b"]" * 20_000 + b"}", "too_deep"),
]


@pytest.mark.parametrize(("payload", "reason"), QUARANTINED)
async def test_a_payload_that_is_not_a_message_is_quarantined_and_harms_nobody(
    edge, nats, namespace, payload, reason
):
    client = await edge.connect("/ws/general")
    await client.next()
    quarantine = await nats.subscribe(f"{namespace}.quarantine.>")
    await nats.flush()
    await nats.publish(f"{namespace}.event.general", payload)
    caught = await quarantine.next_msg(timeout=40)
    assert caught.subject == f"{namespace}.quarantine.general"
    assert caught.data == payload
    assert caught.headers[HEADER_REASON] == reason
    await nats.publish(f"{namespace}.event.general", b'"well"')
    assert (await client.next())["data"] == "well"


async def test_a_thousand_messages_arrive_whole_and_in_order(edge, bus):
    clients = [await edge.connect("/ws/general") for _ in range(3)]
    for client in clients:
        await client.next()

    async def receive(client):
        return [(await client.next())["data"] for _ in range(1000)]

    receiving = [asyncio.create_task(receive(client)) for client in clients]
    for start in range(0, 1000, 100):
        batch = (bus.publish("general", "n", n) for n in range(start, start + 100))
        await asyncio.gather(*batch)
    for received in await asyncio.gather(*receiving):
        assert received == list(range(1000))


async def test_nothing_of_a_channel_comes_before_its_subscribed(edge, bus):
    """And nothing after it is missing: what is published meanwhile is on one side of it."""
    stop = asyncio.Event()

    async def publish():
        while not stop.is_set():
            await bus.publish("general", "n", 1)

    publishing = asyncio.create_task(publish())
    try:
        for _ in range(20):
            client = await edge.connect("/ws/general")
            subscribed = await client.next()
            assert subscribed["event"] == "eb:subscribed"
            after = (await client.next())["offset"]
            assert after == subscribed["data"]["offset"] + 1
            await client.socket.close()
    finally:
        stop.set()
        await publishing


async def test_unsubscribing_stops_delivery(edge, bus):
    client = await edge.connect()
    await client.subscribe("general")
    await client.subscribe("public")
    answer = await client.ask("unsubscribe", channel="general", ref="u")
    assert (answer["event"], answer["channel"]) == ("eb:unsubscribed", "general")
    assert answer["data"] == {"ref": "u"}
    await bus.publish("general", "e", 1)
    await bus.publish("public", "e", 2)
    assert (await client.next())["data"] == 2
    assert await client.receives_nothing()


async def test_subscribing_twice_is_answered_twice_and_delivers_once(edge, bus):
    client = await edge.connect()
    await client.subscribe("general")
    await client.subscribe("general", ref=2)
    await bus.publish("general", "e", 1)
    assert (await client.next())["data"] == 1
    assert await client.receives_nothing()


async def test_a_ping_that_names_a_channel_is_answered_to_its_sender_only(edge):
    sender, other = [await edge.connect("/ws/general") for _ in range(2)]
    await sender.next()
    await other.next()
    answer = await sender.ask("ping", channel="general", data={"a": [1, 2]}, ref="r")
    assert (answer["channel"], answer["event"]) == (None, "pong")
    assert answer["data"]["echo_data"] == {"a": [1, 2]}
    assert answer["data"]["ref"] == "r"
    assert await other.receives_nothing()


async def test_a_whisper_reaches_the_others_and_not_its_sender(edge, token):
    alice = await edge.connect("/ws/chat.1", token=token("alice"))
    bob = await edge.connect("/ws/chat.1", token=token("bob"))
    eve = await edge.connect("/ws/chat.2", token=token("eve"))
    for client in (alice, bob, eve):
        await client.next()
    answer = await alice.ask("whisper", channel="chat.1", event="typing", data={"on": 1}, ref=5)
    assert (answer["event"], answer["data"]) == ("eb:ack", {"ref": 5})
    frame = await bob.next()
    assert frame.pop("timestamp").endswith("Z")
    assert frame == {
        "channel": "chat.1",
        "event": "client-typing",
        "data": {"on": 1},
        "user_id": "alice",
    }
    assert await alice.receives_nothing()
    assert await bob.receives_nothing()
    assert await eve.receives_nothing()


async def test_a_whisper_cannot_give_itself_another_sender(edge, token):
    alice = await edge.connect("/ws/chat.1", token=token("alice"))
    bob = await edge.connect("/ws/chat.1", token=token("bob"))
    await alice.next()
    await bob.next()
    await alice.send("whisper", channel="chat.1", event="e", data=1, user_id="bob", id="x")
    frame = await bob.next()
    assert frame["user_id"] == "alice"
    assert "id" not in frame


async def test_a_message_that_excludes_a_connection_reaches_all_others(edge, bus):
    first, second = [await edge.connect("/ws/general") for _ in range(2)]
    await first.next()
    await second.next()
    excluded = first.greeting["data"]["connection_id"]
    await bus.publish("general", "e", 1, except_connection=excluded)
    assert (await second.next())["data"] == 1
    assert await first.receives_nothing()


async def test_a_resume_shows_whether_anything_was_missed(edge, bus):
    client = await edge.connect()
    here = await client.subscribe("general")
    cursor = {"offset": here["offset"], "epoch": here["epoch"]}
    if "mark" in here:  # of the stream's last message, if it has one
        cursor["mark"] = here["mark"]
    again = await client.subscribe("general", data=cursor)
    assert again == {"kind": "public", **cursor, "recovered": True}
    other = await client.subscribe("general", data=cursor | {"epoch": "another"})
    assert other["recovered"] is False
    beyond = await client.subscribe("general", data=cursor | {"offset": here["offset"] + 1000})
    assert beyond["recovered"] is False


async def test_leaving_clients_leave_nothing_behind(edge, bus):
    for _ in range(5):
        clients = [await edge.connect("/ws?channel=general&channel=public") for _ in range(4)]
        for client in clients:
            await client.next()
            await client.socket.close()
    async with asyncio.timeout(40):
        while edge.node.connections or edge.node.traffic.channels:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.01)
    assert list(edge.node._hub.channels) == []
    assert edge.node.metrics.subscriptions.value == 0
