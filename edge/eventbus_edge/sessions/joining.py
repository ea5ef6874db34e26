"""How a connection joins a channel: subscribe, catch up, answer, then receive its messages."""

import asyncio
import functools
import time
from typing import (
    Final,
    NamedTuple,
    Protocol,
)

from eventbus.channels import ChannelKind
from eventbus.drivers.base import Position
from eventbus.errors import EventBusError
from eventbus_edge.access.admission import Admission
from eventbus_edge.access.revoker import Revoker
from eventbus_edge.access.rules import Rule
from eventbus_edge.access.tokens import Claims
from eventbus_edge.delivery.history import CaughtUp
from eventbus_edge.delivery.hub import (
    Backlog,
    Hub,
)
from eventbus_edge.delivery.outbox import Outbox
from eventbus_edge.delivery.traffic import Traffic
from eventbus_edge.metrics.tally import Tally
from eventbus_edge.protocols.vocabulary import (
    ChannelMessage,
    CloseReason,
    Member,
    PresenceChanged,
    Reply,
    Subscribe,
    Subscribed,
)
from eventbus_edge.sessions.effects import (
    Effect,
    Join,
    JoinPattern,
    Send,
)
from eventbus_edge.sessions.ports import (
    PresencePort,
    PresenceRefused,
)
from eventbus_edge.sessions.session import Session

__all__ = ["Channels", "Joiner", "Joining"]


DRAIN_PATIENCE_S: Final = 10.0
"""How long a client that catches up may take to read half of its limit of unsent bytes."""
_DRAIN_POLL_S: Final = 0.01
MAX_HISTORY_WAIT_S: Final = 5.0
"""How long a client that resumes waits for its turn; our own clients wait 10 s for an answer."""


class Channels(NamedTuple):
    """What delivers the channels of a node to its connections."""

    traffic: Traffic
    hub: Hub
    presence: PresencePort

    def leave(
        self, channel: str, member: Member | None, connection_id: str, *, lost: bool = False
    ) -> None:
        """Stop delivering a channel to a connection; one that was lost may come back."""
        self.hub.remove(channel, connection_id)
        self.presence.leave(channel, member, connection_id, lost=lost)
        self.traffic.release(channel)


class Joining(Protocol):
    """What the joiner uses of its connection."""

    id: str
    session: Session
    outbox: Outbox
    is_closing: bool

    @property
    def address(self) -> str:
        """The client's address, for limits."""

    @property
    def user(self) -> Claims:
        """The claims of an authenticated client."""

    def send(self, reply: Reply) -> None:
        """Send a reply."""

    def close(self, reason: CloseReason, text: str) -> None:
        """Begin to close the connection."""


class Joiner:
    """Joins one connection to channels and patterns, strictly one after another."""

    def __init__(
        self,
        connection: Joining,
        channels: Channels,
        admission: Admission,
        revoker: Revoker,
        tally: Tally,
    ) -> None:
        self._traffic, self._hub, self._presence = channels
        self._admission = admission
        self._revoker = revoker
        self._tally = tally
        self._connection = connection
        self._id = connection.id
        self._session = connection.session
        self._outbox = connection.outbox
        self._address = connection.address
        self._joining: str | None = None
        self._is_revoked = False

    async def enter(self, effect: Join | JoinPattern) -> list[Effect]:
        """Carry out a join; returns the effects that follow."""
        match effect:
            case Join():
                self._joining = effect.command.channel
                return [*await self._join(effect), *self._settle()]
            case JoinPattern():
                return await self._join_pattern(effect)

    def revoke(self, channel: str) -> bool:
        """Revoke a channel that is being joined; False if it is not."""
        if channel == self._joining:
            self._is_revoked = True  # carried out when the join has ended
            return True
        return False

    def _settle(self) -> list[Effect]:
        """After a join: leave the channel if it was revoked meanwhile."""
        channel, self._joining = self._joining, None
        is_revoked, self._is_revoked = self._is_revoked, False
        if channel is None or channel not in self._session.channels:
            return []
        if is_revoked or self._revoker.forbids(channel, self._session.claims):
            return self._session.revoke(channel)
        return []

    async def _join(self, effect: Join) -> list[Effect]:
        """Subscribe, answer, and let the hub deliver: no await after the position is known."""
        command, rule, info, member = effect
        channel = command.channel
        member = member or self._session.member(channel)
        traffic, presence = self._traffic, self._presence
        if channel in self._session.channels:
            position = traffic.position(channel)
            recovered = _recovered(command, position)
            members = presence.members(channel)[0] if _has_members(rule) else None
            return self._session.joined(command, rule, position, recovered, members)
        if not await self._may_read(command, rule):
            message = "too much history is read, from this address or from all: wait a moment"
            return self._session.refused("rate_limited", message, channel, command.ref)
        try:
            position = await traffic.acquire(channel)
        except EventBusError as exc:
            return self._session.not_joined(command, f"the bus cannot be listened to: {exc}")
        backlog = traffic.hold(channel)
        traffic.wildcards.mute(channel, self._id)
        try:
            on_read = functools.partial(self._admission.charge_history, self._address)
            caught_up = await traffic.catch_up(command, rule, position, on_read)
            if _has_members(rule):
                assert member is not None, "who joins a presence channel is known"
                await presence.enter(channel, member, info, self._id)
                await self._drained()  # a long list must not look like a slow client
            if not self._connection.is_closing:
                await self._begin(effect, caught_up, backlog)
        except PresenceRefused as exc:
            return self._session.refused(exc.code, str(exc), channel, command.ref)
        except EventBusError as exc:
            return self._session.not_joined(command, f"the bus cannot be read: {exc}")
        finally:
            self._hub.release(backlog)
            traffic.wildcards.unmute(channel, self._id)
            if channel not in self._session.channels:
                presence.leave(channel, member, self._id, lost=True)
                traffic.release(channel)
        return []

    async def _may_read(self, command: Subscribe, rule: Rule) -> bool:
        """Wait until the client may read stored messages, if the command asks for any.

        A client that reconnects after a fault must not be refused: it waits for its turn, as long
        as clients wait for an answer.
        """
        if command.resume is None and not command.history and not rule.retain:
            return True
        debt_s = self._admission.history_debt_s(self._address)
        if debt_s > MAX_HISTORY_WAIT_S:
            return False
        if debt_s:
            await asyncio.sleep(debt_s)
        return not self._admission.is_behind()

    async def _join_pattern(self, effect: JoinPattern) -> list[Effect]:
        command, pattern = effect
        wildcards = self._traffic.wildcards
        try:
            await wildcards.join(pattern, self._outbox)
        except EventBusError as exc:
            message = f"the bus cannot be listened to: {exc}"
            return self._session.refused("unavailable", message, None, command.ref)
        is_forbidden = self._revoker.forbids_any(pattern, self._connection.user)
        if self._connection.is_closing or is_forbidden:
            wildcards.leave(pattern, self._id)
            message = f"a channel of {pattern.text!r} has been revoked for this token"
            return self._session.refused("forbidden", message, None, command.ref)
        return self._session.patterns.joined(command, pattern)

    async def _begin(self, join: Join, caught_up: CaughtUp, backlog: Backlog) -> None:
        """Answer, send what was missed, and let the hub deliver from exactly there on."""
        command, rule = join.command, join.rule
        start, recovered = caught_up.start, caught_up.recovered
        members = None
        if _has_members(rule):
            members = self._presence.begin(command.channel, backlog)
        for effect in self._session.joined(
            command, rule, start, recovered, members, member=join.member
        ):
            assert isinstance(effect, Send)
            self._connection.send(effect.reply)
        await self._give_all(caught_up.messages)
        if backlog.overflowed:
            reason = "too slow: more passed than may wait while catching up"
            self._connection.close(CloseReason.TOO_SLOW, reason)
            return
        # No await from here on: the hub's next message must follow what is sent here.
        for passed in caught_up.live(backlog):
            if isinstance(passed, Subscribed):
                self._hub.push(self._outbox, self._outbox.format.reply(passed))
            elif passed.exclude != self._id:
                self._give(passed)
        live = self._traffic.position(command.channel)
        self._hub.add(command.channel, self._outbox, ahead=caught_up.ahead_of(live))

    async def _give_all(self, messages: list[ChannelMessage]) -> None:
        """Send stored messages as fast as the client reads; the rest counts as unsent meanwhile."""
        with self._hub.unsent.holding(sum(len(message.body) for message in messages)):
            for message in messages:
                self._give(message)
                await self._drained()

    def _give(self, message: ChannelMessage | PresenceChanged) -> None:
        self._hub.push(self._outbox, self._outbox.format.message(message))
        self._tally.count_delivered(1)

    async def _drained(self) -> None:
        """Wait while much is unsent: a long history must not look like a slow client."""
        patience = time.monotonic() + DRAIN_PATIENCE_S
        while self._outbox.waiting > self._outbox.limit // 2 and not self._connection.is_closing:
            if time.monotonic() > patience:
                self._connection.close(
                    CloseReason.TOO_SLOW, "too slow: the history could not be sent"
                )
            await asyncio.sleep(_DRAIN_POLL_S)


def _has_members(rule: Rule) -> bool:
    return rule.kind is ChannelKind.PRESENCE


def _recovered(command: Subscribe, position: Position | None) -> bool | None:
    """Whether a client that resumes has missed nothing: its position is that of the stream."""
    if command.resume is None:
        return None
    return position == command.resume
