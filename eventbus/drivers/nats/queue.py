"""The jobs that failed: one message each in the stream `<NAMESPACE>_FAILED`, which is bounded.

The job's bytes are the message as they came, what is known of the failure is a header, so that any
job can be kept, one that cannot be read too, and be queued again as it was.
"""

import asyncio
import datetime
import logging
import re
from collections.abc import (
    Coroutine,
    Sequence,
)
from typing import (
    Any,
    Final,
    NamedTuple,
)

import msgspec

from eventbus.config import Settings
from eventbus.drivers.base import (
    Headers,
    Position,
    Published,
)
from eventbus.drivers.nats.client import WireHeaders
from eventbus.drivers.nats.connection import NatsConnection
from eventbus.drivers.nats.errors import DRIVER
from eventbus.drivers.nats.jetstream import (
    NO_MESSAGE,
    STREAM_NOT_FOUND,
    Answer,
    ask,
    ensure_stream,
)
from eventbus.drivers.nats.publish import Publisher
from eventbus.drivers.nats.pull import NatsReader
from eventbus.drivers.nats.stream import epoch_of
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

__all__ = ["FailedStream", "Kept", "NatsQueues"]


_log = logging.getLogger(__name__)

HEADER_QUEUE: Final = "Eb-Queue"
HEADER_FAILURE: Final = "Eb-Failure"
MAX_KEPT: Final = 10_000
MAX_AGE_S: Final = 30 * 86_400
_BATCH: Final = 500
_NANO: Final = 1_000_000_000
_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,100}", re.ASCII)
_ENDS: Final = ("204", "404")


class Kept(NamedTuple):
    """A failure, and where it is."""

    sequence: int
    failure: Failure


class FailedStream:
    """Makes, fills and reads the stream. Every method raises ConnectionFailed."""

    def __init__(
        self,
        connection: NatsConnection,
        publisher: Publisher,
        namespace: str,
        *,
        max_bytes: int,
        replicas: int,
        timeout: float,
    ) -> None:
        """`timeout`: the seconds in which the server must answer."""
        self.name = f"{namespace.upper()}_FAILED"
        self._root = f"{namespace}.failed."
        self._connection = connection
        self._publisher = publisher
        self._timeout = timeout
        self._config = {
            "name": self.name,
            "subjects": [f"{self._root}>"],
            "storage": "file",
            "discard": "old",
            "allow_direct": True,
            "max_msgs_per_subject": 1,
            "max_msgs": MAX_KEPT,
            "max_age": MAX_AGE_S * _NANO,
            "max_bytes": max_bytes,
            "num_replicas": replicas,
        }

    async def ensure(self) -> None:
        """Make the stream where there is none."""
        # Another configuration of the same name is an operator's choice of other bounds.
        answer = await ensure_stream(self._connection, self._config, self._timeout)
        if answer.error:
            raise ConnectionFailed(
                f"stream {self.name} cannot be made: {answer.error}", driver=DRIVER
            )

    async def keep(self, failure: Failure) -> None:
        """Store a failure; one too large for the server is stored without its job's bytes."""
        subject = f"{self._root}{failure.id}"
        headers = {HEADER_QUEUE: failure.queue, HEADER_FAILURE: failure.info}
        try:
            await self._publisher.publish(subject, failure.payload, headers)
        except EncodingError as exc:
            _log.error("the bytes of failed job %s are too large to keep: %s", failure.id, exc)
            await self._publisher.publish(subject, b"", headers)

    async def count(self) -> int:
        """How many there are."""
        answer = await self._ask("STREAM.INFO")
        if answer.error_code == STREAM_NOT_FOUND:
            return 0
        return int(self._checked(answer)["state"]["messages"])

    async def read(self, limit: int) -> list[Kept]:
        """The oldest, up to `limit`."""
        found: list[Kept] = []
        start = 1
        while len(found) < limit:
            asked = min(_BATCH, limit - len(found))
            question = {"seq": start, "next_by_subj": f"{self._root}>", "batch": asked}
            batch = await self._get(question)
            found += batch
            if len(batch) < asked:
                break
            start = batch[-1].sequence + 1
        return found

    async def find(self, job_id: str) -> Kept | None:
        """The failure of that id, or None."""
        if not _ID.fullmatch(job_id):
            return None
        question = {"multi_last": [f"{self._root}{job_id}"], "batch": 1}
        found = await self._get(question)
        return found[0] if found else None

    async def delete(self, sequence: int) -> bool:
        """Whether there was one to delete."""
        answer = await self._ask("STREAM.MSG.DELETE", {"seq": sequence, "no_erase": True})
        return answer.error is None and bool(answer.body.get("success"))

    async def purge(self) -> int:
        """Delete all; how many there were."""
        answer = await self._ask("STREAM.PURGE")
        if answer.error_code == STREAM_NOT_FOUND:
            return 0
        return int(self._checked(answer)["purged"])

    async def _ask(self, what: str, question: dict[str, Any] | None = None) -> Answer:
        return await ask(self._connection, f"{what}.{self.name}", question, self._timeout)

    def _checked(self, answer: Answer) -> dict[str, Any]:
        if answer.error:
            raise ConnectionFailed(f"stream {self.name}: {answer.error}", driver=DRIVER)
        return answer.body

    async def _get(self, question: dict[str, Any]) -> list[Kept]:
        """A batch of direct gets (NATS ADR-31)."""
        parts: list[tuple[bytes, WireHeaders]] = []
        reply = await self._connection.request(
            f"$JS.API.DIRECT.GET.{self.name}", msgspec.json.encode(question), parts
        )
        if reply is not None and reply.status == "503":  # no such stream: nothing ever failed
            if await self.count() == 0:
                return []
            reply = None
        if reply is None or reply.status not in _ENDS:
            raise ConnectionFailed(f"stream {self.name} could not be read", driver=DRIVER)
        return [self._kept(payload, headers) for payload, headers in parts]

    def _kept(self, payload: bytes, headers: WireHeaders) -> Kept:
        subject = headers.get("Nats-Subject", "")
        failure = Failure(
            id=subject.removeprefix(self._root),
            queue=headers.get(HEADER_QUEUE, ""),
            info=headers.get(HEADER_FAILURE, ""),
            payload=payload,
        )
        return Kept(int(headers.get("Nats-Sequence", "0")), failure)


ROOM_FOR_FAILURE: Final = 16 * 1024
"""Bytes that a job must leave of the largest message, for what is added when it fails."""
MAX_HELD: Final = 100_000
"""Jobs of one queue that are worked on or wait for their next try."""
_DUPLICATES_S: Final = 120.0
_LOOK_S: Final = 1.0
_MUST_FIT: Final = ("subjects", "retention", "no_ack", "sealed", "mirror", "sources", "max_age")


class NatsQueues:
    """The queues of one namespace. Streams and consumers are made when they are first used."""

    def __init__(
        self, connection: NatsConnection, publisher: Publisher, settings: Settings
    ) -> None:
        """Nothing is asked of the server yet."""
        namespace = settings.namespace
        self.name = f"{namespace.upper()}_QUEUE"
        self.lease = settings.queue_lease
        self.connection = connection
        self.failed = FailedStream(
            connection,
            publisher,
            namespace,
            max_bytes=settings.failed_bytes,
            replicas=settings.history_replicas,
            timeout=settings.connect_timeout,
        )
        self._publisher = publisher
        self._settings = settings
        self._root = f"{namespace}.queue."
        self._epoch = ""
        self._why_no_delay = ""
        self._making = asyncio.Lock()
        self._order = asyncio.Lock()
        self._consumers: set[str] = set()
        self._readers: set[NatsReader] = set()
        self._tasks = Tasks()
        self._bytes = 0
        self._looked = float("-inf")
        self._config: dict[str, Any] = {
            "name": self.name,
            "subjects": [f"{self._root}>"],
            "retention": "workqueue",
            "storage": "file",
            # Without a limit of its own: one would need `discard: new`, which the server refuses
            # beside schedules, and `old` would drop jobs. See _check_room.
            "max_msgs": -1,
            "max_bytes": -1,
            "num_replicas": settings.history_replicas,
            "allow_direct": True,
            "allow_msg_schedules": True,
            "duplicate_window": int(_DUPLICATES_S * _NANO),
        }

    def _is_made(self) -> bool:
        return bool(self._epoch)

    async def push(self, queue: str, id: str, payload: bytes, delay: float) -> Published:  # noqa: A002
        """Store a job; see `QueueStore.push`."""
        async with self._order:  # of concurrent pushes, the first to come is the first to be sent
            await self.ensure_streams()
            await self._check_room(queue)
        limit = self.connection.max_payload - ROOM_FOR_FAILURE
        if len(payload) > limit:
            raise EncodingError(
                f"a job of {len(payload)} bytes for queue {queue} is too large: the server's "
                f"max_payload leaves {limit} bytes"
            )
        if delay > 0:
            self._require_schedules()
        return await self._push(queue, id, payload, {}, delay)

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
        return [kept.failure for kept in await self.failed.read(limit)]

    async def failure(self, id: str) -> Failure | None:  # noqa: A002
        """The failure of that id, or None."""
        kept = await self.failed.find(id)
        return None if kept is None else kept.failure

    async def failure_count(self) -> int:
        """How many failures are kept."""
        return await self.failed.count()

    async def retry(self, id: str) -> bool:  # noqa: A002
        """Push a failed job again; see `QueueStore.retry`."""
        kept = await self.failed.find(id)
        if kept is None:
            return False
        await self.ensure_streams()
        await complete(self._retry(kept))
        return True

    async def _retry(self, kept: Kept) -> None:
        failure = kept.failure
        key = f"{failure.id}:failed-{kept.sequence}"
        await self.push_again(failure.queue, key, failure.payload, {})
        await self.failed.delete(kept.sequence)

    async def forget(self, id: str) -> bool:  # noqa: A002
        """Drop a failure."""
        kept = await self.failed.find(id)
        return kept is not None and await self.failed.delete(kept.sequence)

    async def flush(self) -> int:
        """Drop all failures."""
        return await self.failed.purge()

    async def ensure_consumer(self, queue: str) -> None:
        """Make what is missing, of the streams too. Raises ConnectionFailed, StreamMismatch."""
        if queue in self._consumers:
            return
        await self.ensure_streams()
        subject = f"{self._root}{queue}"
        question = {
            "stream_name": self.name,
            "config": {
                "name": queue,
                "durable_name": queue,
                "filter_subject": subject,
                "ack_policy": "explicit",
                "ack_wait": int(self.lease * _NANO),
                "max_deliver": -1,  # the worker counts: the server would only forget the job
                "max_ack_pending": MAX_HELD,
            },
        }
        what = f"CONSUMER.CREATE.{self.name}.{queue}.{subject}"
        answer = await ask(self.connection, what, question, self._settings.connect_timeout)
        if answer.error_code == STREAM_NOT_FOUND:  # since a moment ago
            self._epoch = ""
            raise ConnectionFailed(f"stream {self.name} is gone", driver=DRIVER)
        if answer.error:
            raise StreamMismatch(
                f"the consumer of queue {queue} cannot be made: {answer.error}", driver=DRIVER
            )
        self._consumers.add(queue)

    def doubt(self, queue: str) -> None:
        """The consumer may be gone, and the stream with it."""
        self._consumers.discard(queue)
        self._epoch = ""

    async def push_again(
        self, queue: str, key: str, payload: bytes, headers: Headers, delay: float = 0.0
    ) -> None:
        """Store a job anew, once for each key; without the delay where the stream has none."""
        await self._push(queue, key, payload, headers, 0.0 if self._why_no_delay else delay)

    async def has(self, sequence: int) -> bool:
        """Whether a message of the stream is still there. Raises ConnectionFailed."""
        answer = await ask(
            self.connection,
            f"STREAM.MSG.GET.{self.name}",
            {"seq": sequence},
            self._settings.connect_timeout,
        )
        if answer.error_code in (STREAM_NOT_FOUND, NO_MESSAGE):
            return False
        if answer.error:
            raise ConnectionFailed(f"stream {self.name}: {answer.error}", driver=DRIVER)
        return True

    async def keep(self, failure: Failure) -> None:
        """Keep a failure."""
        await self.ensure_streams()
        await self.failed.keep(failure)

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something in the background; `aclose` waits for it."""
        self._tasks.start(work, f"handing back a job of {self.name}")

    def on_back(self) -> None:
        """The connection is another one: the server may be, too."""
        self._epoch = ""
        self._consumers.clear()
        for reader in self._readers:
            reader.wake()

    async def aclose(self) -> None:
        """Let what hands back jobs finish, in bounded time."""
        await asyncio.gather(*(reader.aclose() for reader in list(self._readers)))
        await self._tasks.join(2.0)
        await self._tasks.aclose()

    async def _push(
        self, queue: str, key: str, payload: bytes, headers: Headers, delay: float
    ) -> Published:
        subject, sent = f"{self._root}{queue}", {**headers, HEADER_ID: key}
        if delay > 0:
            due = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=delay)
            sent["Nats-Schedule"] = f"@at {due.isoformat().replace('+00:00', 'Z')}"
            sent["Nats-Schedule-Target"] = subject
            subject = f"{subject}.later.{key}"
        return await self._publish(subject, payload, sent)

    async def _publish(self, subject: str, payload: bytes, headers: Headers) -> Published:
        try:
            ack = await self._publisher.publish(subject, payload, headers)
        except PublishFailed:
            self._epoch = ""  # the stream may be gone: make it for the next one
            raise
        self._bytes += len(payload)
        return Published(Position(ack.seq, self._epoch), ack.duplicate)

    async def ensure_streams(self) -> None:
        """Make the streams of jobs and of failed ones where there are none.

        Raises StreamMismatch and ConnectionFailed.
        """
        if self._is_made():
            return
        async with self._making:
            if self._is_made():
                return
            seconds = self._settings.connect_timeout
            answer = await ensure_stream(self.connection, self._config, seconds)
            if answer.error:
                raise StreamMismatch(
                    f"stream {self.name} cannot be made: {answer.error}", driver=DRIVER
                )
            self._check(answer.body["config"])
            await self.failed.ensure()
            self._epoch = epoch_of(answer.body["created"])

    def _check(self, found: dict[str, Any]) -> None:
        wrong = [
            f"{name} is {found.get(name)!r}, not {self._config.get(name)!r}"
            for name in _MUST_FIT
            if (found.get(name) or None) != (self._config.get(name) or None)
        ]
        if wrong:
            raise StreamMismatch(
                f"stream {self.name} exists with settings that cannot work: {'; '.join(wrong)}. "
                "Alter it, remove it, or set BROADCAST_CHANNELS_PREFIX to another namespace",
                driver=DRIVER,
            )
        self._why_no_delay = ""
        if not found.get("allow_msg_schedules"):
            version = self.connection.client.connected_server_version
            if (version.major, version.minor) < (2, 12):
                self._why_no_delay = (
                    "delayed events need message schedules, which nats-server has from 2.12 on: "
                    f"this one is {version.major}.{version.minor}.{version.patch}"
                )
            else:
                self._why_no_delay = (
                    f"stream {self.name} was made without message schedules, which delayed events "
                    "need: `nats stream edit` can allow them (allow_msg_schedules)"
                )

    def _require_schedules(self) -> None:
        if self._why_no_delay:
            raise NotSupported(self._why_no_delay, driver=DRIVER)

    async def _check_room(self, queue: str) -> None:
        """Refuse jobs beyond `queue_bytes`, as known a second ago at most."""
        now = asyncio.get_running_loop().time()
        if now - self._looked >= _LOOK_S:
            self._looked = now
            answer = await ask(
                self.connection,
                f"STREAM.INFO.{self.name}",
                None,
                self._settings.connect_timeout,
            )
            if answer.error is None:
                self._bytes = answer.body["state"]["bytes"]
        if self._bytes >= self._settings.queue_bytes:
            raise PublishFailed(
                f"a job for queue {queue} is refused: stream {self.name} holds {self._bytes} "
                f"bytes, and BROADCAST_QUEUE_BYTES allows {self._settings.queue_bytes}",
                driver=DRIVER,
            )

    async def _subjects(self) -> dict[str, int]:
        """How many messages each subject of the stream has."""
        found: dict[str, int] = {}
        while True:
            question = {"subjects_filter": ">", "offset": len(found)}
            body = await self._info("STREAM.INFO", question)
            page = body.get("state", {}).get("subjects") or {}
            found |= page
            if not page or len(found) >= body.get("total", 0):
                return found

    async def _listed(self, what: str, key: str) -> Any:
        offset = 0
        while True:
            body = await self._info(what, {"offset": offset})
            page = body.get(key) or []
            for item in page:
                yield item
            offset += len(page)
            if not page or offset >= body.get("total", 0):
                return

    async def _info(self, what: str, question: dict[str, Any]) -> dict[str, Any]:
        answer = await ask(
            self.connection, f"{what}.{self.name}", question, self._settings.connect_timeout
        )
        if answer.error_code == STREAM_NOT_FOUND:
            return {}
        if answer.error:
            raise ConnectionFailed(f"stream {self.name}: {answer.error}", driver=DRIVER)
        return answer.body
