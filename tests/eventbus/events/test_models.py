"""Pydantic models as fields: validated at dispatch and on receipt, in every position of a type."""

import asyncio
import copy
import datetime
import decimal
import pickle
import subprocess
import sys
import uuid
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypedDict, TypeVar

import msgspec
import pydantic
import pytest
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    RootModel,
    SecretStr,
    computed_field,
    field_validator,
)

from eventbus import ClientEvent, Event, EventBus, ShouldBroadcast, ShouldQueue
from eventbus.drivers.base import Delivery
from eventbus.errors import (
    EncodingError,
    EventDefinitionError,
    EventFieldError,
    InvalidPayload,
)
from eventbus.events import event_decoder
from eventbus.events.decoding import EventReader
from eventbus.events.encoding import encode_event, messages_of
from eventbus.messages import json_decoder
from eventbus.outbox.rows import rows_of
from eventbus.queue import job_of
from eventbus.queue.jobs import event_of, read_job

T = TypeVar("T")
UTC = datetime.UTC


class Item(BaseModel):
    sku: str
    price: decimal.Decimal = Field(gt=0, alias="unitPrice")
    at: datetime.datetime | None = None


class Nested(BaseModel):
    items: list[Item]
    parent: "Nested | None" = None


class Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    id: uuid.UUID
    on: datetime.date
    pair: tuple[int, str]
    seal: bytes = b""


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    lives: int


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"
    lives: str


class Page(BaseModel, Generic[T]):
    rows: list[T]


class Tags(RootModel[list[str]]):
    pass


class Total(BaseModel):
    net: int

    @computed_field
    @property
    def gross(self) -> int:
        return self.net * 2


class Even(BaseModel):
    number: int

    @field_validator("number")
    @classmethod
    def is_even(cls, value: int) -> int:
        if value % 2:
            raise ValueError("must be even")
        return value


MODELS = {
    "alias": (Item, Item(sku="a", unitPrice="1.50", at=datetime.datetime(2026, 1, 2, tzinfo=UTC)),
              {"sku": "a", "unitPrice": -1}),
    "nested": (Nested, Nested(items=[Item(sku="a", unitPrice=1)], parent=Nested(items=[])),
               {"items": [{"sku": "a"}]}),
    "strict": (Strict, Strict(id=uuid.UUID(int=7), on=datetime.date(2026, 1, 2), pair=(1, "b")),
               {"id": 7, "on": "2026-01-02", "pair": [1, "b"]}),
    "generic": (Page[Cat], Page[Cat](rows=[Cat(lives=1)]), {"rows": [{"lives": "x"}]}),
    "root": (Tags, Tags(["a"]), {"a": 1}),
    "computed": (Total, Total(net=1), {"gross": 2}),
    "validator": (Even, Even(number=2), {"number": 1}),
}  # fmt: skip


class Line(msgspec.Struct):
    item: Any


def in_struct(model):
    return msgspec.defstruct("Holder", [("item", model)])


def in_named_tuple(model):
    return NamedTuple("Holder", [("item", model)])


def in_typed_dict(model):
    return TypedDict("Holder", {"item": model})


# How a type is made of a model, how a value of the type is made of one of the model's values, and
# the path of that value.
POSITIONS = {
    "field": (lambda m: m, lambda v, t: v, ""),
    "optional": (lambda m: m | None, lambda v, t: v, ""),
    "list": (lambda m: list[m], lambda v, t: [v], "[0]"),
    "tuple": (lambda m: tuple[int, m], lambda v, t: (1, v), "[1]"),
    "dict": (lambda m: dict[str, m], lambda v, t: {"a": v}, "[...]"),
    "union": (lambda m: m | Dog, lambda v, t: v, ""),
    "optional union": (lambda m: Dog | m | None, lambda v, t: v, ""),
    "union with a plain type": (lambda m: m | int, lambda v, t: v, ""),
    "list of unions": (lambda m: list[m | Dog], lambda v, t: [v], "[0]"),
    "union of lists": (lambda m: list[m] | list[Dog], lambda v, t: [v], "[0]"),
    "annotated": (lambda m: Annotated[m, "any"], lambda v, t: v, ""),
    "struct": (in_struct, lambda v, t: t(v), ".item"),
    "list of structs": (lambda m: list[in_struct(m)], lambda v, t: [t.__args__[0](v)], "[0].item"),
    "named tuple": (in_named_tuple, lambda v, t: t(v), "[0]"),
    "typed dict": (in_typed_dict, lambda v, t: {"item": v}, ".item"),
}
CASES = [(model, position) for model in MODELS for position in POSITIONS]


@pytest.fixture
def new_event():
    """Makes an event class with one more field of that type."""

    def make(type_, *bases, **keywords):
        name = f"models.e{uuid.uuid4().hex}"
        bases = bases or (ShouldBroadcast,)
        if not issubclass(bases[0], ShouldQueue):
            keywords.setdefault("channel", "models")
        namespace = {"__annotations__": {"number": int, "value": type_}, "__module__": __name__}
        return type(Event)("Modelled", (Event, *bases), namespace, name=name, **keywords)

    return make


@pytest.mark.parametrize(("model", "position"), CASES)
def test_value_in_any_position_survives_encoding(new_event, model, position):
    type_, value, _ = MODELS[model]
    shape, build, _ = POSITIONS[position]
    field = shape(type_)
    cls = new_event(field)
    event = cls(1, build(value, field))
    [message] = messages_of(event)
    assert event_decoder(cls)(message.data) == event


@pytest.mark.parametrize(("model", "position"), CASES)
def test_wrong_value_in_any_position_is_refused_with_event_and_field(new_event, model, position):
    type_, _, wrong = MODELS[model]
    shape, build, path = POSITIONS[position]
    field = shape(type_)
    cls = new_event(field)
    with pytest.raises(EventFieldError) as caught:
        messages_of(cls(1, build(wrong, field)))
    assert caught.value.field == "value"
    assert caught.value.event in str(caught.value)
    assert f"$.value{path}" in str(caught.value)
    payload = msgspec.json.encode(
        {"event": caught.value.event, "data": {"number": 1, "value": build(wrong, field)}},
        enc_hook=msgspec.to_builtins,
    )
    with pytest.raises(InvalidPayload, match=r"\$\.value") as refused:
        EventReader(cls).read("models", Delivery("", payload))
    assert refused.value.reason == "bad_data"


ItemPage = Page[Item]  # at the module's top, so that it can be pickled


class Everything(Event, ShouldBroadcast, channel="models.{owner}", name="models.everything"):
    owner: str
    item: Item
    pets: list[Cat | Dog]
    tagged: Annotated[Cat | Dog, Field(discriminator="kind")]
    pages: dict[str, ItemPage] = {}  # noqa: RUF012 - msgspec copies it
    maybe: Item | None = None
    tags: Tags = msgspec.field(default_factory=lambda: Tags([]))


class Pending(Event, ShouldQueue, ShouldBroadcast, channel="models.jobs", name="models.pending"):
    item: Item
    pets: list[Cat | Dog]


ITEM = Item(sku="a", unitPrice="1.50")
EVERYTHING = Everything(
    "7", ITEM, [Cat(lives=9), Dog(lives="one")], Dog(lives="x"), {"p": ItemPage(rows=[ITEM])}
)


@pytest.mark.parametrize("driver", ["memory", "nats"])
async def test_dispatched_models_arrive_at_a_subscription(settings, driver):
    received: asyncio.Queue[Everything] = asyncio.Queue()
    async with EventBus(msgspec.structs.replace(settings, driver=driver)) as bus:
        await bus.subscribe(Everything, received.put)
        await bus.dispatch(EVERYTHING)
        async with asyncio.timeout(30):
            assert await received.get() == EVERYTHING


async def test_wrong_model_is_refused_before_anything_is_sent(settings):
    heard: list[Event] = []
    async with EventBus(msgspec.structs.replace(settings, driver="memory")) as bus:

        @bus.listen(Everything)
        def hear(event: Everything) -> None:
            heard.append(event)

        wrong = msgspec.structs.replace(EVERYTHING, item=Item.model_construct(sku=1))
        with pytest.raises(EventFieldError) as caught:
            await bus.dispatch(wrong)
    assert (caught.value.event, caught.value.field) == ("models.everything", "item")
    assert "$.item.sku" in str(caught.value)
    assert heard == []


def test_error_never_shows_the_data():
    wrong = msgspec.structs.replace(EVERYTHING, item={"sku": "s3cret", "unitPrice": "s3cret"})
    with pytest.raises(EventFieldError) as caught:
        messages_of(wrong)
    assert "s3cret" not in str(caught.value)


def test_copies_and_pickles_are_the_same_event():
    for other in (copy.copy(EVERYTHING), copy.deepcopy(EVERYTHING),
                  pickle.loads(pickle.dumps(EVERYTHING))):  # fmt: skip
        assert other == EVERYTHING
        assert other.event_meta == EVERYTHING.event_meta


def test_job_has_the_models_of_its_event():
    event = Pending(ITEM, [Dog(lives="x")])
    job = read_job(msgspec.json.encode(job_of(event)))
    assert event_of(job) == event
    with pytest.raises(EventFieldError, match=r"\$\.pets\[0\]"):
        job_of(Pending(ITEM, [3]))
    broken = msgspec.structs.replace(job, data=msgspec.Raw(b'{"item":{"sku":1},"pets":[]}'))
    with pytest.raises(InvalidPayload, match=r"\$\.item\.sku"):
        event_of(broken)


def test_client_event_with_a_model_is_read_and_checked(new_event):
    cls = new_event(Cat | Dog, ClientEvent)
    name = f"client-{cls.__event_definition__.name}"
    right = msgspec.json.encode(
        {"event": name, "data": {"number": 1, "value": {"kind": "dog", "lives": "x"}}}
    )
    read = EventReader(cls).read("models", Delivery("", right))
    assert read is not None
    assert read[0].value == Dog(lives="x")


def test_fields_of_a_subclass_are_not_published():
    class ItemInStore(Item):
        supplier: str

    event = msgspec.structs.replace(
        EVERYTHING, item=ItemInStore(sku="a", unitPrice=1, supplier="confidential")
    )
    assert b"confidential" not in encode_event(event)


def test_value_that_a_model_coerces_is_published_in_its_own_type():
    wrong = Cat.model_construct(kind="cat", lives="9")
    published = encode_event(msgspec.structs.replace(EVERYTHING, tagged=wrong))
    assert b'"tagged":{"kind":"cat","lives":9}' in published


def test_computed_fields_are_published_and_recomputed_on_receipt(new_event):
    cls = new_event(Total)
    assert b'{"net":1,"gross":2}' in encode_event(cls(1, Total(net=1)))
    data = b'{"number":1,"value":{"net":1,"gross":7}}'
    assert event_decoder(cls)(data).value.gross == 2


def test_model_can_be_the_data_of_an_event(new_event):
    class Summary(Event, ShouldBroadcast, channel="models", name=f"models.{uuid.uuid4().hex}"):
        item: object

        def broadcast_with(self) -> Item | Tags:
            return self.item

    [message] = messages_of(Summary(ITEM))
    assert json_decoder(Item)(message.data) == ITEM
    with pytest.raises(EventFieldError, match=r"\$\.sku"):
        messages_of(Summary(Item.model_construct(sku=1, price=1)))


async def test_model_can_be_the_data_of_a_message(settings):
    async with EventBus(msgspec.structs.replace(settings, driver="memory")) as bus:
        received: asyncio.Queue[Any] = asyncio.Queue()

        class Plain(Event, ShouldBroadcast, channel="models.plain", name="models.plain"):
            sku: str

        await bus.subscribe(Plain, received.put)
        await bus.publish("models.plain", "models.plain", ITEM)
        async with asyncio.timeout(30):
            assert (await received.get()).sku == "a"


def test_annotations_in_quotes_are_resolved(new_event):
    cls = new_event("list[Cat | Dog] | None")
    event = cls(1, [Dog(lives="x")])
    assert event_decoder(cls)(encode_event(event)) == event


def test_subclass_inherits_a_union_of_an_abstract_event():
    class Base(Event, ShouldBroadcast, abstract=True):
        pet: Cat | Dog

    class Derived(Base, channel="models", name="models.derived"):
        number: int

    cls, event = Derived, Derived(Dog(lives="x"), 1)
    assert event_decoder(cls)(encode_event(event)) == event


def test_tagged_union_is_checked_by_its_tag(new_event):
    cls = new_event(Annotated[Cat | Dog, Field(discriminator="kind")])
    with pytest.raises(EventFieldError, match=r"\$\.value"):
        encode_event(cls(1, {"kind": "cow"}))


class Account(BaseModel):
    name: str
    password: SecretStr


class Excluded(BaseModel):
    password: SecretStr = Field(default=SecretStr("x"), exclude=True)


@pytest.mark.parametrize(
    "type_",
    [Account, Account | None, list[Account], Account | Cat, Page[Account], in_struct(Account)],
)
@pytest.mark.parametrize("base", [ShouldBroadcast, ShouldQueue, ClientEvent])
def test_secrets_of_models_are_refused_when_the_event_is_defined(new_event, type_, base):
    with pytest.raises(EventDefinitionError, match="'password' is a secret"):
        new_event(type_, base)


def test_secret_can_be_left_out(new_event):
    event = new_event(Excluded)(1, Excluded(password=SecretStr("hunter2")))
    assert b"password" not in encode_event(event)


def test_secret_of_any_other_type_is_never_published(new_event):
    class Loose(BaseModel):
        value: Any

    event = new_event(Loose)(1, Loose(value=SecretStr("hunter2")))
    assert b"hunter2" not in encode_event(event)
    with pytest.raises(EncodingError):
        encode_event(new_event(SecretStr)(1, SecretStr("hunter2")))


@pydantic.dataclasses.dataclass
class Point:
    x: int = Field(gt=0)


@pytest.mark.parametrize("type_", [Point, list[Point], in_struct(Point), Point | Cat])
def test_pydantic_dataclass_is_refused_and_its_root_model_is_not(new_event, type_):
    with pytest.raises(EventDefinitionError, match="Pydantic dataclass"):
        new_event(type_)
    cls = new_event(RootModel[Point])
    with pytest.raises(EventFieldError, match=r"\$\.value\.x"):
        encode_event(cls(1, {"x": 0}))


def test_union_inside_a_struct_is_refused_and_says_what_to_do(new_event):
    with pytest.raises(EventDefinitionError, match=r"RootModel\[A \| B\]"):
        new_event(in_struct(Cat | Dog))
    cls = new_event(in_struct(RootModel[Cat | Dog]))
    assert b'"lives":"x"' in encode_event(cls(1, {"item": {"kind": "dog", "lives": "x"}}))


def test_union_of_a_model_and_a_struct_is_refused(new_event):
    with pytest.raises(EventDefinitionError, match="members that Pydantic knows"):
        new_event(Cat | Line)


def test_model_as_a_default_is_refused():
    with pytest.raises(EventDefinitionError, match=r"default of 'item'.*default_factory"):

        class Shared(Event, ShouldBroadcast, channel="models", name="models.shared"):
            item: Item = ITEM


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_number_that_json_lacks_is_refused(new_event, value):
    class Loose(BaseModel):
        model_config = ConfigDict(ser_json_inf_nan="constants")

        number: float

    with pytest.raises(EventFieldError, match=r"\$\.value\.number"):
        encode_event(new_event(Loose)(1, Loose(number=value)))


def test_outbox_row_has_what_a_dispatch_would_publish():
    [row], [message] = rows_of(EVERYTHING), messages_of(EVERYTHING)
    assert row.payload == message.encode()
    [job] = rows_of(Pending(ITEM, [Dog(lives="x")]))
    assert event_of(read_job(job.payload)).item == ITEM
    with pytest.raises(EventFieldError):
        rows_of(msgspec.structs.replace(EVERYTHING, item=3))


def test_pydantic_is_not_imported_for_events_without_models():
    code = """
import asyncio, sys
from eventbus import Event, EventBus, Settings, ShouldBroadcast
from eventbus.contracts import asyncapi, catalogue, typescript

class Plain(Event, ShouldBroadcast, channel="plain"):
    number: int

async def main():
    async with EventBus(Settings(driver="memory")) as bus:
        done = asyncio.Event()
        await bus.subscribe(Plain, lambda event: done.set())
        await bus.dispatch(Plain(1))
        await asyncio.wait_for(done.wait(), 30)

asyncio.run(main())
found = catalogue([Plain])
asyncapi.document(found), typescript.declarations(found)
sys.exit("pydantic" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=150)
