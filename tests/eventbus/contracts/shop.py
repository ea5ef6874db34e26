"""Events with fields of every sort, for the tests of what is made of them."""

import datetime
import decimal
import enum
import uuid
from typing import Annotated, Any, Literal

import msgspec

from eventbus import ClientEvent, Event, ShouldBroadcast, ShouldQueue


class Size(enum.StrEnum):
    """How big it is."""

    SMALL = "s"
    BIG = "b"


class Priority(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Card(msgspec.Struct, tag="card", tag_field="kind"):
    """Paid by card."""

    last: Annotated[str, msgspec.Meta(pattern="^[0-9]{4}$")]


class Cash(msgspec.Struct, tag="cash", tag_field="kind"):
    given: decimal.Decimal


class Line(msgspec.Struct, kw_only=True):
    """One line of an order: */ ends no comment."""

    article: Annotated[str, msgspec.Meta(min_length=1, max_length=20)]
    """What was bought."""
    price: Annotated[float, msgspec.Meta(ge=0)]
    parent: "Line | None" = None


class Point(msgspec.Struct, array_like=True):
    x: float
    y: float
    name: str = ""


class OrderPaid(
    Event, ShouldBroadcast, channel="orders.{order_id}", name="order.paid", version=3, kw_only=True
):
    """An order was paid.

    By whomever.
    """

    order_id: int
    token: uuid.UUID
    at: datetime.datetime
    on: datetime.date
    took: datetime.timedelta
    seal: bytes
    total: decimal.Decimal
    size: Size
    priority: Priority
    payment: Card | Cash
    lines: list[Line]
    where: Point
    pair: tuple[int, str]
    note: str | None
    flags: frozenset[str] = frozenset({"new", "gift", "urgent", "late", "b2b"})
    limits: dict[str, Annotated[int, msgspec.Meta(ge=0, le=10)]] = msgspec.field(
        default_factory=dict
    )
    by_number: dict[int, bool] = msgspec.field(default_factory=dict)
    mode: Literal["fast", "slow", 3] = "fast"
    extra: Any = None
    maybe: int | msgspec.UnsetType = msgspec.UNSET


class Tick(Event, ShouldBroadcast, channels=("ticks.>", "public"), volatile=True, name="tick ü"):
    """Broadcast wherever it likes."""

    number: int

    def broadcast_on(self) -> str:
        return "public"


class Renamed(Event, ShouldBroadcast, channel="orders.{order_id}", rename="camel"):
    order_id: int
    full_name: str

    def broadcast_with(self) -> dict[str, int]:
        return {"n": self.order_id}


class Anywhere(Event, ShouldBroadcast):
    """Its type declares neither its channels nor its data."""

    def broadcast_on(self) -> str:
        return "general"

    def broadcast_with(self):
        return 1


class Typing(Event, ClientEvent, channel="chat.{room_id}", name="typing"):
    """Somebody writes."""

    is_typing: bool


class SendInvoice(Event, ShouldQueue, queue="mail"):
    order_id: int


class StockLow(Event):
    article: str
