"""What was published and acknowledged, what each receiver got, and whether the two agree.

Pure: no I/O and no clock. Times are monotonic seconds.
"""

import enum
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

__all__ = [
    "Findings",
    "Ledger",
    "Log",
    "Message",
    "Promise",
    "Publication",
    "examine",
]

_GAP: Final = -1
"""The code that stands for a reported gap in a log."""
_NUMBERS: Final = 2**32
_SHOWN: Final = 5
"""How many messages the findings name per broken promise."""


class Promise(enum.Enum):
    """What a receiver was promised about acknowledged messages."""

    EACH_ONCE = "each once"
    """Each message once and in order, or a report of a gap in its place."""
    AT_LEAST_ONCE = "at least once"
    """Each message once or more, in any order."""
    AT_MOST_ONCE = "at most once"
    """No message twice on one connection."""


class Message(NamedTuple):
    """Identifies a message: the publisher, and the publisher's own count, starting at 0."""

    publisher: str
    number: int

    def __str__(self) -> str:
        return f"{self.publisher} #{self.number}"


class Publication:
    """A message that was sent, and when it was acknowledged; None if it was not."""

    __slots__ = ("acknowledged_at", "channel", "message", "sent_at")

    def __init__(self, message: Message, channel: str, sent_at: float) -> None:
        self.message = message
        self.channel = channel
        self.sent_at = sent_at
        self.acknowledged_at: float | None = None

    def acknowledge(self, time: float) -> None:
        """Record when the publisher got the acknowledgement."""
        self.acknowledged_at = time


class Ledger:
    """All publications of a run, by channel."""

    def __init__(self) -> None:
        self._channels: dict[str, dict[Message, Publication]] = {}
        self._publishers: list[str] = []
        self._numbers: dict[str, int] = {}

    def code(self, message: Message) -> int:
        """A message as one integer, to save memory: half an hour produces millions of entries."""
        if message.publisher not in self._numbers:
            self._numbers[message.publisher] = len(self._publishers)
            self._publishers.append(message.publisher)
        return self._numbers[message.publisher] * _NUMBERS + message.number

    def message(self, code: int) -> Message:
        """The message that a code stands for."""
        publisher, number = divmod(code, _NUMBERS)
        return Message(self._publishers[publisher], number)

    def sent(self, message: Message, channel: str, now: float) -> Publication:
        """Record that a publisher starts to send a message."""
        publication = Publication(message, channel, now)
        self._channels.setdefault(channel, {})[message] = publication
        return publication

    def of_channel(self, channel: str) -> Mapping[Message, Publication]:
        """The publications of a channel, in the order in which they were sent."""
        return self._channels.get(channel, {})

    def __iter__(self) -> Iterator[Publication]:
        for publications in self._channels.values():
            yield from publications.values()

    def acknowledged(self, channel: str) -> list[Publication]:
        """The acknowledged publications of a channel."""
        return [
            each for each in self.of_channel(channel).values() if each.acknowledged_at is not None
        ]


class Log:
    """What one receiver of a channel got, in the order of arrival."""

    def __init__(self, ledger: Ledger, name: str, channel: str, promise: Promise) -> None:
        self.name = name
        self.channel = channel
        self.promise = promise
        self._ledger = ledger
        self._codes = array("q")
        self._times = array("d")
        self._joins = array("d")
        self._seen: set[int] = set()

    def received(self, message: Message, now: float) -> None:
        """Record a message."""
        code = self._ledger.code(message)
        self._add(code, now)
        self._seen.add(code)

    def gap(self, now: float) -> None:
        """Record that the server reported lost messages at this point."""
        self._add(_GAP, now)

    def joined(self, now: float) -> None:
        """Record that the receiver has joined its channel, on a new connection."""
        self._joins.append(now)

    def has_joined_between(self, start: float, end: float) -> bool:
        """Whether the receiver joined again between two times."""
        return bisect_right(self._joins, end) > bisect_right(self._joins, start)

    def _add(self, code: int, now: float) -> None:
        self._codes.append(code)
        self._times.append(max(now, self._times[-1]) if self._times else now)

    def has(self, message: Message) -> bool:
        """Whether the message has arrived."""
        return self._ledger.code(message) in self._seen

    def entries(self) -> Iterator[tuple[Message | None, float]]:
        """Messages, and None for a reported gap, each with its time."""
        for code, time in zip(self._codes, self._times, strict=True):
            yield (None if code == _GAP else self._ledger.message(code)), time

    @property
    def times(self) -> Sequence[float]:
        """The time of each entry."""
        return self._times


class Findings:
    """What is wrong with one receiver's log, and what is unusual but allowed."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.delivered = 0
        """Messages received, without duplicates."""
        self.lost: list[Publication] = []
        """Acknowledged, but never received."""
        self.excused: list[Publication] = []
        """Acknowledged and not received, but a gap was reported or the store was erased."""
        self.duplicates: list[tuple[Message, float]] = []
        """Messages received again, with the time of each duplicate."""
        self.out_of_order: list[tuple[Message, float]] = []
        """Acknowledged messages that arrived after a later one of their channel."""
        self.unacknowledged = 0
        """Messages that arrived although their publisher got no acknowledgement."""
        self.foreign: list[Message] = []
        """Messages that nobody published on this channel."""
        self.gaps: list[float] = []
        """When gaps were reported."""

    def count(self, delivered: int, unacknowledged: int) -> None:
        """Record how many messages arrived, and how many of them were not acknowledged."""
        self.delivered = delivered
        self.unacknowledged = unacknowledged

    @property
    def broken(self) -> list[str]:
        """The promises that this receiver's log breaks, as sentences; empty if there are none."""
        promise = self.log.promise
        problems = []
        if promise is not Promise.AT_MOST_ONCE and self.lost:
            problems.append(_listed("lost", [each.message for each in self.lost]))
        if promise is not Promise.AT_LEAST_ONCE and self.duplicates:
            problems.append(_listed("received twice", [message for message, _ in self.duplicates]))
        if promise is Promise.EACH_ONCE and self.out_of_order:
            late = [message for message, _ in self.out_of_order]
            problems.append(_listed("received out of order", late))
        if self.foreign:
            problems.append(_listed("received, but not published there", self.foreign))
        return [f"{self.log.name}: {problem}" for problem in problems]


def examine(
    ledger: Ledger, log: Log, order: Sequence[Message] = (), erased_at: Sequence[float] = ()
) -> Findings:
    """Compare a log with what was acknowledged on its channel.

    order: the messages in the order in which another receiver of the channel got them. All
    receivers must agree. erased_at: when the store was erased on purpose. Messages that a
    subscription had not handled by then are excused. A message that was in flight at that moment
    may arrive twice or out of order: its publisher retries, and the store no longer knows it.
    """
    findings = Findings(log)
    published = ledger.of_channel(log.channel)
    _count(log, published, findings, erased_at)
    if log.promise is Promise.EACH_ONCE:
        findings.out_of_order.extend(_out_of_order(log, published, order, erased_at))
    missing = [
        each
        for each in published.values()
        if each.acknowledged_at is not None and not log.has(each.message)
    ]
    gaps = _Gaps(log)
    last_erased = max(erased_at, default=float("-inf"))
    for each in missing:
        if log.promise is Promise.EACH_ONCE:
            is_excused = gaps.covers(each.message)
        else:
            is_excused = each.sent_at <= last_erased
        (findings.excused if is_excused else findings.lost).append(each)
    return findings


def _count(
    log: Log,
    published: Mapping[Message, Publication],
    findings: Findings,
    erased_at: Sequence[float],
) -> None:
    first: dict[Message, float] = {}
    for message, time in log.entries():
        if message is None:
            findings.gaps.append(time)
        elif message not in published:
            findings.foreign.append(message)
        elif message not in first:
            first[message] = time
        elif log.promise is Promise.AT_MOST_ONCE and log.has_joined_between(first[message], time):
            first[message] = time  # another edge may be slower
        elif not _was_in_flight(published[message], erased_at):
            findings.duplicates.append((message, time))
    unacknowledged = sum(published[message].acknowledged_at is None for message in first)
    findings.count(len(first), unacknowledged)


def _was_in_flight(publication: Publication, times: Sequence[float]) -> bool:
    """Whether a message was sent but not yet acknowledged at one of the times."""
    end = publication.acknowledged_at
    return any(publication.sent_at <= time and (end is None or time <= end) for time in times)


def _out_of_order(
    log: Log,
    published: Mapping[Message, Publication],
    order: Sequence[Message],
    erased_at: Sequence[float],
) -> list[tuple[Message, float]]:
    """Messages that arrived after a later one: of the same publisher, or in `order`.

    Publishers wait for each acknowledgement. A message without one may be stored at any time.
    """
    places = {message: place for place, message in reversed(list(enumerate(order)))}
    newest: dict[str, int] = {}
    furthest = -1
    seen: set[Message] = set()
    late = []
    for message, time in log.entries():
        if message is None or message in seen:
            continue  # duplicates are reported as such
        seen.add(message)
        publication = published.get(message)
        if publication is None or publication.acknowledged_at is None:
            continue
        if _was_in_flight(publication, erased_at):
            continue
        place = places.get(message, furthest)
        if message.number < newest.get(message.publisher, -1) or place < furthest:
            late.append((message, time))
        newest[message.publisher] = max(message.number, newest.get(message.publisher, -1))
        furthest = max(place, furthest)
    return late


class _Gaps:
    """Where gaps were reported, among the messages of each publisher."""

    def __init__(self, log: Log) -> None:
        self._between: dict[str, list[tuple[int, int]]] = {}
        """By publisher, the numbers before and after each gap."""
        self._has_gap = False
        newest: dict[str, int] = {}
        before: dict[str, int] = {}
        """By publisher, the last message before a gap that is still open."""
        for message, _ in log.entries():
            if message is None:
                self._has_gap = True
                before = newest | before
                continue
            publisher, number = message
            start = before.pop(publisher, None if publisher in newest or not self._has_gap else -1)
            if start is not None:
                self._add(publisher, start, number)
            newest[publisher] = max(number, newest.get(publisher, -1))
        for publisher, start in before.items():
            self._add(publisher, start, _NUMBERS)
        self._publishers = newest.keys()

    def _add(self, publisher: str, before: int, after: int) -> None:
        self._between.setdefault(publisher, []).append((before, after))

    def covers(self, message: Message) -> bool:
        """Whether a gap was reported where the message is missing."""
        publisher, number = message
        if publisher not in self._publishers:
            return self._has_gap
        return any(before < number < after for before, after in self._between.get(publisher, ()))


def _listed(what: str, messages: Sequence[Message]) -> str:
    shown = ", ".join(map(str, messages[:_SHOWN]))
    more = f" and {len(messages) - _SHOWN} more" if len(messages) > _SHOWN else ""
    return f"{len(messages)} {what}: {shown}{more}"
