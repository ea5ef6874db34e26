"""JSON Schema: real messages are valid by it, and what was tampered with is not."""

import dataclasses
import datetime
import json
import re
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Annotated, Generic, Literal, NamedTuple, TypeVar

import jsonschema
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from eventbus.channels import validate_channel
from eventbus.contracts.catalogue import Kind, catalogue
from eventbus.contracts.jsonschema import channel_regex, document, schemas_of
from eventbus.errors import EventDefinitionError
from eventbus.events import Event, ShouldBroadcast
from eventbus.events.encoding import messages_of
from eventbus.messages import read_payload

HERE = Path(__file__).parent
UTC = datetime.UTC
T = TypeVar("T")
EARLIEST = datetime.datetime.fromisoformat("1000-01-01")
TOKENS = st.from_regex(r"\A[A-Za-z0-9_=@,;-]{1,8}\Z")


def validator(schema):
    jsonschema.Draft202012Validator.check_schema(schema)
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    return jsonschema.Draft202012Validator(schema, format_checker=checker)


def envelope_of(message):
    return json.loads(message.encode())


def lines(shop):
    plain = st.builds(
        shop.Line,
        article=st.text(min_size=1, max_size=20),
        price=st.floats(0, 1e9),
        parent=st.none(),
    )
    return st.builds(
        shop.Line,
        article=st.text(min_size=1, max_size=20),
        price=st.floats(0, 1e9),
        parent=st.none() | plain,
    )


def orders(shop):
    json_values = st.recursive(
        st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
        max_leaves=5,
    )
    return st.builds(
        shop.OrderPaid,
        order_id=st.integers(0, 2**53),
        token=st.uuids(),
        at=st.datetimes(timezones=st.just(UTC), min_value=EARLIEST),
        on=st.dates(),
        took=st.timedeltas(
            datetime.timedelta(days=-1000), datetime.timedelta(days=1000)
        ),
        seal=st.binary(max_size=20),
        total=st.decimals(allow_nan=False, allow_infinity=False, places=2),
        size=st.sampled_from(shop.Size),
        priority=st.sampled_from(shop.Priority),
        payment=st.builds(shop.Card, last=st.from_regex(r"\A[0-9]{4}\Z"))
        | st.builds(shop.Cash, given=st.decimals(0, 100, places=2)),
        lines=st.lists(lines(shop), max_size=3),
        where=st.builds(shop.Point, x=st.floats(-1, 1), y=st.floats(-1, 1)),
        pair=st.tuples(st.integers(0, 9), st.text(max_size=3)),
        note=st.none() | st.text(max_size=5),
        flags=st.frozensets(st.text(max_size=3), max_size=3),
        limits=st.dictionaries(st.text(max_size=3), st.integers(0, 10), max_size=3),
        by_number=st.dictionaries(st.integers(0, 9), st.booleans(), max_size=3),
        mode=st.sampled_from(["fast", "slow", 3]),
        extra=json_values,
        maybe=st.just(msgspec.UNSET) | st.integers(0, 9),
    )  # fmt: skip


QUICK = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
WRONG = {
    "order_id": "7", "token": "no-uuid", "at": 5, "on": "yesterday-ish", "took": 5, "seal": 5,
    "total": 1.5, "size": "huge", "priority": 3, "payment": {"kind": "cheque"},
    "lines": [{"article": "", "price": 1}], "where": [1], "pair": [1, "a", 2], "note": 5,
    "flags": [1], "limits": {"a": 11}, "by_number": {"1": "yes"}, "mode": "medium", "maybe": None,
}  # fmt: skip


@given(data=st.data())
@QUICK
def test_every_message_that_is_dispatched_is_valid(shop, contracts, data):
    check = validator(document(contracts))
    [message] = messages_of(data.draw(orders(shop)))
    check.validate(envelope_of(message))


@given(data=st.data())
@QUICK
def test_tampered_message_is_invalid(shop, contracts, data):
    check = validator(document(contracts))
    [message] = messages_of(data.draw(orders(shop)))
    envelope = envelope_of(message)
    field = data.draw(st.sampled_from(sorted(WRONG)))
    envelope["data"][field] = WRONG[field]
    assert not check.is_valid(envelope), field


@pytest.mark.parametrize(
    "tamper",
    [
        lambda e: e.update(channel="sales.7"),
        lambda e: e.update(channel="orders.7.8"),
        lambda e: e.update(event="order.lost"),
        lambda e: e.pop("data"),
        lambda e: e.pop("channel"),
        lambda e: e.pop("timestamp"),
        lambda e: e.update(timestamp="soon"),
        lambda e: e["data"].pop("order_id"),
        lambda e: e.update(offset="1"),
    ],
)
@given(data=st.data())
@settings(parent=QUICK, max_examples=3)
def test_tampered_envelope_is_invalid(shop, contracts, tamper, data):
    check = validator(document(contracts))
    [message] = messages_of(data.draw(orders(shop)))
    envelope = envelope_of(message)
    check.validate(envelope)
    tamper(envelope)
    assert not check.is_valid(envelope)


def test_events_that_choose_what_they_broadcast_are_valid(shop, contracts):
    check = validator(document(contracts))
    for event in (shop.Tick(1), shop.Renamed(1, "x"), shop.Anywhere()):
        [message] = messages_of(event)
        check.validate(envelope_of(message))
        read_payload(message.channel, message.encode())
    [message] = messages_of(shop.Renamed(1, "x"))
    assert not check.is_valid({**envelope_of(message), "data": {"n": "1"}})


@given(prefix=st.lists(TOKENS, max_size=2), channel=st.lists(TOKENS, min_size=1, max_size=4))
def test_expression_of_a_pattern_matches_what_the_pattern_does(prefix, channel):
    from eventbus.channels import Pattern  # noqa: PLC0415

    name = validate_channel(".".join(channel))
    for tail in ("*", "{id}", ">", "end"):
        pattern = ".".join([*prefix, tail])
        expression = channel_regex([pattern])
        assert bool(re.search(expression, name)) is (Pattern(pattern).match(name) is not None)


def test_descriptions_come_from_docstrings_and_from_below_fields(contracts):
    found = {each.name: each for each in contracts}
    [_], components = schemas_of([found["order.paid"].data])
    assert components["OrderPaid"]["description"] == "An order was paid.\n\nBy whomever."
    assert components["Line"]["properties"]["article"]["description"] == "What was bought."
    assert "description" not in components["Priority"]
    assert components["OrderPaid"]["properties"]["flags"]["default"] == [
        *("b2b", "gift", "late", "new", "urgent")
    ]


def test_catalogue_knows_who_gets_what(contracts):
    assert [(each.name, each.kind) for each in contracts] == [
        ("Anywhere", Kind.BROADCAST),
        ("Renamed", Kind.BROADCAST),
        ("SendInvoice", Kind.QUEUED),
        ("StockLow", Kind.LOCAL),
        ("client-typing", Kind.CLIENT),
        ("order.paid", Kind.BROADCAST),
        ("tick ü", Kind.BROADCAST),
    ]
    found = {each.name: each for each in contracts}
    assert found["tick ü"].channels == ("public", "ticks.>")
    assert found["Anywhere"].channels == ()
    assert found["SendInvoice"].queue == "mail"


class Page(msgspec.Struct, Generic[T]):
    """One page of many."""

    items: list[T]


class Spot(NamedTuple):
    x: float
    y: float = 0.0


@dataclasses.dataclass
class Seen:
    at: datetime.datetime
    """When."""


@pytest.mark.parametrize(
    ("kind", "good", "wrong"),
    [
        (Page[int], Page([1]), {"items": ["1"]}),
        (Page[Seen], Page([Seen(datetime.datetime(2026, 1, 2, tzinfo=UTC))]),
         {"items": [{"at": "soon"}]}),
        (Spot, Spot(1.0), [1.0, 2.0, 3.0]),
        (tuple[()], (), [1]),
        (Annotated[datetime.datetime, msgspec.Meta(tz=False)],
         datetime.datetime.fromisoformat("2026-01-02T03:04:05"), 5),
        (dict[Literal["a", "b"], int], {"a": 1}, {"c": 1}),
        (dict[int, int], {-1: 1, 20: 2}, {"x": 1}),
        (dict[datetime.date, int], {datetime.date(2026, 1, 2): 1}, {"x": 1}),
        (dict[uuid.UUID, int], {uuid.UUID(int=7): 1}, {"x": 1}),
        (datetime.date | int | None, datetime.date(2026, 1, 2), [5]),
        (list[datetime.datetime] | int | None, [datetime.datetime(2026, 1, 2, tzinfo=UTC)],
         ["soon"]),
    ],
    ids=range(11),
)  # fmt: skip
def test_types_of_every_sort_mean_by_the_schema_what_they_mean_to_msgspec(kind, good, wrong):
    [schema], components = schemas_of([kind])
    check = validator({**schema, "$defs": components})
    check.validate(json.loads(msgspec.json.encode(good)))
    assert msgspec.json.decode(msgspec.json.encode(good), type=kind) == good
    assert not check.is_valid(wrong)
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(wrong, kind, str_keys=True)


def test_union_of_structs_may_be_null(shop):
    [schema], components = schemas_of([shop.Card | shop.Cash | None])
    check = validator({**schema, "$defs": components})
    assert check.is_valid({"kind": "cash", "given": "1"})
    assert check.is_valid(None)
    assert not check.is_valid({"kind": "cheque"})


def test_descriptions_of_generics_and_dataclasses_are_their_own():
    _, components = schemas_of([Page[Seen], Spot])
    assert components["Page_Seen_"]["description"] == "One page of many."
    assert components["Seen"]["properties"]["at"]["description"] == "When."
    assert "description" not in components["Seen"]  # not the signature that Python writes there
    assert "description" not in components["Spot"]


def test_types_without_a_schema_are_refused(shop):
    class Odd(Event, ShouldBroadcast, channel="a"):
        number: complex

    class Raw(Event, ShouldBroadcast, channel="a"):
        raw: msgspec.Raw = msgspec.Raw(b"1")

    for cls in (Odd, Raw):
        with pytest.raises(EventDefinitionError, match="JSON"):
            document(catalogue([cls]))


def test_annotation_that_cannot_be_resolved_is_named(shop):
    class Odd(Event, ShouldBroadcast, channel="a"):
        def broadcast_with(self) -> "Nowhere": ...  # noqa: F821

    with pytest.raises(EventDefinitionError, match=r"Odd\.broadcast_with.*Nowhere"):
        catalogue([Odd])


def test_output_does_not_depend_on_hashes():
    program = (
        "import shop, sys; from eventbus.contracts.catalogue import catalogue; "
        "from eventbus.contracts import asyncapi, jsonschema, lock, typescript; import json; "
        "c = catalogue(); print(json.dumps([asyncapi.document(c), jsonschema.document(c), "
        "typescript.declarations(c), lock.encode_lock(lock.lock_of(c)).decode()]))"
    )
    path = f"{HERE}:{HERE.parents[2]}"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program], env={"PYTHONHASHSEED": seed, "PYTHONPATH": path},
            capture_output=True, check=True, timeout=150,
        ).stdout
        for seed in ("0", "1", "2", "3")
    }  # fmt: skip
    assert len(outputs) == 1
