"""An edge whose whole backbone is Redis: the same as over NATS."""

import asyncio
import shutil

import pytest

from eventbus.channels import ChannelKind, Pattern
from eventbus.config import Settings
from eventbus_edge.access.rules import (
    ANYONE,
    ChannelRules,
    Rule,
)
from tests.ports import free_port

pytestmark = pytest.mark.redis


class Redis:
    """A redis-server that keeps what it has acknowledged."""

    def __init__(self, folder):
        self.folder = folder
        self.port = free_port()

    async def start(self):
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        keep = ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]
        self.process = await asyncio.create_subprocess_exec(
            "redis-server", *options, *keep, stdout=asyncio.subprocess.DEVNULL
        )

    async def kill(self):
        self.process.kill()
        await self.process.wait()


@pytest.fixture
async def redis(tmp_path):
    server = Redis(tmp_path)
    await server.start()
    yield server
    await server.kill()


@pytest.fixture
def settings(redis, namespace):
    return Settings(
        driver="redis", redis_port=redis.port, namespace=namespace, history_messages=1000
    )


async def data_of(client, count):
    return [(await client.next())["data"] for _ in range(count)]


async def test_event_reaches_clients_of_two_nodes_with_its_offset(start_edge, bus, settings):
    edges = [await start_edge(bus), await start_edge(settings)]
    clients = [await edge.connect("/ws/general") for edge in edges]
    frame = [(await client.next())["data"] for client in clients]
    receipt = await bus.publish("general", "greeting", {"hello": 1})
    for client, start in zip(clients, frame, strict=True):
        message = await client.next()
        assert (message["event"], message["data"]) == ("greeting", {"hello": 1})
        assert (message["offset"], message["epoch"]) == (receipt.offset, receipt.epoch)
        assert start["epoch"] == receipt.epoch


async def test_rules_and_tokens_hold(edge, bus, token):
    assert (await edge.refusal("/ws/user.7"))[0] == 401
    client = await edge.connect("/ws/user.7", token=token("7"))
    await client.next()
    await bus.publish("user.7", "note", 1)
    assert (await client.next())["data"] == 1


async def test_retained_message_and_history_of_a_rule_are_as_elsewhere(start_edge, bus):
    rules = ChannelRules(
        [Rule(Pattern("price.*"), ChannelKind.PUBLIC, ANYONE, retain=True, history=False)]
    )
    edge = await start_edge(bus, rules=rules)
    for price in range(3):
        receipt = await bus.publish("price.btc", "changed", price)
    client = await edge.connect("/ws/price.btc")
    assert (await client.next())["event"] == "eb:subscribed"
    retained = await client.next()
    assert (retained["data"], retained["offset"]) == (2, receipt.offset)
    answer = await client.ask("history", channel="price.btc", ref=1)
    assert (answer["event"], answer["data"]["code"]) == ("eb:error", "forbidden")


async def test_whisper_reaches_the_other_node_and_not_its_sender(start_edge, bus, settings, token):
    edges = [await start_edge(bus), await start_edge(settings)]
    clients = [await edge.connect("/ws/chat.lobby", token=token("7")) for edge in edges]
    for client in clients:
        await client.next()
    await clients[0].send("whisper", channel="chat.lobby", event="typing", data={"on": True})
    assert (await clients[1].next())["event"] == "client-typing"
    assert await clients[0].receives_nothing()


async def test_resuming_client_gets_what_it_missed(edge, bus):
    first = await bus.publish("general", "tick", 0)
    for number in range(1, 30):
        await bus.publish("general", "tick", number)
    client = await edge.connect()
    cursor = {"offset": first.offset, "epoch": first.epoch}
    assert (await client.subscribe("general", data=cursor))["recovered"] is True
    assert await data_of(client, 29) == list(range(1, 30))


async def test_clients_see_no_gap_when_redis_is_killed_and_comes_back(
    start_edge, bus, settings, redis
):
    edge = await start_edge(settings)
    client = await edge.connect("/ws/general")
    await client.next()

    async def publish():
        for number in range(200):
            await bus.publish("general", "tick", number)

    publishing = asyncio.create_task(publish())
    assert await data_of(client, 50) == list(range(50))
    await redis.kill()
    await redis.start()
    await publishing
    assert await data_of(client, 150) == list(range(50, 200))
    assert await client.receives_nothing()


async def test_clients_of_a_quiet_channel_learn_at_once_that_its_history_was_replaced(
    start_edge, bus, settings, redis
):
    edge = await start_edge(settings)
    client = await edge.connect("/ws/general")
    await client.next()
    receipt = await bus.publish("general", "tick", 1)
    await data_of(client, 1)
    await redis.kill()
    shutil.rmtree(redis.folder)
    redis.folder.mkdir()
    await redis.start()
    frame = await client.next()
    assert (frame["event"], frame["data"]["recovered"]) == ("eb:subscribed", False)
    assert frame["data"]["epoch"] != receipt.epoch
    after = await bus.publish("general", "tick", 2)
    message = await client.next()
    assert (message["data"], message["epoch"]) == (2, frame["data"]["epoch"])
    assert message["offset"] == after.offset
    late = await edge.connect()
    cursor = {"offset": receipt.offset, "epoch": receipt.epoch}
    assert (await late.subscribe("general", data=cursor))["recovered"] is False


async def test_members_of_two_nodes_see_each_other_come_and_go(start_edge, bus, settings, token):
    edges = [await start_edge(bus), await start_edge(settings)]
    ann = await edges[0].connect(token=token("ann", name="Ann"))
    answer = await ann.subscribe("presence.room")
    assert [member["user_id"] for member in answer["members"]] == ["ann"]
    bob = await edges[1].connect(token=token("bob", name="Bob"))
    answer = await bob.subscribe("presence.room")
    assert sorted(member["user_id"] for member in answer["members"]) == ["ann", "bob"]
    joined = await ann.next()
    assert (joined["event"], joined["data"]["user_id"]) == ("eb:presence.joined", "bob")
    await bob.ask("unsubscribe", channel="presence.room")
    left = await ann.next()
    assert (left["event"], left["data"]["user_id"]) == ("eb:presence.left", "bob")
