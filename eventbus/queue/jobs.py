"""Jobs: queued events as they are stored, and records of those that failed."""

import datetime
import json
import re
from typing import (
    Final,
    cast,
)

import msgspec

from eventbus.drivers import (
    NO_HEADERS,
    Capability,
    Driver,
    Failure,
    Headers,
    QueueDriver,
    QueueStore,
)
from eventbus.errors import (
    InvalidName,
    InvalidPayload,
    NotSupported,
    UnknownEvent,
)
from eventbus.events import (
    Event,
    EventMeta,
    ShouldQueue,
    check_dispatchable,
    encode_event,
    event_decoder,
    event_definition,
    event_type,
    pause_after,
    policy_of,
    qualified_name,
    with_event_meta,
)
from eventbus.messages import Receipt, json_decoder, utc_now
from eventbus.user_code import (
    only_cause,
    text_of,
    traceback_of,
    type_name,
    valid_text,
)

__all__ = [
    "FailedJob",
    "Job",
    "event_of",
    "failed_job",
    "failed_jobs",
    "failure_of",
    "job_of",
    "push",
    "queue_store",
    "read_failure",
    "read_job",
]


MAX_TRACEBACK: Final = 4000
MAX_LINE: Final = 500
MAX_MESSAGE: Final = 1000
MAX_EVENT: Final = 200
"""Characters of the event's name, which may be anything in a foreign payload."""
MAX_INFO: Final = 15_000
"""Characters of a stored failure record; some take twelve when escaped."""
_JOB_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,100}", re.ASCII)


class Job(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A queued event, with its policy at the time of its dispatch."""

    event: str
    queue: str
    tries: int
    timeout: float
    backoff: tuple[float, ...]
    queued_at: datetime.datetime
    meta: EventMeta
    data: msgspec.Raw
    version: int = 1
    delay: float = 0.0
    connection: str | None = None
    trace: dict[str, str] = {}
    """The trace headers of the dispatch."""

    def pause_after(self, attempt: int) -> float:
        """Seconds to wait after attempt number `attempt`, starting at 1, has failed."""
        return pause_after(self.backoff, attempt)


class FailedJob(msgspec.Struct, frozen=True, kw_only=True):
    """The record of a job that is not retried automatically."""

    id: str
    queue: str
    event: str
    """Empty for a job that could not be read."""
    attempts: int
    failed_at: datetime.datetime
    error: str
    """The exception's type, with its module unless it is built in."""
    message: str
    traceback: str
    """The last 4,000 characters of the traceback at most."""


_encoder: Final = msgspec.json.Encoder()
_decode_job: Final = json_decoder(Job)
_decode_failed: Final = json_decoder(FailedJob)


def job_of(event: Event) -> Job:
    """The job of a ShouldQueue event, with the policy that the event has now.

    Raises EventDefinitionError, EventFieldError, EncodingError, InvalidName (its id).
    """
    check_dispatchable(type(event))
    if not _JOB_ID.fullmatch(event.event_meta.id):  # of an event from another system
        raise InvalidName(
            f"an event of id {event.event_meta.id[:80]!r} cannot be queued: 1 to 100 of "
            "A-Z a-z 0-9 _ - are allowed",
            name=event.event_meta.id[:80],
        )
    where = qualified_name(type(event))
    policy = policy_of(cast(ShouldQueue, event), where)
    definition = event_definition(type(event))
    return Job(
        event=definition.name,
        queue=policy.queue,
        tries=policy.tries,
        timeout=policy.timeout,
        backoff=policy.backoff,
        queued_at=utc_now(),
        meta=event.event_meta,
        data=msgspec.Raw(encode_event(event)),
        version=definition.version,
        delay=policy.delay,
        connection=policy.connection,
    )


def read_job(payload: bytes) -> Job:
    """The job in a payload. Raises InvalidPayload (`bad_job`)."""
    try:
        job = _decode_job(payload)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise InvalidPayload("bad_job", f"the payload is not a job: {exc}") from None
    if not _JOB_ID.fullmatch(job.meta.id):
        raise InvalidPayload("bad_job", "the job's id is not 1 to 100 of A-Z a-z 0-9 _ and -")
    if job.tries < 1 or not 0 < job.timeout < float("inf"):
        raise InvalidPayload("bad_job", "the job has no attempt, or no time")
    return job


def event_of(job: Job) -> Event:
    """The event of a job, with the id and time of its dispatch.

    Raises UnknownEvent, and InvalidPayload (`bad_event`) for data that does not fit its type.
    """
    cls = event_type(job.event)
    if cls is None:
        raise UnknownEvent(
            f"no event type {job.event!r} is defined in this worker: import its module "
            "(eventbus queue work --app <module>)"
        )
    try:
        event: Event = event_decoder(cls)(job.data)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise InvalidPayload(
            "bad_event",
            f"the data, of version {job.version}, does not fit {qualified_name(cls)}, which is of "
            f"version {event_definition(cls).version}: {exc}",
        ) from None
    return with_event_meta(event, job.meta)


def queue_store(driver: Driver) -> QueueStore:
    """The queues of a driver. Raises NotSupported for one without queues."""
    if Capability.QUEUE not in driver.capabilities:
        raise NotSupported(
            f"the driver {driver.name} has no queue: set BROADCAST_DRIVER to nats (or memory, "
            "within one process), or name a driver that has one with queue_connection=",
            driver=driver.name,
        )
    return cast(QueueDriver, driver).queues


async def push(store: QueueStore, job: Job, trace: Headers = NO_HEADERS) -> Receipt:
    """Store a job; returns when it is stored. Raises DriverError and EncodingError."""
    stripped = msgspec.structs.replace(job, delay=0.0, connection=None, trace=dict(trace))
    payload = _encoder.encode(stripped)
    stored = await store.push(job.queue, job.meta.id, payload, job.delay)
    offset, epoch = stored.position
    return Receipt("", job.meta.id, offset, epoch, stored.duplicate, job.queue)


def failed_job(
    exc: BaseException, *, job: Job | None, key: str, queue: str, attempts: int
) -> FailedJob:
    """The record of a job that failed with `exc`; `key` identifies a job that could not be read.

    For a group of one exception, as a failed listener raises, it describes that exception.
    """
    exc = only_cause(exc)
    lines = [valid_text(line, MAX_LINE) for line in traceback_of(exc).split("\n")]
    return FailedJob(
        id=key if job is None else job.meta.id,
        queue=queue,
        event="" if job is None else valid_text(job.event, MAX_EVENT),
        attempts=attempts,
        failed_at=utc_now(),
        error=type_name(exc),
        message=text_of(exc, MAX_MESSAGE),
        traceback="\n".join(lines)[-MAX_TRACEBACK:],
    )


def failure_of(failed: FailedJob, payload: bytes) -> Failure:
    """A failed job in the form that drivers store."""
    while len(info := _ascii(failed)) > MAX_INFO:
        if failed.traceback:
            half = len(failed.traceback) // 2 + 1
            failed = msgspec.structs.replace(failed, traceback=failed.traceback[half:])
        else:
            half = len(failed.message) // 2
            failed = msgspec.structs.replace(failed, message=failed.message[:half])
    return Failure(failed.id, failed.queue, info, payload)


def read_failure(failure: Failure) -> FailedJob:
    """Read a stored failure; for an unreadable one, the fields that are known."""
    try:
        return _decode_failed(failure.info)
    except (msgspec.DecodeError, UnicodeError) as exc:
        return FailedJob(
            id=valid_text(failure.id),
            queue=valid_text(failure.queue),
            event="",
            attempts=0,
            failed_at=datetime.datetime.fromtimestamp(0, datetime.UTC),
            error="",
            message=f"the record of this failure cannot be read: {text_of(exc)}",
            traceback="",
        )


async def failed_jobs(store: QueueStore, limit: int = 100) -> list[FailedJob]:
    """The oldest failed jobs, up to `limit`. Raises ConnectionFailed."""
    return [read_failure(failure) for failure in await store.failures(limit)]


def _ascii(failed: FailedJob) -> str:
    # A header's value must be ASCII, which msgspec does not escape to.
    return json.dumps(msgspec.to_builtins(failed), separators=(",", ":"))
