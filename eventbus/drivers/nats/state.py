"""Entries that all processes see, in KV buckets that republish their changes.

There are two buckets: entries that nodes can publish again are in memory, entries that must survive
a restart are on disk. Watchers are plain subscriptions to what a bucket republishes, which includes
deletions and expiries, and leave nothing at the server. The layout follows NATS ADR-8
(`nats kv ls <NAMESPACE>_STATE`, or `<NAMESPACE>_DURABLE`, lists the entries), expiry ADR-43 and
ADR-48.
"""

import asyncio
import logging
import math
from collections.abc import Mapping
from typing import (
    Any,
    Final,
    Literal,
)

from eventbus.attempts import SharedAttempt
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
    NatsConnection,
    ServerSubscription,
)
from eventbus.drivers.nats.errors import DRIVER
from eventbus.drivers.nats.jetstream import (
    NANO,
    Stream,
    StreamMessage,
    placement,
)
from eventbus.drivers.nats.publish import (
    Ack,
    Publisher,
)
from eventbus.drivers.state import validate_key
from eventbus.errors import (
    ConnectionFailed,
    PublishFailed,
)

__all__ = ["NatsState", "NatsWatch", "bucket_stream", "durability_warning"]


_log = logging.getLogger(__name__)

MAX_ENTRIES: Final = 500_000
MAX_ENTRY_BYTES: Final = 64 * 1024
MARKER_S: Final = 60
"""How long the marker of a removed entry stays, for concurrent readers."""
_PUT_S: Final = 1.0
"""After this time without an acknowledgement, the bucket itself is checked."""
_MAX_TTL_S: Final = 100 * 365 * 86_400.0
_PAUSE_S: Final = 0.1
_BATCH: Final = 2000
"""For each batch the server counts what is left: 100,000 entries took 40 s in batches of 500."""
_BATCH_BYTES: Final = 4 * 1024**2
"""Enough for a batch of entries whose info has 2 KB each."""
_EXPECTED: Final = "Nats-Expected-Last-Subject-Sequence"
_MUST_MATCH: Final = ("subjects", "republish", "allow_direct", "allow_msg_ttl")

Purpose = Literal["state", "durable"]
"""Entries that nodes can publish again, or entries that must survive a restart."""


def bucket_stream(connection: NatsConnection, settings: Settings, purpose: Purpose) -> Stream:
    """The stream of a bucket as the settings define it; not created yet.

    A durable bucket must be on disk: one that somebody has created in memory loses its entries.
    """
    namespace = settings.namespace
    name = f"{namespace.upper()}_{purpose.upper()}"
    config = {
        "name": f"KV_{name}",
        "subjects": [f"$KV.{name}.>"],
        "republish": {"src": f"$KV.{name}.>", "dest": f"{namespace}.{purpose}.>"},
        "storage": "file" if purpose == "durable" else "memory",
        "discard": "new",
        "max_msgs": MAX_ENTRIES,
        "max_msg_size": MAX_ENTRY_BYTES,
        "max_msgs_per_subject": 1,
        "num_replicas": settings.history_replicas,
        "allow_direct": True,
        "allow_rollup_hdrs": True,
        "allow_msg_ttl": True,
        "subject_delete_marker_ttl": MARKER_S * NANO,
        "deny_delete": True,
        "duplicate_window": 10 * NANO,
        **placement(settings.retention_classes().durability if purpose == "durable" else "process"),
    }
    must_match = (*_MUST_MATCH, "storage") if purpose == "durable" else _MUST_MATCH
    return Stream(connection, config, settings.connect_timeout, must_match=must_match)


def durability_warning(stream: Stream, found: Mapping[str, Any]) -> str:
    """Why an existing bucket is less durable than the settings ask for; empty when it is not."""
    wanted, copies = stream.config, found.get("num_replicas", 1)
    if wanted["storage"] != "file" or copies >= wanted["num_replicas"]:
        return ""
    return f"stream {stream.name} has {copies} copies, not {wanted['num_replicas']}"


class NatsState:
    """A bucket, created when it is first needed."""

    def __init__(
        self,
        connection: NatsConnection,
        settings: Settings,
        purpose: Purpose = "state",
    ) -> None:
        """Sends nothing yet."""
        self.losses = 0
        self.fault = ""
        """Why the last entry could not be stored; empty when it was."""
        self._stream = bucket_stream(connection, settings, purpose)
        self.name = self._stream.name
        self._root = f"$KV.{self.name.removeprefix('KV_')}."
        self._live_root = f"{settings.namespace}.{purpose}."
        self._connection = connection
        self._publisher = Publisher(connection, _PUT_S)
        self._timeout = settings.connect_timeout
        self._put_timeout = settings.publish_timeout
        self._created = ""
        self._last = 0
        self._lost_count = 0
        self._ensured = False
        self._is_replicated = False
        self._ensuring = SharedAttempt()

    def on_lost(self) -> None:
        """The connection was lost: changes may be missed, and the bucket may be gone."""
        self.losses += 1
        self._lost_count += 1
        self._ensured = False

    async def put(self, key: str, value: bytes, *, ttl_s: float | None = None) -> None:
        """Set an entry; see `StateStore.put`. A time to live is rounded up to whole seconds."""
        headers = NO_HEADERS if ttl_s is None else {"Nats-TTL": _ttl(ttl_s)}
        await self._write(key, value, headers)

    async def claim(self, key: str, value: bytes, *, ttl_s: float) -> bool:
        """Set an entry unless it has another value; see `StateStore.claim`.

        The header Nats-Expected-Last-Subject-Sequence makes the write fail when another process
        has written since the read.
        """
        subject = self._root + validate_key(key)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout
        while True:
            current, last = value, "0"
            for message in await self._get(subject, 1):
                last = str(message.sequence)
                current = value if _is_end(message.headers) else message.payload
            if current != value:
                return False
            condition = {"Nats-TTL": _ttl(ttl_s), _EXPECTED: last}
            try:
                self._check_ack(await self._publisher.publish(subject, value, condition))
                return True
            except PublishFailed:  # another process was faster, or the bucket is gone
                self._ensured = False
                if loop.time() > deadline:
                    raise
            await asyncio.sleep(_PAUSE_S)

    async def delete(self, key: str) -> None:
        """Delete an entry; see `StateStore.delete`."""
        await self._write(key, b"", {"KV-Operation": "DEL", "Nats-TTL": f"{MARKER_S}s"})

    async def entries(self, pattern: str) -> Mapping[str, bytes]:
        """Entries by their keys; see `StateStore.entries`. Raises StreamMismatch, too."""
        subject = self._root + Pattern(pattern).filter
        found: dict[str, bytes] = {}
        start = 1
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout
        while True:
            batch = await self._get(subject, start)
            for message in batch:
                key = message.subject.removeprefix(self._root)
                if _is_end(message.headers):
                    found.pop(key, None)
                else:
                    found[key] = message.payload
            if batch:
                start = batch[-1].sequence + 1
            if batch and batch[-1].pending:
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
        """Subscribe to what the bucket republishes; see `StateStore.watch`."""
        subject = self._live_root + Pattern(pattern).filter
        await self.ensure()
        stream, skip = self.name.encode(), len(self._live_root)

        def receive(live: str, payload: bytes, headers: WireHeaders) -> None:
            if headers.stamp(stream) is not None:
                handler(live[skip:], None if _is_end(headers) else payload)

        at_server = await self._connection.listen(subject, receive, on_again=self._count_loss)
        watch = NatsWatch(self._connection, at_server)
        try:
            await self._connection.settle(at_server)
        except BaseException:
            await watch.aclose()
            raise
        return watch

    def _count_loss(self) -> None:
        self.losses += 1

    async def _write(self, key: str, value: bytes, headers: Headers) -> None:
        subject = self._root + validate_key(key)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._put_timeout
        while True:
            try:
                await self.ensure()
                self._check_ack(await self._publisher.publish(subject, value, headers))
                self.fault = ""
                return
            except PublishFailed as exc:
                self._ensured = False  # a server that lost its memory has no bucket
                if loop.time() > deadline:
                    if self._connection.is_connected:
                        self.fault = f"{self.name} stores no entries: {exc}"
                    raise
            except ConnectionFailed as exc:
                raise PublishFailed(f"setting {key}: {exc}", driver=DRIVER) from exc
            await asyncio.sleep(_PAUSE_S)

    def _check_ack(self, ack: Ack) -> None:
        if ack.seq <= self._last and not ack.duplicate:  # the bucket was created again meanwhile
            self.losses += 1
            self._last = 0
        self._last = max(self._last, ack.seq)

    def _is_ensured(self) -> bool:
        return self._ensured

    async def ensure(self) -> None:
        """Create the bucket if it does not exist. Raises ConnectionFailed and StreamMismatch."""
        if self._is_ensured():
            return
        async with self._ensuring.turn():
            if self._is_ensured():
                return
            lost_count = self._lost_count
            info = await self._stream.ensure()
            self._stream.require_match(info.config)  # other limits are the operator's choice
            if (warning := durability_warning(self._stream, info.config)) and not self._created:
                _log.warning("%s: its entries are lost with those servers", warning)
            if self._created not in {"", info.created}:
                self.losses += 1
                self._last = 0
            self._created = info.created
            self._is_replicated = info.is_replicated
            self._ensured = lost_count == self._lost_count

    async def _is_read(self, subject: str, start: int) -> bool:
        """Whether the leader has nothing from a sequence on; the replica that answered may lag."""
        return await self._stream.newest(subject) < start

    async def _get(self, subject: str, start: int) -> list[StreamMessage]:
        """Up to a batch of entries, in the order of their last change."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout
        while loop.time() < deadline:
            await self.ensure()
            request = {
                "seq": start, "next_by_subj": subject, "batch": _BATCH, "max_bytes": _BATCH_BYTES,
            }  # fmt: skip
            if (found := await self._stream.batch(request)) is not None:
                return found
            self._ensured = False
            await asyncio.sleep(_PAUSE_S)
        raise self._stream.failure("cannot be read")


class NatsWatch:
    """A watch, which is a subscription to the bucket's live subjects."""

    position: Position | None = None

    def __init__(self, connection: NatsConnection, at_server: ServerSubscription) -> None:
        self._connection = connection
        self._at_server = at_server

    async def aclose(self) -> None:
        """Stop watching; nothing is delivered after this is called. Closing twice is harmless."""
        await self._connection.unlisten(self._at_server)


def _ttl(seconds: float) -> str:
    """A time to live as the server accepts it: whole seconds whose nanoseconds fit 63 bits."""
    return f"{max(1, math.ceil(min(seconds, _MAX_TTL_S)))}s"


def _is_end(headers: WireHeaders) -> bool:
    # `in` would parse all headers.
    get = headers.get
    return get("KV-Operation") is not None or get("Nats-Marker-Reason") is not None
