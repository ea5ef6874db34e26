"""Stored messages of a channel, for services: where the channel ends, and what is stored there."""

import datetime
from typing import Any, Final, cast

import msgspec

from eventbus.drivers import (
    Capability,
    Delivery,
    Driver,
    HistoryDriver,
    MarkedPosition,
    Page,
    Position,
    mark_of,
    read_from,
)
from eventbus.errors import InvalidPayload, NotSupported
from eventbus.events.decoding import parse_time, read_delivery
from eventbus.messages import json_decoder, utc_now

__all__ = [
    "MAX_HISTORY",
    "ChannelPosition",
    "HistoryPage",
    "StoredMessage",
    "read_history",
    "read_position",
]

MAX_HISTORY: Final = 1000
"""The most messages of one page."""


class ChannelPosition(msgspec.Struct, frozen=True, omit_defaults=True):
    """A position in a channel: a client that subscribes with it receives what was stored later.

    As JSON it is the `data` of the action `subscribe` (docs/wire-protocol.md).
    """

    offset: int
    epoch: str
    mark: str | None = None
    """Identifies the message at the offset, for the case that the stream goes back in time."""

    def as_dict(self) -> dict[str, Any]:
        """The position as a dict for JSON, without a mark that is None."""
        return cast(dict[str, Any], msgspec.to_builtins(self))


class StoredMessage(msgspec.Struct, frozen=True, kw_only=True):
    """One stored message."""

    channel: str
    event: str
    data: Any
    """The decoded JSON."""
    timestamp: datetime.datetime
    """The publisher's time, or else the time at which it was stored."""
    id: str | None
    position: ChannelPosition

    @property
    def offset(self) -> int:
        """The message's offset in its stream."""
        return self.position.offset

    @property
    def epoch(self) -> str:
        """The epoch of the stream that assigned the offset."""
        return self.position.epoch


class HistoryPage(msgspec.Struct, frozen=True, kw_only=True):
    """Stored messages of one channel, in order. Payloads that are not messages are left out."""

    messages: tuple[StoredMessage, ...]
    position: ChannelPosition
    """Where to continue: pass it as `since` of the next page."""
    has_more: bool
    """Whether the limit has left messages out after these."""
    complete: bool
    """False if messages after `since` are, or may be, no longer stored."""


class _Body(msgspec.Struct):
    data: Any
    timestamp: str


_decode: Final = json_decoder(_Body)


async def read_position(driver: Driver, live: str) -> ChannelPosition:
    """The end of a live subject. Raises NotSupported and ConnectionFailed.

    A subscription is what fixes it: on Redis, a channel without messages gets its epoch by one.
    """
    reader = _reader(driver)
    subscription = await reader.subscribe(live, _ignore)
    try:
        position = subscription.position
    finally:
        await subscription.aclose()
    if position is None:
        raise NotSupported(f"no stream of {driver.name} stores {live}", driver=driver.name)
    return _position(position, mark_of(position))


async def read_history(
    driver: Driver, channel: str, live: str, limit: int, since: int | ChannelPosition | None
) -> HistoryPage:
    """A page of a channel's messages; see `EventBus.history`."""
    reader = _reader(driver)
    if not 1 <= limit <= MAX_HISTORY:
        raise ValueError(f"limit is {limit}; allowed: 1 to {MAX_HISTORY}")
    page = await _read(reader, live, limit, since)
    end = _position(page.position, mark_of(page.position))
    if since is None and not page.messages:
        end = await read_position(reader, live)  # with an epoch that lasts
        page = await reader.read(live, after=end.offset, limit=limit)
    has_more = False
    if page.messages:
        last = page.messages[-1]
        assert last.position is not None, "a stored message has a position"
        if since is not None and len(page.messages) == limit:
            has_more = last.position.offset < page.position.offset
        if has_more or last.position.offset > end.offset:
            end = _position(last.position, last.time)
    found = (_message(channel, delivery) for delivery in page.messages)
    return HistoryPage(
        messages=tuple(message for message in found if message is not None),
        position=end,
        has_more=has_more,
        complete=page.complete,
    )


async def _read(
    reader: HistoryDriver, live: str, limit: int, since: int | ChannelPosition | None
) -> Page:
    if not isinstance(since, ChannelPosition):
        return await reader.read(live, after=since, limit=limit)
    place = Position(since.offset, since.epoch)
    if since.mark is not None:
        place = MarkedPosition(*place, since.mark)
    return await read_from(reader, live, place, limit)


def _reader(driver: Driver) -> HistoryDriver:
    if Capability.HISTORY not in driver.capabilities:
        raise NotSupported(f"the driver {driver.name} stores no messages", driver=driver.name)
    return cast(HistoryDriver, driver)


def _position(position: Position, mark: str | None) -> ChannelPosition:
    return ChannelPosition(position.offset, position.epoch, mark)


def _message(channel: str, delivery: Delivery) -> StoredMessage | None:
    """The message of a delivery; None for a payload that is not one."""
    try:
        envelope = read_delivery(channel, delivery)
        body = _decode(envelope.body)
    except (InvalidPayload, msgspec.DecodeError):
        return None
    assert delivery.position is not None, "a stored message has a position"
    return StoredMessage(
        channel=channel,
        event=envelope.event,
        data=body.data,
        timestamp=parse_time(body.timestamp) or parse_time(delivery.time) or utc_now(),
        id=envelope.id,
        position=_position(delivery.position, delivery.time),
    )


def _ignore(_delivery: Delivery) -> None:
    """Do nothing: the subscription's position is all that is wanted."""
