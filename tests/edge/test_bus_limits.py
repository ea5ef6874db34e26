"""A broker that allows few subscriptions: joins beyond are refused, and the node lives on."""

import asyncio

import pytest

from eventbus.bus import EventBus
from eventbus.config import Settings
from eventbus.server import NatsServer

LIMIT = 40


@pytest.fixture
async def limited(tmp_path, namespace):
    async with NatsServer(tmp_path / "nats", config={"max_subscriptions": LIMIT}) as server:
        yield Settings(nats_url=server.url, namespace=namespace, history_bytes=4 * 1024**2)


async def test_joins_beyond_the_brokers_limit_are_refused_and_others_stay_active(
    limited, start_edge, token
):
    edge = await start_edge(limited)
    early, greedy = await edge.connect(), await edge.connect(token=token())
    await early.subscribe("general")
    for number in range(60):
        await greedy.send("subscribe", channel=f"chat.{number}", ref=number)
    answers = [await greedy.next() for _ in range(60)]
    joined = [one["channel"] for one in answers if one["event"] == "eb:subscribed"]
    refused = [one["data"] for one in answers if one["event"] == "eb:error"]
    assert joined
    assert len(joined) + len(refused) == 60
    assert {error["code"] for error in refused} == {"unavailable"}
    assert all("the bus refuses the subscription, by a limit" in one["message"] for one in refused)
    assert not any("127.0.0.1" in error["message"] for error in refused)
    async with EventBus(limited) as bus:
        for channel in ("general", joined[0], joined[-1]):
            await bus.publish(channel, "tick", channel)
        assert (await early.next())["data"] == "general"
        assert [(await greedy.next())["data"] for _ in range(2)] == [joined[0], joined[-1]]
        assert edge.node.bus.driver.counters["losses"] == 0
        # The node recovers when the client has left.
        await greedy.socket.close()
        late = await edge.connect(token=token())
        async with asyncio.timeout(40):  # it unsubscribes soon after
            while (await late.ask("subscribe", channel="chat.late"))["event"] != "eb:subscribed":  # noqa: ASYNC110 - see above
                await asyncio.sleep(0.05)
        await bus.publish("chat.late", "tick", "late")
        assert (await late.next())["data"] == "late"
