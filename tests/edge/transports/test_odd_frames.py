"""Hundreds of odd commands and requests, none of which is a fault of the node or ends anything."""

import json
import logging
import random

import aiohttp
import pytest

KEY = "the-key-of-odd-frames"
ACTIONS = ("ping", "auth", "subscribe", "join", "unsubscribe", "leave", "whisper", "presence",
           "history", "stats", "nothing")  # fmt: skip
CHANNELS = ('"general"', '"user.7"', '"user.8"', '"chat.a"', '"presence.a"', '"presence.b"')
PATTERNS = ('"orders.*"', '"orders.>"', '">"', '"*"', '"a.{b}"', '"orders"', '"."')
VALUES = (
    "null", "true", "0", "-1", "1.5", "1e400", "-0.0", "NaN", "Infinity", "9" * 30,
    str(2**63 - 1), str(2**63), str(2**64), '""', '"a"', '"eb:x"', '"pong"', '"client-"', '"é"',
    r'"\u0000"', r'"\ud800"', r'"\ud83d\ude00"', json.dumps("x" * 300), "[]", "{}",
    "[" * 60 + "]" * 60, "[" * 3000 + "]" * 3000, '{"a":' * 800 + "1" + "}" * 800,
    '{"token":"x"}', '{"token":1}', '{"status":"away"}', json.dumps({"info": "y" * 3000}),
    '{"history":1000}', '{"history":1001}', '{"history":1,"history":2}', '{"history":true}',
    '{"offset":0,"epoch":"x"}', '{"offset":1.0,"epoch":""}', '{"offset":null,"epoch":null}',
    f'{{"offset":{2**63},"epoch":"x"}}', '{"offset":-1,"epoch":"x"}', '{"offset":1}',
    f'{{"limit":1,"since":{2**63 - 1}}}', '{"limit":1000,"since":0}', f'{{"since":{2**64}}}',
)  # fmt: skip


def odd_frame(rng):
    """Mostly a command of the right shape with something odd in it; at times no JSON at all."""
    fields = [f'"action":{json.dumps(rng.choice(ACTIONS))}']
    if rng.random() < 0.8:
        fields.append(f'"channel":{rng.choice(CHANNELS)}')
    if rng.random() < 0.2:
        fields.append(f'"pattern":{rng.choice(PATTERNS)}')
    for name, chance in (("data", 0.6), ("event", 0.3), ("ref", 0.4), ("channel", 0.05)):
        if rng.random() < chance:
            fields.append(f'"{name}":{rng.choice(VALUES)}')
    rng.shuffle(fields)
    frame = "{" + ",".join(fields) + "}"
    return frame[: rng.randrange(len(frame))] if rng.random() < 0.05 else frame


def odd_event(rng):
    """A body for POST events."""
    fields = ['"channel":"general"', '"event":"e"', f'"data":{rng.choice(VALUES)}']
    more = ("channels", "event", "except", "volatile", "channel", "x")
    fields += [f'"{name}":{rng.choice(VALUES)}' for name in more if rng.random() < 0.15]
    return "{" + ",".join(fields) + "}"


@pytest.fixture
def bus(each_bus):
    return each_bus


@pytest.fixture
async def edge(start_edge, bus):
    pace = {"max_actions_per_second": 1e6, "action_burst": 10**6, "max_whispers_per_channel": 1e6}
    return await start_edge(bus, api_key=KEY, **pace)


def faults(caplog):
    return [r for r in caplog.records if r.levelno >= logging.WARNING or r.exc_info]


async def test_no_odd_command_ends_its_connection_or_harms_another(edge, bus, token, caplog):
    rng = random.Random(7)
    well = await edge.connect("/ws/general")
    await well.next()
    for asked in range(3):
        await bus.publish("general", "e", asked)
        assert (await well.next())["data"] == asked
    for number in range(4):
        # The node closes after three bad tokens: with those, a connection would not last.
        grants = {"roles": ["admin"], "channels": ["orders.*"]} if number % 2 else {}
        client = await edge.connect(token=token("7", **grants))
        for _ in range(150):
            frame = odd_frame(rng)
            if '"auth"' not in frame:
                await client.socket.send(frame)
        await client.send("ping", ref="the last")
        while (await client.next())["data"].get("ref") != "the last":
            pass
        assert await client.socket.ping()  # it is open
    await bus.publish("general", "e", "well")
    while (await well.next())["data"] != "well":
        pass
    assert faults(caplog) == []
    assert edge.node.metrics.total("eventbus_edge_connections") == 5


async def test_every_odd_request_is_answered_with_what_is_wrong(edge, caplog):
    rng = random.Random(8)
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    statuses = set()
    async with aiohttp.ClientSession(headers=headers) as http:
        for _ in range(100):
            body = odd_event(rng).encode()
            async with http.post(f"{edge.url}/api/broadcast/events", data=body) as response:
                statuses.add(response.status)
                answer = await response.json(content_type=None)
                assert ("messages" in answer) == (response.status == 200)
                assert response.status in {200, 400}, (body, answer)
        for path in ("stats", "channels", "channels/general/history"):
            for name in ("limit", "since", "pattern", "x"):
                for value in VALUES:
                    query = {name: value.strip('"')[:300]}
                    url = f"{edge.url}/api/broadcast/{path}"
                    async with http.get(url, params=query) as response:
                        assert response.status in {200, 400}, (path, query)
    assert statuses == {200, 400}
    assert faults(caplog) == []
