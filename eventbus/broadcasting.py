"""Broadcasting in one line: the fluent builder, helpers, and the `Broadcast` facade.

    await broadcast().to_user("7").event("notification").with_({"title": "Shipped"}).send()
    await broadcast(OrderShipped(order_id=42, carrier="DHL"))
    await Broadcast.system_alert("critical", "Database connection lost", action_required=True)

All of it goes through the current bus and its driver.
"""

import datetime
import enum
from collections.abc import Awaitable, Generator, Iterable
from typing import Any, Final, overload

import msgspec

from eventbus.channels import Pattern, validate_channel
from eventbus.errors import EventFieldError
from eventbus.events import Event, current_bus
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

USER: Final = Pattern("user.{user_id}")
TEAM: Final = Pattern("team.{team_id}")
ORGANIZATION: Final = Pattern("org.{organization_id}")
SYSTEM: Final = "system"


class AlertLevel(enum.StrEnum):
    """How grave an alert is."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"
    CRITICAL = "critical"


class NotificationData(msgspec.Struct, frozen=True, kw_only=True):
    """What the receiver of a `notification` gets."""

    title: str
    message: str
    action_url: str | None
    timestamp: datetime.datetime


class AlertData(msgspec.Struct, frozen=True, kw_only=True):
    """What the receivers of an `alert` get."""

    level: AlertLevel
    message: str
    action_required: bool
    timestamp: datetime.datetime


class PendingBroadcast(msgspec.Struct, frozen=True, kw_only=True):
    """A broadcast in the making; each method gives a new one, `send` (or `await`) publishes it."""

    _channels: tuple[str, ...] = ()
    _event: str = ""
    _data: Any = None
    _volatile: bool = False
    _except: str | None = None
    _driver: str | None = None
    _delay_s: float = 0.0

    def channel(self, name: str) -> "PendingBroadcast":
        """Add a channel. Raises InvalidChannel."""
        return self.channels([name])

    def channels(self, names: Iterable[str]) -> "PendingBroadcast":
        """Add several channels; each gets one message, all of the same id."""
        added = (*self._channels, *map(validate_channel, names))
        return self._with(_channels=tuple(dict.fromkeys(added)))

    def to_user(self, user_id: str | int) -> "PendingBroadcast":
        """Add the channel `user.<user_id>`. Raises InvalidChannel for an id that is no token."""
        return self.channel(USER.fill({"user_id": str(user_id)}))

    def to_team(self, team_id: str | int) -> "PendingBroadcast":
        """Add the channel `team.<team_id>`."""
        return self.channel(TEAM.fill({"team_id": str(team_id)}))

    def to_organization(self, organization_id: str | int) -> "PendingBroadcast":
        """Add the channel `org.<organization_id>`."""
        return self.channel(ORGANIZATION.fill({"organization_id": str(organization_id)}))

    def event(self, name: str) -> "PendingBroadcast":
        """Name the event. Raises InvalidEventName."""
        return self._with(_event=validate_event_name(name))

    def with_(self, data: Any) -> "PendingBroadcast":
        """Give the data: a dict, or anything that msgspec encodes as JSON."""
        return self._with(_data=data)

    def to_others(self, connection_id: str | None) -> "PendingBroadcast":
        """Leave out the connection that caused it; None leaves out nobody."""
        return self._with(_except=connection_id)

    def volatile(self) -> "PendingBroadcast":
        """Send to whoever listens now, and store nothing."""
        return self._with(_volatile=True)

    def via(self, driver: str) -> "PendingBroadcast":
        """Use another driver than the bus's own, by its name."""
        return self._with(_driver=driver)

    def after(self, delay: float | datetime.timedelta) -> "PendingBroadcast":
        """Send it later, in seconds: it is stored in the queue, and a worker sends it.

        Needs a driver with queues, and a running worker: `eventbus queue work`.
        """
        seconds = delay.total_seconds() if isinstance(delay, datetime.timedelta) else delay
        return self._with(_delay_s=seconds)

    async def send(self) -> tuple[Receipt, ...]:
        """Publish on all channels concurrently, through the current bus.

        Gives a receipt for each channel, in their order; of the queue, for a delayed one. With one
        channel its error is raised as it is; with several, DispatchFailed holds each channel's.
        Raises ValueError when channel or event are missing, or `via` and `after` are both given,
        and what `EventBus.publish` raises.
        """
        if not self._channels or not self._event:
            lacking = "a channel" if not self._channels else "an event"
            raise ValueError(
                f"this broadcast lacks {lacking}: name both, as in "
                'broadcast().channel("general").event("news").with_({...}).send()'
            )
        if self._delay_s:
            return await self._send_later()
        bus = current_bus()
        target = bus if self._driver is None else bus.using(self._driver)
        shared = new_id()
        return await gather_receipts(
            self._channels,
            [
                target.publish(
                    channel,
                    self._event,
                    self._data,
                    volatile=self._volatile,
                    except_connection=self._except,
                    id=shared,
                )
                for channel in self._channels
            ],
        )

    async def _send_later(self) -> tuple[Receipt, ...]:
        if self._driver is not None:
            raise ValueError(
                "via() and after() do not go together: the queue's worker sends through its driver"
            )
        kind = DelayedVolatileBroadcast if self._volatile else DelayedBroadcast
        event: DelayedBroadcast = kind(
            channels=self._channels, event=self._event, data=self._data, delay_s=self._delay_s
        )
        if self._except is not None:
            event = event.to_others(self._except)
        return await current_bus().dispatch(event)

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
    """Begin a broadcast; await it, or call its methods first.

    `broadcast()` begins with nothing, `broadcast(channel, event, data)` with all it needs.
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


async def broadcast_to_user(user_id: str | int, event: str, data: Any = None) -> Receipt:
    """Publish to `user.<user_id>`."""
    return (await broadcast().to_user(user_id).event(event).with_(data))[0]


async def broadcast_to_team(team_id: str | int, event: str, data: Any = None) -> Receipt:
    """Publish to `team.<team_id>`."""
    return (await broadcast().to_team(team_id).event(event).with_(data))[0]


async def broadcast_to_organization(
    organization_id: str | int, event: str, data: Any = None
) -> Receipt:
    """Publish to `org.<organization_id>`."""
    return (await broadcast().to_organization(organization_id).event(event).with_(data))[0]


class Broadcast:
    """The facade: each way to begin a broadcast, and two that every application has."""

    @staticmethod
    def channel(name: str) -> PendingBroadcast:
        """Begin with a channel."""
        return broadcast().channel(name)

    @staticmethod
    def channels(names: Iterable[str]) -> PendingBroadcast:
        """Begin with several channels."""
        return broadcast().channels(names)

    @staticmethod
    def to_user(user_id: str | int) -> PendingBroadcast:
        """Begin with a user's channel."""
        return broadcast().to_user(user_id)

    @staticmethod
    def to_team(team_id: str | int) -> PendingBroadcast:
        """Begin with a team's channel."""
        return broadcast().to_team(team_id)

    @staticmethod
    def to_organization(organization_id: str | int) -> PendingBroadcast:
        """Begin with an organization's channel."""
        return broadcast().to_organization(organization_id)

    @staticmethod
    async def notify_user(
        user_id: str | int, title: str, message: str, action_url: str | None = None
    ) -> Receipt:
        """Send event `notification` to a user: `{title, message, action_url, timestamp}`."""
        data = NotificationData(
            title=title, message=message, action_url=action_url, timestamp=utc_now()
        )
        return await broadcast_to_user(user_id, "notification", data)

    @staticmethod
    async def system_alert(level: str, message: str, *, action_required: bool = False) -> Receipt:
        """Send event `alert` on `system`: `{level, message, action_required, timestamp}`.

        Raises EventFieldError for a level that is none of info, warning, error, critical.
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
