"""AsyncAPI: what its own parser says, and what the document contains."""

import subprocess

import msgspec
import pytest

import schemas
from eventbus.contracts.asyncapi import Server, document
from eventbus.contracts.catalogue import catalogue
from eventbus.events import Event

PARSE = """
const { Parser } = require(process.argv[1] + "/@asyncapi/parser");
const text = require("fs").readFileSync(0, "utf8");
new Parser().parse(text).then(({ document, diagnostics }) => {
  const problems = diagnostics.filter((each) => each.code !== "asyncapi-latest-version");
  console.log(JSON.stringify({
    valid: document !== undefined,
    problems: problems.map((each) => `${each.path.join(".")}: ${each.message}`),
    operations: document?.operations().all().map((each) => each.id()).sort() ?? [],
  }));
});
"""


@pytest.fixture
def parse(node_modules):
    def parse(made):
        done = subprocess.run(
            ["node", "-e", PARSE, node_modules], input=msgspec.json.encode(made),
            capture_output=True, check=True, timeout=120,
        )  # fmt: skip
        return msgspec.json.decode(done.stdout)

    return parse


@pytest.mark.npm
@pytest.mark.xdist_group("npm")
@pytest.mark.timeout(300)
def test_the_parser_of_asyncapi_reports_nothing(contracts, parse):
    output = parse(document(contracts, description="Orders, and more."))
    assert output["problems"] == []
    assert output["valid"]
    assert output["operations"] == [
        "receive.client-typing",
        "send.Renamed",
        "send.order.paid",
        "send.tick_.public",
        "send.tick_.ticks.rest",
    ]


@pytest.mark.npm
@pytest.mark.xdist_group("npm")
@pytest.mark.timeout(300)
def test_the_parser_accepts_the_catalogue_that_ships_and_no_events_at_all(parse):
    shipped = (getattr(schemas, name) for name in schemas.__all__)
    types = [cls for cls in shipped if issubclass(cls, Event)]
    for made in (document(catalogue(types)), document(())):
        output = parse(made)
        assert (output["valid"], output["problems"]) == (True, [])


@pytest.mark.npm
@pytest.mark.xdist_group("npm")
@pytest.mark.timeout(300)
def test_the_parser_would_find_a_fault(contracts, parse):
    made = document(contracts)
    made["operations"]["send.order.paid"]["channel"]["$ref"] = "#/channels/nowhere"
    assert parse(made)["problems"]


def test_channels_have_addresses_parameters_and_subjects(contracts):
    channels = document(contracts, namespace="shop")["channels"]
    assert sorted(channels) == ["chat.room_id", "orders.order_id", "public", "ticks.rest"]
    orders = channels["orders.order_id"]
    assert orders["address"] == "orders.{order_id}"
    assert list(orders["parameters"]) == ["order_id"]
    assert sorted(orders["messages"]) == ["Renamed", "order.paid"]
    assert "`shop.event.orders.*`" in orders["description"]
    assert channels["ticks.rest"]["address"] == "ticks.{rest}"


def test_operations_are_those_of_the_system(contracts):
    operations = document(contracts)["operations"]
    assert operations["send.order.paid"]["action"] == "send"
    assert operations["receive.client-typing"]["action"] == "receive"


def test_servers_say_how_to_come_in(contracts):
    servers = {"edge": Server("wss", "live.example.com", "/ws"), "nats": Server("nats", "bus:4222")}
    made = document(contracts, servers=servers)["servers"]
    assert made["edge"]["security"] == [{"$ref": "#/components/securitySchemes/token"}]
    assert (made["edge"]["host"], made["edge"]["pathname"]) == ("live.example.com", "/ws")
    assert "security" not in made["nats"]


def test_messages_have_versions_and_docs(contracts):
    messages = document(contracts)["components"]["messages"]
    paid = messages["order.paid"]
    assert (paid["name"], paid["x-version"], paid["x-durable"]) == ("order.paid", 3, True)
    assert (paid["summary"], paid["description"]) == ("An order was paid.", "By whomever.")
    assert not messages["tick_"]["x-durable"]
    assert messages["tick_"]["name"] == "tick ü"


def test_events_without_channels_are_not_exported(contracts):
    text = msgspec.json.encode(document(contracts)).decode()
    assert "StockLow" not in text
    assert "SendInvoice" not in text
