"""Entries that all processes see: a KV bucket, which republishes its changes.

There are two: what nodes can report again lies in memory, what must outlive a restart on disk.

Watchers are plain subscriptions to what the bucket republishes, ends and expiries included, and
leave nothing at the server. The layout is that of NATS's ADR-8 (`nats kv ls <NAMESPACE>_STATE`, or
`<NAMESPACE>_DURABLE`, shows the entries), expiry is that of ADR-43 and ADR-48.
"""

import asyncio
import logging
import math
from collections.abc import (
    Awaitable,
    Callable,
    Mapping,
)
from typing import (
    Any,
    Final,
    Literal,
)

import msgspec

from eventbus.channels import Pattern
from eventbus.config import Settings
from eventbus.drivers.base import (
    NO_HEADERS,
    Headers,
    Position,
    StateHandler,
)
from eventbus.drivers.nats.client import WireHeaders
from eventbus.drivers.nats.connection import (
    Listening,
    NatsConnection,
)
from eventbus.drivers.nats.errors import DRIVER
from eventbus.drivers.nats.jetstream import (
    ensure_stream,
    newest,
)
from eventbus.drivers.nats.publish import (
    Ack,
    Publisher,
)
from eventbus.drivers.state import validate_key
from eventbus.errors import (
    ConnectionFailed,
    PublishFailed,
    StreamMismatch,
)

__all__ = ["NatsState", "NatsWatch", "bucket_config", "bucket_faults"]


_log = logging.getLogger(__name__)

MAX_ENTRIES: Final = 500_000
MAX_ENTRY_BYTES: Final = 64 * 1024
MARKER_S: Final = 60
"""How long the mark of an ended entry stays, for who reads in that moment."""
_PUT_S: Final = 1.0
"""After so long without an acknowledgement, the bucket itself is looked at."""
_MAX_TTL_S: Final = 100 * 365 * 86_400.0
_PAUSE_S: Final = 0.1
_BATCH: Final = 500
_NANO: Final = 1_000_000_000
_ENDS: Final = ("204", "404")
_EXPECTED: Final = "Nats-Expected-Last-Subject-Sequence"
_MUST_FIT: Final = ("subjects", "republish", "allow_direct", "allow_msg_ttl")

Purpose = Literal["state", "durable"]
"""What a bucket is for: what nodes can report again, or what must outlive a restart."""


def bucket_config(settings: Settings, purpose: Purpose) -> dict[str, Any]:
    """The stream of a bucket, as JetStream's API is given it to make it."""
    namespace = settings.namespace
    bucket = f"{namespace.upper()}_{purpose.upper()}"
    return {
        "name": f"KV_{bucket}",
        "subjects": [f"$KV.{bucket}.>"],
        "republish": {"src": f"$KV.{bucket}.>", "dest": f"{namespace}.{purpose}.>"},
        "storage": "file" if purpose == "durable" else "memory",
        "discard": "new",
        "max_msgs": MAX_ENTRIES,
        "max_msg_size": MAX_ENTRY_BYTES,
        "max_msgs_per_subject": 1,
        "num_replicas": settings.history_replicas,
        "allow_direct": True,
        "allow_rollup_hdrs": True,
        "allow_msg_ttl": True,
        "subject_delete_marker_ttl": MARKER_S * _NANO,
        "deny_delete": True,
        "duplicate_window": 10 * _NANO,
    }


def bucket_faults(
    wanted: Mapping[str, Any], found: Mapping[str, Any]
) -> tuple[list[str], str | None]:
    """The settings of a bucket that cannot work, and what makes it less safe than it is to be.

    A bucket on disk whose stream lies in memory, made so by hand, would lose what must not be lost.
    """
    must_fit = (*_MUST_FIT, "storage") if wanted["storage"] == "file" else _MUST_FIT
    wrong = [name for name in must_fit if found.get(name) != wanted[name]]
    copies = found.get("num_replicas", 1)
    if wanted["storage"] != "file" or copies >= wanted["num_replicas"]:
        return wrong, None
    return wrong, f"stream {wanted['name']} has {copies} copies, not {wanted['num_replicas']}"


class NatsState:
    """A bucket, made when it is first needed."""

    def __init__(
        self,
        connection: NatsConnection,
        settings: Settings,
        settle: Callable[[str], Awaitable[None]],
        purpose: Purpose = "state",
    ) -> None:
        """`settle` waits until the server has taken a subscription to what it is given."""
        self.losses = 0
        self.fault = ""
        """Why the last entry could not be stored; empty where it could."""
        self._config = bucket_config(settings, purpose)
        self.name: str = self._config["name"]
        self._root = f"$KV.{self.name.removeprefix('KV_')}."
        self._told = f"{settings.namespace}.{purpose}."
        self._connection = connection
        self._publisher = Publisher(connection, _PUT_S)
        self._settle = settle
        self._timeout = settings.connect_timeout
        self._put_timeout = settings.publish_timeout
        self._created = ""
        self._last = 0
        self._breaks = 0
        self._sure = False
        self._is_replicated = False
        self._making = asyncio.Lock()

    def on_lost(self) -> None:
        """The connection was lost: changes pass untold, and the bucket may be gone."""
        self.losses += 1
        self._breaks += 1
        self._sure = False

    async def put(self, key: str, value: bytes, *, ttl_s: float | None = None) -> None:
        """Set an entry; see `StateStore.put`. A time to live is rounded up to whole seconds."""
        headers = NO_HEADERS if ttl_s is None else {"Nats-TTL": _ttl(ttl_s)}
        await self._write(key, value, headers)

    async def claim(self, key: str, value: bytes, *, ttl_s: float) -> bool:
        """Set an entry unless it has another value; see `StateStore.claim`.

        It is written on the condition that nobody has written since it was read (the header
        Nats-Expected-Last-Subject-Sequence).
        """
        subject = self._root + validate_key(key)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout
        while True:
            held, last = value, "0"
            for payload, headers in await self._get(subject, 1):
                last = headers.get("Nats-Sequence", "0")
                held = value if _is_end(headers) else payload
            if held != value:
                return False
            condition = {"Nats-TTL": _ttl(ttl_s), _EXPECTED: last}
            try:
                self._take(await self._publisher.publish(subject, value, condition))
                return True
            except PublishFailed:  # somebody was quicker, or the bucket is gone
                self._sure = False
                if loop.time() > deadline:
                    raise
            await asyncio.sleep(_PAUSE_S)

    async def delete(self, key: str) -> None:
        """End an entry; see `StateStore.delete`."""
        await self._write(key, b"", {"KV-Operation": "DEL", "Nats-TTL": f"{MARKER_S}s"})

    async def entries(self, pattern: str) -> Mapping[str, bytes]:
        """Entries by their keys; see `StateStore.entries`. Raises StreamMismatch too."""
        subject = self._root + Pattern(pattern).filter
        found: dict[str, bytes] = {}
        start = 1
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout
        while True:
            batch = await self._get(subject, start)
            for payload, headers in batch:
                key = headers.get("Nats-Subject", "").removeprefix(self._root)
                if _is_end(headers):
                    found.pop(key, None)
                else:
                    found[key] = payload
            if batch:
                start = int(batch[-1][1].get("Nats-Sequence", "0")) + 1
            if len(batch) == _BATCH:
                continue
            if not self._is_replicated or await self._is_read(subject, start):
                return found
            if loop.time() > deadline:
                raise ConnectionFailed(
                    f"the replicas of stream {self.name} lag behind their leader for more than "
                    f"{self._timeout:g} s",
                    driver=DRIVER,
                )
            await asyncio.sleep(_PAUSE_S)

    async def watch(self, pattern: str, handler: StateHandler) -> "NatsWatch":
        """Listen to what the bucket republishes; see `StateStore.watch`."""
        subject = self._told + Pattern(pattern).filter
        await self.ensure()
        stream, skip = self.name.encode(), len(self._told)

        def receive(told: str, payload: bytes, headers: WireHeaders) -> None:
            if not watch.is_closed and headers.stamp(stream) is not None:
                handler(told[skip:], None if _is_end(headers) else payload)

        watch = NatsWatch(self._connection)
        watch.listening = await self._connection.listen(subject, receive)
        try:
            await self._settle(subject)
        except BaseException:
            await watch.aclose()
            raise
        return watch

    async def _write(self, key: str, value: bytes, headers: Headers) -> None:
        subject = self._root + validate_key(key)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._put_timeout
        while True:
            try:
                await self.ensure()
                self._take(await self._publisher.publish(subject, value, headers))
                self.fault = ""
                return
            except PublishFailed as exc:
                self._sure = False  # without its memory, the server has no bucket either
                if loop.time() > deadline:
                    if self._connection.is_connected:
                        self.fault = f"{self.name} stores no entries: {exc}"
                    raise
            except ConnectionFailed as exc:
                raise PublishFailed(f"setting {key}: {exc}", driver=DRIVER) from exc
            await asyncio.sleep(_PAUSE_S)

    def _take(self, ack: Ack) -> None:
        if ack.seq <= self._last and not ack.duplicate:  # the bucket was made anew meanwhile
            self.losses += 1
            self._last = 0
        self._last = max(self._last, ack.seq)

    def _is_made(self) -> bool:
        return self._sure

    async def ensure(self) -> None:
        """Make the bucket where there is none. Raises ConnectionFailed and StreamMismatch."""
        if self._is_made():
            return
        async with self._making:
            if self._is_made():
                return
            breaks = self._breaks
            # Other bounds than these are an operator's choice.
            answer = await ensure_stream(self._connection, self._config, self._timeout)
            if answer.error is not None:
                raise StreamMismatch(
                    f"stream {self.name} cannot be made: {answer.error}", driver=DRIVER
                )
            found = answer.body.get("config", {})
            wrong, less_safe = bucket_faults(self._config, found)
            if wrong:
                raise StreamMismatch(
                    f"stream {self.name} exists with settings that cannot work: "
                    f"{', '.join(wrong)}. Remove it, or set BROADCAST_CHANNELS_PREFIX to another "
                    "namespace",
                    driver=DRIVER,
                )
            if less_safe and not self._created:
                _log.warning("%s: it is lost with the servers that have them", less_safe)
            created = str(answer.body.get("created", ""))
            if self._created not in {"", created}:
                self.losses += 1
                self._last = 0
            self._created = created
            self._is_replicated = found.get("num_replicas", 1) > 1
            self._sure = breaks == self._breaks

    async def _is_read(self, subject: str, start: int) -> bool:
        """Whether the leader has nothing from a sequence on: the replica that was read may lag."""
        return await newest(self._connection, self.name, subject, self._timeout) < start

    async def _get(self, subject: str, start: int) -> list[tuple[bytes, WireHeaders]]:
        """A batch of direct gets (NATS ADR-31), in the order of their last change."""
        question = msgspec.json.encode({"seq": start, "next_by_subj": subject, "batch": _BATCH})
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout
        while loop.time() < deadline:
            await self.ensure()
            parts: list[tuple[bytes, WireHeaders]] = []
            name = f"$JS.API.DIRECT.GET.{self.name}"
            reply = await self._connection.request(name, question, parts)
            if reply is not None and reply.status in _ENDS:
                return parts
            self._sure = False
            await asyncio.sleep(_PAUSE_S)
        raise ConnectionFailed(f"stream {self.name} could not be read", driver=DRIVER)


class NatsWatch:
    """One who watches."""

    position: Position | None = None

    def __init__(self, connection: NatsConnection) -> None:
        self.listening: Listening | None = None
        self.is_closed = False
        self._connection = connection

    async def aclose(self) -> None:
        """Stop watching."""
        if not self.is_closed:
            self.is_closed = True
            if self.listening is not None:
                await self._connection.unlisten(self.listening)


def _ttl(seconds: float) -> str:
    """A time to live as the server takes it: in whole seconds, of which nanoseconds fit 63 bits."""
    return f"{max(1, math.ceil(min(seconds, _MAX_TTL_S)))}s"


def _is_end(headers: WireHeaders) -> bool:
    return "KV-Operation" in headers or "Nats-Marker-Reason" in headers
