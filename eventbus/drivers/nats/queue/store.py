"""The queues of a namespace: JetStream's work queue `<NAMESPACE>_QUEUE`, with a consumer per queue.

A job is one message on `<namespace>.queue.<name>`; a delayed one is a scheduled message below that
subject, which the server publishes when it is due.
"""

import asyncio
import datetime
from collections.abc import (
    Coroutine,
    Sequence,
)
from typing import (
    Any,
    Final,
)

from eventbus.attempts import SharedAttempt
from eventbus.config import Settings
from eventbus.drivers.base import (
    Headers,
    Position,
    Published,
)
from eventbus.drivers.nats.connection import NatsConnection
from eventbus.drivers.nats.errors import DRIVER
from eventbus.drivers.nats.identity import epoch_of
from eventbus.drivers.nats.jetstream import (
    CONSUMER_EXISTS,
    NANO,
    NO_MESSAGE,
    STREAM_NOT_FOUND,
    Answer,
    Stream,
    agreed_ack_wait,
    create_consumer,
    placement,
    request_api,
)
from eventbus.drivers.nats.publish import Publisher
from eventbus.drivers.nats.queue.failed import (
    FailedStream,
    StoredFailure,
)
from eventbus.drivers.nats.queue.reader import NatsReader
from eventbus.drivers.queues import (
    Failure,
    QueueStats,
)
from eventbus.errors import (
    ConnectionFailed,
    EncodingError,
    NotSupported,
    PublishFailed,
    StreamMismatch,
)
from eventbus.messages import HEADER_ID
from eventbus.tasks import (
    Tasks,
    complete,
)

__all__ = ["NatsQueues"]

ROOM_FOR_FAILURE: Final = 16 * 1024
"""Bytes of the largest message that a job must leave free, for details of its failure."""
MAX_LEASED: Final = 100_000
"""Jobs of one queue that run or wait for their next attempt."""
_DUPLICATES_S: Final = 120.0
_CHECK_ROOM_S: Final = 1.0
_MUST_MATCH: Final = ("subjects", "retention", "no_ack", "sealed", "mirror", "sources", "max_age")


class NatsQueues:
    """The queues of one namespace. Streams and consumers are created when they are first used."""

    def __init__(
        self, connection: NatsConnection, publisher: Publisher, settings: Settings
    ) -> None:
        """Sends nothing yet."""
        namespace = settings.namespace
        self.lease = settings.queue_lease
        self.connection = connection
        self.failed = FailedStream(connection, publisher, settings)
        self._publisher = publisher
        self._settings = settings
        self._root = f"{namespace}.queue."
        self._epoch = ""
        self._why_no_delay = ""
        self._ensuring = SharedAttempt()
        self._order = asyncio.Lock()
        self._consumers: set[str] = set()
        """Queues whose consumers are known to exist."""
        self._joined: set[str] = set()
        """Queues whose consumers have been used."""
        self._readers: set[NatsReader] = set()
        self._tasks = Tasks()
        self._bytes = 0
        self._room_checked = float("-inf")
        config = {
            "name": f"{namespace.upper()}_QUEUE",
            "subjects": [f"{self._root}>"],
            "retention": "workqueue",
            "storage": "file",
            # No limits here: they need `discard: new`, which the server refuses together with
            # schedules, and `old` would drop jobs. See _check_room.
            "max_msgs": -1,
            "max_bytes": -1,
            "num_replicas": settings.history_replicas,
            "allow_direct": True,
            "allow_msg_schedules": True,
            "duplicate_window": int(_DUPLICATES_S * NANO),
            **placement(settings.queue_durability),
        }
        self._stream = Stream(connection, config, settings.connect_timeout, must_match=_MUST_MATCH)
        self.name = self._stream.name

    def _is_made(self) -> bool:
        return bool(self._epoch)

    async def push(self, queue: str, id: str, payload: bytes, delay: float) -> Published:  # noqa: A002
        """Store a job; see `QueueStore.push`."""
        deadline = asyncio.get_running_loop().time() + self._settings.publish_timeout
        await self._prepare(queue, deadline)
        limit = self.connection.max_payload - ROOM_FOR_FAILURE
        if len(payload) > limit:
            raise EncodingError(
                f"a job of {len(payload)} bytes for queue {queue} is too large: the server's "
                f"max_payload leaves {limit} bytes"
            )
        if delay > 0:
            self._require_schedules()
        return await self._push(queue, id, payload, {}, delay, deadline=deadline)

    def reader(self, queue: str) -> NatsReader:
        """A reader of one queue."""
        reader = NatsReader(self, queue, self._readers.discard)
        self._readers.add(reader)
        return reader

    async def stats(self) -> Sequence[QueueStats]:
        """Each queue that has jobs or a consumer."""
        ready: dict[str, int] = {}
        delayed: dict[str, int] = {}
        taken: dict[str, int] = {}
        for subject, count in (await self._subjects()).items():
            queue, _, rest = subject.removeprefix(self._root).partition(".")
            counts = delayed if rest.startswith("later.") else ready
            if counts is delayed or not rest:
                counts[queue] = counts.get(queue, 0) + count
        async for consumer in self._listed("CONSUMER.LIST", "consumers"):
            taken[consumer["name"]] = consumer["num_ack_pending"]
        return [
            QueueStats(
                queue,
                max(0, ready.get(queue, 0) - taken.get(queue, 0)),
                taken.get(queue, 0),
                delayed.get(queue, 0),
            )
            for queue in sorted({*ready, *delayed, *taken})
        ]

    async def failures(self, limit: int) -> Sequence[Failure]:
        """The oldest failures."""
        return [stored.failure for stored in await self.failed.read(limit)]

    async def failure(self, id: str) -> Failure | None:  # noqa: A002
        """The failure with that id, or None."""
        stored = await self.failed.find(id)
        return None if stored is None else stored.failure

    async def failure_count(self) -> int:
        """The number of failures."""
        return await self.failed.count()

    async def retry(self, id: str) -> bool:  # noqa: A002
        """Push a failed job again; see `QueueStore.retry`."""
        stored = await self.failed.find(id)
        if stored is None:
            return False
        await self.ensure_streams()
        await complete(self._retry(stored))
        return True

    async def _retry(self, stored: StoredFailure) -> None:
        failure = stored.failure
        key = f"{failure.id}:failed-{stored.sequence}"
        await self.push_again(failure.queue, key, failure.payload, {})
        await self.failed.delete(stored.sequence)

    async def forget(self, id: str) -> bool:  # noqa: A002
        """Delete a failure."""
        stored = await self.failed.find(id)
        return stored is not None and await self.failed.delete(stored.sequence)

    async def flush(self) -> int:
        """Delete all failures."""
        return await self.failed.purge()

    async def ensure_consumer(self, queue: str) -> None:
        """Create the consumer and the streams if they do not exist.

        Raises ConnectionFailed and StreamMismatch.
        """
        if queue in self._consumers:
            return
        await self.ensure_streams()
        config: dict[str, Any] = {
            "name": queue,
            "durable_name": queue,
            "filter_subject": f"{self._root}{queue}",
            "ack_policy": "explicit",
            "ack_wait": int(self.lease * NANO),
            "max_deliver": -1,  # the worker counts; the server would only forget the job
            "max_ack_pending": MAX_LEASED,
        }
        answer = await self._create_consumer("create", config)
        if answer.error_code == CONSUMER_EXISTS:
            answer = await self._ask(f"CONSUMER.INFO.{self.name}.{queue}", None)
            if not answer.error:
                is_joining = queue not in self._joined
                wait = agreed_ack_wait(answer.body, config["ack_wait"], is_joining=is_joining)
                answer = await self._create_consumer("update", {**config, "ack_wait": wait})
        if answer.error_code == STREAM_NOT_FOUND:  # deleted a moment ago
            self._epoch = ""
            raise self._stream.failure("it was deleted")
        if answer.error:
            raise StreamMismatch(
                f"cannot create the consumer of queue {queue}: {answer.why}", driver=DRIVER
            )
        self._consumers.add(queue)
        self._joined.add(queue)

    async def _create_consumer(self, action: str, config: dict[str, Any]) -> Answer:
        what = f"CREATE.{self.name}.{config['name']}.{config['filter_subject']}"
        question = {"stream_name": self.name, "config": config, "action": action}
        return await create_consumer(
            self.connection, what, question, self._settings.connect_timeout
        )

    async def _ask(self, what: str, question: dict[str, Any] | None) -> Answer:
        return await request_api(self.connection, what, question, self._settings.connect_timeout)

    def invalidate(self, queue: str) -> None:
        """The consumer may be gone, and the stream with it: check before the next use."""
        self._consumers.discard(queue)
        self._epoch = ""

    async def push_again(
        self, queue: str, key: str, payload: bytes, headers: Headers, delay: float = 0.0
    ) -> None:
        """Store a job again, once per key; without the delay if the stream has no schedules."""
        await self._push(queue, key, payload, headers, 0.0 if self._why_no_delay else delay)

    async def has(self, sequence: int) -> bool:
        """Whether the stream still has a message. Raises ConnectionFailed."""
        answer = await self._stream.ask("MSG.GET", {"seq": sequence})
        if answer.error_code in (STREAM_NOT_FOUND, NO_MESSAGE):
            return False
        if answer.error:
            raise self._stream.failure(answer.error)
        return True

    async def add_failure(self, failure: Failure) -> None:
        """Store a failure."""
        await self.ensure_streams()
        await self.failed.add(failure)

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Hand back a job in the background; `aclose` waits for it."""
        self._tasks.start(work, f"handing back a job of {self.name}")

    def on_reconnected(self) -> None:
        """Check streams and consumers again: this may be a different server."""
        self._epoch = ""
        self._consumers.clear()
        for reader in self._readers:
            reader.on_reconnected()

    async def aclose(self) -> None:
        """Close the readers and finish handing back jobs, within bounded time."""
        await asyncio.gather(*(reader.aclose() for reader in list(self._readers)))
        await self._tasks.join(2.0)
        await self._tasks.aclose()

    async def _prepare(self, queue: str, deadline: float) -> None:
        """Wait until a job can be sent, in the order of the calls.

        Raises PublishFailed at the deadline, which is the caller's own: callers that wait for the
        same broker fail together, not one after another.
        """
        try:
            async with asyncio.timeout_at(deadline), self._order:
                while not await self._is_prepared(queue, deadline):
                    pass  # the connection was lost meanwhile
        except TimeoutError:
            raise PublishFailed(
                f"a job for queue {queue} was not stored by {self.connection.address} within "
                f"{self._settings.publish_timeout:g} s: {self.connection.why_silent}",
                driver=DRIVER,
            ) from None

    async def _is_prepared(self, queue: str, deadline: float) -> bool:
        """Check the streams and the room for a job; False when there is no connection now."""
        loop = asyncio.get_running_loop()
        if not await self.connection.wait_connected(deadline - loop.time()):
            raise self.connection.not_open()
        try:
            await self.ensure_streams()
            await self._check_room(queue)
        except ConnectionFailed:
            if self.connection.is_connected:
                raise
            return False
        return True

    async def _push(
        self,
        queue: str,
        key: str,
        payload: bytes,
        headers: Headers,
        delay: float,
        *,
        deadline: float | None = None,
    ) -> Published:
        subject, sent = f"{self._root}{queue}", {**headers, HEADER_ID: key}
        if delay > 0:
            due = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=delay)
            sent["Nats-Schedule"] = f"@at {due.isoformat().replace('+00:00', 'Z')}"
            sent["Nats-Schedule-Target"] = subject
            subject = f"{subject}.later.{key}"
        return await self._publish(subject, payload, sent, deadline)

    async def _publish(
        self, subject: str, payload: bytes, headers: Headers, deadline: float | None
    ) -> Published:
        try:
            ack = await self._publisher.publish(subject, payload, headers, deadline=deadline)
        except PublishFailed:
            self._epoch = ""  # the stream may be gone: check it for the next one
            raise
        self._bytes += len(payload)
        return Published(Position(ack.seq, self._epoch), ack.duplicate)

    async def ensure_streams(self) -> None:
        """Create the streams of jobs and of failures if they do not exist.

        Raises StreamMismatch and ConnectionFailed.
        """
        if self._is_made():
            return
        async with self._ensuring.turn():
            if self._is_made():
                return
            info = await self._stream.ensure()
            self._stream.require_match(info.config)
            self._why_no_delay = self._explain_no_delay(info.config)
            await self.failed.ensure()
            self._epoch = epoch_of(info.created)

    def _explain_no_delay(self, found: dict[str, Any]) -> str:
        """Why an existing stream cannot delay jobs; empty when it can."""
        if found.get("allow_msg_schedules"):
            return ""
        version = self.connection.client.connected_server_version
        if (version.major, version.minor) < (2, 12):
            return (
                "delayed events need message schedules, which nats-server has since 2.12: this "
                f"one is {version.major}.{version.minor}.{version.patch}"
            )
        return (
            f"stream {self.name} was created without message schedules, which delayed events "
            "need: `nats stream edit` can allow them (allow_msg_schedules)"
        )

    def _require_schedules(self) -> None:
        if self._why_no_delay:
            raise NotSupported(self._why_no_delay, driver=DRIVER)

    async def _check_room(self, queue: str) -> None:
        """Refuse jobs beyond `queue_bytes`; the size is at most a second old."""
        now = asyncio.get_running_loop().time()
        if now - self._room_checked >= _CHECK_ROOM_S:
            self._room_checked = now
            info = await self._stream.info()
            if info.error is None:
                self._bytes = info.state.bytes
        if self._bytes >= self._settings.queue_bytes:
            raise PublishFailed(
                f"a job for queue {queue} was refused: stream {self.name} holds {self._bytes} "
                f"bytes, and BROADCAST_QUEUE_BYTES allows {self._settings.queue_bytes}",
                driver=DRIVER,
            )

    async def _subjects(self) -> dict[str, int]:
        """The number of messages per subject of the stream."""
        found: dict[str, int] = {}
        while True:
            request = {"subjects_filter": ">", "offset": len(found)}
            body = await self._query("STREAM.INFO", request)
            page = body.get("state", {}).get("subjects") or {}
            found |= page
            if not page or len(found) >= body.get("total", 0):
                return found

    async def _listed(self, what: str, key: str) -> Any:
        offset = 0
        while True:
            body = await self._query(what, {"offset": offset})
            page = body.get(key) or []
            for item in page:
                yield item
            offset += len(page)
            if not page or offset >= body.get("total", 0):
                return

    async def _query(self, what: str, request: dict[str, Any]) -> dict[str, Any]:
        seconds = self._settings.connect_timeout
        answer = await request_api(self.connection, f"{what}.{self.name}", request, seconds)
        if answer.error_code == STREAM_NOT_FOUND:
            return {}
        if answer.error:
            raise self._stream.failure(answer.error)
        return answer.body
