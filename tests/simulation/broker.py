"""A simulated nats-server: core subjects, streams that republish, and buckets with expiry.

It answers the requests of the NATS driver as nats-server 2.15 does (NATS architecture decision
records: ADR-8, ADR-31, ADR-43, ADR-48). Everything above nats-py's client is the real driver.
"""

import bisect
import collections
import functools
import heapq
import itertools
import re

import msgspec

from eventbus.drivers.marks import nanoseconds, timestamp
from eventbus.drivers.nats.client import NO_WIRE_HEADERS, WireHeaders

encode = msgspec.json.encode
decode = msgspec.json.decode
EVENTS = "EB_EVENTS"
LEDGER = "$KV.EB_STATE.lifecycle.told."
LEASE = "$KV.EB_STATE.lifecycle.leader"
MARK = "$KV.EB_STATE.lifecycle.mark"
DUPLICATE_WINDOW_S = 120.0
MARKER_S = 60.0
NO_RESPONDERS = WireHeaders(b"NATS/1.0 503\r\n\r\n")
NO_RESULTS = WireHeaders(b"NATS/1.0 404 No Results\r\n\r\n")
END_OF_BATCH = WireHeaders(b"NATS/1.0 204 EOB\r\n\r\n")
NOT_FOUND = {"code": 404, "err_code": 10059, "description": "stream not found"}
WRONG_SEQUENCE = {"code": 400, "err_code": 10071, "description": "wrong last sequence"}


class Message:
    __slots__ = ("expires", "head", "is_marker", "nanos", "payload", "seq", "subject", "time")

    def __init__(self, seq, subject, head, payload, nanos, expires, is_marker):
        self.seq, self.subject, self.head, self.payload = seq, subject, head, payload
        self.nanos, self.time = nanos, timestamp(nanos)
        self.expires, self.is_marker = expires, is_marker


class Stream:
    """Messages by sequence, and the sequences of each subject."""

    def __init__(self, config, created):
        self.configure(config)
        self.name = config["name"]
        self.created = created
        self.root = config["subjects"][0][:-1]
        self.dest = config["republish"]["dest"][:-1]
        self.age = config.get("max_age", 0) / 1e9
        self.per_subject = config.get("max_msgs_per_subject", -1)
        self.last = 0
        self.last_time = "0001-01-01T00:00:00Z"
        self.messages = {}
        self.subjects = collections.defaultdict(list)
        self.ids = collections.OrderedDict()
        self.evicted = collections.deque(maxlen=500)
        """Evicted messages, each with the sequence of the message that evicted it."""

    def configure(self, config):
        self.config = config
        self._encoded_config = msgspec.Raw(encode(config))

    def first(self):
        """The first message, if there is one."""
        for message in self.messages.values():
            return message
        return None

    def remove(self, message):
        del self.messages[message.seq]
        seqs = self.subjects[message.subject]
        del seqs[bisect.bisect_left(seqs, message.seq)]
        if not seqs:
            del self.subjects[message.subject]

    def matching(self, filter_, start):
        """The messages of a subject or filter, from a sequence on, in order."""
        if (matches := matcher(filter_)) is None:
            seqs = self.subjects.get(filter_, ())
            return [self.messages[seq] for seq in seqs[bisect.bisect_left(seqs, start) :]]
        if filter_ in (">", f"{self.root}>"):
            return [message for seq, message in self.messages.items() if seq >= start]
        groups = [seqs for subject, seqs in self.subjects.items() if matches(subject)]
        return [
            self.messages[seq]
            for seq in sorted(seq for seqs in groups for seq in seqs if seq >= start)
        ]

    def info(self, clock, subject=None):
        first = self.first()
        state = {
            "messages": len(self.messages),
            "first_seq": first.seq if first else self.last + 1 if self.last else 0,
            "first_ts": first.time if first else "0001-01-01T00:00:00Z",
            "last_seq": self.last,
            "last_ts": self.last_time,
        }
        if subject is not None and (count := len(self.subjects.get(subject, ()))):
            state["subjects"] = {subject: count}
        return {
            "config": self._encoded_config,
            "created": self.created,
            "ts": timestamp(clock.wall_ns()),
            "cluster": {"leader": "sim"},
            "state": state,
        }


class Broker:
    """The server. Clients are `link.SimClient`s."""

    def __init__(self, clock, truth):
        self.clock = clock
        self.truth = truth
        self.streams = {}
        self.clients = {}
        """The connected clients, in the order in which they connected: subjects by their sids."""
        self._exact = {}
        self._filters = {}
        """Subscriptions by the text before the first wildcard, then by filter."""
        self._expiries = []
        self._numbers = itertools.count()
        self._stamp = 0

    # Faults

    def restart(self):
        """The server is killed and started again: its memory is lost."""
        for name, stream in list(self.streams.items()):
            if stream.config["storage"] == "memory":
                del self.streams[name]
        for client in list(self.clients):
            client.reset(lose=True)

    def go_back(self, count):
        """The store is restored from a copy that lacks the last messages."""
        stream = self.streams.get(EVENTS)
        if stream is None:
            return
        target = max(0, stream.last - count)
        for message in [m for m in stream.messages.values() if m.seq > target]:
            stream.remove(message)
        back = [
            m for by, m in stream.evicted if by > target >= m.seq and m.expires > self.clock.now
        ]
        stream.evicted = collections.deque((e for e in stream.evicted if e[0] <= target), 500)
        for message in back:
            bisect.insort(stream.subjects[message.subject], message.seq)
            heapq.heappush(self._expiries, (message.expires, next(self._numbers), stream, message))
        kept = sorted((*stream.messages.values(), *back), key=lambda m: m.seq)
        stream.messages = {message.seq: message for message in kept}
        stream.last = target
        kept = stream.messages.get(target)
        stream.last_time = kept.time if kept else stream.last_time
        stream.ids = collections.OrderedDict(
            (key, value) for key, value in stream.ids.items() if value[1] <= target
        )
        self.truth.gone_back(target)
        self.restart()

    def lose_events(self):
        """The event stream is deleted; the driver creates it again when it is needed."""
        if self.streams.pop(EVENTS, None) is not None:
            self.truth.gone_back(0)
            self.restart()

    # Connections

    def connect(self, client):
        self.clients[client] = {}

    def disconnect(self, client):
        for sid, subject in self.clients.pop(client, {}).items():
            self._remove(client, sid, subject)

    def subscribe(self, client, sid, subject):
        self.clients[client][sid] = subject
        matches = matcher(subject)
        if matches is None:
            self._exact.setdefault(subject, {})[client, sid] = None
        else:
            group = self._filters.setdefault(_root(subject), {})
            group.setdefault(subject, (matches, {}))[1][client, sid] = None

    def unsubscribe(self, client, sid, subject):
        if self.clients[client].pop(sid, None) is not None:
            self._remove(client, sid, subject)

    def _remove(self, client, sid, subject):
        if (subs := self._exact.get(subject)) is not None:
            del subs[client, sid]
            if not subs:
                del self._exact[subject]
            return
        root = _root(subject)
        group = self._filters[root]
        subs = group[subject][1]
        del subs[client, sid]
        if not subs:
            del group[subject]
            if not group:
                del self._filters[root]

    def route(self, subject, payload, headers=NO_WIRE_HEADERS):
        """Send a message to its subscribers."""
        for client, sid in self._exact.get(subject, ()):
            client.put(sid, subject, payload, headers)
        end = subject.find(".") + 1
        while end:
            if group := self._filters.get(subject[:end]):
                for matches, subs in group.values():
                    if matches(subject):
                        for client, sid in subs:
                            client.put(sid, subject, payload, headers)
            end = subject.find(".", end) + 1

    def _answer(self, reply, payload, headers=NO_WIRE_HEADERS):
        """Send an answer. Requesters listen to all tokens in the last place of their inboxes."""
        for _, subs in self._filters.get(reply[: reply.rindex(".") + 1], {}).values():
            for client, sid in subs:
                client.put(sid, reply, payload, headers)

    def publish(self, client, subject, payload, headers, reply):
        """Handle a PUB or HPUB."""
        if subject.startswith("$JS.API."):
            self._request(subject[8:], payload, reply)
            return
        stream = self._stream_of(subject)
        if stream is not None:
            if subject.startswith(LEDGER):
                self._note_ledger(stream, client, subject)
            answer = self._store(stream, subject, payload, headers)
            if reply:
                self._answer(reply, encode(answer))
        elif subject.startswith(("eb.event.", "$KV.")):
            if reply:
                self._answer(reply, b"", NO_RESPONDERS)
        else:
            if subject.startswith("eb.control.lifecycle."):
                self.truth.announced(payload)
            self.route(subject, payload, _wire(headers) if headers else NO_WIRE_HEADERS)

    # Streams

    def _stream_of(self, subject):
        for stream in self.streams.values():
            if subject.startswith(stream.root):
                return stream
        return None

    def _note_ledger(self, stream, client, subject):
        """Note whether a write to the ledger comes from the leader or from an earlier leader."""
        item = subject[len(LEDGER) :]
        holder, reader = (
            stream.messages[seqs[-1]].payload.decode() if (seqs := stream.subjects.get(key)) else ""
            for key in (LEASE, MARK)
        )
        if client.process.node_id != holder:
            self.truth.stale.add(item)
        elif holder == reader:  # otherwise it has not read the ledger yet
            self.truth.stale.discard(item)

    def store_event(self, channel, payload, headers):
        """Store an event of a publisher. Returns the sequence, or None without a stream."""
        stream = self.streams.get(EVENTS)
        if stream is None:
            return None
        return self._store(stream, f"eb.event.{channel}", payload, headers).get("seq")

    def _store(self, stream, subject, payload, headers):
        now = self.clock.now
        id_ = headers.get("Nats-Msg-Id")
        if id_ and (known := stream.ids.get(id_)) and known[0] > now:
            return {"stream": stream.name, "seq": known[1], "duplicate": True}
        expected = headers.get("Nats-Expected-Last-Subject-Sequence")
        seqs = stream.subjects.get(subject)
        if expected is not None and int(expected) != (seqs[-1] if seqs else 0):
            return {"stream": stream.name, "error": WRONG_SEQUENCE}
        ttl = headers.get("Nats-TTL")
        expires = now + (float(ttl[:-1]) if ttl else stream.age or 1e12)
        is_marker = "KV-Operation" in headers or "Nats-Marker-Reason" in headers
        previous = seqs[-1] if seqs else 0
        stream.last = seq = stream.last + 1
        self._stamp = max(self._stamp + 1000, self.clock.wall_ns())
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        message = Message(seq, subject, lines, payload, self._stamp, expires, is_marker)
        stream.last_time = message.time
        stream.messages[seq] = message
        stream.subjects[subject].append(seq)
        if 0 < stream.per_subject < len(stream.subjects[subject]):
            evicted = stream.messages[stream.subjects[subject][0]]
            stream.remove(evicted)
            stream.evicted.append((seq, evicted))
        if id_:
            stream.ids[id_] = now + DUPLICATE_WINDOW_S, seq
        heapq.heappush(self._expiries, (expires, next(self._numbers), stream, message))
        if stream.name == EVENTS:
            self.truth.stored(subject[len(stream.root) :], payload, seq)
        elif subject == MARK:
            self.truth.new_leader(has_ledger=bool(previous))
        head = (
            f"NATS/1.0\r\n{lines}Nats-Stream: {stream.name}\r\nNats-Subject: {subject}\r\n"
            f"Nats-Sequence: {seq}\r\nNats-Time-Stamp: {message.time}\r\n"
            f"Nats-Last-Sequence: {previous}\r\n\r\n"
        )
        self.route(stream.dest + subject[len(stream.root) :], payload, WireHeaders(head.encode()))
        return {"stream": stream.name, "seq": seq}

    def next_expiry(self):
        expiries = self._expiries
        while expiries and not self._is_there(expiries[0]):
            heapq.heappop(expiries)
        return expiries[0][0] if expiries else float("inf")

    def _is_there(self, expiry):
        _, _, stream, message = expiry
        is_current = stream.messages.get(message.seq) is message
        return is_current and self.streams.get(stream.name) is stream

    def expire(self):
        """Remove expired messages; an expired entry of a bucket leaves a marker (ADR-48)."""
        while self.next_expiry() <= self.clock.now:
            _, _, stream, message = heapq.heappop(self._expiries)
            stream.remove(message)
            if stream.name != EVENTS and not message.is_marker:
                headers = {"Nats-Marker-Reason": "MaxAge", "Nats-TTL": f"{MARKER_S:g}s"}
                self._store(stream, message.subject, b"", headers)

    # JetStream's API

    def _request(self, what, payload, reply):
        kind, _, name = what.rpartition(".")
        request = decode(payload) if payload else {}
        stream = self.streams.get(name)
        if kind == "DIRECT.GET":
            self._direct_get(stream, request, reply)
            return
        if kind == "STREAM.CREATE":
            if stream is None:
                self._stamp = max(self._stamp + 1000, self.clock.wall_ns())
                stream = self.streams[name] = Stream(request, timestamp(self._stamp))
            answer = stream.info(self.clock)
        elif stream is None:
            answer = {"error": NOT_FOUND}
        elif kind == "STREAM.INFO":
            answer = stream.info(self.clock, request.get("subjects_filter"))
        elif kind == "STREAM.UPDATE":
            stream.configure(request)
            answer = stream.info(self.clock)
        else:
            raise AssertionError(f"the simulated server does not know {what}")
        self._answer(reply, encode(answer))

    def _direct_get(self, stream, request, reply):
        if stream is None:
            self._answer(reply, b"", NO_RESPONDERS)
            return
        if "multi_last" in request:
            (subject,) = request["multi_last"]
            matching = stream.matching(subject, 0)[-1:]
        elif "start_time" in request:
            since = nanoseconds(request["start_time"])
            matching = [m for m in stream.matching(request["next_by_subj"], 0) if since <= m.nanos]
        else:
            matching = stream.matching(request.get("next_by_subj", ">"), request["seq"])
        batch = matching[: request.get("batch", 1)]
        if not batch:
            self._answer(reply, b"", NO_RESULTS)
            return
        previous = 0
        for number, message in enumerate(batch, 1):
            head = (
                f"NATS/1.0\r\n{message.head}Nats-Stream: {stream.name}\r\n"
                f"Nats-Subject: {message.subject}\r\nNats-Sequence: {message.seq}\r\n"
                f"Nats-Time-Stamp: {message.time}\r\nNats-Num-Pending: {len(matching) - number}\r\n"
                f"Nats-Last-Sequence: {previous}\r\n\r\n"
            )
            previous = message.seq
            self._answer(reply, message.payload, WireHeaders(head.encode()))
        self._answer(reply, b"", END_OF_BATCH)


def _wire(headers):
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    return WireHeaders(f"NATS/1.0\r\n{lines}\r\n".encode())


def _root(filter_):
    """The part of a filter before its first wildcard."""
    return re.split(r"[*>]", filter_, maxsplit=1)[0]


@functools.lru_cache(maxsize=4096)
def matcher(filter_):
    """A function that says whether a subject matches a filter; None for an exact subject."""
    if "*" not in filter_ and ">" not in filter_:
        return None
    expression = re.escape(filter_).replace(r"\*", r"[^.]+").replace(">", ".+")
    return re.compile(expression).fullmatch
