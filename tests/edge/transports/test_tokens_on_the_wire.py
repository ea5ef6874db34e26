"""Tokens by each of their ways, what they open, how they end, and that no log shows them."""

import asyncio
import logging
import time

import jwt
import pytest

from eventbus_edge.access.rules import ChannelRules
from tests.edge.conftest import expired

BY = {
    "header": lambda token: {"headers": {"Authorization": f"Bearer {token}"}},
    "subprotocol": lambda token: {"subprotocols": ["eventbus.v1", f"eventbus.bearer.{token}"]},
    "query": lambda token: {"path": f"?auth_token={token}"},
}


async def connect_by(edge, way, token, path="/ws", **options):
    given = BY[way](token)
    return await edge.connect(path + given.pop("path", ""), **given, **options)


@pytest.mark.parametrize("way", BY)
async def test_a_token_opens_private_channels_by_each_way(edge, token, way):
    client = await connect_by(edge, way, token("7"), "/ws/user.7")
    subscribed = await client.next()
    assert (subscribed["channel"], subscribed["data"]["kind"]) == ("user.7", "private")
    assert client.socket.subprotocol == ("eventbus.v1" if way == "subprotocol" else None)


async def test_a_token_by_the_auth_action_opens_private_channels(edge, token):
    client = await edge.connect()
    assert await client.error("subscribe", channel="user.7") == "unauthorized"
    answer = await client.ask("auth", data={"token": token("7")}, ref=1)
    assert (answer["channel"], answer["event"]) == (None, "eb:authenticated")
    assert answer["data"]["user_id"] == "7"
    assert answer["data"]["expires_at"].endswith("Z")
    assert answer["data"]["ref"] == 1
    await client.subscribe("user.7")


async def test_the_first_of_several_tokens_counts(edge, token):
    client = await edge.connect(
        f"/ws?auth_token={token('query')}",
        token=token("header"),
        subprotocols=["eventbus.v1", f"eventbus.bearer.{token('protocol')}"],
    )
    await client.subscribe("user.header")


async def test_several_channels_of_the_url_are_joined_in_their_order(edge, token):
    path = "/ws/chat.1?channel=general&channel=user.7&channel=general"
    client = await edge.connect(path, token=token("7"))
    channels = [(await client.next())["channel"] for _ in range(3)]
    assert channels == ["chat.1", "general", "user.7"]
    assert await client.receives_nothing()


def forged(**claims):
    good = {"sub": "7", "aud": "websocket", "exp": int(time.time()) + 60}
    return jwt.encode(good | claims, "another-secret-that-is-32-bytes-long")


@pytest.mark.parametrize("way", BY)
@pytest.mark.parametrize("path", ["/ws", "/ws/general", "/ws/user.7"])
async def test_a_forged_token_is_refused_before_the_upgrade_even_on_public_channels(
    edge, way, path
):
    given = BY[way](forged())
    status, headers, problem = await edge.refusal(path + given.pop("path", ""), **given)
    assert (status, problem["code"]) == (401, "unauthorized")
    assert 'error="invalid_token"' in headers["WWW-Authenticate"]


async def test_no_expired_token_and_none_for_another_audience_connects(edge, token):
    status, headers, problem = await edge.refusal("/ws", token=expired())
    assert (status, problem["code"]) == (401, "token_expired")
    assert 'error="invalid_token"' in headers["WWW-Authenticate"]
    status, _, problem = await edge.refusal("/ws", token=token(audience="another"))
    assert (status, problem["code"]) == (401, "unauthorized")


REFUSED = [
    ("/ws/user.8", None, 401, "unauthorized"),
    ("/ws?channel=general&channel=chat.1", None, 401, "unauthorized"),
    ("/ws/user.8", "7", 403, "forbidden"),
    ("/ws?channel=general&channel=user.8", "7", 403, "forbidden"),
    ("/ws/admin.dashboard", "7", 403, "forbidden"),
    ("/ws/anything.else", "7", 403, "forbidden"),
    ("/ws/team.1", "7", 403, "forbidden"),
]


@pytest.mark.parametrize(("path", "user", "status", "code"), REFUSED)
async def test_a_channel_of_the_url_that_may_not_be_joined_refuses_the_connection(
    edge, token, path, user, status, code
):
    refused, headers, problem = await edge.refusal(path, token=token(user) if user else None)
    assert (refused, problem["code"]) == (status, code)
    assert headers.get("WWW-Authenticate") == ("Bearer" if status == 401 else None)
    assert len(edge.node.connections) == 0
    assert edge.node.traffic.channels == 0  # the allowed channel beside it was not joined either


async def test_roles_and_grants_open_what_they_say(edge, token):
    admin = await edge.connect("/ws/admin.dashboard", token=token("1", roles=["admin"]))
    assert (await admin.next())["event"] == "eb:subscribed"
    granted = await edge.connect("/ws", token=token("2", channels=["orders.*", "team.9"]))
    await granted.subscribe("orders.1")
    await granted.subscribe("team.9")
    assert await granted.error("subscribe", channel="orders.1.x") == "forbidden"


async def test_an_authorizer_decides_by_url_and_by_action(start_edge, bus, token):
    rules = ChannelRules()

    @rules.authorize("team.{team_id}")
    async def member(user, team_id):
        await asyncio.sleep(0)
        return user.user_id == team_id

    edge = await start_edge(bus, rules)
    client = await edge.connect("/ws/team.7", token=token("7"))
    await client.next()
    assert await client.error("subscribe", channel="team.8") == "forbidden"
    status, _, problem = await edge.refusal("/ws/team.8", token=token("7"))
    assert (status, problem["code"]) == (403, "forbidden")


async def test_an_authorizer_that_fails_denies_and_the_connection_continues(start_edge, bus, token):
    rules = ChannelRules()

    @rules.authorize("team.{team_id}")
    def broken(user, team_id):
        raise RuntimeError("database is down")

    edge = await start_edge(bus, rules)
    client = await edge.connect("/ws", token=token("7"))
    assert await client.error("subscribe", channel="team.1") == "forbidden"
    await client.subscribe("user.7")


async def test_a_bad_token_by_action_leaves_the_connection_as_it_was(edge, token):
    client = await edge.connect("/ws/user.7", token=token("7"))
    await client.next()
    assert await client.error("auth", data={"token": "nonsense"}) == "unauthorized"
    old = expired()
    assert await client.error("auth", data={"token": old}) == "token_expired"
    assert await client.error("auth", data={"token": token("8")}) == "forbidden"
    await client.subscribe("chat.1")


async def test_the_third_bad_token_closes_with_4001(edge):
    client = await edge.connect()
    for _ in range(3):
        assert await client.error("auth", data={"token": forged()}) == "unauthorized"
    assert await client.closed() == 4001


async def test_a_connection_without_the_token_that_is_required_is_closed_with_4001(
    start_edge, bus, token
):
    edge = await start_edge(bus, auth_required=True, auth_timeout=4.0)
    without, with_token = await edge.connect(), await edge.connect()
    await with_token.ask("auth", data={"token": token()})
    assert await without.closed() == 4001
    assert await with_token.receives_nothing()


async def test_an_expiring_token_is_announced_then_refused_then_closed_with_4202(
    start_edge, bus, token
):
    edge = await start_edge(bus, token_grace=4.0, jwt_leeway=0.0)
    client = await edge.connect("/ws/user.7", token=token("7", lifetime=8))
    await client.next()
    notice = await client.next()
    assert notice["event"] == "eb:token.expiring"
    assert 0 < notice["data"]["in_s"] <= 4.1
    await asyncio.sleep(notice["data"]["in_s"] + 0.05)
    assert await client.error("subscribe", channel="chat.1") == "token_expired"
    await bus.publish("user.7", "e", 1)
    assert (await client.next())["data"] == 1  # an old subscription goes on in the grace time
    assert await client.closed() == 4202


async def test_a_token_refreshed_in_time_keeps_the_connection(start_edge, bus, token):
    edge = await start_edge(bus, token_grace=1.0, jwt_leeway=0.0)
    client = await edge.connect("/ws/user.7", token=token("7", lifetime=8))
    await client.next()
    notice = await client.next()
    assert notice["event"] == "eb:token.expiring"
    assert (await client.ask("auth", data={"token": token("7")}))["event"] == "eb:authenticated"
    await asyncio.sleep(notice["data"]["in_s"] + 1.5)  # past the first token's end and grace
    assert await client.receives_nothing()


async def test_no_token_and_no_secret_is_in_any_log(start_edge, bus, token, caplog):
    caplog.set_level(logging.DEBUG)
    edge = await start_edge(bus, api_key="the-api-key-of-this-test")
    good, bad = token("7"), forged(name="forger")
    for way, give in BY.items():
        await connect_by(edge, way, good, "/ws/user.7")
        given = give(bad)
        await edge.refusal("/ws" + given.pop("path", ""), **given)
        await connect_by(edge, way, good, "/ws/general")
    lone = [f"eventbus.bearer.{good}"]
    assert (await edge.refusal("/ws", subprotocols=lone))[0] == 400
    assert (await edge.refusal("/ws", subprotocols=["other", *lone]))[0] == 400
    assert (await edge.refusal(f"/ws?auth_token={good}&auth_token={bad}"))[0] == 400
    client = await edge.connect()
    for _ in range(3):
        await client.error("auth", data={"token": bad})
    await client.closed()
    client = await edge.connect()
    await client.error("auth", data={"token": [good]})
    await client.send("auth", data={"token": good}, ref=good)
    # The client's own log is of no interest here.
    ours = [r for r in caplog.records if not r.name.startswith("websockets")]
    reported = "\n".join(map(logging.Formatter().format, ours))
    assert reported  # something was logged at all
    for secret in (good, bad, good.split(".")[2], bad.split(".")[1], "the-api-key-of-this-test"):
        assert secret not in reported
    assert edge.node.settings.jwt_secret not in reported


# A token that is refreshed


async def test_a_refreshed_token_with_fewer_rights_drops_what_it_does_not_allow(edge, bus, token):
    rich = token("7", channels=["orders.*", "team.9"], roles=["admin"])
    client = await edge.connect("/ws/orders.1?channel=user.7&channel=admin", token=rich)
    await client.next(), await client.next(), await client.next()
    poor = token("7", channels=["team.9"])
    assert (await client.ask("auth", data={"token": poor}))["event"] == "eb:authenticated"
    dropped = [await client.next(), await client.next()]
    assert {d["channel"] for d in dropped} == {"orders.1", "admin"}
    assert {d["event"] for d in dropped} == {"eb:unsubscribed"}
    assert [d["data"] for d in dropped] == [{"reason": "revoked"}] * 2
    await bus.publish("orders.1", "e", 1)
    await bus.publish("user.7", "e", 2)
    assert (await client.next())["data"] == 2
    assert await client.error("subscribe", channel="orders.1") == "forbidden"


async def test_an_authorizer_is_asked_again_only_when_the_token_says_something_else(
    start_edge, bus, token
):
    rules, asked = ChannelRules(), []

    @rules.authorize("team.{team_id}")
    async def member(user, team_id):
        asked.append(team_id)
        return "member" in user.roles

    edge = await start_edge(bus, rules)
    client = await edge.connect("/ws/team.1", token=token("7", roles=["member"]))
    await client.next()
    same = token("7", roles=["member"], lifetime=7200)
    assert (await client.ask("auth", data={"token": same}))["event"] == "eb:authenticated"
    assert await client.receives_nothing()
    assert asked == ["1"]
    assert (await client.ask("auth", data={"token": token("7")}))["event"] == "eb:authenticated"
    dropped = await client.next()
    assert (dropped["event"], dropped["channel"]) == ("eb:unsubscribed", "team.1")
    assert asked == ["1", "1"]


async def test_a_joined_channel_is_answered_again_in_the_tokens_grace_time(start_edge, bus, token):
    edge = await start_edge(bus, token_grace=30.0, jwt_leeway=0.0)
    client = await edge.connect("/ws/user.7", token=token("7", lifetime=6))
    await client.next()
    notice = await client.next()
    await asyncio.sleep(notice["data"]["in_s"] + 0.05)
    assert await client.error("subscribe", channel="chat.1") == "token_expired"
    await client.subscribe("user.7")
