"""One client's connection on a node: carries out the effects of its session."""

import asyncio
import collections
import logging
import time
from collections.abc import (
    Callable,
    Coroutine,
    Iterable,
)
from typing import (
    Any,
    Final,
    NamedTuple,
    TypeAlias,
)

from eventbus.user_code import guarded
from eventbus_edge.access import (
    Admission,
    Allowed,
    Ask,
    Authenticator,
    Authorizers,
    Claims,
    ConnectionLimitReached,
    Revoker,
    Slot,
    TokenRejected,
)
from eventbus_edge.delivery import Outbox
from eventbus_edge.logs import connection_logger
from eventbus_edge.metrics import Metrics
from eventbus_edge.protocols import (
    Authenticate,
    ClientEventSent,
    CloseReason,
    Command,
    Failed,
    NothingStored,
    Presence,
    ReadHistory,
    Reply,
    Returns,
    Subscribe,
    Whisper,
)
from eventbus_edge.sessions.client_events import ClientEvents
from eventbus_edge.sessions.clock import Clock
from eventbus_edge.sessions.effects import (
    AnswerPresence,
    AnswerStats,
    ClaimUser,
    Close,
    Consult,
    Effect,
    Heartbeat,
    Join,
    JoinPattern,
    Leave,
    LeavePattern,
    Read,
    Recheck,
    Send,
    UpdatePresence,
    Verify,
    Watch,
    WhisperOut,
)
from eventbus_edge.sessions.joining import (
    Channels,
    Joiner,
)
from eventbus_edge.sessions.limits import ANSWER_BYTES_PER_ACTION
from eventbus_edge.sessions.pauses import closed_by_peer
from eventbus_edge.sessions.ports import Peer, WatchersPort
from eventbus_edge.sessions.queries import Queries
from eventbus_edge.sessions.session import Session
from eventbus_edge.turns import SHARE_S, Turns

__all__ = ["Connection", "Parts", "Work", "fileno_of", "is_gone"]


_log = logging.getLogger(__name__)

_CLOSE_LEVELS: Final = {CloseReason.TOO_SLOW: logging.INFO}
"""Closes that an operator should see by default; all others are everyday events."""


AT_ONCE: Final = 10
"""How many effects may include joins that wait for nothing; a handshake may name many channels."""


Work: TypeAlias = Coroutine[Any, Any, None]
"""The rest of a command, because it has to wait for something."""


class Parts(NamedTuple):
    """The parts of a node that its connections use."""

    node_id: str
    authenticator: Authenticator
    authorizers: Authorizers
    admission: Admission
    revoker: Revoker
    channels: Channels
    queries: Queries
    clock: Clock
    client_events: ClientEvents | None
    """Checks the events that clients send, if given."""
    turns: Turns
    metrics: Metrics
    record: Callable[[ClientEventSent | NothingStored], None]
    """Gets what clients did, for receivers of webhooks."""
    watchers: WatchersPort


class Connection:
    """One session with its outbox and its peer.

    A transport calls `receive` with one command at a time, and awaits what it returns before the
    next one. So a client's commands are answered in their order, and a client that sends faster
    than it is served is slowed by its own socket.
    """

    __slots__ = (
        "_hub", "_joiner", "_may_return", "_parts", "_peer", "_slot", "id", "is_closing", "outbox",
        "session",
    )  # fmt: skip

    def __init__(
        self, parts: Parts, session: Session, outbox: Outbox, peer: Peer, slot: Slot
    ) -> None:
        self.id = session.connection_id
        self.session = session
        self.outbox = outbox
        self.is_closing = False
        self._may_return = True
        self._parts = parts
        self._hub = parts.channels.hub
        self._peer = peer
        self._slot = slot
        self._joiner: Joiner | None = Joiner(
            self,
            parts.channels,
            parts.admission,
            parts.revoker,
            parts.metrics.tally,
            record=parts.record,
        )

    def open(self, subscribe: Iterable[tuple[Subscribe, Allowed]]) -> Work | None:
        """Greet the client, then join the channels of its URL, which are allowed already."""
        self._debug("opened")
        effects = self.session.open(self._parts.node_id)
        for command, decision in subscribe:
            effects += self.session.consulted(command, decision)
        return self._begin(effects, "opening")

    def receive(self, command: Command, size: int = 0) -> Work | None:
        """Carry out one command of the client, a message of `size` bytes; none after the close.

        Returns what has to be awaited, if anything.
        """
        if self.is_closing:
            return None
        name, work = type(command).__name__, None
        try:
            with guarded():
                work = self._begin(self.session.receive(command, time.monotonic(), size), name)
        except Exception as exc:  # noqa: BLE001 - a fault of ours must not end other connections
            self._failed(name, exc)
        if work is None:
            self._parts.clock.expect(self)
        return work

    async def handle(self, command: Command, size: int = 0) -> None:
        """Carry out one command to its end."""
        if (work := self.receive(command, size)) is not None:
            await work

    def _begin(self, effects: list[Effect], name: str) -> Work | None:
        """Carry out effects; returns the rest from the first one that has to wait."""
        for number, effect in enumerate(effects):
            if self.is_closing:
                break
            if isinstance(effect, Join):
                assert self._joiner is not None, "it joins until it is released"
                is_done = number < AT_ONCE and self._joiner.enter_now(effect)
            else:
                is_done = self._carry_out_now(effect)
            if not is_done:
                return self._finish(effects[number:], name)
        return None

    async def _finish(self, effects: list[Effect], name: str) -> None:
        try:
            with guarded():
                await self._carry_out(effects)
        except Exception as exc:  # noqa: BLE001 - as above
            self._failed(name, exc)
        self._parts.clock.expect(self)

    def _failed(self, name: str, exc: Exception) -> None:
        self.log.error("%s failed", name, exc_info=exc)
        self.close(CloseReason.INTERNAL_ERROR, "an internal error")

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """The logger for this connection."""
        return connection_logger(_log, self.id)

    @property
    def address(self) -> str:
        """The client's key for limits; see `eventbus_edge.access.addresses.group`."""
        return self._slot.address

    def _debug(self, message: str) -> None:
        """Log one of the many lines about every connection, which are mostly not wanted."""
        if _log.isEnabledFor(logging.DEBUG):
            self.log.debug(message)

    def keep_alive(self) -> None:
        """The client gave a sign of life that is not a command."""
        self.session.time.received(time.monotonic())

    def count(self, frames: int) -> bool:
        """Count frames that are not commands; whether any of them was within the pace."""
        is_served, effects = self.session.count(frames, time.monotonic())
        for effect in effects:
            self._carry_out_now(effect)
        return is_served

    @property
    def user(self) -> Claims:
        """The claims of an authenticated client."""
        claims = self.session.claims
        assert claims is not None, "an authorizer is asked about a user"
        return claims

    def send(self, reply: Reply) -> None:
        """Send the client a reply, in order with the messages of its channels."""
        if isinstance(reply, Failed):
            self._parts.metrics.errors.labels(reply.code).inc()
        frame = self.outbox.format.reply(reply)
        if frame is not None:
            if len(frame) >= ANSWER_BYTES_PER_ACTION:
                self.session.answered(len(frame), time.monotonic())
            self._hub.push(self.outbox, frame)

    def write(self, frame: bytes) -> None:
        """Send a frame of the transport, such as a pong; it counts as unsent like all others."""
        self._hub.push(self.outbox, frame)

    def fileno(self) -> int:
        """The socket's file descriptor; -1 when it is closed."""
        return self._peer.fileno()

    def tick(self, now: float) -> None:
        """Do what is due at this time."""
        for effect in self.session.time.tick(now):
            self._carry_out_now(effect)

    def _carry_out_now(self, effect: Effect) -> bool:
        """Carry out an effect, unless it has to wait for something: then return False."""
        match effect:
            case Send(reply):
                self.send(reply)
            case Close(reason, text):
                self.close(reason, text)
            case Leave() | LeavePattern():
                self._leave(effect)
            case AnswerPresence() | UpdatePresence():
                self._update_presence(effect)
            case Watch(inboxes):
                self._parts.watchers.watch(self.outbox, inboxes)
            case Heartbeat():
                self._peer.ping()
            case _:
                return False
        return True

    def close(self, reason: CloseReason, text: str) -> None:
        """Begin to close the connection, once; `text` is the reason for people."""
        if not self.is_closing:
            self.is_closing = True
            closing = self.outbox.format.protocol.closing(reason, text)
            self._may_return = closing.returns is not Returns.NEVER
            self._parts.metrics.closes.labels(str(closing.code)).inc()
            level = _CLOSE_LEVELS.get(reason, logging.DEBUG)
            self.log.log(level, "closing: %d %s", closing.code, text)
            # What is pending goes first, and nothing follows a close frame (RFC 6455, 5.5.1).
            self._hub.settle()
            self.outbox.flush()
            self.outbox.close()
            self._peer.close(closing)

    def revoke(self, channel: str) -> bool:
        """Revoke a channel and the patterns that match it; False if it had none.

        The client is notified, and the connection stays open.
        """
        is_joining = self._joiner is not None and self._joiner.revoke(channel)
        effects = [] if is_joining else self.session.revoke(channel)
        for pattern in self.session.patterns:
            if pattern.match(channel) is not None:
                effects += self.session.patterns.revoke(pattern)
        for effect in effects:
            match effect:
                case Send(reply):
                    self.send(reply)
                case Leave() | LeavePattern():
                    self._leave(effect)
                case _:
                    raise AssertionError(f"revoking cannot ask for {effect}")
        return is_joining or bool(effects)

    def ended(self, code: int | None) -> None:
        """The client closed it (None), or the transport's own checks did, with a code."""
        if not self.is_closing:
            self.is_closing = True
            self._hub.settle()
            self.outbox.flush()
            self.outbox.close()
            self._parts.metrics.closes.labels("client" if code is None else str(code)).inc()

    def release(self) -> None:
        """The connection has ended: leave all channels and patterns."""
        self.is_closing = True
        self.outbox.close()
        self._parts.clock.forget(self)
        self._parts.watchers.unwatch(self.id)
        for channel in self.session.channels:
            self._leave_channel(channel, lost=self._may_return)
        self.session.channels.clear()
        for pattern in self.session.patterns:
            self._parts.channels.traffic.wildcards.leave(pattern, self.id)
        self.session.patterns.clear()
        # They refer to each other. Without this, the memory of closed connections would be free
        # only after a full collection of garbage, which is rare on a node with many connections.
        self._joiner = None

    async def _carry_out(self, effects: list[Effect]) -> None:
        queue = collections.deque(effects)
        turns = self._parts.turns
        end = turns.clock() + SHARE_S
        while queue and not self.is_closing:
            effect = queue.popleft()
            if self._carry_out_now(effect):
                continue
            match effect:
                case Verify(token, ref):
                    queue.extend(await self._verify(Authenticate(token, ref)))
                case ClaimUser():
                    queue.extend(self._claim(effect))
                case Consult(command, question):
                    queue.extend(await self._consult(command, question))
                case Join() | JoinPattern():
                    assert self._joiner is not None, "it joins until it is released"
                    queue.extend(await self._joiner.enter(effect))
                    if turns.clock() >= end:  # handshakes may name many channels
                        await turns.pause()
                        end = turns.clock() + SHARE_S
                case Recheck(channel, question, changes):
                    decision = await self._parts.authorizers.ask(question, self.user, self.id)
                    queue.extend(self.session.rechecked(channel, decision, changes))
                case WhisperOut(command, event, user_id):
                    queue.extend(await self._whisper(command, event, user_id))
                case Read() | AnswerStats():
                    room = self.outbox.limit // 2
                    self.send(await self._parts.queries.answer(effect, room, self.address))

    def _leave(self, effect: Leave | LeavePattern) -> None:
        match effect:
            case Leave(channel):
                self._leave_channel(channel)
            case LeavePattern(pattern):
                self._parts.channels.traffic.wildcards.leave(pattern, self.id)
        if self._joiner is not None:
            self._joiner.left(effect)

    def _leave_channel(self, channel: str, *, lost: bool = False) -> None:
        member = self.session.member(channel)
        self._parts.channels.leave(channel, member, self.id, lost=lost)
        self.session.left(channel)

    async def _verify(self, command: Authenticate) -> list[Effect]:
        try:
            # An authenticated client may refresh its token while revocations cannot be read: those
            # are carried out later.
            is_new = self.session.claims is None
            claims = await self._parts.authenticator.verify(command.token, is_new=is_new)
        except TokenRejected as exc:
            self.log.info("its token is not accepted: %s", exc.reason)
            return self.session.token_rejected(exc.code, str(exc), command.ref)
        if self.session.claims is None:
            try:
                self._parts.admission.claim(self._slot, claims.user_id)
            except ConnectionLimitReached as exc:
                return self.session.refused("limit_exceeded", str(exc), None, command.ref)
        left = claims.exp - time.time()
        return self.session.verified(claims, left, command.ref, time.monotonic())

    def _claim(self, effect: ClaimUser) -> list[Effect]:
        try:
            self._parts.admission.claim(self._slot, effect.user.user_id)
        except ConnectionLimitReached as exc:
            return self.session.refused("limit_exceeded", str(exc), None, effect.command.ref)
        return self.session.signed_in(effect)

    async def _whisper(self, command: Whisper, event: str, user_id: str | None) -> list[Effect]:
        if not self._parts.admission.may_whisper(command.channel):
            message = (
                "too many client events on this channel: wait a moment; the limit is "
                "BROADCAST_MAX_WHISPERS_PER_CHANNEL of the node"
            )
            return self.session.refused("rate_limited", message, command.channel, command.ref)
        checked = self._parts.client_events
        if checked and (fault := checked.fault(command.channel, event, command.data)):
            return self.session.refused("bad_request", fault, command.channel, command.ref)
        fault = await self._parts.channels.traffic.whisper(command, event, user_id, self.id)
        if fault is None:
            data = command.data
            self._parts.record(ClientEventSent(command.channel, event, data, self.id, user_id))
        return self.session.whispered(command, fault)

    def _update_presence(self, effect: AnswerPresence | UpdatePresence) -> None:
        match effect:
            case AnswerPresence(command):
                self.send(self._presence(command))
            case UpdatePresence(channel, changes) if channel in self.session.channels:
                answer = self._presence(Presence(channel, changes, None))
                if isinstance(answer, Failed):  # the token has been answered
                    self.send(answer)

    def _presence(self, command: Presence) -> Reply:
        channel, changes, ref = command
        if changes is not None and not self._parts.admission.may_update(channel):
            message = (
                "too many presence updates and client events on this channel: wait a moment; the "
                "limit is BROADCAST_MAX_WHISPERS_PER_CHANNEL of the node"
            )
            return Failed("rate_limited", message, channel, ref)
        member = self.session.member(channel)
        assert member is not None, "the member of a joined presence channel is known"
        return self._parts.channels.presence.answer(command, member, self.id)

    async def _consult(
        self, command: Subscribe | ReadHistory | Presence, question: Ask
    ) -> list[Effect]:
        decision = await self._parts.authorizers.ask(question, self.user, self.id)
        return self.session.consulted(command, decision)


def fileno_of(transport: asyncio.Transport) -> int:
    """The file descriptor of a transport's socket; -1 when it is closed."""
    socket = transport.get_extra_info("socket")
    return -1 if socket is None or transport.is_closing() else socket.fileno()


def is_gone(transport: asyncio.Transport, socket: Any = None) -> bool:
    """Whether the client has closed its socket, even if that has not been read yet.

    An example is a client that gave up waiting for its handshake while the node was stopped. Give
    the transport's socket if it is known: that saves making it again.
    """
    if socket is None:
        fileno = fileno_of(transport)
    else:
        fileno = -1 if transport.is_closing() else socket.fileno()
    return fileno == -1 or bool(closed_by_peer([fileno]))
