"""Failed jobs: one message each in the stream `<NAMESPACE>_FAILED`, which is bounded.

The message is the job's bytes as they were, with details of the failure in headers. So any job can
be kept, even one that cannot be decoded, and be queued again unchanged.
"""

import logging
import re
from typing import (
    Final,
    NamedTuple,
)

from eventbus.config import Settings
from eventbus.drivers.nats.connection import NatsConnection
from eventbus.drivers.nats.jetstream import (
    NANO,
    STREAM_NOT_FOUND,
    Stream,
    StreamMessage,
    placement,
)
from eventbus.drivers.nats.publish import Publisher
from eventbus.drivers.queues import Failure
from eventbus.errors import EncodingError

__all__ = ["FailedStream", "StoredFailure"]

_log = logging.getLogger(__name__)

HEADER_QUEUE: Final = "Eb-Queue"
HEADER_FAILURE: Final = "Eb-Failure"
MAX_FAILURES: Final = 10_000
MAX_AGE_S: Final = 30 * 86_400
_BATCH: Final = 500
_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,100}", re.ASCII)


class StoredFailure(NamedTuple):
    """A failure and its sequence in the stream."""

    sequence: int
    failure: Failure


class FailedStream:
    """The stream of failed jobs. Every method raises ConnectionFailed."""

    def __init__(
        self, connection: NatsConnection, publisher: Publisher, settings: Settings
    ) -> None:
        """Sends nothing yet. A different configuration of the stream is the operator's choice."""
        namespace = settings.namespace
        self._root = f"{namespace}.failed."
        self._publisher = publisher
        config = {
            "name": f"{namespace.upper()}_FAILED",
            "subjects": [f"{self._root}>"],
            "storage": "file",
            "discard": "old",
            "allow_direct": True,
            "max_msgs_per_subject": 1,
            "max_msgs": MAX_FAILURES,
            "max_age": MAX_AGE_S * NANO,
            "max_bytes": settings.failed_bytes,
            "num_replicas": settings.history_replicas,
            **placement(settings.queue_durability),
        }
        self._stream = Stream(connection, config, settings.connect_timeout)
        self.name = self._stream.name

    async def ensure(self) -> None:
        """Create the stream if it does not exist. Raises StreamMismatch, too."""
        await self._stream.ensure()

    async def add(self, failure: Failure) -> None:
        """Store a failure; one too large for the server is stored without its job's bytes."""
        subject = f"{self._root}{failure.id}"
        headers = {HEADER_QUEUE: failure.queue, HEADER_FAILURE: failure.info}
        try:
            await self._publisher.publish(subject, failure.payload, headers)
        except EncodingError as exc:
            _log.error(
                "failed job %s is too large to keep, only its details are: %s", failure.id, exc
            )
            await self._publisher.publish(subject, b"", headers)

    async def count(self) -> int:
        """The number of failures."""
        info = await self._stream.info()
        if info.error is None:
            return info.state.messages
        if info.error.err_code == STREAM_NOT_FOUND:
            return 0
        raise self._stream.failure(info.error)

    async def read(self, limit: int) -> list[StoredFailure]:
        """The oldest failures, up to `limit`."""
        found: list[StoredFailure] = []
        start = 1
        while len(found) < limit:
            batch_size = min(_BATCH, limit - len(found))
            request = {"seq": start, "next_by_subj": f"{self._root}>", "batch": batch_size}
            batch = await self._get(request)
            found += map(self._decode, batch)
            if not batch or not batch[-1].pending:
                break
            start = batch[-1].sequence + 1
        return found

    async def find(self, job_id: str) -> StoredFailure | None:
        """The failure with that id, or None."""
        if not _ID.fullmatch(job_id):
            return None
        found = await self._get({"multi_last": [f"{self._root}{job_id}"], "batch": 1})
        return self._decode(found[0]) if found else None

    async def delete(self, sequence: int) -> bool:
        """Delete a failure; False when it is not there."""
        answer = await self._stream.ask("MSG.DELETE", {"seq": sequence, "no_erase": True})
        return answer.error is None and bool(answer.body.get("success"))

    async def purge(self) -> int:
        """Delete all failures; returns how many there were."""
        return await self._stream.purge()

    async def _get(self, request: dict[str, object]) -> list[StreamMessage]:
        found = await self._stream.batch(request)
        if found is not None:
            return found
        if await self.count() == 0:  # no stream: nothing has ever failed
            return []
        raise self._stream.failure("cannot be read")

    def _decode(self, message: StreamMessage) -> StoredFailure:
        failure = Failure(
            id=message.subject.removeprefix(self._root),
            queue=message.headers.get(HEADER_QUEUE, ""),
            info=message.headers.get(HEADER_FAILURE, ""),
            payload=message.payload,
        )
        return StoredFailure(message.sequence, failure)
