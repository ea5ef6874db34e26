"""The streams: writes and reads a channel's messages by the scripts of `script`."""

import asyncio
import collections
import logging
import secrets
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import msgspec
from redis import exceptions
from redis.crc import key_slot

from eventbus.channels import Pattern
from eventbus.config import Settings
from eventbus.drivers.base import Delivery, Page, Position
from eventbus.drivers.redis.errors import is_foreign, mapped
from eventbus.drivers.redis.foreign import Foreign
from eventbus.drivers.redis.node import Node
from eventbus.drivers.redis.nodes import Nodes
from eventbus.drivers.redis.script import (
    FOUND,
    MAX_IDS,
    PURGE,
    READ,
    RENEW,
    REPAIR,
    STORE,
    WINDOW_S,
    Script,
)
from eventbus.drivers.redis.wire import decode_stored, glob_of

__all__ = ["Store", "Stored"]


_log = logging.getLogger(__name__)

MAX_SEEN: Final = 10_000
"""Channels whose last known position is remembered."""
SEEN_S: Final = 3600.0
_SCAN = 1000
_MAX_OFFSET = 2**53 - 1  # the largest integer that is exact in Lua and browsers


class Stored(NamedTuple):
    """The position of a message, and whether it was stored before."""

    position: Position
    duplicate: bool


class _Seen(NamedTuple):
    position: Position
    at: float


class Store:
    """Runs the scripts with their keys and arguments."""

    def __init__(self, nodes: Nodes, settings: Settings, foreign: Foreign) -> None:
        """`settings` limit the stored messages of each channel in number and time."""
        self._retention = settings.retention_classes()
        self._nodes = nodes
        self._foreign = foreign
        self._live = f"{settings.namespace}.live."
        self._tags = _Tags(self._live)
        self._seen: collections.OrderedDict[bytes, _Seen] = collections.OrderedDict()

    async def add(self, channel: bytes, body: bytes, message_id: bytes) -> Stored:
        """Store and send. Raises ConnectionFailed, and error replies as RedisError."""
        sharded = "0" if self._nodes.layout.slots is None else "1"
        retention = self._retention.of(channel[len(self._live) :].decode())

        async def store() -> Any:
            seen = self._seen.get(channel)
            if seen is None or time.monotonic() - seen.at > SEEN_S:
                epoch, last = "", 0
            else:
                last, epoch = seen.position
            return await self._run(
                STORE, channel, epoch, last, channel, sharded, body, message_id,
                retention.messages, repr(retention.seconds), WINDOW_S, MAX_IDS,
            )  # fmt: skip

        node = self._nodes.of(channel)
        try:
            epoch, offset, duplicate = await store()
        except exceptions.ResponseError as exc:
            if not is_foreign(exc):
                raise
            aside = await self._run(REPAIR, channel)
            self._foreign.note(
                "keys of %s had foreign content; %d were renamed, with an x at the end: %s",
                channel.decode(), aside, exc,
            )  # fmt: skip
            epoch, offset, duplicate = await store()
        await node.wait_replicas()
        position = Position(int(offset), epoch.decode())
        self._note(channel, position)
        return Stored(position, bool(duplicate))

    async def read(self, subject: str, after: int | None, limit: int) -> Page:
        """Read stored messages; see HistoryDriver.read. Raises ConnectionFailed and RedisError.

        It changes nothing, except that a stream that lost a known offset gets another epoch.
        """
        page, _ = await self._read(subject, after, limit)
        seen = self._seen.get(subject.encode())
        if (
            seen is not None
            and seen.position.epoch == page.position.epoch
            and seen.position.offset > page.position.offset
        ):
            await self._renew(subject, seen.position)
            page, _ = await self._read(subject, after, limit)
        return page

    async def begin(self, subject: str) -> Position:
        """The start position of a new subscription. Raises as `read` does.

        A channel without messages keeps the epoch that it gets here.
        """
        page, is_known = await self._read(subject, None, 0)
        if not is_known:
            await self._run(FOUND, subject.encode())
            page, _ = await self._read(subject, None, 0)
        return page.position

    async def follow(self, subject: str, position: Position, limit: int) -> Page:
        """The messages after a subscription's position. Raises as `read` does.

        A stream that lost this position gets another epoch.
        """
        page, is_known = await self._read(subject, position.offset, limit)
        if not is_known:
            await self._run(FOUND, subject.encode())
            page, _ = await self._read(subject, position.offset, limit)
        has_gone_back = page.position.epoch == position.epoch and (
            page.position.offset < position.offset
            or (len(page.messages) > 0 and (page.messages[0].previous or 0) < position.offset)
        )
        if has_gone_back:
            await self._renew(subject, position)
            page, _ = await self._read(subject, position.offset, limit)
        return page

    async def _renew(self, subject: str, seen: Position) -> None:
        """Give a stream that lost a known offset another epoch.

        Another process may have done it already: read the stream again in any case.
        """
        channel = subject.encode()
        if await self._run(RENEW, channel, seen.epoch, seen.offset):
            self._seen.pop(channel, None)
            _log.warning(
                "%s was set back to before offset %d: Redis has lost messages",
                subject, seen.offset,
            )  # fmt: skip

    async def _read(self, subject: str, after: int | None, limit: int) -> tuple[Page, bool]:
        """A page, and whether its epoch is stored, and so the same for everybody."""
        limit = min(max(limit, 0), _MAX_OFFSET)
        start = None if after is None else min(max(after, 0), _MAX_OFFSET)
        messages: list[Delivery] = []
        complete: bool | None = None
        while True:
            batch_size = limit - len(messages)
            epoch, last, is_complete, entries, is_known = await self._run(
                READ, subject.encode(), "" if start is None else start, batch_size
            )
            position = Position(int(last), epoch.decode())
            complete = bool(is_complete) if complete is None else complete
            for entry in entries:
                try:
                    messages.append(_delivery(subject, position.epoch, entry))
                except (ValueError, KeyError, OverflowError, OSError, msgspec.MsgspecError) as exc:
                    self._foreign.note(
                        "an entry of the stream of %s is not a message: %r: %r",
                        subject, entry[0], exc,
                    )  # fmt: skip
            # A reader of several pages takes one with less than its limit for the last.
            if start is None or len(entries) < batch_size or len(messages) == limit:
                break
            start = int(entries[-1][0].split(b"-")[0])
        if after is None:
            messages.reverse()
        return Page(tuple(messages), position, complete), bool(is_known)

    async def purge(self, subject: str) -> int:
        """Delete a channel's stream; returns how many messages it had. Raises ConnectionFailed."""
        channel = subject.encode()
        with mapped(f"purging {subject} in Redis"):
            return int(
                await self._nodes.evaluate(channel, PURGE, self._keys(channel)[:1], lambda _: ())
            )

    async def kept(self, pattern: Pattern, limit: int) -> dict[str, int]:
        """The number of messages of each matching channel. Raises ConnectionFailed."""
        found: dict[str, int] = {}
        glob = b"{%b}:s" % glob_of(pattern)
        with mapped("looking for streams in Redis"):
            for node in self._nodes.all:
                cursor: bytes | int = b"0"
                while len(found) < limit:
                    cursor, keys = await node.commands.call(
                        "SCAN", cursor, "MATCH", glob, "COUNT", _SCAN, "TYPE", "stream"
                    )
                    names = [key[1:-3].decode(errors="replace") for key in keys]
                    matching = [name for name in names if pattern.match(name) is not None]
                    counts = await asyncio.gather(
                        *(
                            node.commands.call("XLEN", b"{%b}:s" % name.encode())
                            for name in matching[: limit - len(found)]
                        )
                    )
                    found |= zip(matching, map(int, counts), strict=False)
                    if int(cursor) == 0:
                        break
        return found

    def _note(self, channel: bytes, position: Position) -> None:
        """Remember a stream's position; an older answer may arrive after a newer one."""
        known = self._seen.get(channel)
        if (
            known is None
            or known.position.epoch != position.epoch
            or known.position.offset <= position.offset
        ):
            self._seen[channel] = _Seen(position, time.monotonic())
            self._seen.move_to_end(channel)
            if len(self._seen) > MAX_SEEN:
                self._seen.popitem(last=False)

    async def _run(self, script: Script, channel: bytes, *args: bytes | str | int) -> Any:
        return await self._nodes.evaluate(channel, script, self._keys(channel), _common(args))

    def _keys(self, channel: bytes) -> list[bytes]:
        tag = self._live if self._nodes.layout.slots is None else self._tags.of(key_slot(channel))
        keys = [b"{%b}:%b" % (channel, part) for part in (b"s", b"m", b"i", b"j")]
        return [*keys, b"{%b}:e" % tag.encode()]


def _common(args: tuple[bytes | str | int, ...]) -> Callable[[Node], tuple[bytes | str | int, ...]]:
    return lambda node: (
        secrets.token_hex(6), node.run, "1" if node.durable else "0", *args,
    )  # fmt: skip


class _Tags:
    """A hash tag for each slot of a cluster. With its `#` it is never a channel."""

    def __init__(self, live: str) -> None:
        self._live = live
        self._tags: dict[int, str] = {}
        self._next = 0

    def of(self, slot: int) -> str:
        """The tag of this slot. Finding all of them takes half a second, so they are cached."""
        while slot not in self._tags:
            tag = f"{self._live}#{self._next:x}"
            self._next += 1
            self._tags.setdefault(key_slot(tag.encode()), tag)
        return self._tags[slot]


def _delivery(subject: str, epoch: str, entry: tuple[bytes, list[bytes]]) -> Delivery:
    entry_id, fields = entry
    offset, _, micros = entry_id.partition(b"-")
    values = dict(zip(fields[::2], fields[1::2], strict=True))
    position = Position(int(offset), epoch)
    return decode_stored(subject, values[b"b"], position, int(values[b"p"]), int(micros))
