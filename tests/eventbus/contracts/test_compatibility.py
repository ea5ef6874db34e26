"""The table of changes: the name of each, and which side it breaks."""

import datetime
import enum
import uuid
from typing import Annotated, Any, Literal

import msgspec
import pytest

from eventbus import (
    ClientEvent,
    Event,
    ShouldBroadcast,
    ShouldQueue,
)
from eventbus.contracts.catalogue import catalogue
from eventbus.contracts.compatibility import compare
from eventbus.contracts.difference import BOTH, NOBODY, READERS, WRITERS
from eventbus.contracts.lock import InvalidLock, encode_lock, lock_of, read_lock
from eventbus.events import event as events

OPTIONAL = object()


class Size(enum.StrEnum):
    S = "s"
    M = "m"


class Bigger(enum.StrEnum):
    S = "s"
    M = "m"
    L = "l"


class Line(msgspec.Struct):
    price: int


class DearLine(msgspec.Struct):
    price: int
    tax: int


class Renamed(msgspec.Struct):
    price: int


class Tree(msgspec.Struct):
    value: int
    left: "Tree | None" = None


class OtherTree(msgspec.Struct):
    value: float
    left: "OtherTree | None" = None


class Card(msgspec.Struct, tag="card", tag_field="kind"):
    number: str


class Cash(msgspec.Struct, tag="cash", tag_field="kind"):
    given: int


class Cheque(msgspec.Struct, tag="cheque", tag_field="kind"):
    bank: str


class PlasticCard(msgspec.Struct, tag="plastic", tag_field="kind"):
    number: str


class Closed(msgspec.Struct, forbid_unknown_fields=True):
    price: int


class ClosedMore(msgspec.Struct, forbid_unknown_fields=True):
    price: int
    note: str = ""


class Row(msgspec.Struct, array_like=True):
    a: int


class LongRow(msgspec.Struct, array_like=True):
    a: int
    b: int


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch):
    monkeypatch.setattr(events, "_types", {})


def lock(fields, **options):
    """What is locked of one event with these fields: a type, or a type and its default."""
    body: dict[str, Any] = {"__module__": __name__, "__annotations__": {}}
    for name, given in fields.items():
        kind, *default = given if isinstance(given, tuple) else (given,)
        body["__annotations__"][name] = kind
        if default:
            body[name] = default[0]
    mixin = options.pop("mixin", ShouldBroadcast)
    options = {"channel": "orders", "name": "order", **options}
    cls = type(Event)("Order", (Event, mixin), body, kw_only=True, **options)
    return lock_of(catalogue([cls]))


M = msgspec.Meta
FIELDS = [
    ("required field removed", {"a": int, "b": int}, {"a": int},
     "b", "field removed", READERS),
    ("optional field removed", {"a": int, "b": (int, 1)}, {"a": int},
     "b", "optional field removed", NOBODY),
    ("required field added", {"a": int}, {"a": int, "b": int},
     "b", "required field added", WRITERS),
    ("optional field added", {"a": int}, {"a": int, "b": (int, 1)},
     "b", "optional field added", NOBODY),
    ("made required", {"a": (int, 1)}, {"a": int},
     "a", "now required, was optional", WRITERS),
    ("made optional", {"a": int}, {"a": (int, 1)},
     "a", "now optional, was required", READERS),
    ("default changed", {"a": (int, 1)}, {"a": (int, 2)},
     "a", "default changed from 1 to 2", NOBODY),
    ("type changed", {"a": int}, {"a": str},
     "a", "type changed from integer to string", BOTH),
    ("type widened", {"a": int}, {"a": float},
     "a", "type widened from integer to number", READERS),
    ("type narrowed", {"a": float}, {"a": int},
     "a", "type narrowed from number to integer", WRITERS),
    ("widened to anything", {"a": int}, {"a": Any},
     "a", "type widened from integer to anything", READERS),
    ("narrowed from anything", {"a": Any}, {"a": list[int]},
     "a", "type narrowed from anything to list of integer", WRITERS),
    ("made nullable", {"a": int}, {"a": int | None},
     "a", "can now be null", READERS),
    ("null no longer", {"a": int | None}, {"a": int},
     "a", "can no longer be null", WRITERS),
    ("enum value added", {"a": Size}, {"a": Bigger},
     "a", 'value "l" added', READERS),
    ("enum value removed", {"a": Bigger}, {"a": Size},
     "a", 'value "l" removed', WRITERS),
    ("literal added", {"a": Literal["x", "y"]}, {"a": Literal["x", "y", "z"]},
     "a", 'value "z" added', READERS),
    ("literal replaced", {"a": Literal["x"]}, {"a": Literal["y"]},
     "a", 'must be "y", was "x"', BOTH),
    ("enum to any string", {"a": Size}, {"a": str},
     "a", 'any string is now allowed, was "m" or "s"', READERS),
    ("any string to enum", {"a": str}, {"a": Size},
     "a", 'type narrowed from any string to "m" or "s"', WRITERS),
    ("enum to another type", {"a": Size}, {"a": int},
     "a", 'type changed from "m" or "s" to integer', BOTH),
    ("minimum raised", {"a": Annotated[int, M(ge=1)]}, {"a": Annotated[int, M(ge=2)]},
     "a", "minimum tightened from 1 to 2", WRITERS),
    ("minimum lowered", {"a": Annotated[int, M(ge=1)]}, {"a": Annotated[int, M(ge=0)]},
     "a", "minimum loosened from 1 to 0", READERS),
    ("maximum added", {"a": int}, {"a": Annotated[int, M(le=9)]},
     "a", "maximum tightened from none to 9", WRITERS),
    ("maximum dropped", {"a": Annotated[int, M(le=9)]}, {"a": int},
     "a", "maximum loosened from 9 to none", READERS),
    ("exclusive bound", {"a": Annotated[int, M(gt=0)]}, {"a": Annotated[int, M(gt=5)]},
     "a", "exclusiveMinimum tightened from 0 to 5", WRITERS),
    ("shorter", {"a": Annotated[str, M(max_length=9)]}, {"a": Annotated[str, M(max_length=5)]},
     "a", "maxLength tightened from 9 to 5", WRITERS),
    ("longer", {"a": Annotated[str, M(max_length=5)]}, {"a": Annotated[str, M(max_length=9)]},
     "a", "maxLength loosened from 5 to 9", READERS),
    ("exclusive bound made inclusive",
     {"a": Annotated[float, M(gt=0)]}, {"a": Annotated[float, M(ge=0)]},
     "a", "minimum or exclusiveMinimum loosened from 0 to 0", READERS),
    ("multiple loosened", {"a": Annotated[int, M(multiple_of=10)]},
     {"a": Annotated[int, M(multiple_of=5)]},
     "a", "multipleOf loosened from 10 to 5", READERS),
    ("enum value added in a union", {"a": Size | int}, {"a": Bigger | int},
     "a", 'value "l" added', READERS),
    ("enum in a union to any string", {"a": Size | int}, {"a": str | int},
     "a", 'any string is now allowed, was "m" or "s"', READERS),
    ("items in a union", {"a": list[int] | str}, {"a": list[float] | str},
     "a[]", "type widened from integer to number", READERS),
    ("number in a union widened", {"a": int | str}, {"a": float | str},
     "a", "type widened from integer to number", READERS),
    ("literal with null opened", {"a": Literal["x"] | None}, {"a": str | None},
     "a", 'any string is now allowed, was "x"', READERS),
    ("key added", {"a": dict[Size, int]}, {"a": dict[Bigger, int]},
     "keys of a", 'value "l" added', READERS),
    ("keys opened", {"a": dict[int, int]}, {"a": dict[str, int]},
     "keys of a", 'pattern loosened from "^-?(?:0|[1-9][0-9]*)$" to none', READERS),
    ("pattern added", {"a": str}, {"a": Annotated[str, M(pattern="^x")]},
     "a", 'pattern tightened from none to "^x"', WRITERS),
    ("pattern changed", {"a": Annotated[str, M(pattern="^x")]},
     {"a": Annotated[str, M(pattern="^y")]},
     "a", 'pattern changed from "^x" to "^y"', BOTH),
    ("multiple added", {"a": int}, {"a": Annotated[int, M(multiple_of=5)]},
     "a", "multipleOf tightened from none to 5", WRITERS),
    ("string to UUID", {"a": str}, {"a": uuid.UUID},
     "a", 'format tightened from none to "uuid"', WRITERS),
    ("string to time", {"a": str}, {"a": datetime.datetime},
     "a", 'format tightened from none to "date-time"', WRITERS),
    ("time to date", {"a": datetime.datetime}, {"a": datetime.date},
     "a", 'format changed from "date-time" to "date"', BOTH),
    ("time in a list", {"a": list[datetime.datetime | None]}, {"a": list[str | None]},
     "a[]", 'format loosened from "date-time" to none', READERS),
    ("string to bytes", {"a": str}, {"a": bytes},
     "a", "type changed from string to string of base64", BOTH),
    ("items changed", {"a": list[int]}, {"a": list[str]},
     "a[]", "type changed from integer to string", BOTH),
    ("list bounded", {"a": list[int]}, {"a": Annotated[list[int], M(max_length=3)]},
     "a", "maxItems tightened from none to 3", WRITERS),
    ("values changed", {"a": dict[str, int]}, {"a": dict[str, float]},
     "a.*", "type widened from integer to number", READERS),
    ("list to map", {"a": list[int]}, {"a": dict[str, int]},
     "a", "type changed from list of integer to a map", BOTH),
    ("tuple grown", {"a": tuple[int, str]}, {"a": tuple[int, str, int]},
     "a", "3 positions instead of 2", BOTH),
    ("tuple's item", {"a": tuple[int, str]}, {"a": tuple[int, int]},
     "a[1]", "type changed from string to integer", BOTH),
    ("array-like grown", {"a": Row}, {"a": LongRow},
     "a", "minItems tightened from 1 to 2", WRITERS),
    ("nested struct changed", {"lines": list[Line]}, {"lines": list[DearLine]},
     "lines[].tax", "required field added", WRITERS),
    ("recursive struct changed", {"a": Tree}, {"a": OtherTree},
     "a.value", "type widened from integer to number", READERS),
    ("struct to scalar", {"a": Line}, {"a": int},
     "a", "type changed from an object with fields to integer", BOTH),
    ("member added", {"a": Card | Cash}, {"a": Card | Cash | Cheque},
     "a", 'kind = "cheque" is now also allowed', READERS),
    ("member removed", {"a": Card | Cash | Cheque}, {"a": Card | Cash},
     "a", 'kind = "cheque" is no longer allowed', WRITERS),
    ("union of scalars", {"a": int}, {"a": int | str},
     "a", "string is now also allowed", READERS),
    ("tag changed", {"a": Card}, {"a": PlasticCard},
     "a.kind", 'must be "plastic", was "card"', BOTH),
    ("unknown fields refused", {"a": Line}, {"a": Closed},
     "a", "unknown fields are now refused", WRITERS),
    ("unknown fields allowed", {"a": Closed}, {"a": Line},
     "a", "unknown fields are now allowed", NOBODY),
    ("field added to a closed struct", {"a": Closed}, {"a": ClosedMore},
     "a.note", "optional field added", READERS),
    ("field removed from a closed struct", {"a": ClosedMore}, {"a": Closed},
     "a.note", "optional field removed", WRITERS),
]  # fmt: skip


@pytest.mark.parametrize(
    ("before", "after", "place", "what", "breaks"),
    [case[1:] for case in FIELDS],
    ids=[case[0] for case in FIELDS],
)
def test_change_of_a_field(before, after, place, what, breaks):
    verdict = compare(lock(before), lock(after))
    found = [(change.place, change.what, change.breaks) for change in verdict.changes]
    assert (place, what, breaks) in found
    # A bound that goes with the change is reported with it, and does not change the verdict.
    assert {change.place for change in verdict.changes} == {place}
    assert verdict.is_breaking is bool(breaks)


A = {"a": int}
EVENTS = [
    ("channel changed", {"channel": "orders"}, {"channel": "sales"},
     "channel changed from orders to sales", BOTH),
    ("channel's parameter renamed", {"channel": "orders.{a}"}, {"channel": "orders.{b}"},
     "channel orders.{a} renamed to orders.{b}: same channels", NOBODY),
    ("volatile now", {}, {"volatile": True},
     "now volatile: no history, no resume, no durable subscriptions", READERS),
    ("durable now", {"volatile": True}, {}, "now durable, was volatile", NOBODY),
    ("version lowered", {"version": 2}, {"version": 1}, "version lowered from 2 to 1", BOTH),
    ("version raised", {"version": 1}, {"version": 2}, "version raised from 1 to 2", NOBODY),
    ("from clients now", {"volatile": True, "name": "client-order"}, {"mixin": ClientEvent},
     "was a broadcast event, is a client event", BOTH),
    ("another queue", {"mixin": ShouldQueue, "channel": None, "queue": "mail"},
     {"mixin": ShouldQueue, "channel": None, "queue": "post"},
     "queue changed from mail to post: let workers drain the old one", NOBODY),
]  # fmt: skip


@pytest.mark.parametrize(
    ("before", "after", "what", "breaks"),
    [case[1:] for case in EVENTS],
    ids=[case[0] for case in EVENTS],
)
def test_change_of_an_event(before, after, what, breaks):
    fields = {"a": int, "b": int}
    verdict = compare(lock(fields, **before), lock(fields, **after))
    [change] = verdict.changes
    assert (change.place, change.what, change.breaks) == ("", what, breaks)
    assert verdict.is_breaking is bool(breaks)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (Annotated[int, M(gt=0)], Annotated[int, M(ge=1)]),
        (float, int | float),
        (dict[Literal["s", "m"], int], dict[Size, int]),
    ],
)
def test_same_values_said_otherwise_are_no_change(before, after):
    assert compare(lock({"a": before}), lock({"a": after})).changes == ()


def test_nothing_changed():
    fields = {"a": (Tree | None, None), "b": Card | Cash, "c": tuple[int, ...], "d": Any}
    assert compare(lock(fields), lock(fields)).changes == ()


def test_name_of_a_nested_class_is_not_checked():
    assert compare(lock({"a": Line}), lock({"a": Renamed})).changes == ()


def test_docs_are_not_compared():
    before = {"a": Annotated[int, M(description="before", title="A")]}
    assert compare(lock(before), lock({"a": int})).changes == ()


def test_events_come_and_go():
    order, sale = lock(A), lock({"b": int}, name="sale")
    [added] = compare({}, order).changes
    assert (added.what, added.breaks) == ("event added", NOBODY)
    [removed] = compare(order, {}).changes
    assert (removed.what, removed.breaks) == ("event removed", BOTH)
    assert [c.what for c in compare(order, sale).changes] == ["event removed", "event added"]


def test_event_that_promises_the_same_was_renamed():
    verdict = compare(lock(A), lock(A, name="sale"))
    [change] = verdict.changes
    assert (change.event, change.what) == ("order", "event renamed to sale")
    assert verdict.is_breaking


def test_raised_version_allows_what_breaks():
    verdict = compare(lock(A), lock({"b": int}, version=2))
    assert [change.what for change in verdict.changes] == [
        "version raised from 1 to 2",
        "field removed",
        "required field added",
    ]
    assert not verdict.is_breaking
    assert {change.breaks for change in verdict.changes} == {NOBODY, READERS, WRITERS}


def test_channels_of_broadcast_on_come_and_go():
    def of(*channels):
        def broadcast_on(self):
            return channels[0]

        body = {"__module__": __name__, "__annotations__": {"a": int}, "broadcast_on": broadcast_on}
        cls = type(Event)("Order", (Event, ShouldBroadcast), body, channels=channels)
        return lock_of(catalogue([cls]))

    two, three = of("a", "b"), of("a", "b", "c.*")
    [added] = compare(two, three).changes
    assert (added.what, added.breaks) == ("channel c.* added", NOBODY)
    [removed] = compare(three, two).changes
    assert (removed.what, removed.breaks) == ("channel c.* removed", BOTH)


def test_job_in_a_queue_is_compared_where_it_is_not_what_is_broadcast():
    def of(kind):
        class Both(ShouldQueue, ShouldBroadcast):
            __slots__ = ()

            def broadcast_with(self) -> dict[str, int]:
                return {}

        return lock({"a": kind}, mixin=Both)

    [change] = compare(of(int), of(str)).changes
    assert (change.place, change.what) == ("job.a", "type changed from integer to string")


def test_lock_file_is_read_as_it_was_written(tmp_path):
    written = lock({"a": Tree, "b": (Size, Size.S), "title": str, "description": (str, "x")})
    path = tmp_path / "lock.json"
    path.write_bytes(encode_lock(written))
    assert read_lock(path) == written
    assert set(written["order"].data["$defs"]["Order"]["properties"]) == {
        *("a", "b", "title", "description")
    }


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (None, "does not exist: create the lock file with `eventbus schema lock`"),
        (b"{", "is not a lock file"),
        (b"\xff", "is not a lock file"),
        (b'{"format": 2, "events": {}}', "is not a lock file"),
        (b'{"format": 1, "events": {"a": {}}}', "is not a lock file"),
        (b'{"format": 1, "events": {}, "events": {}}', "duplicate key 'events' in an object"),
    ],
)
def test_invalid_lock_file_is_reported(tmp_path, content, fault):
    path = tmp_path / "lock.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidLock, match=fault):
        read_lock(path)
