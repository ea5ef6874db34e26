"""Finds what the stream gave up before a durable consumer had handed it out.

JetStream skips such messages without a word. What is known: where the consumer is, which sequences
the stream still has after that, and which subjects hold as many messages as they may.
"""

from typing import Final

import msgspec

from eventbus.drivers.base_evicted import Evicted
from eventbus.drivers.nats_api import ask
from eventbus.drivers.nats_connection import NatsConnection
from eventbus.drivers.nats_stream import EventStream
from eventbus.drivers.nats_wire import WireHeaders

__all__ = ["find_evicted", "is_gone"]

_BATCH: Final = 256
_MAX_SUBJECTS: Final = 16
_ANSWER_S: Final = 2.0
_ENDS: Final = ("204", "404")
_NO_MESSAGE: Final = 10037


async def find_evicted(
    connection: NatsConnection,
    stream: EventStream,
    event_filter: str,
    delivered: int,
    evicted: Evicted,
) -> None:
    """Report the subjects of which messages after the sequence `delivered` are, or may be, gone.

    Raises a DriverError where the stream cannot be asked.
    """
    state = await stream.counted(event_filter)
    if state.last <= delivered:
        return
    kept = await _after(connection, stream.name, ">", delivered + 1, _BATCH)
    gap = _first_gap(kept, delivered, state.last)
    if gap is None:
        return
    live = stream.live_of
    full = [name for name, count in state.subjects.items() if 0 < state.limit <= count]
    is_found = False
    for subject in full[:_MAX_SUBJECTS]:
        first = await _after(connection, stream.name, subject, 1, 1)
        # Its oldest message came after one that is gone: that may have been its own.
        if first and first[0] > gap:
            is_found = True
            evicted.found(
                live(subject),
                f"may be lost: the channel has only its newest {state.limit} messages, and the "
                "consumer had not got to them",
            )
    if not is_found and gap < state.first:
        evicted.found(
            live(event_filter),
            "may be lost: the stream has given up its oldest messages by age or size, and the "
            "consumer had not got to them",
        )


async def is_gone(connection: NatsConnection, stream: str, sequence: int) -> bool:
    """Whether the stream does not have a message any more. Raises ConnectionFailed."""
    answer = await ask(connection, f"STREAM.MSG.GET.{stream}", {"seq": sequence}, _ANSWER_S)
    return answer.error_code == _NO_MESSAGE


def _first_gap(kept: list[int], delivered: int, last: int) -> int | None:
    """The first sequence after `delivered` that is not there, as far as was looked."""
    expected = delivered + 1
    for sequence in kept:
        if sequence != expected:
            return expected
        expected += 1
    return expected if expected <= last and len(kept) < _BATCH else None


async def _after(
    connection: NatsConnection, stream: str, subject: str, start: int, count: int
) -> list[int]:
    """The sequences of up to `count` messages from one on; a batch of direct gets (NATS ADR-31)."""
    question = msgspec.json.encode({"seq": start, "next_by_subj": subject, "batch": count})
    parts: list[tuple[bytes, WireHeaders]] = []
    reply = await connection.request(f"$JS.API.DIRECT.GET.{stream}", question, parts)
    if reply is None or reply.status not in _ENDS:
        return []
    return [int(headers.get("Nats-Sequence", "0")) for _, headers in parts]
