"""Every user has a personal channel, whatever characters the id has, the same on all sides."""

import urllib.parse

import pytest

from eventbus import broadcast_to_user, user_channel
from eventbus.client import connect
from eventbus.events import Event, EventReader, ShouldBroadcast

IDS = [
    "42",
    "auth0|5f7c8ec7",
    "ada.lovelace@example.com",
    "ada+news@example.com",
    "ada lovelace",
    "Zoë-éü",
    "用户一",
    "a~2eb",
    "registered.",
    "*",
    ">",
    "{user_id}",
    "%2E/?#&",
]


class Personal(Event, ShouldBroadcast, channel="user.{user_id}", name="personal"):
    user_id: str
    text: str


@pytest.mark.parametrize("user_id", IDS)
async def test_user_gets_what_is_sent_to_the_id_and_nobody_else_does(edge, bus, token, user_id):
    channel = user_channel(user_id)
    client = await edge.connect(token=token(user_id))
    assert (await client.subscribe(channel))["kind"] == "private"
    for stranger in ("7", user_id + "x", user_id[1:] or "x", channel.removeprefix("user.") + "~"):
        other = await edge.connect(token=token(stranger))
        assert await other.error("subscribe", channel=channel) == "forbidden"
    await broadcast_to_user(user_id, "hello", 1)
    await Personal(user_id=user_id, text="hi").dispatch()
    received = [await client.next() for _ in range(2)]
    assert [(each["channel"], each["event"]) for each in received] == [
        (channel, "hello"),
        (channel, "personal"),
    ]


@pytest.mark.parametrize("name", ["user.%61", "user.~61", "user.~C3~AB", "user.~ff", "user.a~"])
async def test_channel_with_another_spelling_is_not_a_channel(edge, token, name):
    client = await edge.connect(token=token("a"))
    assert await client.error("subscribe", channel=name) == "invalid_channel"


@pytest.mark.parametrize("user_id", IDS)
async def test_urls_clients_and_subscriptions_take_the_channel_as_it_is(edge, bus, token, user_id):
    channel, received = user_channel(user_id), []
    assert urllib.parse.quote(channel, safe="@=,;") == channel
    await bus.subscribe(Personal, received.append)
    raw = await edge.connect(f"/ws?channel={channel}", token=token(user_id))
    await raw.next()
    async with connect(f"{edge.url}/ws", token=token(user_id)) as client:
        mine = await client.subscribe(channel)
        await bus.publish(channel, "personal", {"text": "from elsewhere"})
        assert (await anext(mine.messages())).data == {"text": "from elsewhere"}
        page = await mine.history()
    assert [message.channel for message in page.messages] == [channel]
    assert (await raw.next())["data"] == {"text": "from elsewhere"}
    found = EventReader(Personal).pattern.match(channel)
    assert found == {"user_id": user_id}


@pytest.mark.parametrize("user_id", IDS)
async def test_member_of_a_presence_channel_has_the_id_itself(edge, token, user_id):
    client = await edge.connect(token=token(user_id))
    joined = await client.subscribe("presence.room")
    assert [member["user_id"] for member in joined["members"]] == [user_id]
