"""How a connection comes into a channel: listen, catch up, answer, then be delivered to."""

import asyncio
import functools
import time
from typing import (
    TYPE_CHECKING,
    Final,
)

from eventbus.channels import ChannelKind
from eventbus.drivers.base import Position
from eventbus.errors import EventBusError
from eventbus_edge.access.rules import Rule
from eventbus_edge.delivery.history import CaughtUp
from eventbus_edge.delivery.hub import Backlog
from eventbus_edge.presence.members import PresenceRefused
from eventbus_edge.protocols.vocabulary import (
    ChannelMessage,
    CloseReason,
    PresenceChanged,
    Subscribe,
    Subscribed,
)
from eventbus_edge.sessions.effects import (
    Effect,
    Join,
    JoinPattern,
    Send,
)

if TYPE_CHECKING:
    from eventbus_edge.node import Node
    from eventbus_edge.sessions.connection import Connection

__all__ = ["Joiner"]


DRAIN_PATIENCE_S: Final = 10.0
"""How long a client may take for half of its bound of unsent bytes, while it catches up."""
_DRAIN_POLL_S: Final = 0.01
MAX_HISTORY_WAIT_S: Final = 5.0
"""How long a client that resumes waits for its turn; our own clients wait 10 s for an answer."""


class Joiner:
    """Brings one connection into channels and patterns, strictly one after another."""

    def __init__(self, node: "Node", connection: "Connection") -> None:
        self._node = node
        self._connection = connection
        self._id = connection.id
        self._session = connection.session
        self._outbox = connection.outbox
        self._address = connection.address
        self._joining: str | None = None
        self._is_taken = False

    async def enter(self, effect: Join | JoinPattern) -> list[Effect]:
        """Carry out a join; gives what is still to be done."""
        match effect:
            case Join():
                self._joining = effect.command.channel
                return [*await self._join(effect), *self._settle()]
            case JoinPattern():
                return await self._join_pattern(effect)

    def revoke(self, channel: str) -> bool:
        """Take a channel away that is being joined; False where it is not."""
        if channel == self._joining:
            self._is_taken = True  # the join ends first: it has begun to hold what revoking frees
            return True
        return False

    def _settle(self) -> list[Effect]:
        """A join has ended; what was taken away meanwhile goes now."""
        channel, self._joining = self._joining, None
        is_taken, self._is_taken = self._is_taken, False
        if channel is None or channel not in self._session.channels:
            return []
        if is_taken or self._node.revoker.forbids(channel, self._session.claims):
            return self._session.revoke(channel)
        return []

    async def _join(self, effect: Join) -> list[Effect]:
        """Listen, answer, and let the hub deliver: without an await after the position is known."""
        command, rule, info, member = effect
        channel = command.channel
        member = member or self._session.member(channel)
        traffic, presence = self._node.traffic, self._node.presence
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
            on_read = functools.partial(self._node.admission.charge_history, self._address)
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
            self._node.hub.release(backlog)
            traffic.wildcards.unmute(channel, self._id)
            if channel not in self._session.channels:
                presence.leave(channel, member, self._id, lost=True)
                traffic.release(channel)
        return []

    async def _may_read(self, command: Subscribe, rule: Rule) -> bool:
        """Wait until stored messages may be read for the client, where any are to be read.

        Whoever comes back after a fault must not be refused: it waits for its turn, if that comes
        before its own patience ends.
        """
        if command.resume is None and not command.history and not rule.retain:
            return True
        debt_s = self._node.admission.history_debt_s(self._address)
        if debt_s > MAX_HISTORY_WAIT_S:
            return False
        if debt_s:
            await asyncio.sleep(debt_s)
        return not self._node.admission.is_behind()

    async def _join_pattern(self, effect: JoinPattern) -> list[Effect]:
        command, pattern = effect
        wildcards = self._node.traffic.wildcards
        try:
            await wildcards.join(pattern, self._outbox)
        except EventBusError as exc:
            message = f"the bus cannot be listened to: {exc}"
            return self._session.refused("unavailable", message, None, command.ref)
        is_forbidden = self._node.revoker.forbids_any(pattern, self._connection.user)
        if self._connection.is_closing or is_forbidden:
            wildcards.leave(pattern, self._id)
            message = f"a channel of {pattern.text!r} has been taken away from this token"
            return self._session.refused("forbidden", message, None, command.ref)
        return self._session.patterns.joined(command, pattern)

    async def _begin(self, join: Join, caught_up: CaughtUp, backlog: Backlog) -> None:
        """Answer, give what was missed, and let the hub deliver from exactly there on."""
        command, rule = join.command, join.rule
        start, recovered = caught_up.start, caught_up.recovered
        members = None
        if _has_members(rule):
            members = self._node.presence.begin(command.channel, backlog)
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
        # No await from here on: what the hub delivers next follows what is given here.
        for passed in caught_up.live(backlog):
            if isinstance(passed, Subscribed):
                self._node.hub.push(self._outbox, self._outbox.format.reply(passed))
            elif passed.exclude != self._id:
                self._give(passed)
        live = self._node.traffic.position(command.channel)
        self._node.hub.add(command.channel, self._outbox, ahead=caught_up.ahead_of(live))

    async def _give_all(self, messages: list[ChannelMessage]) -> None:
        """Give stored messages as fast as the client takes them; what is held until then counts."""
        unsent = self._node.hub.unsent
        held = sum(len(message.body) for message in messages)
        unsent.held += held
        try:
            for message in messages:
                self._give(message)
                await self._drained()
        finally:
            unsent.held -= held

    def _give(self, message: ChannelMessage | PresenceChanged) -> None:
        self._node.hub.push(self._outbox, self._outbox.format.message(message))
        self._node.metrics.tally.went(1)

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
    """Whether a client that resumes has missed nothing: it stands where the stream stands."""
    if command.resume is None:
        return None
    return position == command.resume
