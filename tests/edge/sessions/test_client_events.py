"""What clients send, checked by the contract; and the contract, shown."""

import json
import sys

import aiohttp
import msgspec
import pytest

from eventbus import (
    ClientEvent,
    ConfigError,
    Event,
    ShouldBroadcast,
)
from eventbus.contracts.asyncapi import document
from eventbus.contracts.catalogue import catalogue
from eventbus.events import event as events
from eventbus_edge.config import EdgeSettings
from eventbus_edge.http.contract import (
    ContractDocument,
    checked_events,
)
from eventbus_edge.sessions.client_events import ClientEvents

KEY = "a-key"


class Stroke(msgspec.Struct):
    x: int


@pytest.fixture(autouse=True)
def types(monkeypatch):
    """The only event types there are."""
    monkeypatch.setattr(events, "_types", {})

    class Typing(Event, ClientEvent, channel="chat.{room_id}", name="typing"):
        is_typing: bool
        strokes: list[Stroke] = msgspec.field(default_factory=list)

    class Moved(Event, ClientEvent, channel="presence.>", name="moved"):
        x: int

    class Shipped(Event, ShouldBroadcast, channel="orders.{order_id}", name="order.shipped"):
        order_id: int

    return Typing, Moved, Shipped


@pytest.fixture
def contract_file(types, tmp_path):
    path = tmp_path / "asyncapi.json"
    path.write_bytes(msgspec.json.encode(document(catalogue(), title="Shop")))
    return str(path)


def fault(event, data, channel="chat.7", *, strict=False):
    return ClientEvents(document(catalogue()), strict=strict).fault(channel, event, data)


@pytest.mark.parametrize(
    ("event", "channel", "data"),
    [
        ("client-typing", "chat.7", b'{"is_typing":true}'),
        ("client-typing", "chat.7", b'{"is_typing":true,"strokes":[{"x":1}],"more":1}'),
        ("client-moved", "presence.a", b'{"x":1}'),
        ("client-moved", "presence.a.b", b'{"x":1}'),
    ],
)
def test_valid_data_is_accepted(event, channel, data):
    assert fault(event, data, channel) is None
    assert fault(event, data, channel, strict=True) is None


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"{}", 'data: "is_typing" is a required property'),
        (b'{"is_typing":1}', 'data.is_typing: 1 is not of type "boolean"'),
        (b'{"is_typing":true,"strokes":[{"x":1},{"x":"2"}]}', 'data.strokes[1].x: "2" is not'),
        (b"null", 'data: null is not of type "object"'),
        (b'"' + b"a" * 9000 + b'"', 'data: "aaaa'),
    ],
)  # fmt: skip
def test_invalid_data_is_reported_with_its_path(data, expected):
    message = fault("client-typing", data)
    assert expected in message
    assert "'typing'" in message
    assert len(message) < 500


@pytest.mark.parametrize("inside", [b"%s", b'{"is_typing":true,"strokes":%s}'])
@pytest.mark.parametrize("depth", [400, 5000])
def test_deep_nesting_is_a_fault_and_no_crash(inside, depth):
    assert fault("client-typing", inside % (b"[" * depth + b"]" * depth))


def test_undeclared_event_is_accepted_unless_strict():
    assert fault("client-other", b"1") is None
    assert "it is not declared" in fault("client-other", b"1", strict=True)
    assert fault("client-typing", b"1", "presence.x") is None
    message = fault("client-typing", b"1", "presence.x", strict=True)
    assert "it may be sent on chat.{room_id}" in message
    assert fault("client-order.shipped", b"{}", "orders.7", strict=True)  # services send that


def _without(contract, *path):
    *way, last = path
    for step in way:
        contract = contract[step]
    del contract[last]


@pytest.mark.parametrize(
    "break_it",
    [
        lambda c: _without(c, "components", "messages", "client-typing"),
        lambda c: _without(c, "components", "messages", "client-typing", "payload", "properties"),
        lambda c: _without(c, "operations", "receive.client-typing", "channel"),
        lambda c: c["components"]["schemas"]["Typing"].update(type="nonsense"),
        lambda c: c.update(operations=5),
        lambda c: c["components"]["messages"].update({"client-typing": {"$ref": "#/components"}}),
        lambda c: c["components"]["messages"].update(
            {"client-typing": {"$ref": "#/components/messages/client-typing"}}
        ),
    ],
)
def test_contract_that_cannot_be_read_stops_the_start(break_it):
    contract = document(catalogue())
    break_it(contract)
    with pytest.raises(ConfigError, match="client events cannot be read"):
        ClientEvents(contract, strict=True)


@pytest.mark.parametrize(
    "content",
    [
        None, b"{", b"[]", b"\xff", b'{"asyncapi":"2.6.0"}', b"{}",
        b'{"asyncapi":"3.0.0","channels":{"a":{},"a":{}}}',
    ],
)  # fmt: skip
def test_file_that_is_not_a_contract_stops_the_start(tmp_path, content):
    path = tmp_path / "contract.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match="BROADCAST_CONTRACT="):
        ContractDocument(EdgeSettings(contract=str(path)), "eb")


def test_checking_without_a_contract_stops_the_start(monkeypatch):
    monkeypatch.setattr(events, "_types", {})
    settings = EdgeSettings(client_events="strict")
    with pytest.raises(ConfigError, match="there is no contract to check against"):
        checked_events(settings, ContractDocument(settings, "eb"))


def test_checking_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "jsonschema_rs", None)
    with pytest.raises(ConfigError, match=r"pip install 'eventbus\[contracts\]'"):
        ClientEvents(document(catalogue()), strict=False)


async def test_client_event_that_does_not_fit_reaches_nobody(start_edge, contract_file, token):
    edge = await start_edge(contract=contract_file, client_events="declared")
    alice, bob = [await edge.connect(token=token(user)) for user in ("1", "2")]
    for client in (alice, bob):
        await client.subscribe("chat.7")
    answer = await alice.ask(
        "whisper", channel="chat.7", event="typing", data={"is_typing": "yes"}, ref=1
    )
    assert answer["event"] == "eb:error"
    assert answer["data"]["code"] == "bad_request"
    assert answer["data"]["message"].startswith("data of 'typing': data.is_typing: ")
    assert answer["data"]["ref"] == 1
    assert await alice.error("whisper", channel="chat.7", event="client-typing") == "bad_request"
    assert await bob.receives_nothing()

    await alice.send("whisper", channel="chat.7", event="typing", data={"is_typing": True})
    assert (await bob.next())["event"] == "client-typing"
    await alice.send("whisper", channel="chat.7", event="other", data=5)
    assert (await bob.next())["event"] == "client-other"


async def test_strict_edge_takes_nothing_that_is_not_declared(start_edge, token):
    edge = await start_edge(client_events="strict")
    alice, bob = [await edge.connect(token=token(user)) for user in ("1", "2")]
    for client in (alice, bob):
        await client.subscribe("chat.7")
    assert await alice.error("whisper", channel="chat.7", event="other", data=5) == "bad_request"
    await alice.send("whisper", channel="chat.7", event="typing", data={"is_typing": True})
    assert (await bob.next())["event"] == "client-typing"


async def get(edge, path, key=None):
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with (
        aiohttp.ClientSession() as session,
        session.get(edge.url + path, headers=headers) as response,
    ):
        return response.status, response.headers, await response.read()


async def test_contract_is_served_by_the_access_rules_of_the_api(start_edge, contract_file):
    edge = await start_edge(contract=contract_file, api_key=KEY)
    assert (await get(edge, "/api/asyncapi.json"))[0] == 401
    assert (await get(edge, "/api/asyncapi.json", "wrong"))[0] == 401
    status, headers, body = await get(edge, "/api/asyncapi.json", KEY)
    assert (status, headers["Content-Type"]) == (200, "application/json")
    assert json.loads(body) == document(catalogue(), title="Shop")


async def test_contract_is_made_of_the_types_there_are(start_edge, settings):
    edge = await start_edge()
    made = json.loads((await get(edge, "/api/asyncapi.json"))[2])
    assert sorted(made["components"]["messages"]) == [
        *("client-moved", "client-typing", "order.shipped"),
    ]
    assert made["servers"]["edge"]["host"] == f"127.0.0.1:{edge.port}"
    assert made["servers"]["edge"]["protocol"] == "ws"
    reported = made["channels"]["orders.order_id"]["description"]
    assert f"`{settings.namespace}.event.orders.*`" in reported


async def test_node_without_events_says_so(start_edge, monkeypatch):
    monkeypatch.setattr(events, "_types", {})
    edge = await start_edge()
    status, _, body = await get(edge, "/api/asyncapi.json")
    assert (status, json.loads(body)["code"]) == (404, "not_found")


async def test_page_is_open_and_holds_nothing(start_edge, contract_file):
    edge = await start_edge(contract=contract_file, api_key=KEY)
    status, headers, body = await get(edge, "/api/docs")
    assert status == 200
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert b"Shop" not in body
    assert b"typing" not in body
