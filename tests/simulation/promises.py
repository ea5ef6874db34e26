"""The promises, and an independent record of what happened, which the edge cannot influence."""

import collections

import msgspec


class Broken(Exception):
    """A promise was broken: its name, and what happened."""

    def __init__(self, promise, evidence):
        super().__init__(f"{promise}: {evidence}")
        self.promise = promise
        self.evidence = evidence
        self.at = None
        """The number of the step; None if it broke after the last one."""

    def __reduce__(self):
        return Broken, (self.promise, self.evidence), {"at": self.at}


class Record:
    """A stored message, and the message before it on its channel."""

    __slots__ = ("channel", "lineage", "number", "offset", "previous")

    def __init__(self, number, channel, offset, previous, lineage):
        self.number, self.channel, self.offset = number, channel, offset
        self.previous, self.lineage = previous, lineage

    def __repr__(self):
        return f"message {self.number} at offset {self.offset}"


class _Envelope(msgspec.Struct):
    data: object


class _Lifecycle(msgspec.Struct):
    id: str
    event: str
    channel: str
    user_id: str | None = None


_decode = msgspec.json.Decoder(_Envelope).decode
_decode_lifecycle = msgspec.json.Decoder(_Lifecycle).decode
MISSING = "delivery: nothing is missing without a recovered:false"
LEASE_S = 3.0
PATTERN = "pub.*"
"""The pattern that some clients subscribe to, in place of its channels."""
BEGINS = ("channel_occupied", "member_joined")


def covers(channel):
    """Whether the pattern matches a channel."""
    return channel.startswith(PATTERN[:-1])


class Truth:
    """The messages of the stream, the revocations, and the announced lifecycle events."""

    def __init__(self, clock):
        self.clock = clock
        self.broken = []
        self.records = {}
        """`Record` by channel or pattern, and number."""
        self.tails = collections.defaultdict(lambda: None)
        self.last = 0
        self.lineage = 0
        self.targets = []
        """The last offset that was kept, for each time that the store went back."""
        self.revocations = {}
        """`Revoked` by user and channel."""
        self.lifecycle = {}
        """The last event of each channel and member."""
        self.announcements = {}
        self.losses = set()
        """The numbers of messages that were lost on the way to a node."""
        self.faults = 0
        """How many times messages were lost on the way, or connections broken."""
        self.has_led = False
        self.lenient_until = 0.0
        self.stale = set()
        """Items of the ledger whose last writer was no longer the leader."""

    def fail(self, promise, evidence):
        self.broken.append(Broken(promise, evidence))

    # Reports of the server

    def stored(self, channel, payload, offset):
        self.last = offset
        try:
            number = _decode(payload).data
        except msgspec.DecodeError:
            return
        if isinstance(number, int):
            for name in (channel, PATTERN) if covers(channel) else (channel,):
                record = Record(number, name, offset, self.tails[name], self.lineage)
                self.records[name, number] = self.tails[name] = record

    def lost(self, payload):
        self.losses.add(_decode(payload).data)
        self.faults += 1

    def gone_back(self, target):
        self.targets.append(target)
        self.lineage += 1
        self.last = target
        for channel in self.tails:
            while (tail := self.tails[channel]) is not None and tail.offset > target:
                self.tails[channel] = tail.previous

    def announced(self, payload):
        event = _decode_lifecycle(payload)
        if event.id in self.announcements:
            if self.announcements[event.id] != event:
                self.fail("lifecycle: an id has one event", f"{event} and another")
            return
        self.announcements[event.id] = event
        item = event.channel, event.user_id
        before = self.lifecycle.get(item)
        if before is not None and (before in BEGINS) == (event.event in BEGINS):
            self.fail("lifecycle: events alternate", f"{before}, then {event.event} of {item}")
        self.lifecycle[item] = event.event
        if self.clock.now < self.lenient_until:
            del self.lifecycle[item]

    def forget_lifecycle(self):
        """The server has lost its memory: events may be repeated or missing once, as documented.

        The lease is lost too, so two nodes may believe that they lead, for the time of a lease.
        """
        self.lenient_until = self.clock.now + 3 * LEASE_S
        self.lifecycle.clear()
        self.stale.clear()

    def new_leader(self, *, has_ledger):
        """A leader has read the ledger, and continues from it."""
        if not has_ledger and self.has_led:
            self.forget_lifecycle()
        self.has_led = True
        for item in self.stale:
            # A late write of an earlier leader stayed, because the leader that undoes it died.
            letter, _, rest = item.partition(".")
            channel = rest.rpartition(".")[0] if letter == "m" else rest
            for known in [one for one in self.lifecycle if one[0] == channel]:
                del self.lifecycle[known]
        self.stale.clear()

    # Delivery

    def check_message(self, who, sub, record, epoch):
        """Check that nothing is missing between the subscriber's last message and this one."""
        before, is_whole = record.previous, True
        if min(self.targets[record.lineage :], default=record.offset) < record.offset:
            return  # the store has lost it, but it was already in flight
        if record.channel == PATTERN:
            while before is not None and before is not sub.last and before.number in self.losses:
                before, sub.unreported = before.previous, self.faults
        if sub.last is not None:
            is_whole = before is sub.last
        elif sub.base is not None:
            base, lineage = sub.base
            is_after = record.lineage > lineage or record.offset > base
            is_whole = is_after and _is_by(before, lineage, base)
        is_excused = is_whole or (sub.excused is not None and _is_by(before, *sub.excused))
        if not is_excused:
            self.fail(
                MISSING,
                f"{who} got {record} of {record.channel} after {sub.last or sub.base}, "
                f"but {before} lies between them",
            )
        sub.last = record

    def base(self, offset):
        """A position with its lineage."""
        if offset is None:
            return None
        return offset, self.lineage if offset <= self.last else max(0, self.lineage - 1)

    def has_all(self, sub, channel):
        """Whether a subscriber has received everything that is stored on its channel."""
        tail = self.tails[channel]
        if tail is None or sub.last is tail:
            return True
        return sub.last is None and sub.base is not None and tail.offset <= sub.base[0]

    # Access

    def check_access(self, client, channel, process, at):
        """Check that a node may send a channel's messages to a client at a time."""
        if channel.startswith("room.") and channel not in client.claims.channels:
            self.fail("access: no message without a rule", f"{client} got a message of {channel}")
        if not self.revocations:
            return
        for about in ((client.user, None), (client.user, channel)):
            revoked = self.revocations.get(about)
            if revoked is None or revoked.accepted is None or client.claims.iat > revoked.at:
                continue
            since = max(revoked.accepted, process.is_healthy_since)
            bound = 1.1 if revoked.accepted > process.is_healthy_since + 8 else 8.0
            if at > since + bound:
                self.fail(
                    "access: a revocation takes effect within a second",
                    f"{client} got a message of {channel}, "
                    f"revoked {at - revoked.accepted:.2f} s ago",
                )


def _is_by(record, lineage, offset):
    """Whether a message, if there is any, is not after a position."""
    return record is None or (record.lineage <= lineage and record.offset <= offset)


class Revoked:
    """A revocation: `at` is wall-clock time, `accepted` is simulated monotonic time."""

    def __init__(self, at):
        self.at = at
        self.accepted = None
