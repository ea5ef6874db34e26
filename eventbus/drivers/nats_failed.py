"""The jobs that failed: one message each in the stream `<NAMESPACE>_FAILED`, which is bounded.

The job's bytes are the message as they came, what is known of the failure is a header, so that any
job can be kept, one that cannot be read too, and be queued again as it was.
"""

import logging
import re
from typing import Any, Final, NamedTuple

import msgspec

from eventbus.drivers.base import Failure
from eventbus.drivers.nats_api import STREAM_NOT_FOUND, Answer, ask, ensure_stream
from eventbus.drivers.nats_connection import NatsConnection
from eventbus.drivers.nats_errors import DRIVER
from eventbus.drivers.nats_publish import Publisher
from eventbus.drivers.nats_wire import WireHeaders
from eventbus.errors import ConnectionFailed, EncodingError

__all__ = ["FailedStream", "Kept"]

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
