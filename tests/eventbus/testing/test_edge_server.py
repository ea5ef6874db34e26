"""The fixtures of real parts, used as a service's tests use them."""

import asyncio

import aiohttp
import msgspec
import pytest

from eventbus import ChannelKind, ConnectionFailed, Event, EventBus, Pattern, ShouldBroadcast
from eventbus.broadcasting import broadcast
from eventbus.testing import Refused
from eventbus.testing.edge import EdgeServer
from eventbus_edge.access.rules import (
    AUTHENTICATED,
    ChannelRules,
    Rule,
)
from eventbus_edge.config import EdgeSettings


class SeatTaken(Event, ShouldBroadcast, channel="chat.{room}"):
    room: str
    seat: int


class OverMemory:
    """The default."""


class OverNats:
    @pytest.fixture
    def event_bus_settings(self, nats_settings):
        return nats_settings


class EdgeServerTests:
    async def test_client_gets_what_a_service_dispatches(self, websocket_client):
        client = await websocket_client("chat.7", user="1")
        await SeatTaken(room="7", seat=12).dispatch()
        frame = await client.receive()
        assert (frame["channel"], frame["event"]) == ("chat.7", "SeatTaken")
        assert frame["data"] == {"room": "7", "seat": 12}

    async def test_sender_is_left_out(self, websocket_client):
        sender = await websocket_client("chat.7", user="1")
        other = await websocket_client("chat.7", user="2")
        await SeatTaken(room="7", seat=1).to_others(sender.connection_id).dispatch()
        assert (await other.receive())["data"]["seat"] == 1
        await sender.assert_received_nothing()

    async def test_history_is_available_on_subscribing(self, websocket_client):
        await broadcast("general", "hello", 1)
        client = await websocket_client()
        assert (await client.subscribe("general", history=5))["kind"] == "public"
        assert (await client.receive())["data"] == 1

    async def test_roles_and_grants_of_a_client_hold(self, websocket_client):
        await websocket_client("admin", user="1", roles=["admin"])
        await websocket_client("team.3", user="1", grants=["team.*"])
        for may_not in ({}, {"user": "1"}, {"user": "1", "roles": ["guest"]}):
            with pytest.raises(Refused, match=r"^subscribe admin was refused: ") as caught:
                await websocket_client("admin", **may_not)
            assert caught.value.code == ("forbidden" if may_not else "unauthorized")


class TestOverMemory(OverMemory, EdgeServerTests):
    pass


class TestOverNats(OverNats, EdgeServerTests):
    async def test_bus_is_on_the_server_in_a_namespace_of_its_own(
        self, event_bus, nats_settings, nats_server
    ):
        assert event_bus.driver.name == "nats"
        assert event_bus.settings.nats_url == nats_server.url
        assert event_bus.settings.namespace == nats_settings.namespace != "eb"


async def test_event_bus_is_open_and_current(event_bus):
    received = []
    event_bus.listen(SeatTaken)(received.append)
    await SeatTaken(room="7", seat=12).dispatch()
    assert len(received) == 1
    assert event_bus.driver.name == "memory"


async def test_fake_keeps_from_clients_what_is_dispatched(event_fake, websocket_client):
    client = await websocket_client("chat.7", user="1")
    await SeatTaken(room="7", seat=12).dispatch()
    await client.assert_received_nothing()
    event_fake.assert_broadcast_on("chat.7", event=SeatTaken)


async def test_frames_that_come_before_an_answer_are_kept_in_order(websocket_client, event_bus):
    client = await websocket_client("general")
    for number in range(3):
        await event_bus.publish("general", "hello", {"n": number, "ref": 2})
    await client.subscribe("public")
    assert [(await client.receive())["data"]["n"] for _ in range(3)] == [0, 1, 2]
    await client.assert_received_nothing()


async def test_unread_frame_is_shown(websocket_client, event_bus):
    client = await websocket_client("general")
    await event_bus.publish("general", "hello", "x" * 5000)
    with pytest.raises(AssertionError, match=r'received a frame: .*"hello"') as caught:
        await client.assert_received_nothing()
    assert len(str(caught.value)) < 1100


async def test_waiting_in_vain_ends_with_an_error(websocket_client):
    client = await websocket_client("general")
    with pytest.raises(TimeoutError, match=r"no frame was received within 0\.01 s"):
        await client.receive(timeout=0.01)


async def test_clients_talk_to_each_other(websocket_client):
    one = await websocket_client("chat.7", user="1")
    two = await websocket_client("chat.7", user="2")
    await one.send("whisper", channel="chat.7", event="typing", data={"on": True})
    frame = await two.receive()
    assert (frame["event"], frame["user_id"]) == ("client-typing", "1")
    assert frame["data"] == {"on": True}
    assert (await one.ask("ping", data="x"))["echo_data"] == "x"


async def test_closed_connection_is_reported_with_its_code(websocket_client, edge_server):
    client = await websocket_client("general")
    await edge_server.aclose()
    with pytest.raises(ConnectionError, match="closed with code"):
        await client.receive()
    assert client.close_code


async def test_edge_releases_port_and_clients_in_the_end(event_bus, edge_settings):
    async with EdgeServer(edge_settings, event_bus) as server:
        client = await server.connect("general")
    assert client.close_code == 1000
    with pytest.raises(OSError):
        await asyncio.open_connection("127.0.0.1", server.port)


async def test_edge_answers_http_too(edge_server):
    async with aiohttp.ClientSession() as http, http.get(f"{edge_server.url}/readyz") as answer:
        assert answer.status == 200


async def test_own_rules_hold(event_bus, edge_settings):
    rules = ChannelRules()
    rules.add(Rule(pattern=Pattern("shop.{id}"), kind=ChannelKind.PRIVATE, join=AUTHENTICATED))
    async with EdgeServer(edge_settings, event_bus, rules=rules) as server:
        await server.connect("shop.1", user="1")
        with pytest.raises(Refused, match="unauthorized"):
            await server.connect("shop.1")


class TestSettings:
    @pytest.fixture
    def edge_settings(self, edge_settings):
        return msgspec.structs.replace(edge_settings, max_channels_per_connection=1)

    async def test_overridden_settings_hold(self, websocket_client):
        with pytest.raises(Refused, match="limit_exceeded"):
            await websocket_client("general", "public")


async def test_token_of_another_edge_is_refused(edge_server, websocket_client):
    other = EdgeServer(EdgeSettings(jwt_secret="x" * 32), edge_server.bus)
    with pytest.raises(Refused, match=r"^auth was refused: unauthorized"):
        await websocket_client("general", token=other.token("1"))


async def test_claims_without_a_user_are_a_mistake(websocket_client):
    with pytest.raises(TypeError, match=r"need a user: pass `user=`"):
        await websocket_client("general", roles=["admin"])


async def test_edge_without_a_secret_makes_no_tokens(event_bus):
    server = EdgeServer(EdgeSettings(), event_bus)
    with pytest.raises(ValueError, match="no jwt_secret"):
        server.token("1")


async def test_edge_that_takes_no_websockets_refuses(event_bus, edge_settings):
    settings = msgspec.structs.replace(edge_settings, websocket_enabled=False)
    async with EdgeServer(settings, event_bus) as server:
        with pytest.raises(Refused) as caught:
            await server.connect("general")
    assert caught.value.code == "http_404"


async def test_edge_that_cannot_start_raises_and_leaves_nothing(edge_settings, nats_settings):
    bus = EventBus(nats_settings)  # not open
    server = EdgeServer(edge_settings, bus)
    with pytest.raises(ConnectionFailed, match="not open"):
        await server.__aenter__()
    assert server.port == 0
