"""One client's connection on a node: carries out what its session asks for."""

import asyncio
import collections
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, Protocol

from edge.auth import Claims, TokenRejected
from edge.effects import (
    Attend,
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
    Survey,
    Verify,
    WhisperOut,
)
from edge.history import CaughtUp
from edge.hub import Backlog
from edge.limits import Full, Place
from edge.look_up import look_up
from edge.outbox import Outbox
from edge.presence import PresenceRefused
from edge.protocols.vocabulary import (
    Authenticate,
    ChannelMessage,
    Command,
    Failed,
    ReadHistory,
    Reply,
    Subscribe,
    Whisper,
)
from edge.rules import Allowed, Ask, Rule
from edge.session import Session
from eventbus.channels import ChannelKind
from eventbus.drivers.base import Position
from eventbus.errors import EventBusError

if TYPE_CHECKING:
    from edge.node import Node

__all__ = ["CLOSE_TOO_SLOW", "Connection", "Peer", "let_go"]

CLOSE_TOO_SLOW: Final = 4201
DRAIN_PATIENCE_S: Final = 10.0
"""How long a client may take for half of its bound of unsent bytes, while it catches up."""
_DRAIN_POLL_S: Final = 0.01


class Peer(Protocol):
    """The far end of a connection, as its transport's handler offers it."""

    def ping(self) -> None:
        """Ask for a sign of life."""

    def close(self, code: int, reason: str) -> None:
        """Begin to end the connection; what was written before reaches the client first."""


class Connection:
    """Joins one session, its outbox and its peer with the node.

    `handle` is awaited for one command at a time, so that a client's commands are answered in
    their order, and a client that sends faster than it is served is slowed by its own socket.
    """

    def __init__(
        self, node: "Node", session: Session, outbox: Outbox, peer: Peer, place: Place
    ) -> None:
        self.id = session.connection_id
        self.session = session
        self.outbox = outbox
        self.is_closing = False
        self._may_return = True
        self._node = node
        self._peer = peer
        self._place = place
        self._joining: str | None = None
        self._is_taken = False

    async def open(self, subscribe: Iterable[tuple[Subscribe, Allowed]]) -> None:
        """Greet the client, then join the channels that its URL asked for and was allowed."""
        await self._carry_out(self.session.open(self._node.id))
        for command, decision in subscribe:
            await self._carry_out(self.session.consulted(command, decision))

    async def handle(self, command: Command) -> None:
        """Answer one command of the client; what comes after the close is not carried out."""
        if self.is_closing:
            return
        await self._carry_out(self.session.receive(command, time.monotonic()))
        self._node.expect(self)

    def heard(self) -> None:
        """The client gave a sign of life that is no command."""
        self.session.time.heard(time.monotonic())

    def write(self, frame: bytes) -> None:
        """Send a frame of the transport's own, such as a pong, within the bound of all others."""
        self._node.hub.push(self.outbox, frame)

    def tick(self, now: float) -> None:
        """Do what the passing of time asks for."""
        for effect in self.session.time.tick(now):
            match effect:
                case Send(reply):
                    self._send(reply)
                case Heartbeat():
                    self._peer.ping()
                case Close(code, reason):
                    self.close(code, reason)
                case _:
                    raise AssertionError(f"time cannot ask for {effect}")

    def close(self, code: int, reason: str) -> None:
        """Begin to end the connection, once."""
        if not self.is_closing:
            self.is_closing = True
            self._may_return = not 4000 <= code < 4100  # the protocol's band of no reconnecting
            self._node.metrics.closes.labels(str(code)).inc()
            # What is pending goes first, and nothing follows a close frame (RFC 6455, 5.5.1).
            self.outbox.flush()
            self.outbox.close()
            self._peer.close(code, reason)

    def revoke(self, channel: str) -> bool:
        """Take a channel away, at once, and the patterns that match it; whether there was any.

        The client is told, and the connection goes on.
        """
        if channel == self._joining:
            self._is_taken = True  # the join ends first: it has begun to hold what revoking frees
            return True
        effects = self.session.revoke(channel)
        for pattern in self.session.patterns:
            if pattern.match(channel) is not None:
                effects += self.session.patterns.revoke(pattern)
        for effect in effects:
            match effect:
                case Send(reply):
                    self._send(reply)
                case Leave() | LeavePattern():
                    self._leave(effect)
                case _:
                    raise AssertionError(f"revoking cannot ask for {effect}")
        return bool(effects)

    def ended(self, code: int | None) -> None:
        """The other side, or the protocol's own checks, ended it; None for the other side."""
        if not self.is_closing:
            self.is_closing = True
            self._node.metrics.closes.labels("client" if code is None else str(code)).inc()

    def gone(self) -> None:
        """The connection has ended: let go of what it holds."""
        self.is_closing = True
        self.outbox.close()
        for channel in self.session.channels:
            self._node.leave(channel, self, lost=self._may_return)
        self.session.channels.clear()
        for pattern in self.session.patterns:
            self._node.traffic.wildcards.leave(pattern, self.id)
        self.session.patterns.clear()

    async def _carry_out(self, effects: list[Effect]) -> None:
        queue = collections.deque(effects)
        while queue and not self.is_closing:
            match effect := queue.popleft():
                case Send(reply):
                    self._send(reply)
                case Close(code, reason):
                    self.close(code, reason)
                case Verify(token, ref):
                    queue.extend(await self._verify(Authenticate(token, ref)))
                case Consult(command, question):
                    queue.extend(await self._consult(command, question))
                case Join() | JoinPattern():
                    queue.extend(await self._enter(effect))
                case Leave() | LeavePattern():
                    self._leave(effect)
                case Recheck(channel, question):
                    decision = await self._node.consult(question, self._user)
                    queue.extend(self.session.rechecked(channel, decision))
                case WhisperOut(command, event, user_id):
                    queue.extend(await self._whisper(command, event, user_id))
                case Attend(presence):
                    self._send(self._node.presence.answer(presence, self._user, self.id))
                case Read() | Survey():
                    self._send(await look_up(self._node, effect, self.outbox.limit // 2))
                case Heartbeat():
                    self._peer.ping()

    def _send(self, reply: Reply) -> None:
        if isinstance(reply, Failed):
            self._node.metrics.errors.labels(reply.code).inc()
        self._node.hub.push(self.outbox, self.outbox.format.reply(reply))

    async def _enter(self, effect: Join | JoinPattern) -> list[Effect]:
        match effect:
            case Join():
                self._joining = effect.command.channel
                return [*await self._join(effect), *self._settle()]
            case JoinPattern():
                return await self._join_pattern(effect)

    def _leave(self, effect: Leave | LeavePattern) -> None:
        match effect:
            case Leave(channel):
                self._node.leave(channel, self)
            case LeavePattern(pattern):
                self._node.traffic.wildcards.leave(pattern, self.id)

    def _settle(self) -> list[Effect]:
        """A join has ended; what was taken away meanwhile goes now."""
        channel, self._joining = self._joining, None
        is_taken, self._is_taken = self._is_taken, False
        if channel is None or channel not in self.session.channels:
            return []
        if is_taken or self._node.revoker.forbids(channel, self.session.claims):
            return self.session.revoke(channel)
        return []

    async def _verify(self, command: Authenticate) -> list[Effect]:
        try:
            claims = await self._node.verify(command.token)
        except TokenRejected as exc:
            return self.session.token_rejected(exc.code, str(exc), command.ref)
        if self.session.claims is None:
            try:
                self._node.admission.claim(self._place, claims.user_id)
            except Full as exc:
                return self.session.refused("limit_exceeded", str(exc), None, command.ref)
        left = claims.exp - time.time()
        return self.session.verified(claims, left, command.ref, time.monotonic())

    async def _whisper(self, command: Whisper, event: str, user_id: str | None) -> list[Effect]:
        if not self._node.admission.may_whisper(command.channel):
            message = "too many client events on this channel: wait a moment"
            return self.session.refused("rate_limited", message, command.channel, command.ref)
        fault = await self._node.traffic.whisper(command, event, user_id, self.id)
        return self.session.whispered(command, fault)

    async def _consult(self, command: Subscribe | ReadHistory, question: Ask) -> list[Effect]:
        decision = await self._node.consult(question, self._user)
        return self.session.consulted(command, decision)

    @property
    def _user(self) -> Claims:
        claims = self.session.claims
        assert claims is not None, "an authorizer is asked about a user"
        return claims

    async def _join(self, effect: Join) -> list[Effect]:
        """Listen, answer, and let the hub deliver: without an await after the position is known."""
        command, rule, info = effect
        channel = command.channel
        if channel in self.session.channels:
            position = self._node.traffic.position(channel)
            recovered = _recovered(command, position)
            members = self._node.presence.members(channel)[0] if _has_members(rule) else None
            return self.session.joined(command, rule, position, recovered, members)
        try:
            position = await self._node.traffic.acquire(channel)
        except EventBusError as exc:
            return self.session.not_joined(command, f"the bus cannot be listened to: {exc}")
        backlog = self._node.traffic.hold(channel)
        self._node.traffic.wildcards.mute(channel, self.id)
        try:
            caught_up = await self._node.traffic.catch_up(command, position)
            if _has_members(rule):
                await self._node.presence.enter(channel, self._user, info, self.id)
                await self._drained()  # a long list must not look like a slow client
            if not self.is_closing:
                await self._begin(command, rule, caught_up, backlog)
        except PresenceRefused as exc:
            return self.session.refused(exc.code, str(exc), channel, command.ref)
        except EventBusError as exc:
            return self.session.not_joined(command, f"the bus cannot be read: {exc}")
        finally:
            self._node.hub.release(backlog)
            self._node.traffic.wildcards.unmute(channel, self.id)
            if channel not in self.session.channels:
                self._node.presence.leave(channel, self.session.claims, self.id, lost=True)
                self._node.traffic.release(channel)
        return []

    async def _join_pattern(self, effect: JoinPattern) -> list[Effect]:
        command, pattern = effect
        try:
            await self._node.traffic.wildcards.join(pattern, self.outbox)
        except EventBusError as exc:
            message = f"the bus cannot be listened to: {exc}"
            return self.session.refused("unavailable", message, None, command.ref)
        if self.is_closing or self._node.revoker.forbids_any(pattern, self._user):
            self._node.traffic.wildcards.leave(pattern, self.id)
            message = f"a channel of {pattern.text!r} has been taken away from this token"
            return self.session.refused("forbidden", message, None, command.ref)
        return self.session.patterns.joined(command, pattern)

    async def _begin(
        self, command: Subscribe, rule: Rule, caught_up: CaughtUp, backlog: Backlog
    ) -> None:
        """Answer, give what was missed, and let the hub deliver from exactly there on."""
        start, recovered = caught_up.start, caught_up.recovered
        members = None
        if _has_members(rule):
            members = self._node.presence.begin(command.channel, backlog)
        for effect in self.session.joined(command, rule, start, recovered, members):
            assert isinstance(effect, Send)
            self._send(effect.reply)
        for message in caught_up.messages:
            self._give(message)
            await self._drained()
        if backlog.overflowed:
            self.close(CLOSE_TOO_SLOW, "too slow: more passed than may wait while catching up")
            return
        # No await from here on: what the hub delivers next follows what is given here.
        for message in caught_up.live(backlog):
            if message.exclude != self.id:
                self._give(message)
        self._node.hub.add(command.channel, self.outbox)

    def _give(self, message: ChannelMessage) -> None:
        self._node.hub.push(self.outbox, self.outbox.format.message(message))
        self._node.metrics.messages_out.inc()

    async def _drained(self) -> None:
        """Wait while much is unsent: a long history must not look like a slow client."""
        patience = time.monotonic() + DRAIN_PATIENCE_S
        while self.outbox.waiting > self.outbox.limit // 2 and not self.is_closing:
            if time.monotonic() > patience:
                self.close(CLOSE_TOO_SLOW, "too slow: the history could not be sent")
            await asyncio.sleep(_DRAIN_POLL_S)


def _has_members(rule: Rule) -> bool:
    return rule.kind is ChannelKind.PRESENCE


def _recovered(command: Subscribe, position: Position | None) -> bool | None:
    """Whether a client that resumes has missed nothing: it stands where the stream stands."""
    if command.resume is None:
        return None
    return position == command.resume


async def let_go(connections: list[Connection], over_s: float, code: int, reason: str) -> None:
    """Close connections one after another, spread evenly over `over_s` seconds.

    All that come back at once would be a storm for the nodes that take them.
    """
    if not connections:
        return
    loop = asyncio.get_running_loop()
    start, step = loop.time(), over_s / len(connections)
    for i, connection in enumerate(connections):
        if (wait := start + i * step - loop.time()) > 0:
            await asyncio.sleep(wait)
        connection.close(code, reason)
