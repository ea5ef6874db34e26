"""Finds what the stream gave up before a durable consumer had handed it out.

JetStream skips such messages without a word. What is known: where the consumer is, which sequences
the stream still has after that, and which subjects hold as many messages as they may.
"""

import asyncio
import collections
import contextlib
import logging
from collections.abc import Callable
from typing import (
    Any,
    Final,
)

import msgspec
from nats import errors as nats_errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from eventbus.channels import Subjects
from eventbus.drivers.base import (
    NO_HEADERS,
    Delivery,
    Position,
)
from eventbus.drivers.consumers import (
    ConsumerSettings,
    Evicted,
)
from eventbus.drivers.marks import timestamp
from eventbus.drivers.nats.client import (
    PROBE,
    WireHeaders,
)
from eventbus.drivers.nats.connection import NatsConnection
from eventbus.drivers.nats.errors import (
    DRIVER,
    mapped,
)
from eventbus.drivers.nats.jetstream import (
    STREAM_NOT_FOUND,
    Answer,
    ask,
)
from eventbus.drivers.nats.stream import (
    EventStream,
    Point,
)
from eventbus.errors import (
    ConnectionFailed,
    DriverError,
    EventBusError,
    StreamMismatch,
)
from eventbus.tasks import Tasks

__all__ = ["NatsConsumer", "NatsHeld", "find_evicted", "is_gone"]


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


async def is_preceded_by_evicted(
    connection: NatsConnection, stream: EventStream, subject: str, before: int, sequence: int
) -> bool:
    """Whether messages of a subject between two sequences are, or may be, gone.

    As far as the subject is full, and the message at the second one the oldest that it has. Raises
    a DriverError where the stream cannot be asked.
    """
    if await _after(connection, stream.name, subject, 1, 1) != [sequence]:
        return False
    state = await stream.counted(subject)
    if not 0 < state.limit <= state.subjects.get(subject, 0):
        return False
    kept = await _after(connection, stream.name, ">", before + 1, _BATCH)
    gap = _first_gap(kept, before, sequence - 1)
    return gap is not None and gap < sequence


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


_log = logging.getLogger(__name__)

PULL_S: Final = 30.0
"""How long the server keeps a pull for which there are no messages."""
HEARTBEAT_S: Final = 2.0
_SILENCE_S: Final = 2.5 * HEARTBEAT_S
_LOOK_S: Final = 10.0
"""How old what is known of the consumer's place may grow, in which a lost one is made anew."""
_PAUSE_S: Final = 0.2
_MAX_PAUSE_S: Final = 5.0
_MAX_UNANSWERED: Final = 10_000
_MAX_LOOKS: Final = 1000
_NANO: Final = 1_000_000_000
_NOT_FOUND: Final = 10014
_EXISTS: Final = 10148
_ACK_PREFIX: Final = "$JS.ACK."
_TOKENS: Final = 9


class NatsHeld:
    """One message that JetStream waits to hear about."""

    __slots__ = ("_consumer", "_reply", "attempt", "delivery")

    def __init__(
        self, consumer: "NatsConsumer", reply: str, delivery: Delivery, attempt: int
    ) -> None:
        self.delivery = delivery
        self.attempt = attempt
        self._consumer = consumer
        self._reply = reply

    async def ack(self) -> None:
        """It is done."""
        await self._consumer.answer(self._reply, b"+ACK")

    async def retry(self, seconds: float = 0.0) -> None:
        """Hand it out again after that time."""
        nak = b'-NAK {"delay": %d}' % int(seconds * _NANO) if seconds > 0 else b"-NAK"
        await self._consumer.answer(self._reply, nak)
        if seconds > 0:
            self._consumer.expect_again(self.delivery, seconds)

    async def discard(self) -> None:
        """It is never handed out again."""
        await self._consumer.answer(self._reply, b"+TERM")


class NatsConsumer:
    """A member of a durable pull consumer over the stream of events."""

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
        """`filter_subject` is one of event subjects; `on_evicted` is called for each loss."""
        self.name = name
        self._connection = connection
        self._stream = stream
        self._filter = filter_subject
        self._subjects = subjects
        self._settings = settings
        self._ack_wait = int(settings.ack_wait * _NANO)
        self._created = ""
        self._epoch = ""
        self._floor = 0
        """All up to this offset were answered for when the consumer was last looked at."""
        self._looked = 0.0
        self._known = False
        """Whether nothing speaks against the consumer being there."""
        self._asked = 0
        """Messages that the present pull may still bring."""
        self._pull = 0
        self._heard = 0.0
        self._ready: collections.deque[NatsHeld] = collections.deque()
        self._woken = asyncio.Event()
        self._client: Client | None = None
        self._inbox = ""
        self._subscription: Subscription | None = None
        self._closed = False
        self.seen = Point(0, "")
        """The furthest message of the stream that has come."""
        self._handed_out = 0
        """How many deliveries to all members there were, as of the last one that has come."""
        self._is_looking_back = False
        self._evicted = Evicted(name, on_evicted)
        self._tasks = Tasks(_MAX_LOOKS)

    async def open(self, seconds: float) -> None:
        """Make the consumer, or join the one that there is, within that time."""
        await self._look(seconds)

    def doubt(self) -> None:
        """The connection was lost: look for the consumer, and pull anew."""
        self._asked, self._known = 0, False
        self._woken.set()

    def restart(self, same: int) -> None:
        """The stream is another one, and as it was up to an offset."""
        if self.seen.offset > same:
            self.seen = Point(0, "")
        self.doubt()

    async def take(self, limit: int) -> list[NatsHeld]:
        """See `Consumer.take`."""
        pause = _PAUSE_S
        while not self._closed:
            if self._ready:
                return [self._ready.popleft() for _ in range(min(limit, len(self._ready)))]
            self._woken.clear()
            try:
                if not await self._keep_pulling(limit):
                    continue
            except EventBusError as exc:
                _log.warning("consumer %s: %s", self.name, exc)
                self._known = False
                await asyncio.sleep(pause)
                pause = min(2 * pause, _MAX_PAUSE_S)
                continue
            pause = _PAUSE_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_SILENCE_S):
                    await self._woken.wait()
            if asyncio.get_running_loop().time() - self._heard > _SILENCE_S:
                self._asked, self._known = 0, False
        raise ConnectionFailed(f"the consumer {self.name} is closed", driver=DRIVER)

    async def answer(self, reply: str, payload: bytes) -> None:
        """Say what became of a message."""
        with mapped(f"answering for a message of consumer {self.name}"):
            await self._connection.client.publish(reply, payload)

    @property
    def evicted(self) -> int:
        """See `Consumer.evicted`."""
        return self._evicted.count

    def expect_again(self, delivery: Delivery, seconds: float) -> None:
        """Look, just before a message is to be handed out again, whether the stream has it."""
        self._tasks.start(self._look_for(delivery, seconds), f"consumer {self.name}: a look")

    async def _look_for(self, delivery: Delivery, seconds: float) -> None:
        assert delivery.position is not None, "a stored message has a position"
        offset, epoch = delivery.position
        await asyncio.sleep(0.9 * seconds)
        try:
            gone = await is_gone(self._connection, self._stream.name, offset)
        except DriverError as exc:
            _log.debug("consumer %s: %s", self.name, exc)
            return
        if gone and epoch == self._stream.epoch:
            self._evicted.found(
                delivery.subject, f"are lost: {offset} is gone before it was to be tried again"
            )

    def _look_back(self, subject: str, before: int, sequence: int) -> None:
        """The consumer went from one sequence to another: what was in between may be gone."""
        if not self._is_looking_back:
            self._is_looking_back = True
            work = self._look_between(subject, before, sequence)
            self._tasks.start(work, f"consumer {self.name}: a look back")

    async def _look_between(self, subject: str, before: int, sequence: int) -> None:
        connection, stream = self._connection, self._stream
        try:
            if await is_preceded_by_evicted(connection, stream, subject, before, sequence):
                self._evicted.found(
                    stream.live_of(subject),
                    f"may be lost: {sequence} is the oldest that the channel has, and the consumer "
                    "had not got to those before",
                )
        except DriverError as exc:
            _log.debug("consumer %s: %s", self.name, exc)
        finally:
            self._is_looking_back = False

    async def aclose(self) -> None:
        """Unsubscribe, and hand back what was fetched and not taken."""
        if self._closed:
            return
        self._closed = True
        self._woken.set()
        await self._tasks.aclose()
        await self._unsubscribe()
        while self._ready:
            try:
                await self._ready.popleft().retry()
            except DriverError as exc:  # then it is handed out again after ack_wait
                _log.warning("%s", exc)

    async def _keep_pulling(self, limit: int) -> bool:
        """Have a consumer, an inbox and a pull; False while there is no connection."""
        loop = asyncio.get_running_loop()
        if not await self._connection.wait_connected(_MAX_PAUSE_S):
            return False
        client = self._connection.client
        if client is not self._client:
            await self._subscribe(client)
        if not self._known or loop.time() - self._looked > _LOOK_S:
            await self._look(_MAX_PAUSE_S)
        if self._asked > 0:
            return True
        self._pull += 1
        self._asked = limit
        self._heard = loop.time()
        request = {
            "batch": limit,
            "expires": int(PULL_S * _NANO),
            "idle_heartbeat": int(HEARTBEAT_S * _NANO),
        }
        with mapped(f"pulling from consumer {self.name}"):
            await client.publish(
                f"$JS.API.CONSUMER.MSG.NEXT.{self._stream.name}.{self.name}",
                msgspec.json.encode(request),
                reply=f"{self._inbox}.{self._pull}",
            )
        return True

    async def _subscribe(self, client: Client) -> None:
        """An inbox at this client; a former one was closed for good, and its inbox with it."""
        await self._unsubscribe()
        self._inbox = client.new_inbox()
        with mapped(f"listening for consumer {self.name}"):
            self._subscription = await client.subscribe(f"{self._inbox}.*", cb=self._receive)
        self._client = client
        self._asked = 0

    async def _unsubscribe(self) -> None:
        subscription, self._subscription = self._subscription, None
        if subscription is not None and self._client is not None and not self._client.is_closed:
            with contextlib.suppress(nats_errors.Error):  # it is gone with a lost connection
                await subscription.unsubscribe()

    async def _receive(self, message: Msg) -> None:
        self._heard = asyncio.get_running_loop().time()
        # What a consumer delivers bears the subject that it was stored on.
        if message.subject.startswith(self._inbox) or not message.reply.startswith(_ACK_PREFIX):
            self._take_status(message)
            return
        about = message.metadata
        is_next = about.sequence.consumer == self._handed_out + 1
        self._handed_out = about.sequence.consumer
        if is_next and about.num_pending and 0 < self.seen.offset < about.sequence.stream - 1:
            self._look_back(message.subject, self.seen.offset, about.sequence.stream)
        if about.sequence.stream > self.seen.offset:
            # To the nanosecond, which the parsed one is not: $JS.ACK.….<time>.<pending>, with more
            # tokens behind where an account or a domain is named.
            tokens = message.reply.split(".")
            time = tokens[7] if len(tokens) == _TOKENS else tokens[9]
            self.seen = Point(about.sequence.stream, timestamp(int(time)))
        delivery = Delivery(
            self._subjects.live_of(message.subject) or message.subject,
            message.data,
            message.headers or NO_HEADERS,
            Position(about.sequence.stream, self._epoch),
            None,
            about.timestamp.isoformat().replace("+00:00", "Z"),
        )
        taken = NatsHeld(self, message.reply, delivery, about.num_delivered)
        if self._closed:
            await taken.retry()
            return
        self._asked = max(0, self._asked - 1)
        if message.subject.endswith(f".{PROBE}"):
            await taken.ack()
            self._woken.set()
            return
        self._ready.append(taken)
        self._woken.set()

    def _take_status(self, message: Msg) -> None:
        status = (message.headers or {}).get("Status", "")
        if status == "100" or message.subject != f"{self._inbox}.{self._pull}":
            return  # a heartbeat, or the end of an older pull
        self._asked = 0
        if status not in ("404", "408"):  # not merely the end of the pull's time
            self._known = False
        self._woken.set()

    async def _look(self, seconds: float) -> None:
        """Learn the consumer's place; make it where there is none."""
        answer = await self._ask("INFO", None, seconds)
        if answer.error_code in (STREAM_NOT_FOUND, _NOT_FOUND):
            answer = await self._make(seconds)
        config = self._config_of(answer)
        if config.get("deliver_subject") or config.get("ack_policy") != "explicit":
            raise StreamMismatch(
                f"a consumer {self.name} exists on {self._stream.name} that is not pulled with "
                "explicit acknowledgement: remove it, or give the group another name",
                driver=DRIVER,
            )
        wanted = {"filter_subject": self._filter, "ack_wait": self._ack_wait}
        if any(config.get(name) != value for name, value in wanted.items()):
            answer = await self._create("update", {**config, **wanted}, seconds)
            self._config_of(answer)
            _log.info("consumer %s was changed to %s", self.name, wanted)
        created = answer.body.get("created", "")
        if created != self._created or self._stream.is_doubted:
            await self._stream.state()
            self._created = created
        self._epoch = self._stream.epoch
        self._floor = answer.body.get("ack_floor", {}).get("stream_seq", 0)
        await self._look_for_evicted(answer.body)
        self._looked = asyncio.get_running_loop().time()
        self._known = True

    async def _look_for_evicted(self, info: dict[str, Any]) -> None:
        """What is between the consumer and the stream's end may not be there any more."""
        delivered = info.get("delivered", {}).get("stream_seq", 0)
        if self._looked and not info.get("num_pending"):
            return
        try:
            await find_evicted(
                self._connection, self._stream, self._filter, delivered, self._evicted
            )
        except DriverError as exc:  # it is looked again
            _log.debug("consumer %s: %s", self.name, exc)

    async def _make(self, seconds: float) -> Answer:
        """A consumer where there is none: new, or in the place of one that was lost."""
        state = await self._stream.ensure()
        if self._epoch:
            _log.warning("consumer %s was gone and is made anew", self.name)
        if not self._epoch:
            start: dict[str, Any] = {
                "deliver_policy": "all" if self._settings.from_start else "new"
            }
        elif self._epoch != state.epoch:
            start = {"deliver_policy": "all"}  # nothing of this stream was seen
        else:
            start = {"deliver_policy": "by_start_sequence", "opt_start_seq": self._floor + 1}
        config = {
            "durable_name": self.name,
            "name": self.name,
            "filter_subject": self._filter,
            "ack_policy": "explicit",
            "ack_wait": self._ack_wait,
            "max_deliver": -1,  # whoever takes the messages counts, and says what becomes of them
            "max_ack_pending": _MAX_UNANSWERED,
            "replay_policy": "instant",
            **start,
        }
        answer = await self._create("create", config, seconds)
        if answer.error_code == _EXISTS:  # another member was first
            return await self._ask("INFO", None, seconds)
        return answer

    async def _create(self, action: str, config: dict[str, Any], seconds: float) -> Answer:
        question = {"stream_name": self._stream.name, "config": config, "action": action}
        return await self._ask("CREATE", question, seconds)

    async def _ask(self, what: str, question: dict[str, Any] | None, seconds: float) -> Answer:
        subject = f"CONSUMER.{what}.{self._stream.name}.{self.name}"
        return await ask(self._connection, subject, question, seconds)

    def _config_of(self, answer: Answer) -> dict[str, Any]:
        if answer.error is not None:
            raise StreamMismatch(f"consumer {self.name}: {answer.error}", driver=DRIVER)
        config: dict[str, Any] = answer.body.get("config", {})
        return config
