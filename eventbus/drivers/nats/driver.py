"""The NATS driver: a JetStream stream that republishes, over one lasting connection."""

import asyncio
import contextlib
import itertools
import logging
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from nats import errors as nats_errors

from eventbus.channels import Subjects
from eventbus.config import Settings
from eventbus.drivers.base import (
    NO_HEADERS,
    Capability,
    Handler,
    Headers,
    Page,
    Position,
    Published,
)
from eventbus.drivers.consumers import ConsumerSettings
from eventbus.drivers.names import drivers_of
from eventbus.drivers.nats.auth import (
    Servers,
    make_login,
)
from eventbus.drivers.nats.classes import ClassStreams
from eventbus.drivers.nats.client import (
    PROBE,
    validate_filter,
    validate_subject,
)
from eventbus.drivers.nats.connection import (
    PENDING_BYTES,
    CutOffWatch,
    NatsConnection,
)
from eventbus.drivers.nats.consumer import NatsConsumer
from eventbus.drivers.nats.errors import (
    DRIVER,
    mapped,
    to_error,
)
from eventbus.drivers.nats.history import (
    ReaderPosition,
    StreamReader,
)
from eventbus.drivers.nats.identity import SeenMessage, StreamState
from eventbus.drivers.nats.publish import (
    Publisher,
    WriteMonitor,
    check_size,
    head_of,
)
from eventbus.drivers.nats.queue import NatsQueues
from eventbus.drivers.nats.service import NatsService
from eventbus.drivers.nats.state import NatsState
from eventbus.drivers.nats.stream import EventStream
from eventbus.drivers.nats.subscriptions import (
    NatsSubscription,
    Subscriptions,
)
from eventbus.errors import (
    ConnectionFailed,
    DriverError,
    InvalidPattern,
    PublishDenied,
    PublishFailed,
    ServerError,
)
from eventbus.server import NatsServer
from eventbus.tasks import (
    Shutdown,
    Tasks,
)

__all__ = ["NatsDriver"]

_log = logging.getLogger(__name__)

DRAIN_S: Final = 5.0
_CONFIRM_S: Final = 30.0
_RESTART_S: Final = 10.0
_RESTORE_S: Final = 1.0


def needs_server(settings: Settings) -> bool:
    """Whether the settings ask for an embedded server."""
    return DRIVER in drivers_of(settings) and not settings.nats_url


def embedded_server(
    settings: Settings, on_death: Callable[[ServerError], object] | None = None
) -> NatsServer:
    """The embedded server of the settings, not started yet; `on_death` as in NatsServer.

    Raises ServerError for a port that does not exist.
    """
    return NatsServer(
        Path(settings.nats_data),
        port=settings.nats_port,
        syncs_always=settings.durability == "disk",
        on_death=on_death,
    )


class NatsDriver:
    """Stores durable messages in `<NAMESPACE>_EVENTS`, and sends others straight to subscribers."""

    name = DRIVER
    capabilities = frozenset(Capability)

    def __init__(self, settings: Settings) -> None:
        """Without `nats_url`, it starts a nats-server and stops it when it closes.

        In development, it uses the one that another process runs on `nats_data` instead.
        """
        self.subjects = Subjects(settings.namespace)
        self.server: NatsServer | None = None
        """The embedded server, if this process has started one."""
        self._settings = settings
        self._event = f"{settings.namespace}.event."
        self._live = f"{settings.namespace}.live."
        self._subscriptions = Subscriptions(
            lambda: self._connection,
            lambda: self._stream,
            lambda: self._reader,
            confirm_s=min(_CONFIRM_S, settings.history_seconds / 4),
        )
        self._services: weakref.WeakSet[NatsService] = weakref.WeakSet()
        self._consumers: weakref.WeakSet[NatsConsumer] = weakref.WeakSet()
        self._state = "new"
        self._is_built = False
        self._tasks = Tasks()
        self._shutdown = Shutdown()
        self._restarting = False
        self._restore_at = 0.0
        self._evicted = 0

    @property
    def is_connected(self) -> bool:
        """Whether the driver could send a message now."""
        return self._state == "open" and self._connection.is_connected

    @property
    def counters(self) -> dict[str, int]:
        """Totals since the start, by name."""
        opened = self._is_built
        return {
            "errors": self._connection.faults.count if opened else 0,
            "refusals": self._connection.faults.refusals if opened else 0,
            "losses": self._subscriptions.losses,
            "rebuilds": self._connection.rebuilds if opened else 0,
            "moves": self._connection.moves if opened else 0,
            "unsent": self._connection.unsent if opened else 0,
            "publish_retries": self._publisher.retries if opened else 0,
            "filled": self._subscriptions.filled,
            "gaps": self._subscriptions.gaps,
            "evicted": self._evicted,
        }

    @property
    def queues(self) -> NatsQueues:
        """Stored jobs; see `QueueDriver.queues`."""
        self._require_open()
        return self._queues

    @property
    def state(self) -> NatsState:
        """Entries that nodes can publish again; see `StateDriver.state`."""
        self._require_open()
        return self._entries

    @property
    def durable_state(self) -> NatsState:
        """Entries that must survive a restart; see `StateDriver.durable_state`."""
        self._require_open()
        return self._durable

    async def open(self) -> None:
        """Connect, and create or check the stream.

        Raises ConnectionFailed, ConfigError, StreamMismatch, and ServerError for the embedded
        server.
        """
        if self._state != "new":
            raise ConnectionFailed(f"the nats driver is {self._state}, not new", driver=self.name)
        self._state = "opening"
        try:
            async with self._shutdown.opening(self._closed_error):
                await self._open()
                self._state = "open"
        except BaseException:
            await self.aclose()
            raise
        self._tasks.keep(self._subscriptions.run, "verifying NATS subscriptions")
        self._tasks.keep(self._subscriptions.confirm, "confirming the end of the NATS stream")
        if self._settings.retention:
            self._tasks.start(self._classes.log_leftovers(), "looking for unused classes")

    async def _open(self) -> None:
        settings = self._settings
        servers = Servers.of(settings.nats_url)
        login = make_login(settings)
        if not servers.addresses:
            servers = Servers.of(await self._start_server())
        self._connection = NatsConnection(
            servers,
            login,
            connect_timeout=settings.connect_timeout,
            volatile_root=self._live,
            on_lost=self._on_lost,
            on_reconnected=self._on_reconnected,
        )
        self._stream = EventStream(
            self._connection, self.subjects, settings, self._on_new_epoch,
            seen=self._seen,
            has_subscribers=lambda: len(self._subscriptions) + len(self._consumers) > 0,
        )  # fmt: skip
        self._classes = ClassStreams(self._connection, self._stream, self.subjects, settings)
        self._reader = StreamReader(self._stream, self._classes)
        self._monitor = WriteMonitor(self._connection, self._stream, self._event)
        self._publisher = Publisher(
            self._connection, settings.publish_timeout, self._monitor.explain,
            self._restore_stream,
        )  # fmt: skip
        self._queues = NatsQueues(self._connection, self._publisher, settings)
        self._entries = NatsState(self._connection, settings)
        self._durable = NatsState(self._connection, settings, "durable")
        self._is_built = True
        await self._connection.open()
        # Now, not when it is open: the first server may be the one that is cut off.
        watch = CutOffWatch(self._connection, self._stream.name)
        self._tasks.keep(watch.run, "watching for a nats-server that is cut off")
        await self._stream.ensure()
        await self._classes.ensure()

    async def _start_server(self) -> str:
        """The address of the embedded server.

        In development, the processes of one folder share a server: the first one starts it.
        """
        settings = self._settings
        server = embedded_server(settings, self._on_death)
        if settings.environment == "production":
            self.server = server
            await server.start()
            return server.url
        url = await server.join_or_start()
        self.server = server if server.is_running else None
        return url

    async def prepare(self) -> tuple[str, ...]:
        """Create all streams; returns their names. See `PreparedDriver.prepare`."""
        self._require_open()
        await self._queues.ensure_streams()
        await self._entries.ensure()
        await self._durable.ensure()
        queues = (self._queues.name, self._queues.failed.name)
        buckets = (self._entries.name, self._durable.name)
        return (self._stream.name, *self._classes.names, *queues, *buckets)

    async def publish(
        self, subject: str, payload: bytes, headers: Headers = NO_HEADERS
    ) -> Published | None:
        """Publish one message; see `Driver.publish`.

        An event is retried for `publish_timeout` under one id, its own or a new one. Raises
        InvalidChannel for a subject that would harm other clients.
        """
        self._require_open()
        validate_subject(subject)
        if not subject.startswith(self._event):
            await self._publish_core(subject, payload, headers)
            return None
        try:
            ack = await self._publisher.publish(subject, payload, headers)
        except PublishFailed as exc:
            if self._connection.is_connected and not isinstance(exc, PublishDenied):
                self._monitor.failed(str(exc))
                self._restart_if_stuck()
            raise
        identity = self._stream.identity
        if not ack.duplicate:
            if self._monitor.fault:
                self._monitor.stored()
            if identity.is_doubtful(ack.seq):
                await self._refresh_epoch()
            identity.acknowledge(ack.seq)
        return Published(Position(ack.seq, identity.epoch), ack.duplicate)

    async def subscribe(self, subject: str, handler: Handler) -> NatsSubscription:
        """Subscribe; see `Driver.subscribe`. Raises InvalidPattern, too."""
        return await self.subscribe_group(subject, "", handler)

    async def subscribe_group(self, subject: str, group: str, handler: Handler) -> NatsSubscription:
        """Subscribe as a member of a NATS queue group; see `GroupDriver.subscribe_group`."""
        self._require_open()
        validate_filter(subject)
        in_stream = subject.startswith(self._live)
        subscription = NatsSubscription(
            self._subscriptions,
            subject,
            handler,
            self._stream.name.encode() if in_stream else b"",
            group=group,
        )
        at_server = await self._connection.listen(
            subject, subscription.receive, group, subscription.resync
        )
        subscription.follow(at_server)
        self._subscriptions.add(subscription)
        try:
            # Queried on the same connection, so the server has processed the subscription before.
            if in_stream:
                state = await self._stream.state()
                if await self._connection.subscriptions.require(at_server):
                    state = await self._stream.state()
                same = state.epoch == self._stream.identity.epoch
                subscription.begin(state if same else StreamState(self._stream.identity.epoch, 0))
            else:
                await self._connection.settle(at_server)
        except BaseException:
            await subscription.aclose()
            raise
        return subscription

    async def consume(self, name: str, subject: str, settings: ConsumerSettings) -> NatsConsumer:
        """Join a durable JetStream consumer; see `ConsumerDriver.consume`."""
        self._require_open()
        validate_filter(subject)
        event = self._stream.event_of(subject)
        if event is None:
            raise InvalidPattern(
                f"{subject!r} is not a live subject, and cannot be consumed", name=subject
            )
        consumer = NatsConsumer(
            self._connection, self._stream, name,
            filter_subject=event, subjects=self.subjects, settings=settings,
            on_evicted=self._count_evicted,
        )  # fmt: skip
        await consumer.open(self._settings.connect_timeout)
        self._consumers.add(consumer)
        return consumer

    async def check(self) -> str:
        """Whether the stream stores messages; see `CheckedDriver.check`."""
        self._require_open()
        fault = await self._monitor.check()
        if fault:
            self._restart_if_stuck()
            self._restore_stream()
        if refused := self._connection.subscriptions.refused:
            fault = fault or (
                f"the NATS server refuses {refused} subscriptions (max_subscriptions, or the "
                "permissions of its user)"
            )
        return fault or self._entries.fault

    async def read(self, subject: str, *, after: int | None, limit: int) -> Page:
        """Stored messages of a live subject; see `HistoryDriver.read`. Raises InvalidChannel."""
        self._require_open()
        validate_subject(subject)
        position = None if after is None else ReaderPosition(after)
        return await self._reader.read(subject, after=position, limit=limit)

    async def read_last(self, subject: str, limit: int, followed: Position) -> Page:
        """The last messages of a subject that is followed; see `FollowedReads.read_last`."""
        self._require_open()
        validate_subject(subject)
        return await self._reader.read(subject, after=None, limit=limit, followed=followed)

    async def resume(self, subject: str, position: Position, limit: int) -> Page:
        """Stored messages after a reader's position; see `ResumingDriver.resume`."""
        self._require_open()
        validate_subject(subject)
        return await self._reader.read(
            subject, after=ReaderPosition.of(position), limit=limit, epoch=position.epoch
        )

    async def read_pattern(
        self, subject: str, position: Position, *, limit: int, max_bytes: int
    ) -> Page:
        """Stored messages of a filter; see `PatternHistoryDriver.read_pattern`.

        Raises InvalidPattern, too.
        """
        self._require_open()
        validate_filter(subject)
        return await self._reader.read_pattern(
            subject,
            after=ReaderPosition.of(position),
            epoch=position.epoch,
            limit=limit,
            max_bytes=max_bytes,
        )

    async def stored(self, pattern: str, limit: int) -> dict[str, int]:
        """The number of messages per channel; see `MaintenanceDriver.stored`."""
        self._require_open()
        validate_filter(pattern)
        event = self._stream.event_of(pattern)
        counts = {} if event is None else dict((await self._stream.counts(event)).subjects)
        counts.pop(f"{self._event}{PROBE}", None)
        first = itertools.islice(counts.items(), limit)
        return {str(self.subjects.live_of(subject)): count for subject, count in first}

    async def purge(self, subject: str) -> int:
        """Delete the messages of a live subject; see `MaintenanceDriver.purge`."""
        self._require_open()
        self.subjects.channel_of(subject)
        page = await self.read(subject, after=None, limit=1)
        if not page.messages or (position := page.messages[-1].position) is None:
            return 0
        event = self.subjects.event(self.subjects.channel_of(subject))
        await self._stream.record_purge(event, position.offset, self._entries)
        await self._classes.purge(event, position.offset)
        return await self._stream.purge(event, position.offset)

    async def announce(
        self,
        name: str,
        id: str,  # noqa: A002 - the instance's
        *,
        version: str,
        description: str,
        metadata: Mapping[str, str],
    ) -> NatsService:
        """Be listed by `nats micro ls`; see `AnnouncingDriver.announce`."""
        self._require_open()
        service = NatsService(
            self._connection, name=name, id=id, version=version,
            description=description, metadata=metadata,
        )  # fmt: skip
        with mapped(f"announcing the service {name}"):
            await service.open()
        self._services.add(service)
        return service

    async def aclose(self) -> None:
        """Finish what is in flight, within bounded time, and close. Closing twice is harmless."""
        await self._shutdown.run(self._aclose)

    async def _aclose(self) -> None:
        was_open, self._state = self._state == "open", "closing"
        try:
            if was_open:
                await self._finish()
        finally:
            await self._close_all()
            self._state = "closed"

    async def _finish(self) -> None:
        """Finish what is in flight."""
        await self._queues.aclose()
        if not await self._publisher.drain(DRAIN_S):
            _log.warning("closing: some publishes took longer than %g s", DRAIN_S)
        if self._connection.is_connected:
            try:
                await self._connection.echo()  # everything published before has arrived
            except DriverError as exc:
                _log.warning("closing: %s", exc)

    def _closed_error(self) -> ConnectionFailed:
        return ConnectionFailed("the nats driver was closed while it opened", driver=self.name)

    def _require_open(self) -> None:
        if self._state != "open":
            raise ConnectionFailed(f"the nats driver is not open ({self._state})", driver=self.name)

    async def _publish_core(self, subject: str, payload: bytes, headers: Headers) -> None:
        connection = self._connection
        client = connection.client
        head = head_of(subject, headers)
        check_size(subject, len(head) + len(payload), connection.max_payload)
        if subject.startswith(self._live) and not client.is_connected:
            raise connection.refuse_volatile(subject)
        if client.pending_data_size > 2 * PENDING_BYTES + len(payload):
            raise PublishFailed(
                f"a message for {subject} was not sent: {client.pending_data_size} bytes wait for "
                f"the connection to {connection.address}",
                driver=self.name,
            )
        try:
            if client.buffer(subject, payload, head):
                await client.flush_soon()
        except (nats_errors.Error, OSError) as exc:
            error = to_error(exc, f"publishing to {subject} at {connection.address}")
            if isinstance(error, ConnectionFailed):
                error = PublishFailed(str(error), driver=self.name)
            raise error from exc

    def _seen(self) -> SeenMessage | None:
        """The last message of the stream that this process got."""
        messages = [consumer.seen for consumer in self._consumers if consumer.seen.offset]
        if (newest := self._subscriptions.seen()) is not None:
            messages.append(newest)
        return max(messages, default=None)

    async def _refresh_epoch(self) -> None:
        """Query the epoch of a message that is stored already, so this must not fail."""
        try:
            await self._stream.state()
        except DriverError as exc:
            _log.warning("cannot query the epoch of the stream, using the last known one: %s", exc)

    def _on_reconnected(self) -> None:
        self._subscriptions.on_reconnected()
        self._queues.on_reconnected()
        for service in self._services:
            service.on_reconnected()

    def _on_lost(self) -> None:
        self._stream.identity.invalidate()
        self._subscriptions.on_lost()
        self._entries.on_lost()
        self._durable.on_lost()
        for consumer in list(self._consumers):
            consumer.invalidate()

    def _count_evicted(self) -> None:
        self._evicted += 1

    def _on_new_epoch(self, unchanged: int) -> None:
        self._subscriptions.on_new_epoch(unchanged)
        for consumer in list(self._consumers):
            consumer.restart(unchanged)
        if self._state == "open":
            self._tasks.start(
                self._recreate_classes(unchanged), "recreating the streams of classes"
            )

    async def _recreate_classes(self, unchanged: int) -> None:
        """The streams of classes copy a stream that was replaced, or has gone back."""
        try:
            await self._classes.ensure()
            if unchanged:
                await self._classes.go_back(unchanged)
        except DriverError as exc:  # the next read tries again
            _log.error("%s", exc)

    def _restore_stream(self) -> None:
        """Create the stream again if it was deleted; check at most once per second."""
        now = asyncio.get_running_loop().time()
        if self._state == "open" and now >= self._restore_at:
            self._restore_at = now + _RESTORE_S
            self._tasks.start(self._ensure_stream(), "looking for the NATS stream")

    async def _ensure_stream(self) -> None:
        try:
            await self._stream.ensure()
        except DriverError as exc:  # the publisher's own error reports the missing stream
            _log.info("the stream cannot be created again: %s", exc)

    def _on_death(self, _error: ServerError) -> None:
        if self.server is not None and self._state in {"opening", "open"}:
            self._tasks.keep(self.server.restart, "restarting the embedded nats-server")

    def _restart_if_stuck(self) -> None:
        """Restart the embedded server when it drops messages, once its disk has room."""
        if self.server is None or self._restarting or not self._monitor.is_stuck:
            return
        self._restarting = True
        self._tasks.start(
            self._restart_with_room(self.server), "restarting a nats-server that stores nothing"
        )

    async def _restart_with_room(self, server: NatsServer) -> None:
        try:
            if server.is_full():
                await server.wait_for_room()
            await self._monitor.check()  # it may only have been slow
            if self._monitor.is_stuck:
                _log.warning("the embedded nats-server stores nothing, restarting it")
                await server.restart()
                await asyncio.sleep(_RESTART_S)  # at least this long between two restarts
        finally:
            self._restarting = False

    async def _close_all(self) -> None:
        async with contextlib.AsyncExitStack() as parts:  # from the last one to the first
            if self.server is not None:
                parts.push_async_callback(self.server.stop)
            if self._is_built:
                parts.push_async_callback(self._connection.aclose)
                parts.push_async_callback(self._stream.aclose)
            parts.push_async_callback(self._subscriptions.aclose)
            parts.push_async_callback(self._tasks.aclose)
