"""Simulated clients and their sockets. A client uses the real client's cursor."""

import collections
import itertools

import msgspec

from eventbus.client.cursor import Cursor, Phase
from eventbus.drivers import MarkedPosition, Position
from eventbus_edge.access import (
    Claims,
    ConnectionLimitReached,
    TokenRejected,
)
from eventbus_edge.problem import Problem
from eventbus_edge.protocols import (
    NATIVE,
    Returns,
    Subscribe,
    SubscribePattern,
    Unsubscribe,
    UnsubscribePattern,
)
from tests.simulation.loop import BEGIN
from tests.simulation.process import MAX_UNSENT
from tests.simulation.promises import PATTERN, covers

USERS = 4
CLAIMS = Claims(sub="?", exp=BEGIN * 2)
LEAVING = "leave"


class Frame(msgspec.Struct):
    event: str
    channel: str | None = None
    data: object = None
    offset: int | None = None
    epoch: str | None = None
    mark: str | None = None


decode_frame = msgspec.json.Decoder(Frame).decode


class Lines:
    """A framing for the simulated socket: one payload per line."""

    def message(self, payload, _about):
        return payload + b"\n"

    def reply(self, payload, _start=None):
        return payload + b"\n"


LINES = Lines()


class Socket:
    """A client's connection: the sink of the outbox, and the peer of the session."""

    numbers = itertools.count(1)

    def __init__(self, client, process):
        self.client = client
        self.process = process
        self.connection = None
        self.is_over = False
        self.unread = []
        self.unread_bytes = 0
        self.is_behind = False
        self.inbox = collections.deque()
        self._work = None
        self._slot = None
        self._number = next(self.numbers)

    async def open(self, token):
        """Carry out the steps of a WebSocket handshake."""
        node = self.process.node
        access = node.access
        try:
            node.require_ready()
            slot = access.admission.slots.enter("198.51.100.1")
            try:
                claims = await access.authenticator.verify(token)
                access.admission.claim_early(slot, claims.user_id)
            except BaseException:
                slot.release()
                raise
        except (Problem, TokenRejected, ConnectionLimitReached) as exc:
            self.is_over = True
            self.client.refused(self, exc)
            return
        if self.is_over:
            slot.release()
            return
        self._slot = slot
        wire = node.wires.shared(NATIVE, LINES)
        self.connection = node.acceptor.accept(wire, self, self, claims, slot)
        self.connection.open(())
        self.serve()

    # Sink and peer

    def write(self, data):
        if self.is_over:
            return
        if self.client.is_slow:
            self.unread.append((self.process.loop.time(), data))
            self.unread_bytes += len(data)
            self.is_behind = True
            if self.unread_bytes > MAX_UNSENT + self.process.world.most_at_once:
                self.client.truth.fail(
                    "bounds: the unsent bytes of a client are limited",
                    f"{self.unread_bytes} bytes wait for {self.client}",
                )
        else:
            self.client.receive(self, data, self.process.loop.time())

    def read(self):
        """The client reads everything that is unread."""
        waiting, self.unread = self.unread, []
        self.unread_bytes, self.is_behind = 0, False
        for written, data in waiting:
            self.client.receive(self, data, written)

    def unsent(self):
        return self.unread_bytes

    def abort(self):
        self.end()

    def ping(self):
        if not self.client.is_slow:
            self.process.loop.call_soon(self._alive)

    def _alive(self):
        if not self.is_over:
            self.connection.keep_alive()

    def fileno(self):
        return self._number

    def close(self, closing):
        """The node closes the connection: the client first gets what was written before."""
        if not self.is_over:
            if self.unread and closing.returns is not Returns.AT_ONCE:
                self.read()
            self.is_over = True
            self.client.closed(self, closing)
        self.process.loop.call_soon(self._let_go)

    # The client's side

    def send(self, command):
        self.inbox.append(command)
        self.process.run(self.serve)

    def serve(self):
        """Carry out commands one after another, as a WebSocket does."""
        while self.inbox and self._work is None and not self.is_over and self.connection:
            work = self.connection.receive(self.inbox.popleft(), 64)
            if work is not None:
                self._work = self.process.node.connections.commands.start(work, "a command")
                if self._work is None:
                    self.end()
                else:
                    self._work.add_done_callback(self._worked)

    def _worked(self, _task):
        self._work = None
        if self.is_over:
            self._let_go()
        else:
            self.serve()

    def end(self):
        """The socket is gone, no matter who closed it."""
        self.is_over = True
        if self.connection is not None:
            self.connection.ended(None)
            self._let_go()

    def _let_go(self):
        if self._work is None and self.connection is not None and self._slot is not None:
            self.process.node.connections.remove(self.connection)
            self._slot.release()
            self._slot = None


class Sub:
    """A client's subscription: the real client's cursor, and state for checking the promises."""

    def __init__(self, *, is_pattern):
        self.cursor = Cursor(is_pattern=is_pattern)
        self.ref = 0
        self.last = None
        """The last stored message that it got since the last `recovered: false`."""
        self.base = None
        """The position that came with the last `recovered: false`."""
        self.excused = None
        """The lineage and offset up to which messages may be missing.

        A notice about a pattern does not say where its gap ends. On one of its channels there may
        still be messages from before the gap on another one.
        """
        self.unreported = None
        """The number of faults when it missed messages of a pattern that were lost on the way.

        The node notices that with the channel's next message. After several faults, the notice of
        one may stand for another, so this is checked after the first one only.
        """
        self.members = None
        self.volatile = set()
        """Volatile messages since the channel was joined."""


class Client:
    """A client that reconnects and resumes by the rules of the wire protocol.

    Some join a pattern in place of the channels that it matches. What happens if a client joins
    both is not simulated.
    """

    numbers = itertools.count(1)

    def __init__(self, world, number, *, joins_patterns):
        self.world = world
        self.joins_patterns = joins_patterns
        self.truth = world.truth
        self.number = number
        self.user = f"u{number % USERS}"
        self.subs = {}
        self.conn = None
        self.is_slow = False
        self.is_connected = False
        self.login()

    def __repr__(self):
        return f"client {self.number} of {self.user}"

    def login(self):
        """Get a new token for the next connection."""
        self.claims = msgspec.structs.replace(
            CLAIMS,
            sub=self.user,
            iat=self.world.clock.wall(),
            channels=(PATTERN, "room.1") if self.user != "u3" else (),
        )
        self.token = f"{self.number} {self.claims.iat}"
        self.world.tokens[self.token] = self.claims
        self.is_refused = False

    def connect(self, process):
        if self.conn is not None or not process.is_ready:
            return False
        self.conn = Socket(self, process)
        process.run(process.keep, self.conn.open(self.token))
        return True

    def drop(self):
        """The connection breaks without a close frame."""
        if (conn := self.conn) is None:
            return False
        conn.is_over = True
        self.gone()
        conn.process.run(conn.end)
        return True

    def gone(self):
        self.conn = None
        self.is_connected = self.is_slow = False
        for sub in self.subs.values():
            sub.cursor.lost()
            sub.members = None

    def refused(self, conn, exc):
        if conn is self.conn:
            self.gone()
            self.is_refused = isinstance(exc, TokenRejected) and exc.reason == "revoked"

    def closed(self, conn, closing):
        if conn is self.conn:
            self.gone()
            self.is_refused = closing.returns is Returns.NEVER

    def subscription(self, channel):
        """The name of the subscription that brings a channel's messages."""
        return PATTERN if self.joins_patterns and covers(channel) else channel

    def join(self, channel):
        name = self.subscription(channel)
        if name in self.subs:
            return False
        self.subs[name] = Sub(is_pattern=name == PATTERN)
        self.ask(name)
        return True

    def ask(self, name):
        sub = self.subs[name]
        if self.is_connected and sub.cursor.phase is Phase.WAITING:
            data = sub.cursor.ask()
            sub.volatile.clear()  # another node may still deliver these
            resume = None
            if data is not None:
                resume = Position(data["offset"], data["epoch"])
                if mark := data.get("mark"):
                    resume = MarkedPosition(*resume, mark)
            sub.ref = next(self.numbers)
            if name == PATTERN:
                self.conn.send(SubscribePattern(name, sub.ref, resume))
            else:
                self.conn.send(Subscribe(name, resume, 0, sub.ref))

    def leave(self, channel):
        name = self.subscription(channel)
        if self.subs.pop(name, None) is None:
            return False
        if self.is_connected:
            command = UnsubscribePattern if name == PATTERN else Unsubscribe
            self.conn.send(command(name, LEAVING))
            self.left[name] += 1
        return True

    # Frames

    def receive(self, conn, data, written):
        """Handle frames that the node has `written` at some time."""
        for line in data.splitlines():
            if conn is self.conn:
                self._receive(conn, decode_frame(line), written)

    def _receive(self, conn, frame, written):
        event, channel = frame.event, frame.channel
        # Answers about the pattern have no channel.
        name = PATTERN if channel is None else channel
        if event == "tick" or event.startswith("client-"):
            self._message(conn, channel, frame, written)
        elif event == "eb:connected":
            self.is_connected = True
            self.left = collections.Counter()
            """Unanswered requests to leave, by channel."""
            for each in list(self.subs):
                if each in self.subs:  # an answer may come at once, and refuse others
                    self.ask(each)
        elif event == "eb:subscribed":
            self._subscribed(name, frame.data)
        elif event == "eb:unsubscribed":
            sub = self.subs.get(name)
            if frame.data.get("reason") != "revoked":
                self.left[name] -= 1
            elif sub is not None and sub.cursor.phase is Phase.ACTIVE:
                del self.subs[name]
        elif event == "eb:error":
            self._error(name, frame.data)
        elif event.startswith("eb:presence."):
            self._presence(channel, event, frame.data)

    def _error(self, channel, data):
        sub, code = self.subs.get(channel), data["code"]
        if code == "not_subscribed" and data.get("ref") == LEAVING:
            self.left[channel] -= 1
        elif sub is not None and data.get("ref") == sub.ref:
            if code in ("forbidden", "unauthorized"):
                del self.subs[channel]
            else:
                sub.cursor.wait()

    def _subscribed(self, channel, data):
        sub = self.subs.get(channel)
        if sub is None:
            return
        is_answer = sub.cursor.phase is Phase.ASKED
        if data.get("ref", None if is_answer else sub.ref) != sub.ref:
            return  # the answer to an earlier request, or a notice before the answer
        recovered = data.get("recovered")
        sub.unreported = None
        if is_answer:
            sub.cursor.subscribed(
                data["offset"], data["epoch"], recovered=recovered, mark=data.get("mark")
            )
            if "members" in data:
                sub.members = {one["user_id"] for one in data["members"]}
        elif sub.cursor.phase is Phase.ACTIVE:
            sub.cursor.missed(data["offset"], data["epoch"], data.get("mark"))
        else:
            return
        if not recovered:
            sub.last = None
            sub.base = self.truth.base(data["offset"])
            if not is_answer and channel == PATTERN:
                sub.excused = self.truth.lineage, self.truth.last

    def _message(self, conn, channel, frame, written):
        truth, name = self.truth, self.subscription(channel)
        sub = self.subs.get(name)
        truth.check_access(self, channel, conn.process, written)
        if sub is None:
            if not self.left[name]:
                truth.fail("delivery: only joined channels", f"{self} got a message of {channel}")
            return
        cursor = sub.cursor
        if cursor.phase is not Phase.ACTIVE:
            if not self.left[name]:
                truth.fail("delivery: the answer comes first", f"{self} got a message of {channel}")
        elif frame.offset is None:
            if frame.data in sub.volatile:
                truth.fail("delivery: volatile messages at most once", f"{self}, {channel}")
            sub.volatile.add(frame.data)
        elif cursor.take(frame.offset, frame.epoch, frame.mark):
            truth.check_message(self, sub, truth.records[name, frame.data], frame.epoch)
        else:
            truth.fail(
                "delivery: in order, and none twice",
                f"{self} got offset {frame.offset} of {channel} again",
            )

    def _presence(self, channel, event, data):
        sub = self.subs.get(channel)
        if sub is None or sub.members is None:
            return
        user, members = data["user_id"], sub.members
        if event == "eb:presence.joined":
            if user in members:
                self.truth.fail("presence: a member joins once", f"{self}: {user} joined again")
            members.add(user)
        elif user not in members:
            self.truth.fail("presence: only members leave", f"{self}: {user} was not a member")
        elif event == "eb:presence.left":
            members.discard(user)
