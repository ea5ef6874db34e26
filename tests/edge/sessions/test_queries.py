"""The actions `history` and `stats`: what a client may look up over its connection."""

import msgspec
import pytest

from eventbus.bus import EventBus
from eventbus_edge.access.rules import ChannelRules


@pytest.fixture(params=["memory", "nats"])
async def bus(request, settings):
    if request.param == "memory":
        settings = msgspec.structs.replace(settings, driver="memory")
    async with EventBus(settings) as opened:
        yield opened


async def publish(bus, numbers, channel="general"):
    return [await bus.publish(channel, "tick", number) for number in numbers]


async def history(client, channel="general", **data):
    answer = await client.ask("history", channel=channel, data=data, ref=7)
    assert (answer["event"], answer["channel"]) == ("eb:history", channel), answer
    assert answer["data"].pop("ref") == 7
    return answer["data"]


async def test_history_has_the_last_messages_as_whole_envelopes(edge, bus):
    receipts = await publish(bus, range(5))
    listener = await edge.connect("/ws/general")
    told = await listener.next()
    client = await edge.connect()
    page = await history(client, limit=2)
    assert set(page) == {"messages", "offset", "epoch"}
    assert (page["offset"], page["epoch"]) == (told["data"]["offset"], told["data"]["epoch"])
    assert [(m["data"], m["id"], m["offset"]) for m in page["messages"]] == [
        (number, receipts[number].id, receipts[number].offset) for number in (3, 4)
    ]
    live = await bus.publish("general", "tick", 5)
    assert (await history(client, limit=1))["messages"] == [await listener.next()]
    assert live.offset == (await history(client))["offset"]
    assert await client.hears_nothing()  # to read is not to subscribe


async def test_history_after_an_offset_is_read_page_by_page(edge, bus):
    receipts = await publish(bus, range(7))
    client = await edge.connect()
    heard, since = [], receipts[0].offset
    while page := (await history(client, since=since, limit=3))["messages"]:
        assert len(page) <= 3
        heard += [message["data"] for message in page]
        since = page[-1]["offset"]
    assert heard == [1, 2, 3, 4, 5, 6]


async def test_history_larger_than_the_bound_comes_in_part_and_cuts_nobody(start_edge, bus):
    edge = await start_edge(bus, max_unsent_bytes=40_000)
    for number in range(20):
        await bus.publish("general", "tick", [number, "x" * 4000])
    client = await edge.connect()
    last = [message["data"][0] for message in (await history(client))["messages"]]
    assert last == list(range(20 - len(last), 20))
    first = [message["data"][0] for message in (await history(client, since=0))["messages"]]
    assert first == list(range(len(first)))
    assert 1 <= len(first) < 20


async def test_history_is_for_those_who_may_join(start_edge, bus, token):
    rules = ChannelRules()

    @rules.authorize("team.{team_id}")
    async def in_team(user, team_id):
        return team_id == "7"

    edge = await start_edge(bus, rules=rules)
    await publish(bus, [1], channel="user.7")
    await publish(bus, [1], channel="team.7")
    anonymous, user = await edge.connect(), await edge.connect(token=token("7"))
    assert await anonymous.error("history", channel="user.7") == "unauthorized"
    assert await user.error("history", channel="user.8") == "forbidden"
    assert await user.error("history", channel="team.8") == "forbidden"
    for channel in ("user.7", "team.7"):
        assert len((await history(user, channel))["messages"]) == 1


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({}, "bad_request"),
        ({"channel": "a b"}, "invalid_channel"),
        ({"channel": "general", "data": {"limit": 0}}, "bad_request"),
        ({"channel": "general", "data": {"limit": 1001}}, "bad_request"),
        ({"channel": "general", "data": {"limit": "5"}}, "bad_request"),
        ({"channel": "general", "data": {"since": -1}}, "bad_request"),
        ({"channel": "general", "data": {"since": 2**63}}, "bad_request"),
        ({"channel": "general", "data": []}, "bad_request"),
    ],
)
async def test_bad_history_is_refused(edge, fields, code):
    assert await (await edge.connect()).error("history", **fields) == code


async def test_history_of_a_driver_that_keeps_none_is_empty(start_edge):
    from eventbus.config import Settings  # noqa: PLC0415 - only here

    async with EventBus(Settings(driver="null")) as bus:
        client = await (await start_edge(bus)).connect()
        assert await history(client) == {"messages": [], "offset": None, "epoch": None}


async def test_without_its_bus_history_is_unavailable(start_edge, settings):
    async with EventBus(settings) as bus:
        edge = await start_edge(bus)
        client = await edge.connect()
        await bus.driver.aclose()
        assert await client.error("history", channel="general") == "unavailable"


async def test_stats_are_for_admins_and_tell_of_all_nodes(start_edge, bus, token, acquainted):
    edge, other = await start_edge(bus), await start_edge(bus)
    await acquainted(edge, other)
    await (await other.connect("/ws/general")).next()
    for options, code in (({}, "unauthorized"), ({"token": token("7")}, "forbidden")):
        assert await (await edge.connect(**options)).error("stats") == code
    for claims in ({"roles": ["admin"]}, {"permissions": ["admin"]}):
        client = await edge.connect(token=token("7", **claims))
        answer = await client.ask("stats", ref="r")
        assert (answer["event"], answer["channel"], answer["data"]["ref"]) == (
            "eb:stats", None, "r",
        )  # fmt: skip
        stats = answer["data"]
        assert {node["id"] for node in stats["nodes"]} == {edge.node.id, other.node.id}
        assert [(c["channel"], c["connections"]) for c in stats["channels"]] == [("general", 1)]
