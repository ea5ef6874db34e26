"""Broadcasting in one line: the fluent builder, helpers, and the `Broadcast` facade.

    await broadcast().to_user("7").event("notification").with_({"title": "Shipped"}).send()
    await broadcast(OrderShipped(order_id=42, carrier="DHL"))
    await Broadcast.system_alert("critical", "Database connection lost", action_required=True)

All of it goes through the current bus and its driver.
"""

import datetime
import enum
import uuid
from collections.abc import Awaitable, Generator, Iterable
from typing import Annotated, Any, Final, TypeVar, overload

import msgspec

from eventbus.channels import Pattern, user_channel, validate_channel
from eventbus.errors import EventFieldError
from eventbus.events import Event, can_rescue, current, current_bus
from eventbus.messages import Receipt, gather_receipts, new_id, utc_now, validate_event_name
from eventbus.queue import DelayedBroadcast, DelayedVolatileBroadcast

__all__ = [
    "AlertData",
    "AlertLevel",
    "Broadcast",
    "NotificationData",
    "PendingBroadcast",
    "broadcast",
    "broadcast_to_channel",
    "broadcast_to_organization",
    "broadcast_to_team",
    "broadcast_to_user",
]

T = TypeVar("T")

TEAM: Final = Pattern("team.{team_id}")
ORGANIZATION: Final = Pattern("org.{organization_id}")
SYSTEM: Final = "system"
Moment = Annotated[datetime.datetime, msgspec.Meta(tz=True)]
Id = str | int | uuid.UUID
"""An id of a user, a team or an organization; enums of these are allowed too."""


class AlertLevel(enum.StrEnum):
    """The severity of an alert."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"
    CRITICAL = "critical"


class NotificationData(msgspec.Struct, frozen=True, kw_only=True):
    """The data of a `notification`."""

    title: str
    message: str
    action_url: str | None
    timestamp: Moment


class AlertData(msgspec.Struct, frozen=True, kw_only=True):
    """The data of an `alert`."""

    level: AlertLevel
    message: str
    action_required: bool
    timestamp: Moment


class PendingBroadcast(msgspec.Struct, frozen=True, kw_only=True):
    """A broadcast to build: methods return a new one, `send` (or `await`) publishes it."""

    _channels: tuple[str, ...] = ()
    _event: str = ""
    _data: Any = None
    _volatile: bool = False
    _except: str | None = None
    _driver: str | None = None
    _delay_s: float = 0.0
    _rescue: bool = False

    def channel(self, name: str) -> "PendingBroadcast":
        """Add a channel. Raises InvalidChannel."""
        return self.channels([name])

    def channels(self, names: Iterable[str]) -> "PendingBroadcast":
        """Add several channels; each gets one message, all with the same id."""
        names = (names,) if isinstance(names, str) else names
        added = (*self._channels, *map(validate_channel, names))
        return self._with(_channels=tuple(dict.fromkeys(added)))

    def to_user(self, user_id: Id) -> "PendingBroadcast":
        """Add the channel `user.<user_id>`; other characters are escaped: see `user_channel`.

        Raises InvalidChannel for an id that is empty, too long, or of another type.
        """
        return self.channel(user_channel(user_id))

    def to_team(self, team_id: Id) -> "PendingBroadcast":
        """Add the channel `team.<team_id>`, in the same way."""
        return self.channel(TEAM.fill({"team_id": team_id}))

    def to_organization(self, organization_id: Id) -> "PendingBroadcast":
        """Add the channel `org.<organization_id>`, in the same way."""
        return self.channel(ORGANIZATION.fill({"organization_id": organization_id}))

    def event(self, name: str) -> "PendingBroadcast":
        """Set the event name. Raises InvalidEventName."""
        return self._with(_event=validate_event_name(name))

    def with_(self, data: Any) -> "PendingBroadcast":
        """Set the data: a dict, or anything that msgspec encodes as JSON."""
        return self._with(_data=data)

    def to_others(
        self, connection_id: str | current.CurrentType | None = current.CURRENT
    ) -> "PendingBroadcast":
        """Exclude the client connection that caused it; None excludes nobody.

        Without an argument, it is that of the current web request; see `Event.to_others`.
        """
        if isinstance(connection_id, current.CurrentType):
            connection_id = current.current_connection()
        return self._with(_except=connection_id)

    def volatile(self) -> "PendingBroadcast":
        """Send to current subscribers only, and store nothing."""
        return self._with(_volatile=True)

    def via(self, driver: str) -> "PendingBroadcast":
        """Publish through another driver than the bus's own, by name."""
        return self._with(_driver=driver)

    def after(self, delay: float | datetime.timedelta) -> "PendingBroadcast":
        """Publish it later, after that many seconds: a queue stores it, and a worker publishes it.

        Needs a driver with queues, and a running worker: `eventbus queue work`.
        """
        seconds = delay.total_seconds() if isinstance(delay, datetime.timedelta) else delay
        return self._with(_delay_s=seconds)

    def rescue(self) -> "PendingBroadcast":
        """Log and count an error of the broker, and do not raise it: see `EventBus.rescued`.

        What could not be sent has no receipt.
        """
        return self._with(_rescue=True)

    async def send(self) -> tuple[Receipt, ...]:
        """Publish on all channels concurrently, through the current bus.

        Returns a receipt for each channel, in order; for a delayed one, that of the queue. The
        error of a single channel is raised as it is; with several, DispatchFailed has the error of
        each channel. Raises ValueError if the channel or the event is missing, or if both `via` and
        `after` are given, and otherwise as `EventBus.publish` does.
        """
        if not self._channels or not self._event:
            missing = "a channel" if not self._channels else "an event"
            raise ValueError(
                f"this broadcast lacks {missing}: give both, as in "
                'broadcast().channel("general").event("news").with_({...}).send()'
            )
        if self._delay_s:
            return await self._send_later()
        bus = current_bus()
        target = bus if self._driver is None else bus.using(self._driver)
        shared = new_id()
        sends = [
            target.publish(
                channel,
                self._event,
                self._data,
                volatile=self._volatile,
                except_connection=self._except,
                id=shared,
            )
            for channel in self._channels
        ]
        if not self._rescue:
            return await gather_receipts(self._channels, sends)
        return await gather_receipts(
            self._channels,
            [
                self._rescued(bus, channel, send)
                for channel, send in zip(self._channels, sends, strict=True)
            ],
        )

    async def _rescued(
        self, bus: current.Dispatcher, destination: str, send: Awaitable[T]
    ) -> T | None:
        try:
            return await send
        except Exception as exc:
            if not can_rescue(exc):
                raise
            bus.report_rescued(self._event, destination, exc)
            return None

    def send_sync(self) -> tuple[Receipt, ...]:
        """Send from code without an event loop; see `Event.dispatch_sync`."""
        return current.run_blocking(self.send)

    async def _send_later(self) -> tuple[Receipt, ...]:
        if self._driver is not None:
            raise ValueError(
                "via() and after() exclude each other: the worker publishes through its own driver"
            )
        kind = DelayedVolatileBroadcast if self._volatile else DelayedBroadcast
        event: DelayedBroadcast = kind(
            channels=self._channels, event=self._event, data=self._data, delay_s=self._delay_s
        )
        if self._except is not None:
            event = event.to_others(self._except)
        bus = current_bus()
        if not self._rescue:
            return await bus.dispatch(event)
        return await self._rescued(bus, f"queue {event.queue_on()}", bus.dispatch(event)) or ()

    def __await__(self) -> Generator[Any, None, tuple[Receipt, ...]]:
        return self.send().__await__()

    def _with(self, **changes: Any) -> "PendingBroadcast":
        return msgspec.structs.replace(self, **changes)


@overload
def broadcast() -> PendingBroadcast: ...
@overload
def broadcast(event: Event, /) -> Awaitable[tuple[Receipt, ...]]: ...
@overload
def broadcast(channel: str, event: str, data: Any = None, /) -> PendingBroadcast: ...
def broadcast(
    what: Event | str | None = None, event: str = "", data: Any = None, /
) -> PendingBroadcast | Awaitable[tuple[Receipt, ...]]:
    """Start a broadcast; await it, or call its methods first.

    `broadcast()` starts an empty one, `broadcast(channel, event, data)` a complete one.
    `broadcast(event)` dispatches a typed event, as `event.dispatch()` does.
    """
    if isinstance(what, Event):
        return current_bus().dispatch(what)
    pending = PendingBroadcast()
    if what is None:
        return pending
    return pending.channel(what).event(event).with_(data)


async def broadcast_to_channel(channel: str, event: str, data: Any = None) -> Receipt:
    """Publish to one channel."""
    return (await broadcast(channel, event, data))[0]


async def broadcast_to_user(user_id: Id, event: str, data: Any = None) -> Receipt:
    """Publish to `user.<user_id>`."""
    return (await broadcast().to_user(user_id).event(event).with_(data))[0]


async def broadcast_to_team(team_id: Id, event: str, data: Any = None) -> Receipt:
    """Publish to `team.<team_id>`."""
    return (await broadcast().to_team(team_id).event(event).with_(data))[0]


async def broadcast_to_organization(organization_id: Id, event: str, data: Any = None) -> Receipt:
    """Publish to `org.<organization_id>`."""
    return (await broadcast().to_organization(organization_id).event(event).with_(data))[0]


class Broadcast:
    """A facade: the ways to start a broadcast, and two common broadcasts."""

    @staticmethod
    def channel(name: str) -> PendingBroadcast:
        """Start with a channel."""
        return broadcast().channel(name)

    @staticmethod
    def channels(names: Iterable[str]) -> PendingBroadcast:
        """Start with several channels."""
        return broadcast().channels(names)

    @staticmethod
    def to_user(user_id: Id) -> PendingBroadcast:
        """Start with a user's channel."""
        return broadcast().to_user(user_id)

    @staticmethod
    def to_team(team_id: Id) -> PendingBroadcast:
        """Start with a team's channel."""
        return broadcast().to_team(team_id)

    @staticmethod
    def to_organization(organization_id: Id) -> PendingBroadcast:
        """Start with an organization's channel."""
        return broadcast().to_organization(organization_id)

    @staticmethod
    async def notify_user(
        user_id: Id, title: str, message: str, action_url: str | None = None
    ) -> Receipt:
        """Send event `notification` to a user: `{title, message, action_url, timestamp}`."""
        data = NotificationData(
            title=title, message=message, action_url=action_url, timestamp=utc_now()
        )
        return await broadcast_to_user(user_id, "notification", data)

    @staticmethod
    async def system_alert(level: str, message: str, *, action_required: bool = False) -> Receipt:
        """Send event `alert` on `system`: `{level, message, action_required, timestamp}`.

        Raises EventFieldError for a level other than info, warning, error, critical.
        """
        try:
            checked = AlertLevel(level)
        except ValueError:
            allowed = ", ".join(AlertLevel)
            raise EventFieldError(
                f"event 'alert': field 'level': {level!r} is not a level; allowed are {allowed}",
                event="alert",
                field="level",
            ) from None
        data = AlertData(
            level=checked, message=message, action_required=action_required, timestamp=utc_now()
        )
        return await broadcast_to_channel(SYSTEM, "alert", data)
