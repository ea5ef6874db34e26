"""Shared entries: a hash of their values, and a sorted set of their ends.

Both are in one hash slot, with a key for their generation:

    {<namespace>.state}:v   hash: entry to value
    {<namespace>.state}:e   sorted set: entry to its end, in Unix milliseconds of the server
    {<namespace>.state}:g   created with the others; a new one means lost entries

These keys have a time to live, because the entries of nodes mean nothing without nodes. Entries
that outlive a restart are in `{<namespace>.durable}:…`. Those keys have no time to live, so no
eviction policy volatile-* evicts them either.

Redis announces ends only by keyspace events, which are a setting of the server. Instead, each
driver with a watch looks for ended entries twice a second, announces and removes them.
"""

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Protocol

from redis import exceptions

from eventbus.attempts import Backoff
from eventbus.channels import Pattern
from eventbus.drivers.base import Delivery, Handler, Headers, StateHandler
from eventbus.drivers.redis.errors import DRIVER, is_denied, is_foreign, mapped
from eventbus.drivers.redis.foreign import Foreign
from eventbus.drivers.redis.nodes import Nodes
from eventbus.drivers.redis.publish import Publisher
from eventbus.drivers.redis.script import Script, make_script
from eventbus.drivers.redis.subscription import RedisSubscription
from eventbus.drivers.redis.wire import glob_of
from eventbus.drivers.state import validate_key
from eventbus.errors import (
    ConnectionFailed,
    DriverError,
    InvalidPattern,
    PublishDenied,
    PublishFailed,
)
from eventbus.tasks import Tasks

__all__ = ["LIFE_S", "RedisState"]


_log = logging.getLogger(__name__)

LIFE_S: Final = 86_400
"""Without a write in this time, the entries of nodes are dropped."""
SWEEP_S: Final = 0.5
_SCAN: Final = 1000
_HEADER: Final = "Eb-State"
_PUT: Final[Headers] = {_HEADER: "put"}
_END: Final[Headers] = {_HEADER: "end"}

_NOW: Final = """
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
"""
PUT: Final = make_script(
    _NOW
    + """
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
if ARGV[3] == '' then redis.call('ZREM', KEYS[2], ARGV[1])
else redis.call('ZADD', KEYS[2], now + tonumber(ARGV[3]), ARGV[1]) end
redis.call('SET', KEYS[3], ARGV[4], 'NX')
if ARGV[5] ~= '' then for i = 1, 3 do redis.call('EXPIRE', KEYS[i], ARGV[5]) end end
return redis.call('GET', KEYS[3])
"""
)
"""Set an entry; returns the generation."""
CLAIM: Final = make_script(
    _NOW
    + """
local held = redis.call('HGET', KEYS[1], ARGV[1])
local ends = redis.call('ZSCORE', KEYS[2], ARGV[1])
if held and held ~= ARGV[2] and not (ends and tonumber(ends) <= now) then return '' end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('ZADD', KEYS[2], now + tonumber(ARGV[3]), ARGV[1])
redis.call('SET', KEYS[3], ARGV[4], 'NX')
if ARGV[5] ~= '' then for i = 1, 3 do redis.call('EXPIRE', KEYS[i], ARGV[5]) end end
return redis.call('GET', KEYS[3])
"""
)
"""Set an entry unless it has another value; returns the generation, or nothing if it has."""
REMOVE: Final = make_script(
    _NOW
    + """
for i = 2, #ARGV do
  local ends = redis.call('ZSCORE', KEYS[2], ARGV[i])
  if ARGV[1] == 'any' or (ends and tonumber(ends) <= now) then
    redis.call('HDEL', KEYS[1], ARGV[i])
    redis.call('ZREM', KEYS[2], ARGV[i])
  end
end
return 1
""",
    " flags=allow-oom",
)
"""Remove entries: any of them, or (`ended`) only those that have ended."""
ENDED: Final = make_script(
    _NOW + "return redis.call('ZRANGE', KEYS[2], '-inf', now, 'BYSCORE')", " flags=no-writes"
)
"""The entries that have ended."""


REPAIR: Final = make_script(
    """
local aside = 0
for i, probe in ipairs({{'HLEN', KEYS[1]}, {'ZSCORE', KEYS[2], ''}, {'GET', KEYS[3]}}) do
  local found = redis.pcall(unpack(probe))
  if type(found) == 'table' and found.err then
    redis.call('RENAME', KEYS[i], KEYS[i] .. 'x')
    redis.call('EXPIRE', KEYS[i] .. 'x', 86400)
    aside = aside + 1
  end
end
return aside
"""
)
"""Rename keys of another type, with an `x` at the end; returns how many."""


class _Subscribe(Protocol):
    def __call__(self, subject: str, handler: Handler) -> Awaitable[RedisSubscription]: ...


class RedisState:
    """The entries under one root."""

    def __init__(
        self,
        nodes: Nodes,
        publisher: Publisher,
        root: str,
        *,
        subscribe: _Subscribe,
        attempt: Callable[[str, Callable[[], Awaitable[Any]]], Awaitable[Any]],
        foreign: Foreign,
        life_s: int | None,
    ) -> None:
        """`root` is the prefix of the keys, and of the subjects of changes.

        `attempt` retries while the connection is lost, for a bounded time. Without a write for
        `life_s` seconds all entries are dropped; with None they are not.
        """
        self._foreign = foreign
        self._nodes = nodes
        self._publisher = publisher
        self._subscribe = subscribe
        self._attempt = attempt
        self._subject_prefix = f"{root}."
        self._slot = root.encode()
        self._life = "" if life_s is None else str(life_s)
        self._keys = [b"{%b}:%b" % (self._slot, part) for part in (b"v", b"e", b"g")]
        self._generation = b""
        self._lost = 0
        self._tasks = Tasks()

    @property
    def losses(self) -> int:
        """Lost connections, and lost entries; see `StateStore.losses`."""
        return self._nodes.losses + self._lost

    async def put(self, key: str, value: bytes, *, ttl_s: float | None = None) -> None:
        """Set an entry; see `StateStore.put`."""
        validate_key(key)
        ttl = "" if ttl_s is None else str(round(max(ttl_s, 1.0) * 1000))
        name = key.encode()
        generation = await self._write(key, PUT, name, value, ttl, secrets.token_hex(6), self._life)
        await self._written(key, value, generation)
        if not self._life:  # without a watch, nobody else removes ended ones
            await self._remove_ended()

    async def claim(self, key: str, value: bytes, *, ttl_s: float) -> bool:
        """Set an entry unless it has another value; see `StateStore.claim`."""
        validate_key(key)
        ttl = str(round(max(ttl_s, 1.0) * 1000))
        name = key.encode()
        token = secrets.token_hex(6)
        generation = await self._write(key, CLAIM, name, value, ttl, token, self._life)
        if generation:
            await self._written(key, value, generation)
        return bool(generation)

    async def _written(self, key: str, value: bytes, generation: bytes) -> None:
        if self._generation not in {b"", generation}:
            self._lost += 1
        self._generation = generation
        await self._publisher.send(self._subject_prefix + key, value, _PUT)

    async def delete(self, key: str) -> None:
        """Delete an entry; see `StateStore.delete`."""
        validate_key(key)
        await self._write(key, REMOVE, "any", key.encode())
        await self._publisher.send(self._subject_prefix + key, b"", _END)

    async def entries(self, pattern: str) -> Mapping[str, bytes]:
        """Entries by their keys; see `StateStore.entries`."""
        parsed = Pattern(pattern)
        found: dict[bytes, bytes] = await self._attempt(
            f"reading entries of {pattern}", lambda: self._scan(glob_of(parsed))
        )
        entries = {self._name(key): value for key, value in found.items()}
        return {
            key: value for key, value in entries.items() if key and parsed.match(key) is not None
        }

    async def watch(self, pattern: str, handler: StateHandler) -> RedisSubscription:
        """Watch writes and ends of entries; see `StateStore.watch`."""
        skip = len(self._subject_prefix)

        def receive(delivery: Delivery) -> None:
            what = delivery.headers.get(_HEADER)
            if what in {"put", "end"}:
                handler(delivery.subject[skip:], delivery.payload if what == "put" else None)

        subscription = await self._subscribe(
            self._subject_prefix + Pattern(pattern).filter, receive
        )
        if not self._tasks:
            self._tasks.keep(self._sweep, "removing ended entries from Redis")
        return subscription

    async def aclose(self) -> None:
        """Stop looking for ended entries."""
        await self._tasks.aclose()

    async def _write(self, key: str, script: Script, *args: bytes | str | int) -> Any:
        try:
            return await self._attempt(f"setting {key}", lambda: self._evaluate(script, *args))
        except ConnectionFailed as exc:
            kind = PublishDenied if is_denied(exc) else PublishFailed
            raise kind(str(exc), driver=DRIVER) from exc

    async def _evaluate(self, script: Script, *args: bytes | str | int) -> Any:
        with mapped(f"changing {self._subject_prefix}"):
            try:
                return await self._run(script, *args)
            except exceptions.ResponseError as exc:
                if script is ENDED or not is_foreign(exc):
                    raise
                aside = await self._run(REPAIR)
                self._foreign.note(
                    "%d keys of %s had foreign content and were renamed, with an x at the end: %s",
                    aside, self._subject_prefix, exc,
                )  # fmt: skip
                return await self._run(script, *args)

    async def _run(self, script: Script, *args: bytes | str | int) -> Any:
        return await self._nodes.evaluate(self._slot, script, self._keys, lambda _node: args)

    def _name(self, key: bytes) -> str:
        """The key of an entry; empty for foreign data that is not a valid key."""
        try:
            return validate_key(key.decode())
        except (UnicodeDecodeError, InvalidPattern):
            self._foreign.note(
                "an entry of %s has a name that is not a key: %.80r", self._subject_prefix, key
            )
            return ""

    async def _scan(self, glob: bytes) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        ended = await self._evaluate(ENDED)
        cursor = b"0"
        with mapped(f"reading {self._subject_prefix}"):
            while True:
                node = self._nodes.of(self._slot)
                cursor, flat = await node.commands.call(
                    "HSCAN", self._keys[0], cursor, "MATCH", glob, "COUNT", _SCAN
                )
                found.update(zip(flat[::2], flat[1::2], strict=True))
                if cursor == b"0":
                    break
        for key in ended:
            found.pop(key, None)
        return found

    async def _sweep(self) -> None:
        pause = Backoff(SWEEP_S, SWEEP_S, jitter=0.3)
        while True:
            await asyncio.sleep(pause.next())
            await self._remove_ended()

    async def _remove_ended(self) -> None:
        try:
            ended = await self._evaluate(ENDED)
            # Announced before their removal: if this process dies in between, another does both.
            for key in ended:
                if name := self._name(key):
                    await self._publisher.send(self._subject_prefix + name, b"", _END)
            if ended:
                await self._evaluate(REMOVE, "ended", *ended)
        except DriverError as exc:  # the next round tries again
            _log.debug("looking for ended entries: %s", exc)
