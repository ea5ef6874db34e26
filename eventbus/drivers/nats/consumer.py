"""Durable consumers: members that pull, and what the stream evicted before they got it."""

import asyncio
import collections
import logging
from collections.abc import Callable
from typing import (
    Any,
    Final,
)

from nats.aio.msg import Msg

from eventbus.attempts import Backoff
from eventbus.channels import Subjects
from eventbus.drivers.base import (
    NO_HEADERS,
    Delivery,
    Position,
)
from eventbus.drivers.consumers import (
    ConsumerSettings,
    EvictionLog,
)
from eventbus.drivers.marks import timestamp
from eventbus.drivers.nats.client import PROBE
from eventbus.drivers.nats.connection import NatsConnection
from eventbus.drivers.nats.errors import (
    DRIVER,
    mapped,
)
from eventbus.drivers.nats.identity import SeenMessage
from eventbus.drivers.nats.jetstream import (
    CONSUMER_EXISTS,
    NANO,
    NO_MESSAGE,
    STREAM_NOT_FOUND,
    Answer,
    agreed_ack_wait,
    create_consumer,
    request_api,
)
from eventbus.drivers.nats.pull import (
    LOST,
    Pull,
    is_normal_end,
)
from eventbus.drivers.nats.stream import EventStream
from eventbus.errors import (
    ConnectionFailed,
    DriverError,
    EventBusError,
    StreamMismatch,
)
from eventbus.tasks import (
    Shutdown,
    Tasks,
)

__all__ = ["NatsConsumer", "NatsUnackedDelivery"]

_log = logging.getLogger(__name__)

PULL_S: Final = 30.0
"""How long the server keeps a request for which there are no messages."""
HEARTBEAT_S: Final = 2.0
_REFRESH_S: Final = 10.0
"""The maximum age of the known position, from which a lost consumer is created again."""
_FIRST_PAUSE_S: Final = 0.2
_MAX_PAUSE_S: Final = 5.0
_MAX_UNACKED: Final = 10_000
_MAX_CHECKS: Final = 1000
_BATCH: Final = 256
_MAX_SUBJECTS: Final = 16
_CONSUMER_NOT_FOUND: Final = 10014
_TOKENS: Final = 9


class NatsUnackedDelivery:
    """A message that JetStream expects an answer to."""

    __slots__ = ("_consumer", "_reply", "attempt", "delivery")

    def __init__(
        self, consumer: "NatsConsumer", reply: str, delivery: Delivery, attempt: int
    ) -> None:
        self.delivery = delivery
        self.attempt = attempt
        self._consumer = consumer
        self._reply = reply

    async def ack(self) -> None:
        """Acknowledge the message."""
        await self._consumer.answer(self._reply, b"+ACK")

    async def retry(self, seconds: float = 0.0) -> None:
        """Deliver the message again after that time."""
        nak = b'-NAK {"delay": %d}' % int(seconds * NANO) if seconds > 0 else b"-NAK"
        await self._consumer.answer(self._reply, nak)
        if seconds > 0:
            self._consumer.expect_retry(self.delivery, seconds)

    async def discard(self) -> None:
        """Do not deliver the message again."""
        await self._consumer.answer(self._reply, b"+TERM")


class NatsConsumer:
    """A member of a durable pull consumer on the event stream."""

    def __init__(
        self,
        connection: NatsConnection,
        stream: EventStream,
        name: str,
        *,
        filter_subject: str,
        subjects: Subjects,
        settings: ConsumerSettings,
        on_evicted: Callable[[], object] = lambda: None,
    ) -> None:
        """`filter_subject` is of event subjects; `on_evicted` is called for each loss."""
        self.name = name
        self.seen = SeenMessage(0, "")
        """The furthest message of the stream that was delivered."""
        self._connection = connection
        self._stream = stream
        self._filter = filter_subject
        self._subjects = subjects
        self._settings = settings
        self._ack_wait = int(settings.ack_wait * NANO)
        self._pull = Pull(connection, stream.name, name, self._receive)
        self._ready: collections.deque[NatsUnackedDelivery] = collections.deque()
        self._created = ""
        self._epoch = ""
        self._floor = 0
        """Everything up to this offset was acknowledged when the consumer was last queried."""
        self._refreshed_at = 0.0
        self._is_current = False
        """Whether nothing indicates that the consumer is gone."""
        self._closed = False
        self._delivered = 0
        """The number of deliveries to all members, as of the last one that arrived."""
        self._is_checking_jump = False
        self._evictions = EvictionLog(name, on_evicted)
        self._tasks = Tasks(_MAX_CHECKS)
        self._shutdown = Shutdown()

    async def open(self, seconds: float) -> None:
        """Create the consumer, or join the existing one, within that time."""
        await self._refresh(seconds)

    @property
    def evicted(self) -> int:
        """See `Consumer.evicted`."""
        return self._evictions.count

    def invalidate(self) -> None:
        """The connection was lost: query the consumer, and pull again."""
        self._is_current = False
        self._pull.end(LOST)

    def restart(self, unchanged: int) -> None:
        """The stream was replaced, or has gone back; it is unchanged up to an offset."""
        if self.seen.offset > unchanged:
            self.seen = SeenMessage(0, "")
        self.invalidate()

    async def take(self, limit: int) -> list[NatsUnackedDelivery]:
        """See `Consumer.take`."""
        backoff = Backoff(_FIRST_PAUSE_S, _MAX_PAUSE_S)
        while not self._closed:
            if self._ready:
                return [self._ready.popleft() for _ in range(min(limit, len(self._ready)))]
            try:
                if not await self._keep_pulling(limit):
                    continue
            except EventBusError as exc:
                _log.warning("consumer %s: %s", self.name, exc)
                self._is_current = False
                await asyncio.sleep(backoff.next())
                continue
            backoff.reset()
            if not self._ready and self._pull.is_open:
                await self._pull.wait()
            if not is_normal_end(self._pull.status):
                self._is_current = False
        raise ConnectionFailed(f"the consumer {self.name} is closed", driver=DRIVER)

    async def answer(self, reply: str, payload: bytes) -> None:
        """Answer a delivery."""
        with mapped(f"answering a delivery of consumer {self.name}"):
            await self._connection.client.publish(reply, payload)

    def expect_retry(self, delivery: Delivery, seconds: float) -> None:
        """Check, just before a message is due again, that the stream still has it."""
        self._tasks.start(self._check_retry(delivery, seconds), f"consumer {self.name}: a check")

    async def aclose(self) -> None:
        """Unsubscribe, and hand back what was fetched and not taken."""
        self._closed = True
        self._pull.end("")  # wakes `take`
        await self._shutdown.run(self._aclose)

    async def _aclose(self) -> None:
        await self._tasks.aclose()
        await self._pull.aclose()
        await self._hand_back()

    async def _hand_back(self) -> None:
        while self._ready:
            try:
                await self._ready.popleft().retry()
            except DriverError as exc:  # then it is delivered again after ack_wait
                _log.warning("%s", exc)

    async def _keep_pulling(self, limit: int) -> bool:
        """Refresh the consumer and request messages where needed; False without a connection."""
        if not await self._connection.wait_connected(_MAX_PAUSE_S):
            return False
        age = asyncio.get_running_loop().time() - self._refreshed_at
        if not self._is_current or age > _REFRESH_S:
            await self._refresh(_MAX_PAUSE_S)
        if not self._pull.is_open:
            await self._pull.request(limit, expires_s=PULL_S, heartbeat_s=HEARTBEAT_S)
        return True

    def _receive(self, message: Msg) -> None:
        about = message.metadata
        is_next = about.sequence.consumer == self._delivered + 1
        self._delivered = about.sequence.consumer
        if is_next and about.num_pending and 0 < self.seen.offset < about.sequence.stream - 1:
            self._check_jump(message.subject, self.seen.offset, about.sequence.stream)
        if about.sequence.stream > self.seen.offset:
            # Unlike the parsed time, this one has nanoseconds: $JS.ACK.….<time>.<pending>, with
            # more tokens before and behind when an account or a domain is named.
            tokens = message.reply.split(".")
            time = tokens[7] if len(tokens) == _TOKENS else tokens[9]
            self.seen = SeenMessage(about.sequence.stream, timestamp(int(time)))
        delivery = Delivery(
            self._subjects.live_of(message.subject) or message.subject,
            message.data,
            message.headers or NO_HEADERS,
            Position(about.sequence.stream, self._epoch),
            None,
            about.timestamp.isoformat().replace("+00:00", "Z"),
        )
        unacked = NatsUnackedDelivery(self, message.reply, delivery, about.num_delivered)
        if message.subject.endswith(f".{PROBE}"):
            self._tasks.start(self._ack(unacked), f"consumer {self.name}: the ack of a probe")
        else:  # once this is closing, `aclose` hands it back
            self._ready.append(unacked)

    def _check_jump(self, subject: str, before: int, sequence: int) -> None:
        """Check whether messages between two consecutive deliveries are gone."""
        if not self._is_checking_jump:
            self._is_checking_jump = True
            work = self._report_jump(subject, before, sequence)
            self._tasks.start(work, f"consumer {self.name}: a check of a jump")

    async def _report_jump(self, subject: str, before: int, sequence: int) -> None:
        stream = self._stream
        try:
            if await _is_preceded_by_evicted(stream, subject, before, sequence):
                self._evictions.report(
                    stream.live_of(subject),
                    f"may be lost: {sequence} is the channel's oldest message, and the consumer "
                    "had not reached those before it",
                )
        except DriverError as exc:
            _log.debug("consumer %s: %s", self.name, exc)
        finally:
            self._is_checking_jump = False

    async def _ack(self, unacked: NatsUnackedDelivery) -> None:
        try:
            await unacked.ack()
        except DriverError as exc:  # then it is delivered again after ack_wait
            _log.debug("%s", exc)

    async def _check_retry(self, delivery: Delivery, seconds: float) -> None:
        assert delivery.position is not None, "a stored message has a position"
        offset, epoch = delivery.position
        await asyncio.sleep(0.9 * seconds)
        try:
            answer = await self._stream.stream.ask("MSG.GET", {"seq": offset})
        except DriverError as exc:
            _log.debug("consumer %s: %s", self.name, exc)
            return
        if answer.error_code == NO_MESSAGE and epoch == self._stream.identity.epoch:
            self._evictions.report(
                delivery.subject, f"are lost: {offset} was evicted before it was tried again"
            )

    async def _refresh(self, seconds: float) -> None:
        """Query the consumer's position; create the consumer if it does not exist."""
        answer = await self._ask("INFO", None, seconds)
        if answer.error_code in (STREAM_NOT_FOUND, _CONSUMER_NOT_FOUND):
            answer = await self._recreate(seconds)
        config = self._config_of(answer)
        if config.get("deliver_subject") or config.get("ack_policy") != "explicit":
            raise StreamMismatch(
                f"consumer {self.name} of {self._stream.name} exists, but is not a pull consumer "
                "with explicit acknowledgement: remove it, or rename the group",
                driver=DRIVER,
            )
        # Only a member that joins sets the filter: members with different ones would change it
        # back and forth.
        is_joining = not self._refreshed_at
        wanted = {
            "filter_subject": self._filter if is_joining else config.get("filter_subject"),
            "ack_wait": agreed_ack_wait(answer.body, self._ack_wait, is_joining=is_joining),
        }
        if any(config.get(name) != value for name, value in wanted.items()):
            answer = await self._create("update", {**config, **wanted}, seconds)
            self._config_of(answer)
            _log.info("changed consumer %s to %s", self.name, wanted)
        created = answer.body.get("created", "")
        if created != self._created or self._stream.identity.is_stale:
            await self._stream.state()
            self._created = created
        self._epoch = self._stream.identity.epoch
        self._floor = answer.body.get("ack_floor", {}).get("stream_seq", 0)
        await self._find_evicted(answer.body)
        self._refreshed_at = asyncio.get_running_loop().time()
        self._is_current = True

    async def _find_evicted(self, info: dict[str, Any]) -> None:
        """Look for evicted messages between the consumer and the end of the stream."""
        delivered = info.get("delivered", {}).get("stream_seq", 0)
        if self._refreshed_at and not info.get("num_pending"):
            return
        try:
            await _report_evicted(self._stream, self._filter, delivered, self._evictions)
        except DriverError as exc:  # the next refresh looks again
            _log.debug("consumer %s: %s", self.name, exc)

    async def _recreate(self, seconds: float) -> Answer:
        """Create a consumer: a new one, or one that continues where a lost one was."""
        state = await self._stream.ensure()
        if self._epoch:
            _log.warning("consumer %s was gone and is recreated", self.name)
        if not self._epoch:
            start: dict[str, Any] = {
                "deliver_policy": "all" if self._settings.from_start else "new"
            }
        elif self._epoch != state.epoch:
            start = {"deliver_policy": "all"}  # nothing of this stream was delivered
        else:
            start = {"deliver_policy": "by_start_sequence", "opt_start_seq": self._floor + 1}
        config = {
            "durable_name": self.name,
            "name": self.name,
            "filter_subject": self._filter,
            "ack_policy": "explicit",
            "ack_wait": self._ack_wait,
            "max_deliver": -1,  # the subscription counts deliveries, and decides when to give up
            "max_ack_pending": _MAX_UNACKED,
            "replay_policy": "instant",
            **start,
        }
        answer = await self._create("create", config, seconds)
        if answer.error_code == CONSUMER_EXISTS:  # another member was first
            return await self._ask("INFO", None, seconds)
        return answer

    async def _create(self, action: str, config: dict[str, Any], seconds: float) -> Answer:
        question = {"stream_name": self._stream.name, "config": config, "action": action}
        what = f"CREATE.{self._stream.name}.{self.name}"
        return await create_consumer(self._connection, what, question, seconds)

    async def _ask(self, what: str, question: dict[str, Any] | None, seconds: float) -> Answer:
        subject = f"CONSUMER.{what}.{self._stream.name}.{self.name}"
        return await request_api(self._connection, subject, question, seconds)

    def _config_of(self, answer: Answer) -> dict[str, Any]:
        if answer.error is not None:
            raise StreamMismatch(f"consumer {self.name}: {answer.why}", driver=DRIVER)
        config: dict[str, Any] = answer.body.get("config", {})
        return config


async def _report_evicted(
    stream: EventStream,
    event_filter: str,
    delivered: int,
    evictions: EvictionLog,
) -> None:
    """Report subjects whose messages after the sequence `delivered` are or may be gone.

    JetStream skips evicted messages silently. What is known: the consumer's position, which
    sequences the stream still has after it, and which subjects have as many messages as they may.
    Raises DriverError when the stream cannot be queried.
    """
    state = await stream.counts(event_filter)
    if state.last <= delivered:
        return
    gap = _first_gap(await _after(stream, ">", delivered + 1, _BATCH), delivered, state.last)
    if gap is None:
        return
    live = stream.live_of
    full = [name for name, count in state.subjects.items() if 0 < state.limit <= count]
    is_found = False
    for subject in full[:_MAX_SUBJECTS]:
        first = await _after(stream, subject, 1, 1)
        # Its oldest message came after the missing one, which may have been its own.
        if first and first[0] > gap:
            is_found = True
            evictions.report(
                live(subject),
                f"may be lost: the channel has only its newest {state.limit} messages, and the "
                "consumer had not reached the others",
            )
    if not is_found and gap < state.first:
        evictions.report(
            live(event_filter),
            "may be lost: the stream has evicted its oldest messages by age or size, and the "
            "consumer had not reached them",
        )


async def _is_preceded_by_evicted(
    stream: EventStream, subject: str, before: int, sequence: int
) -> bool:
    """Whether messages of a subject between two sequences are or may be gone.

    True when the subject is full, its oldest message is at the second sequence, and the stream
    lacks a message in between. Raises DriverError when the stream cannot be queried.
    """
    if await _after(stream, subject, 1, 1) != [sequence]:
        return False
    state = await stream.counts(subject)
    if not 0 < state.limit <= state.subjects.get(subject, 0):
        return False
    gap = _first_gap(await _after(stream, ">", before + 1, _BATCH), before, sequence - 1)
    return gap is not None and gap < sequence


def _first_gap(found: list[int], delivered: int, last: int) -> int | None:
    """The first missing sequence after `delivered`, among those that were read."""
    expected = delivered + 1
    for sequence in found:
        if sequence != expected:
            return expected
        expected += 1
    return expected if expected <= last and len(found) < _BATCH else None


async def _after(stream: EventStream, subject: str, start: int, count: int) -> list[int]:
    """The sequences of the next `count` messages from one on, or of all that there are."""
    found: list[int] = []
    while len(found) < count:
        request = {"seq": start, "next_by_subj": subject, "batch": count - len(found)}
        batch = await stream.stream.batch(request) or []
        found += [message.sequence for message in batch]
        if not batch or not batch[-1].pending:
            break
        start = found[-1] + 1
    return found
