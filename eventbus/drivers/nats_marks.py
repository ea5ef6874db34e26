"""Purging a channel, and the marks that tell those who resume what they have missed by it.

A stream does not tell what was purged from it: a subject that has room for more messages looks as
if it had never had any. So a mark is left in the stream's metadata, which is as durable as the
stream: the offset of the last message that was purged of the subject.
"""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

from eventbus.channels import Pattern
from eventbus.drivers.base import StateStore
from eventbus.drivers.nats_api import Answer, ask
from eventbus.drivers.nats_connection import NatsConnection
from eventbus.drivers.nats_errors import DRIVER
from eventbus.errors import ConnectionFailed

__all__ = ["MAX_MARKS", "held", "mark", "purge", "purged_of"]

MAX_MARKS: Final = 200
"""Subjects that have a mark of their own; beyond, the oldest marks become one for all subjects."""
_MARK: Final = "eventbus.purged."
_ALL: Final = "eventbus.purged"
_LEASE: Final = "purging"
_LEASE_S: Final = 30.0
_PAUSE_S: Final = 0.05


def purged_of(config: Mapping[str, Any], subject: str) -> int:
    """The offset up to which a subject was purged, by its stream's configuration.

    Of a filter, the highest of the subjects that match.
    """
    metadata = config.get("metadata") or {}
    marks = [int(metadata.get(_ALL, 0)), int(metadata.get(_MARK + subject, 0))]
    if "*" in subject or ">" in subject:
        pattern = Pattern(subject)
        marks += [
            int(offset)
            for name, offset in metadata.items()
            if name.startswith(_MARK) and pattern.match(name[len(_MARK) :]) is not None
        ]
    return max(marks)


@contextlib.asynccontextmanager
async def held(state: StateStore, seconds: float) -> AsyncIterator[None]:
    """Be the only one who changes marks: the metadata are read, then written as a whole.

    Waits at most `seconds`. Raises ConnectionFailed.
    """
    token = secrets.token_hex(8).encode()
    deadline = asyncio.get_running_loop().time() + seconds
    while not await state.claim(_LEASE, token, ttl_s=_LEASE_S):
        if asyncio.get_running_loop().time() > deadline:
            raise ConnectionFailed("another purge has been under way for too long", driver=DRIVER)
        await asyncio.sleep(_PAUSE_S)
    try:
        yield
    finally:
        await state.delete(_LEASE)


async def mark(
    connection: NatsConnection, stream: str, subject: str, offset: int, seconds: float
) -> None:
    """Note that a subject is purged up to an offset. Raises ConnectionFailed."""
    info = _checked(stream, await ask(connection, f"STREAM.INFO.{stream}", None, seconds))
    config = info.body["config"]
    metadata: dict[str, str] = config.get("metadata") or {}
    marks = {key: int(value) for key, value in metadata.items() if key.startswith(_MARK)}
    marks[_MARK + subject] = max(offset, marks.get(_MARK + subject, 0))
    first = info.body["state"].get("first_seq", 0)
    # What the stream itself does not reach back to needs no mark.
    marks = {key: value for key, value in marks.items() if value >= first}
    for_all = int(metadata.get(_ALL, 0))
    while len(marks) > MAX_MARKS:
        oldest = min(marks, key=marks.__getitem__)
        for_all = max(for_all, marks.pop(oldest))
    others = {key: value for key, value in metadata.items() if not key.startswith(_ALL)}
    told = {**marks, _ALL: for_all} if for_all >= max(first, 1) else marks
    config["metadata"] = others | {key: str(value) for key, value in told.items()}
    _checked(stream, await ask(connection, f"STREAM.UPDATE.{stream}", config, seconds))


async def purge(
    connection: NatsConnection, stream: str, subject: str, offset: int, seconds: float
) -> int:
    """Remove a subject's messages up to an offset; how many there were. Raises ConnectionFailed."""
    question = {"filter": subject, "seq": offset + 1}
    answer = await ask(connection, f"STREAM.PURGE.{stream}", question, seconds)
    return int(_checked(stream, answer).body.get("purged", 0))


def _checked(stream: str, answer: Answer) -> Answer:
    if answer.error is not None:
        raise ConnectionFailed(f"stream {stream}: {answer.error}", driver=DRIVER)
    return answer
