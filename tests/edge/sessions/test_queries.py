"""The actions `history` and `stats`: what a client may look up over its connection."""

import msgspec
import pytest

from eventbus.bus import EventBus
from eventbus.channels import ChannelKind, Pattern
from eventbus_edge.access.rules import ChannelRules, Rule, Who


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
    frame = await listener.next()
    client = await edge.connect()
    page = await history(client, limit=2)
    assert set(page) == {"messages", "offset", "epoch"}
    assert (page["offset"], page["epoch"]) == (frame["data"]["offset"], frame["data"]["epoch"])
    assert [(m["data"], m["id"], m["offset"]) for m in page["messages"]] == [
        (number, receipts[number].id, receipts[number].offset) for number in (3, 4)
    ]
    live = await bus.publish("general", "tick", 5)
    assert (await history(client, limit=1))["messages"] == [await listener.next()]
    assert live.offset == (await history(client))["offset"]
    assert await client.receives_nothing()  # to read is not to subscribe


async def test_history_after_an_offset_is_read_page_by_page(edge, bus):
    receipts = await publish(bus, range(7))
    client = await edge.connect()
    received, since = [], receipts[0].offset
    while page := (await history(client, since=since, limit=3))["messages"]:
        assert len(page) <= 3
        received += [message["data"] for message in page]
        since = page[-1]["offset"]
    assert received == [1, 2, 3, 4, 5, 6]


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


async def test_stats_are_for_admins_and_cover_all_nodes(start_edge, bus, token, know_each_other):
    edge, other = await start_edge(bus), await start_edge(bus)
    await know_each_other(edge, other)
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


# The members of a channel that is not joined


ROOM = "presence.room"


async def ask_members(client, channel=ROOM, **fields):
    answer = await client.ask("presence", channel=channel, ref=3, **fields)
    assert (answer["event"], answer["channel"]) == ("eb:presence", channel), answer
    assert answer["data"]["ref"] == 3
    return answer["data"]


async def test_members_are_answered_to_who_may_join_and_has_not(start_edge, bus, token):
    here, there = await start_edge(bus), await start_edge(bus)
    guest = await here.connect(token=token("9"))
    assert await ask_members(guest) == {"members": [], "count": 0, "ref": 3}
    member = await here.connect(token=token("7", name="Ada"))
    await member.subscribe(ROOM)
    for edge in (here, there):
        client = await edge.connect(token=token("8"))
        answer = await ask_members(client)
        assert answer["members"] == [{"user_id": "7", "info": {"name": "Ada"}}]
        assert answer["count"] == 1
        # It has not joined by asking: nobody is notified, and it gets no events.
        assert await member.receives_nothing()
        assert await client.error("presence", channel=ROOM, data={"a": 1}) == "not_subscribed"
        await bus.publish(ROOM, "e", 1)
        assert (await member.next())["data"] == 1
        assert await client.receives_nothing()


async def test_members_are_not_answered_to_who_may_not_join(start_edge, bus, token):
    rules = ChannelRules(
        [Rule(Pattern("room.{id}"), ChannelKind.PRESENCE, Who(roles=frozenset({"staff"})))]
    )
    edge = await start_edge(bus, rules=rules)
    member = await edge.connect(token=token("7", roles=["staff"]))
    await member.subscribe("room.1")
    nobody, stranger = await edge.connect(), await edge.connect(token=token("8"))
    assert await nobody.error("presence", channel="room.1") == "unauthorized"
    assert await stranger.error("presence", channel="room.1") == "forbidden"
    for client in (nobody, stranger, member):
        assert await client.error("presence", channel="general") == "bad_request"
        assert await client.error("presence", channel="room.*") == "invalid_channel"


async def test_authorizer_decides_about_members_too(start_edge, bus, token):
    rules = ChannelRules([Rule(Pattern("room.{id}"), ChannelKind.PRESENCE)])

    @rules.authorize("room.{id}")
    async def decide(user, id):  # noqa: A002 - the pattern's
        return user.user_id == id

    edge = await start_edge(bus, rules=rules)
    client = await edge.connect(token=token("7"))
    assert (await ask_members(client, "room.7"))["count"] == 0
    assert await client.error("presence", channel="room.8") == "forbidden"


@pytest.mark.usefixtures("no_refills")
async def test_members_that_are_read_count_for_the_address(start_edge, bus, token):
    edge = await start_edge(bus, max_history_per_address=1)
    client = await edge.connect(token=token("7"))
    codes = set()
    for _ in range(30):
        answer = await client.ask("presence", channel=ROOM)
        codes.add(answer["data"].get("code"))
    assert codes == {None, "rate_limited"}
