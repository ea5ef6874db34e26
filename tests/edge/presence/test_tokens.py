"""A token that is refreshed in place, and says something else of its user than the one before."""

import time

import jwt
import pytest

from eventbus.channels import ChannelKind, Pattern
from eventbus_edge.access.rules import (
    ChannelRules,
    Rule,
)

SECRET = "a-secret-of-tests-that-is-32-bytes-long"
ROOM = "presence.room"


@pytest.fixture
def token():
    """Make a token with any claims."""

    def issue(user, **claims):
        times = {"aud": "websocket", "exp": int(time.time()) + 600}
        return jwt.encode({"sub": user, **times, **claims}, SECRET, "HS256")

    return issue


@pytest.fixture
async def two(start_edge, bus, settings, token):
    """Alice on one node, Bob on another, both in the room; Bob knows of both."""
    edges = [await start_edge(bus), await start_edge(settings)]
    alice = await edges[0].connect(token=token("alice", name="Alice", info={"desk": 1}))
    await alice.subscribe(ROOM)
    bob = await edges[1].connect(token=token("bob"))
    await bob.subscribe(ROOM)
    assert (await alice.next())["event"] == "eb:presence.joined"
    return alice, bob


async def refresh(client, new):
    assert (await client.ask("auth", data={"token": new}))["event"] == "eb:authenticated"


async def updated(client, channel=ROOM):
    frame = await client.next()
    assert (frame["event"], frame["channel"]) == ("eb:presence.updated", channel)
    return frame["data"]


async def test_others_see_what_the_new_token_says(two, token):
    alice, bob = two
    await refresh(alice, token("alice", name="Alice B.", info={"floor": 2}))
    info = {"name": "Alice B.", "floor": 2}
    assert await updated(bob) == {"user_id": "alice", "info": info}
    members = (await bob.ask("presence", channel=ROOM))["data"]["members"]
    assert {"user_id": "alice", "info": info} in members
    assert await alice.receives_nothing()


async def test_later_changes_of_the_user_stay(two, token):
    alice, bob = two
    await alice.ask("presence", channel=ROOM, data={"status": "away", "desk": 9})
    await updated(bob)
    await refresh(alice, token("alice", name="Al", info={"desk": 1}))
    reported = await updated(bob)
    assert reported["info"] == {"name": "Al", "desk": 9, "status": "away"}


@pytest.mark.parametrize("more", [{}, {"roles": ["editor"]}])
async def test_a_token_that_says_the_same_of_its_user_is_not_announced(two, token, more):
    alice, bob = two
    await refresh(alice, token("alice", name="Alice", info={"desk": 1}, **more))
    assert await bob.receives_nothing()
    assert await alice.receives_nothing()


async def test_an_info_that_is_too_large_is_refused_and_the_old_one_stays(two, token):
    alice, bob = two
    await refresh(alice, token("alice", name="Alice", info={"desk": "x" * 3000}))
    error = await alice.next()
    assert (error["event"], error["channel"]) == ("eb:error", ROOM)
    assert error["data"]["code"] == "payload_too_large"
    assert await bob.receives_nothing()
    members = (await bob.ask("presence", channel=ROOM))["data"]["members"]
    assert {"user_id": "alice", "info": {"name": "Alice", "desk": 1}} in members


async def test_an_authorizer_decides_and_is_called_again(start_edge, bus, token):
    team = "presence.team.{team_id}"
    rules = ChannelRules([Rule(Pattern(team), ChannelKind.PRESENCE, None)])

    @rules.authorize(team)
    def in_team(user, team_id):
        return {"role": "captain" if "captain" in user.roles else "player", "name": user.name}

    edge = await start_edge(bus, rules=rules)
    alice, bob = [await edge.connect(token=token(user, name=user)) for user in ("alice", "bob")]
    for client in (alice, bob):
        await client.subscribe("presence.team.7")
    await alice.next()
    await refresh(alice, token("alice", name="Alice", roles=["captain"]))
    reported = await updated(bob, "presence.team.7")
    assert reported["info"] == {"name": "Alice", "role": "captain"}
