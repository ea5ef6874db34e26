"""Events: their definitions, channels, payloads and names."""

import asyncio
import copy
import datetime
import enum
import importlib
import json
import pickle
import subprocess
import sys
import types
import uuid
from decimal import Decimal
from typing import Annotated, Any, Generic, TypeVar

import msgspec
import pytest
from hypothesis import given, strategies as st

from eventbus import channels
from eventbus.channels import encode_token
from eventbus.errors import (
    BusStateError,
    EncodingError,
    EventBusError,
    EventDefinitionError,
    EventFieldError,
    InvalidChannel,
    InvalidEventName,
)
from eventbus.events import (
    Event,
    EventReader,
    ShouldBroadcast,
    ShouldQueue,
    current,
    definition,
    event as events,
    event_definition,
    event_type,
    event_types,
)
from eventbus.events.encoding import messages_of

T = TypeVar("T")


@pytest.fixture(autouse=True)
def _registry_of_its_own(monkeypatch):
    """Event types that a test defines are known to it alone."""
    monkeypatch.setattr(events, "_types", {})
    monkeypatch.setattr(events, "_sources", {})


class Level(enum.StrEnum):
    LOW = "low"


class Number(enum.IntEnum):
    SEVEN = 7


def _data(event):
    return [json.loads(bytes(message.data)) for message in messages_of(event)]


def _channels(event):
    return [message.channel for message in messages_of(event)]


def test_event_becomes_one_message_of_its_fields():
    class Shipped(Event, ShouldBroadcast, channel="orders.{order_id}"):
        order_id: int
        carrier: str = "DHL"

    event = Shipped(42)
    (message,) = messages_of(event)
    assert (message.channel, message.event) == ("orders.42", "Shipped")
    assert bytes(message.data) == b'{"order_id":42,"carrier":"DHL"}'
    assert (message.id, message.timestamp) == (event.event_meta.id, event.event_meta.timestamp)


def test_a_field_is_turned_into_a_token_once(monkeypatch):
    class Shipped(Event, ShouldBroadcast, channel="orders.{order_id}.{carrier}"):
        order_id: int
        carrier: str = "DHL"

    encoded = []

    def counting(value):
        encoded.append(value)
        return encode_token(value)

    for module in (channels, definition):
        monkeypatch.setattr(module, "encode_token", counting)
    assert _channels(Shipped(42)) == ["orders.42.DHL"]
    assert encoded == [42, "DHL"]


def test_one_object_is_one_event_and_an_equal_one_is_another():
    class Shipped(Event, ShouldBroadcast, channel="orders"):
        order_id: int

    one, other = Shipped(1), Shipped(1)
    assert messages_of(one) == messages_of(one)
    assert one == other
    assert one.event_meta.id != other.event_meta.id
    assert one.event_meta.id != msgspec.structs.replace(one).event_meta.id
    assert uuid.UUID(one.event_meta.id).version == 7
    assert one.event_meta.timestamp.utcoffset() == datetime.timedelta(0)


def test_fields_may_be_called_id_and_timestamp_and_are_the_users_own():
    class Reading(Event, ShouldBroadcast, channel="readings.{id}"):
        id: int
        timestamp: str
        name: str
        channel: str
        version: int
        event: str

    event = Reading(7, "noon", "n", "c", 3, "e")
    (message,) = messages_of(event)
    assert json.loads(bytes(message.data)) == {
        "id": 7, "timestamp": "noon", "name": "n", "channel": "c", "version": 3, "event": "e",
    }  # fmt: skip
    assert message.channel == "readings.7"
    assert message.id == event.event_meta.id != 7


def test_events_cannot_be_changed():
    class Fixed(Event):
        a: int

    with pytest.raises(AttributeError):
        Fixed(1).a = 2
    with pytest.raises(AttributeError):
        Fixed(1).other = 2


@pytest.mark.parametrize("name", ["dispatch", "event_meta", "broadcast_on", "broadcast_when"])
def test_field_that_would_hide_what_events_have_is_refused(name):
    with pytest.raises(EventDefinitionError, match=f"a field cannot be called '{name}'"):
        type(Event)("Hiding", (Event,), {"__annotations__": {name: int}})


def test_fields_of_every_kind_reach_the_message():
    class Inner(msgspec.Struct):
        x: int

    class Rich(Event, ShouldBroadcast, channel="rich", rename="camel", kw_only=True):
        when_it: datetime.datetime
        amount: Decimal
        ident: uuid.UUID
        level: Level
        inner: Inner | None
        many: list[Inner]
        table: dict[str, int]
        pair: tuple[int, str]
        any_value: Any
        small: Annotated[int, msgspec.Meta(le=10)] = 5
        absent: int | msgspec.UnsetType = msgspec.UNSET

    event = Rich(
        when_it=datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
        amount=Decimal("1.50"),
        ident=uuid.UUID(int=1),
        level=Level.LOW,
        inner=Inner(1),
        many=[Inner(2)],
        table={"a": 1},
        pair=(1, "x"),
        any_value=[None, {"a": 1}],
    )
    assert _data(event) == [
        {
            "whenIt": "2026-01-01T00:00:00Z",
            "amount": "1.50",
            "ident": "00000000-0000-0000-0000-000000000001",
            "level": "low",
            "inner": {"x": 1},
            "many": [{"x": 2}],
            "table": {"a": 1},
            "pair": [1, "x"],
            "anyValue": [None, {"a": 1}],
            "small": 5,
        }
    ]


def test_generic_event_is_broadcast():
    class Box(Event, ShouldBroadcast, Generic[T], channel="boxes"):
        content: T

    assert _data(Box[int](3)) == [{"content": 3}]


# Templates


@pytest.mark.parametrize(
    ("value", "token"),
    [
        ("abc", "abc"),
        ("A_=@,;-9", "A_=@,;-9"),
        (42, "42"),
        (-1, "-1"),
        (uuid.UUID(int=5), "00000000-0000-0000-0000-000000000005"),
        (Level.LOW, "low"),
        (Number.SEVEN, "7"),
        ("a.b", "a~2eb"),
        ("*", "~2a"),
        ("é", "~c3~a9"),
    ],
)
def test_template_is_filled_from_a_field(value, token):
    class Filled(Event, ShouldBroadcast, channel="a.{field}.z"):
        field: Any

    assert Filled(value).broadcast_on() == f"a.{token}.z"


BAD_VALUES = ["", "\ud800", "é" * 40, "a" * 201,
              None, True, 1.5, b"x", [], ("a",), {}, object(), Decimal(1)]  # fmt: skip


@pytest.mark.parametrize("value", BAD_VALUES, ids=lambda value: repr(value)[:12])
def test_value_that_breaks_a_channel_is_an_error_naming_event_field_and_value(value):
    class Breaking(Event, ShouldBroadcast, channel="a.{field}"):
        field: Any

    with pytest.raises(EventFieldError) as caught:
        Breaking(value).broadcast_on()
    message = str(caught.value)
    assert "'Breaking'" in message
    assert "cannot be a token" in message
    assert "'field'" in message
    assert (repr(value)[:60] if isinstance(value, str) else type(value).__name__) in message
    assert (caught.value.event, caught.value.field) == ("Breaking", "field")


def test_values_that_together_are_too_long_are_an_error_naming_the_longest():
    class Long(Event, ShouldBroadcast, channel="{a}.{b}"):
        a: str
        b: str

    with pytest.raises(EventFieldError, match=r"field 'b' makes channel .* too long"):
        Long("x" * 20, "y" * 190).broadcast_on()


@given(st.text() | st.integers())
def test_filled_channel_always_has_the_templates_shape(value):
    class Shaped(Event, ShouldBroadcast, channel="a.{field}.z"):
        field: str | int

    try:
        channel = Shaped(value).broadcast_on()
    except EventFieldError:
        return
    assert channel.split(".") == ["a", encode_token(value), "z"]


@pytest.mark.parametrize(
    ("channel", "expected"),
    [
        ("orders.{nope}", "names {nope}, which is not a field: the fields are order_id"),
        ("orders.{order_id", "is not a channel pattern"),
        ("orders.x{order_id}", "is not a channel pattern"),
        ("{order_id}.{order_id}", "uses a token name more than once"),
        ("orders.*", "wildcard"),
        ("orders.>", "wildcard"),
        ("orders..x", "is not a channel pattern"),
        ("orders x", "is not a channel pattern"),
        ("", "is not a channel pattern"),
        ("a" * 201, "is not a channel name"),
        (7, "is not a channel pattern"),
    ],
)
def test_bad_channel_is_an_error_at_the_class(channel, expected):
    with pytest.raises(EventDefinitionError) as caught:

        class Wrong(Event, ShouldBroadcast, channel=channel):
            order_id: int

    assert expected in str(caught.value)
    assert "Wrong" in str(caught.value)
    assert event_type("Wrong") is None


# Definitions


def test_broadcast_event_without_a_channel_is_refused():
    with pytest.raises(EventDefinitionError, match=r"has no channel.*broadcast_on"):

        class Nowhere(Event, ShouldBroadcast):
            a: int


def test_channel_without_should_broadcast_is_refused_rather_than_ignored():
    with pytest.raises(EventDefinitionError, match="mix in ShouldBroadcast"):

        class Silent(Event, channel="a"):
            a: int


def test_event_that_is_not_broadcast_has_no_messages():
    class Local(Event):
        anything: object

    assert messages_of(Local(object())) == ()
    assert event_type("Local") is Local


def test_abstract_base_is_neither_registered_nor_dispatched_and_gives_its_channel():
    class OrderEvent(Event, ShouldBroadcast, channel="orders.{order_id}", abstract=True):
        pass

    class Paid(OrderEvent, volatile=True):
        order_id: int

    class PaidTwice(Paid):
        pass

    assert event_type("OrderEvent") is None
    assert _channels(Paid(1)) == ["orders.1"]
    assert event_definition(PaidTwice).volatile
    assert event_definition(PaidTwice).name == "PaidTwice"
    assert _channels(PaidTwice(2)) == ["orders.2"]
    with pytest.raises(EventDefinitionError, match="is abstract"):
        messages_of(OrderEvent())


def test_template_of_an_abstract_base_is_checked_in_the_subclass():
    class OrderEvent(Event, ShouldBroadcast, channel="orders.{order_id}", abstract=True):
        pass

    with pytest.raises(EventDefinitionError, match=r"names {order_id}, which is not a field"):

        class Lacking(OrderEvent):
            other: int


@pytest.mark.parametrize("name", ["", "eb:x", "pusher:x", "pong", "a\nb", "a" * 201, 5])
def test_event_name_that_cannot_be_published_is_refused_at_definition(name):
    with pytest.raises(EventDefinitionError, match="is not an event name"):

        class Named(Event, name=name):
            pass


@pytest.mark.parametrize("version", [0, -1, "1", 1.0, True, None])
def test_version_is_a_positive_integer(version):
    with pytest.raises(EventDefinitionError, match="version="):

        class Versioned(Event, version=version):
            pass


def test_unknown_class_keyword_is_an_error():
    with pytest.raises(TypeError, match="chanel"):

        class Typo(Event, ShouldBroadcast, chanel="a"):
            pass


# The registry


def test_type_is_found_by_its_event_name():
    class Renamed(Event, name="order.shipped"):
        pass

    assert event_type("order.shipped") is Renamed
    assert event_type("Renamed") is None
    assert event_types()["order.shipped"] is Renamed
    with pytest.raises(TypeError):
        event_types()["x"] = Renamed


def test_two_types_of_one_name_are_an_error_naming_both():
    class First(Event, name="same"):
        pass

    with pytest.raises(EventDefinitionError) as caught:

        class Second(Event, name="same"):
            pass

    for cls in ("First", "Second"):
        qualname = f"test_two_types_of_one_name_are_an_error_naming_both.<locals>.{cls}"
        assert f"{__name__}.{qualname}" in str(caught.value)
    assert event_type("same") is First


def test_same_definition_run_again_replaces_the_first():
    def define():
        class Again(Event):
            pass

        return Again

    first, second = define(), define()
    assert first is not second
    assert event_type("Again") is second


MODULE = """
from eventbus.events import Event, event_type

class Reloaded(Event, name="reloaded"):
    pass
"""


def test_module_that_is_reloaded_replaces_its_events(tmp_path, monkeypatch):
    (tmp_path / "reloaded_events.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("reloaded_events")
    first = module.Reloaded
    assert importlib.reload(module).Reloaded is event_type("reloaded") is not first


@pytest.mark.parametrize("how", [["-m", "twice_events"], ["twice_events.py"]], ids=["-m", "path"])
@pytest.mark.parametrize("abstract", ["", ", abstract=True"])
def test_module_run_as_main_and_imported_is_refused(tmp_path, how, abstract):
    (tmp_path / "twice_events.py").write_text(
        MODULE.replace('"):', f'"{abstract}):') + "\nif __name__ == '__main__':\n"
        "    import twice_events\n"
    )
    done = subprocess.run(
        [sys.executable, *how], cwd=tmp_path, check=False, capture_output=True, timeout=30
    )
    assert done.returncode == 1
    assert (
        "twice_events.py is loaded twice, as __main__ and as twice_events" in done.stderr.decode()
    )


@pytest.mark.parametrize("link", [False, True])
def test_file_imported_under_two_names_is_refused_and_the_first_stays(tmp_path, monkeypatch, link):
    package = tmp_path / "two_names"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "two_names_events.py").write_text(MODULE)
    other = tmp_path / "other_path"
    if link:
        other.symlink_to(package)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(other if link else package)
    for name in ("two_names", "two_names.two_names_events", "two_names_events"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    first = importlib.import_module("two_names.two_names_events").Reloaded
    with pytest.raises(EventDefinitionError, match=r"loaded twice, as two_names\.two_names_events"):
        importlib.import_module("two_names_events")
    assert event_type("reloaded") is first
    del sys.modules["two_names.two_names_events"]
    second = importlib.import_module("two_names_events").Reloaded
    assert event_type("reloaded") is second, "the first module is gone"


def test_main_module_of_a_spawned_process_is_a_copy_whose_events_nobody_uses(tmp_path):
    (tmp_path / "spawning.py").write_text(
        MODULE
        + """
import multiprocessing, importlib

def check():
    module = importlib.import_module("spawning")
    assert event_type("reloaded") is module.Reloaded
    assert module.Reloaded.__module__ == "spawning"

if __name__ == "__main__":
    child = multiprocessing.get_context("spawn").Process(target=check)
    child.start()
    child.join()
    raise SystemExit(child.exitcode)
"""
    )
    done = subprocess.run(
        [sys.executable, "spawning.py"],
        cwd=tmp_path, check=False, capture_output=True, timeout=150,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()


def test_two_modules_that_take_the_same_name_are_an_error_naming_both(tmp_path, monkeypatch):
    for name in ("one_events", "other_events"):
        (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("one_events")
    with pytest.raises(
        EventDefinitionError, match=r"one_events.Reloaded and other_events.Reloaded"
    ):
        importlib.import_module("other_events")


# What can be overridden


def test_each_part_of_the_broadcast_can_be_overridden():
    class Custom(Event, ShouldBroadcast):
        secret: str

        def broadcast_on(self):
            return ["a", "b", "a"]

        def broadcast_as(self):
            return "custom.name"

        def broadcast_with(self):
            return {"length": len(self.secret)}

    messages = messages_of(Custom("xyz"))
    assert [message.channel for message in messages] == ["a", "b"]
    assert {message.event for message in messages} == {"custom.name"}
    assert {bytes(message.data) for message in messages} == {b'{"length":3}'}
    assert len({message.id for message in messages}) == 1
    assert len({message.timestamp for message in messages}) == 1


def test_event_is_not_broadcast_when_it_says_so():
    class Sometimes(Event, ShouldBroadcast, channel="a"):
        loud: bool

        def broadcast_when(self):
            return self.loud

    assert messages_of(Sometimes(loud=False)) == ()
    assert len(messages_of(Sometimes(loud=True))) == 1


def test_event_broadcast_on_no_channel_has_no_messages():
    class Empty(Event, ShouldBroadcast):
        def broadcast_on(self):
            return []

    assert messages_of(Empty()) == ()


def _overridden(**methods):
    return type(Event)("Overridden", (Event, ShouldBroadcast), methods)()


@pytest.mark.parametrize(
    ("methods", "error"),
    [
        ({"broadcast_on": lambda _: None}, EventDefinitionError),
        ({"broadcast_on": lambda _: 5}, EventDefinitionError),
        ({"broadcast_on": lambda _: {"a", "b"}}, EventDefinitionError),
        ({"broadcast_on": lambda _: "a.*"}, InvalidChannel),
        ({"broadcast_on": lambda _: ["a", ""]}, InvalidChannel),
        ({"broadcast_on": lambda _: ["a", None]}, InvalidChannel),
        ({"broadcast_on": lambda _: "a", "broadcast_as": lambda _: "eb:x"}, InvalidEventName),
        ({"broadcast_on": lambda _: "a", "broadcast_as": lambda _: None}, InvalidEventName),
        ({"broadcast_on": lambda _: "a", "broadcast_with": lambda _: object()}, EncodingError),
    ],
)
def test_override_that_gives_something_unusable_is_an_error(methods, error):
    with pytest.raises(error):
        messages_of(_overridden(**methods))


# Validation at dispatch


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"n": "x"}, "n"),
        ({"n": None}, "n"),
        ({"n": 11}, "n"),
        ({"n": 1.5}, "n"),
        ({"names": ["a", 5]}, "names"),
        ({"names": "abc"}, "names"),
        ({"level": "high"}, "level"),
        ({"share": float("nan")}, "share"),
    ],
)
def test_event_whose_field_has_a_wrong_value_is_not_dispatched(fields, field):
    class Checked(Event, ShouldBroadcast, channel="a", kw_only=True):
        n: Annotated[int, msgspec.Meta(le=10)] = 1
        names: list[str] = msgspec.field(default_factory=list)
        level: Level = Level.LOW
        share: float = 0.5

    assert len(messages_of(Checked())) == 1
    with pytest.raises(
        EventFieldError, match=f"event 'Checked' does not fit its type .*{field}"
    ) as c:
        messages_of(Checked(**fields))
    assert (c.value.event, c.value.field) == ("Checked", field)


def test_event_is_validated_also_where_its_data_is_overridden():
    class Checked(Event, ShouldBroadcast, channel="a"):
        n: int

        def broadcast_with(self):
            return {}

    with pytest.raises(EventFieldError):
        messages_of(Checked("x"))


def test_event_that_cannot_be_encoded_is_an_error_naming_it():
    class Odd(Event, ShouldBroadcast, channel="a"):
        thing: object

    with pytest.raises(EncodingError, match="event 'Odd' cannot be encoded as JSON"):
        messages_of(Odd(object()))


def test_any_exception_of_an_event_is_an_event_bus_error():
    class Checked(Event, ShouldBroadcast, channel="a.{n}"):
        n: int

    for value in (None, "x", object(), [], -1.5, "\ud800", {(1, 2): 3}):
        with pytest.raises(EventBusError):
            messages_of(Checked(value))


# The current bus


class Plain(Event):
    pass


async def test_dispatch_without_a_bus_says_how_to_open_one():
    with pytest.raises(BusStateError, match=r"no bus is open: open one with `async with EventBus"):
        await Plain().dispatch()


def test_dispatch_does_not_find_a_bus_of_another_loop():

    class Bus:
        async def dispatch(self, *events):
            return ()

    bus = Bus()
    other = asyncio.new_event_loop()

    async def enter():
        current.enter(bus)

    other.run_until_complete(enter())
    try:
        with pytest.raises(BusStateError, match="one is open in another"):
            asyncio.run(Plain().dispatch())
        assert other.run_until_complete(Plain().dispatch()) == ()
    finally:
        current.leave(bus)
        other.close()


# Class statements that could only fail later


@pytest.mark.parametrize(
    ("keyword", "hint"),
    [
        ("chanel", "'chanel' is not a keyword of an event class: did you mean 'channel'"),
        ("Channel", "did you mean 'channel'"),
        ("que", "did you mean 'queue'"),
        ("kwonly", "did you mean 'kw_only'"),
        ("zzz", "known are channel, channels"),
    ],
)
def test_unknown_keyword_is_named_with_the_one_that_was_meant(keyword, hint):
    with pytest.raises(EventDefinitionError, match=hint) as caught:
        types.new_class("Misspelt", (Event, ShouldBroadcast), {keyword: "general"})
    assert "Misspelt" in str(caught.value)
    assert event_type("Misspelt") is None


class Left(msgspec.Struct):
    n: int


class Right(msgspec.Struct):
    n: int


UNDECODABLE = [Left | Right, dict | Left, "list[Left | Right]", "Nowhere", "list[Nowhere]", "a b",
               "datetime.nothing", str | datetime.datetime | uuid.UUID]  # fmt: skip


@pytest.mark.parametrize("kind", UNDECODABLE, ids=repr)
@pytest.mark.parametrize("bases", [(Event, ShouldBroadcast), (Event, ShouldQueue)])
def test_field_that_cannot_be_decoded_is_an_error_of_the_class(kind, bases):
    options = {"channel": "general"} if ShouldBroadcast in bases else {}
    with pytest.raises(EventDefinitionError, match="Undecodable: the types of its fields"):
        types.new_class(
            "Undecodable",
            bases,
            options,
            lambda namespace: namespace.update(
                __annotations__={"value": kind}, __module__=__name__
            ),
        )
    assert event_type("Undecodable") is None


def test_event_that_stays_in_its_process_may_hold_anything():
    class Local(Event):
        value: Left | Right
        more: "Nowhere"  # noqa: F821 - on purpose

    assert Local(Left(1), None).value == Left(1)


def test_field_may_name_what_its_module_defines_later(tmp_path, monkeypatch):
    (tmp_path / "defined_later.py").write_text(
        "from eventbus import Event, ShouldBroadcast\n"
        "import msgspec\n"
        "class Tree(Event, ShouldBroadcast, channel='general', name='defined_later.tree'):\n"
        "    children: 'list[Tree]'\n"
        "    leaf: 'Leaf'\n"
        "class Broken(Event, ShouldBroadcast, channel='general', name='defined_later.broken'):\n"
        "    leaf: 'Nowhere'\n"
        "class Leaf(msgspec.Struct):\n"
        "    n: int\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("defined_later")
    (message,) = messages_of(module.Tree([module.Tree([], module.Leaf(1))], module.Leaf(2)))
    assert bytes(message.data) == b'{"children":[{"children":[],"leaf":{"n":1}}],"leaf":{"n":2}}'
    for use in (lambda: messages_of(module.Broken(1)), lambda: EventReader(module.Broken)):
        with pytest.raises(EventDefinitionError, match="name 'Nowhere' is not defined"):
            use()


# Copies


class Copied(Event, ShouldBroadcast, channel="copied.{n}"):
    n: int
    tags: list[str]


class CopiedByName(Event, ShouldBroadcast, channel="copied.{n}", kw_only=True):
    n: int
    at: datetime.datetime | None = None


COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    **{
        f"pickle {protocol}": lambda event, protocol=protocol: pickle.loads(
            pickle.dumps(event, protocol)
        )
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
    },
}


@pytest.mark.parametrize("make", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("event", [Copied(1, ["a"]), CopiedByName(n=1)], ids=["a", "b"])
@pytest.mark.parametrize("first_read", [True, False])
def test_copy_is_the_same_event_with_its_id_and_metadata(make, event, first_read):
    original = msgspec.structs.replace(event)
    if first_read:
        original = original.with_meta(metadata={"by": ["ada"]}, tags=["x"]).to_others("c1")
    made = make(original)
    assert type(made) is type(original)
    assert made == original
    assert made.event_meta == original.event_meta
    assert make(made).event_meta == original.event_meta
    assert made.with_meta(metadata={"more": 1}).event_meta.id == original.event_meta.id
    assert "more" not in original.event_meta.metadata


def test_deep_copy_shares_nothing_that_can_be_changed():
    original = Copied(1, ["a"]).with_meta(metadata={"by": ["ada"]})
    made = copy.deepcopy(original)
    made.tags.append("b")
    made.event_meta.metadata["by"].append("eve")
    assert original.tags == ["a"]
    assert original.event_meta.metadata == {"by": ["ada"]}


def test_event_with_replaced_fields_is_another_event():
    original = Copied(1, [])
    changed = msgspec.structs.replace(original, n=2)
    assert changed.event_meta.id != original.event_meta.id
