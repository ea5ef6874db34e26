"""Rules that retain a channel's last message, and those that limit what of its past is read."""

import json

import aiohttp
import msgspec
import pytest

from eventbus.bus import EventBus
from eventbus.channels import ChannelKind, Pattern
from eventbus.errors import ConfigError
from eventbus_edge.access.rules import (
    ANYONE,
    ChannelRules,
    Rule,
)
from eventbus_edge.access.rules_file import parse_rules


def rules(**more):
    return ChannelRules([Rule(Pattern("price.*"), ChannelKind.PUBLIC, ANYONE, **more)])


@pytest.fixture
def bus(each_bus):
    return each_bus


async def publish(bus, numbers):
    return [await bus.publish("price.btc", "changed", number) for number in numbers]


def place(receipt):
    return {"offset": receipt.offset, "epoch": receipt.epoch}


async def ask(client, **data):
    return await client.ask("subscribe", channel="price.btc", data=data or None, ref=1)


async def received(client, count):
    return [(await client.next())["data"] for _ in range(count)]


async def test_plain_subscription_gets_the_last_message_and_then_live_ones(start_edge, bus):
    edge = await start_edge(bus, rules=rules(retain=True))
    receipts = await publish(bus, range(3))
    client = await edge.connect()
    answer = (await ask(client))["data"]
    assert answer["offset"] < receipts[-1].offset
    assert "recovered" not in answer
    message = await client.next()
    assert (message["data"], message["offset"]) == (2, receipts[-1].offset)
    await publish(bus, [3])
    assert await received(client, 1) == [3]
    assert await client.receives_nothing()


async def test_subscription_by_url_gets_it_too(start_edge, bus):
    edge = await start_edge(bus, rules=rules(retain=True))
    await publish(bus, range(3))
    client = await edge.connect("/ws/price.btc")
    assert (await client.next())["event"] == "eb:subscribed"
    assert await received(client, 1) == [2]


async def test_server_sent_events_have_it_after_the_answer(start_edge, bus):
    edge = await start_edge(bus, rules=rules(retain=True))
    receipts = await publish(bus, range(3))
    received, cursors = [], []
    async with (
        aiohttp.ClientSession() as http,
        http.get(f"{edge.url}/sse", params={"channel": "price.btc"}) as stream,
    ):
        async for line in stream.content:
            if line.startswith(b"id:"):
                cursors.append(line[3:].strip().decode())
            if line.startswith(b"data:"):
                received.append(json.loads(line[5:]))
                if len(received) == 3:
                    break
    assert [one["event"] for one in received] == ["eb:connected", "eb:subscribed", "changed"]
    assert (received[2]["data"], received[2]["offset"]) == (2, receipts[-1].offset)


async def test_channel_without_messages_has_nothing_to_retain(start_edge, bus):
    edge = await start_edge(bus, rules=rules(retain=True))
    client = await edge.connect()
    assert (await ask(client))["event"] == "eb:subscribed"
    assert await client.receives_nothing()


async def test_channel_that_does_not_retain_gives_nothing_of_its_past(start_edge, bus):
    edge = await start_edge(bus, rules=rules())
    await publish(bus, range(3))
    client = await edge.connect()
    assert (await ask(client))["event"] == "eb:subscribed"
    assert await client.receives_nothing()


async def test_resuming_client_gets_missed_messages_and_nothing_twice(start_edge, bus):
    edge = await start_edge(bus, rules=rules(retain=True))
    receipts = await publish(bus, range(5))
    client = await edge.connect()
    assert (await ask(client, **place(receipts[1])))["data"]["recovered"] is True
    assert await received(client, 3) == [2, 3, 4]
    assert await client.receives_nothing()
    other = await edge.connect()
    assert (await ask(other, **place(receipts[-1])))["data"]["recovered"] is True
    assert await other.receives_nothing()  # it has the last message already


async def test_client_that_cannot_resume_starts_over_with_the_last_message(start_edge, bus):
    edge = await start_edge(bus, rules=rules(retain=True))
    receipts = await publish(bus, range(3))
    client = await edge.connect()
    answer = (await ask(client, offset=receipts[0].offset, epoch="another"))["data"]
    assert answer["recovered"] is False
    assert answer["offset"] < receipts[-1].offset
    assert await received(client, 1) == [2]
    assert await client.receives_nothing()


async def test_history_that_is_asked_for_has_the_retained_message_once(start_edge, bus):
    edge = await start_edge(bus, rules=rules(retain=True))
    await publish(bus, range(5))
    client = await edge.connect()
    await ask(client, history=3)
    assert await received(client, 3) == [2, 3, 4]
    assert await client.receives_nothing()


async def test_history_that_may_not_be_read_is_refused(start_edge, bus, token):
    edge = await start_edge(bus, rules=rules(history=False), api_key="key")
    receipts = await publish(bus, range(3))
    client = await edge.connect()
    for answer in (
        await ask(client, history=2),
        await client.ask("history", channel="price.btc", ref=1),
    ):
        assert (answer["event"], answer["data"]["code"]) == ("eb:error", "forbidden")
        assert "history" in answer["data"]["message"]
    reply = await ask(client, **place(receipts[0]))
    assert (reply["event"], reply["data"]["recovered"]) == ("eb:subscribed", False)
    assert reply["data"]["offset"] == receipts[-1].offset
    answer = await client.ask("history", channel="price.btc", ref=1)
    assert answer["data"]["code"] == "forbidden"  # a subscription does not change it
    await publish(bus, [3])
    assert await received(client, 1) == [3]
    async with (
        aiohttp.ClientSession(headers={"Authorization": "Bearer key"}) as http,
        http.get(f"{edge.url}/api/broadcast/channels/price.btc/history") as response,
    ):
        assert response.status == 403
        assert (await response.json())["code"] == "forbidden"


async def test_the_last_message_may_be_retained_where_history_may_not_be_read(start_edge, bus):
    edge = await start_edge(bus, rules=rules(history=False, retain=True))
    await publish(bus, range(3))
    client = await edge.connect()
    assert (await ask(client))["event"] == "eb:subscribed"
    assert await received(client, 1) == [2]
    assert await client.receives_nothing()


async def test_history_of_a_rule_caps_what_is_read(start_edge, bus):
    edge = await start_edge(bus, rules=rules(history=3))
    receipts = await publish(bus, range(10))
    client = await edge.connect()

    async def read(**data):
        answer = await client.ask("history", channel="price.btc", data=data, ref=1)
        return [message["data"] for message in answer["data"]["messages"]]

    assert await read(limit=100) == [7, 8, 9]
    assert await read(limit=2) == [8, 9]
    assert await read(since=receipts[0].offset) == [7, 8, 9]
    assert await read(since=receipts[7].offset) == [8, 9]
    assert await read(since=receipts[0].offset, limit=1) == [7]
    await ask(client, history=100)
    assert await received(client, 3) == [7, 8, 9]


@pytest.mark.parametrize(("missed", "recovered"), [(3, True), (4, False)])
async def test_client_that_missed_more_than_it_may_read_is_not_recovered(
    start_edge, bus, missed, recovered
):
    edge = await start_edge(bus, rules=rules(history=3))
    receipts = await publish(bus, range(10))
    client = await edge.connect()
    answer = await ask(client, **place(receipts[-1 - missed]))
    assert answer["data"]["recovered"] is recovered
    if recovered:
        assert await received(client, missed) == [7, 8, 9]
    assert await client.receives_nothing()


async def test_retention_class_reaches_clients(start_edge, settings):
    few = msgspec.structs.replace(settings, retention="price.*:2/1h/4MiB")
    async with EventBus(few) as bus:
        edge = await start_edge(bus, rules=rules())
        receipts = await publish(bus, range(5))
        client, resumed = await edge.connect(), await edge.connect()
        await ask(client, history=100)
        assert await received(client, 2) == [3, 4]
        assert (await ask(resumed, **place(receipts[0])))["data"]["recovered"] is False
        other = await edge.connect()
        assert (await ask(other, **place(receipts[2])))["data"]["recovered"] is True
        assert await received(other, 2) == [3, 4]


def test_an_authorizers_channel_retains_too():
    made = ChannelRules([Rule(Pattern("club.*"), retain=True, history=5)])
    made.authorize("club.{club_id}")(lambda user, club_id: True)
    rule = made.find("club.7")
    assert (rule.retain, rule.most_history) == (True, 5)


@pytest.mark.parametrize(
    ("text", "retain", "most"),
    [("", False, None), ("retain = true\nhistory = true", True, None),
     ("history = false", False, 0), ("history = 0", False, 0), ("history = 7", False, 7)],
)  # fmt: skip
def test_the_rules_file_says_it(text, retain, most):
    (rule,) = parse_rules(f'[[rule]]\npattern = "a"\n{text}', "rules.toml")
    assert (rule.retain, rule.most_history) == (retain, most)


@pytest.mark.parametrize(
    "text", ["history = -1", 'history = "all"', "retain = 1", "retains = true"]
)
def test_the_rules_file_is_refused_where_it_says_something_else(text):
    allowed = r"number 1.*history: true, false or the number of messages"
    with pytest.raises(ConfigError, match=allowed):
        parse_rules(f'[[rule]]\npattern = "a"\n{text}', "rules.toml")


def test_a_rule_cannot_have_less_than_no_history():
    with pytest.raises(ValueError, match="0 or more; got -1"):
        rules(history=-1)
