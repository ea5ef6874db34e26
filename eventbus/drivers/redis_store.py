"""The streams: a channel's messages written and read by the scripts of redis_script."""

import asyncio
import secrets
from typing import NamedTuple

from eventbus.channels import Pattern
from eventbus.config import Settings
from eventbus.drivers.base import Delivery, Page, Position
from eventbus.drivers.redis_errors import mapped
from eventbus.drivers.redis_node import Node
from eventbus.drivers.redis_nodes import Nodes
from eventbus.drivers.redis_script import MAX_IDS, META_S, PURGE, READ, STORE, WINDOW_S
from eventbus.drivers.redis_wire import decode_stored, glob_of
from eventbus.retention import RetentionClass

__all__ = ["Store", "Stored"]

_SCAN = 1000
_MAX_OFFSET = 2**53 - 1  # what Lua, and a browser, count exactly


class Stored(NamedTuple):
    """Where a message is, and whether it was there before."""

    position: Position
    duplicate: bool


class Store:
    """Knows the keys and arguments of the scripts."""

    def __init__(self, nodes: Nodes, settings: Settings) -> None:
        """`settings` say how much is kept of each channel, and for how long."""
        self._retention = settings.retention_classes()
        self.meta_seconds = max(META_S, round(2 * self._retention.max_seconds))
        self._nodes = nodes
        self._root = len(f"{settings.namespace}.live.")

    async def add(self, channel: bytes, body: bytes, message_id: bytes) -> Stored:
        """Store and send. Raises ConnectionFailed, and what the server answers as RedisError."""
        sharded = "0" if self._nodes.layout.slots is None else "1"
        kept = self._class_of(channel)
        epoch, offset, duplicate = await self._nodes.evaluate(
            channel,
            STORE,
            _keys(channel),
            lambda node: (
                *self._common(node, kept), channel, sharded, body, message_id,
                kept.messages, WINDOW_S, MAX_IDS,
            ),
        )  # fmt: skip
        return Stored(Position(int(offset), epoch.decode()), bool(duplicate))

    async def read(self, subject: str, after: int | None, limit: int) -> Page:
        """What is kept; see HistoryDriver.read. Raises ConnectionFailed and RedisError.

        A channel that nobody has written to gets its epoch here.
        """
        channel = subject.encode()
        kept = self._class_of(channel)
        start = "" if after is None else str(min(max(after, 0), _MAX_OFFSET))
        epoch, last, complete, entries = await self._nodes.evaluate(
            channel,
            READ,
            _keys(channel),
            lambda node: (
                *self._common(node, kept), start, min(max(limit, 0), _MAX_OFFSET), kept.messages,
            ),
        )  # fmt: skip
        position = Position(int(last), epoch.decode())
        messages = [_delivery(subject, position.epoch, entry) for entry in entries]
        if after is None:
            messages.reverse()
        return Page(tuple(messages), position, bool(complete))

    async def purge(self, subject: str) -> int:
        """Drop a channel's stream; how many messages it had. Raises ConnectionFailed."""
        channel = subject.encode()
        with mapped(f"purging {subject} in Redis"):
            return int(await self._nodes.evaluate(channel, PURGE, _keys(channel)[:1], _nothing))

    async def kept(self, pattern: Pattern, limit: int) -> dict[str, int]:
        """How many messages each channel that matches has. Raises ConnectionFailed."""
        found: dict[str, int] = {}
        glob = b"{%b}:s" % glob_of(pattern)
        with mapped("looking for streams in Redis"):
            for node in self._nodes.all:
                cursor: bytes | int = b"0"
                while len(found) < limit:
                    cursor, keys = await node.commands.call(
                        "SCAN", cursor, "MATCH", glob, "COUNT", _SCAN, "TYPE", "stream"
                    )
                    names = [key[1:-3].decode() for key in keys]
                    matching = [name for name in names if pattern.match(name) is not None]
                    counts = await asyncio.gather(
                        *(
                            node.commands.call("XLEN", _keys(name.encode())[0])
                            for name in matching[: limit - len(found)]
                        )
                    )
                    found |= zip(matching, map(int, counts), strict=False)
                    if int(cursor) == 0:
                        break
        return found

    def _class_of(self, channel: bytes) -> RetentionClass:
        return self._retention.of(channel[self._root :].decode())

    def _common(self, node: Node, kept: RetentionClass) -> tuple[bytes | str | int, ...]:
        durable = "1" if node.durable else "0"
        return secrets.token_hex(6), node.run, durable, repr(kept.seconds), self.meta_seconds


def _keys(channel: bytes) -> list[bytes]:
    return [b"{%b}:%b" % (channel, part) for part in (b"s", b"m", b"i", b"j")]


def _delivery(subject: str, epoch: str, entry: tuple[bytes, list[bytes]]) -> Delivery:
    entry_id, fields = entry
    offset, _, micros = entry_id.partition(b"-")
    values = dict(zip(fields[::2], fields[1::2], strict=True))
    position = Position(int(offset), epoch)
    return decode_stored(subject, values[b"b"], position, int(values[b"p"]), int(micros))


def _nothing(_node: Node) -> tuple[()]:
    return ()
