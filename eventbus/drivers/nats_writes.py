"""Whether the stream of events stores messages, and if not, why.

A nats-server whose disk is full answers everything but publishes: the stream has a leader, can be
read, and drops what is published without a word. It stays so after there is space again, until it
is restarted.
"""

import asyncio
import contextlib
import logging
import time
from typing import Final

import msgspec

from eventbus.drivers.nats_connection import NatsConnection
from eventbus.drivers.nats_errors import ApiError
from eventbus.drivers.nats_publish import Publisher
from eventbus.drivers.nats_stream import EventStream
from eventbus.drivers.nats_wire import PROBE
from eventbus.errors import DriverError, PublishDenied
from eventbus.message import HEADER_ID

__all__ = ["Writes"]

_log = logging.getLogger(__name__)

_EXPLAIN_S: Final = 1.0
_PROBE_S: Final = 5.0
_ROUND_S: Final = 10
"""Probes of all nodes in so many seconds have one id: the stream stores one of them."""


class _Cluster(msgspec.Struct):
    leader: str = ""


class _Info(msgspec.Struct):
    cluster: _Cluster = msgspec.field(default_factory=_Cluster)
    error: ApiError | None = None


class Writes:
    """Watches whether the stream of events stores what is published."""

    def __init__(self, connection: NatsConnection, stream: EventStream, event_root: str) -> None:
        """`event_root` is what event subjects begin with."""
        self.fault = ""
        """Why the stream stores nothing; empty while it does, as far as is known."""
        self.is_stuck = False
        """Whether the server drops what is published: only a restart helps."""
        self._connection = connection
        self._stream = stream
        self._probe = f"{event_root}{PROBE}"
        self._publisher = Publisher(connection, _PROBE_S, self.explain)
        self._last = -1
        self._may_probe = True

    def stored(self) -> None:
        """A message was stored just now."""
        self.is_stuck = False
        if self.fault:
            self.fault = ""
            _log.warning("stream %s stores messages again", self._stream.name)

    def failed(self, why: str) -> None:
        """A message was not stored, although there is a connection."""
        if not self.fault:
            _log.error("stream %s stores no messages: %s", self._stream.name, why)
        self.fault = why
        self._last = -1  # the stream may have grown before, which proves nothing now

    async def explain(self) -> str:
        """Why a publish got no answer, as far as the server says."""
        name = self._stream.name
        reply = None
        with contextlib.suppress(DriverError, TimeoutError):
            async with asyncio.timeout(_EXPLAIN_S):
                reply = await self._connection.request(f"$JS.API.STREAM.INFO.{name}")
        if reply is None:
            return "no answer"
        if reply.status == "503":
            return "no answer: the server has no JetStream, or its cluster has no leader"
        try:
            info = msgspec.json.decode(reply.payload, type=_Info)
        except msgspec.DecodeError:
            return "no answer"
        if info.error is not None:
            return f"no answer; stream {name}: {info.error}"
        self.is_stuck = True
        leader = info.cluster.leader or "(none)"
        return (
            f"no answer, although stream {name} can be read: it stores nothing. The disk of its "
            f"leader, nats-server {leader}, may be full or failing: look at that server's log and "
            "/healthz, make room, then restart it (it stores nothing before)"
        )

    async def check(self) -> str:
        """What is wrong with storing messages; empty where nothing is, or it cannot be known.

        A stream that has grown since the last check is well. Otherwise a small message is stored
        in it, which no channel has. Needs the permission to publish it.
        """
        if not self._connection.is_connected:
            return self.fault
        try:
            last = (await self._stream.state()).last
        except DriverError as exc:
            if self._connection.is_connected:
                self.failed(str(exc))
            return self.fault
        grown, self._last = last > self._last >= 0, last
        if grown:
            self.stored()
        elif self._may_probe:
            await self._store_probe()
        return self.fault

    async def _store_probe(self) -> None:
        number = int(time.time()) // _ROUND_S
        try:
            ack = await self._publisher.publish(
                self._probe, b"{}", {HEADER_ID: f"{PROBE}-{number}"}
            )
        except PublishDenied:
            self._may_probe = False
            _log.info(
                "whether stream %s stores messages is not watched: the NATS user may not publish "
                "to %s",
                self._stream.name,
                self._probe,
            )
        except DriverError as exc:
            if self._connection.is_connected:
                self.failed(str(exc))
        else:
            self._last = max(self._last, ack.seq)
            if not ack.duplicate:
                self.stored()
