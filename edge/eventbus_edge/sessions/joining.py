"""How a connection joins a channel: subscribe, catch up, answer, then receive its messages."""

import asyncio
import functools
import time
from collections.abc import Callable, Sequence
from typing import (
    Final,
    NamedTuple,
    Protocol,
)

from eventbus.channels import ChannelKind, Pattern
from eventbus.drivers import Position
from eventbus.errors import EventBusError
from eventbus_edge.access import Admission, Claims, Revoker, Rule
from eventbus_edge.delivery import (
    Backlog,
    CaughtUp,
    Hub,
    Outbox,
    Passed,
    Stored,
    Traffic,
    fault_for_client,
)
from eventbus_edge.metrics import Tally
from eventbus_edge.protocols import (
    ChannelMessage,
    CloseReason,
    Member,
    Members,
    NothingStored,
    PresenceChanged,
    Reply,
    Subscribe,
    Subscribed,
    SubscribedPattern,
    SubscribePattern,
)
from eventbus_edge.sessions.effects import (
    Effect,
    Join,
    JoinPattern,
    Leave,
    LeavePattern,
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
MAX_JOINED_BYTES: Final = 256 * 1024
"""Stored messages up to this size are joined once for all clients that get them."""
MAX_HISTORY_WAIT_S: Final = 5.0
"""How long a client that resumes waits for its turn; our own clients wait 10 s for an answer."""
_TOO_MUCH_HISTORY: Final = (
    "too much history is being read, from this address or from all: wait a moment; the limit is "
    "BROADCAST_MAX_HISTORY_PER_ADDRESS of the node"
)
_FELL_BEHIND: Final = "too slow: more passed than may wait while catching up"


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

    __slots__ = (
        "_address", "_admission", "_connection", "_hub", "_id", "_is_revoked", "_joining",
        "_outbox", "_pattern_starts", "_presence", "_record", "_revoker", "_session", "_starts",
        "_tally", "_traffic",
    )  # fmt: skip

    def __init__(
        self,
        connection: Joining,
        channels: Channels,
        admission: Admission,
        revoker: Revoker,
        tally: Tally,
        *,
        record: Callable[[NothingStored], None],
    ) -> None:
        self._traffic, self._hub, self._presence = channels
        self._admission = admission
        self._revoker = revoker
        self._tally = tally
        self._record = record
        self._connection = connection
        self._id = connection.id
        self._session = connection.session
        self._outbox = connection.outbox
        self._address = connection.address
        self._starts: dict[str, Position] = {}
        """Where the subscriptions to channels began; of users who may join patterns."""
        self._pattern_starts: dict[str, Position] = {}
        """Where those to patterns began, by their filters."""
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

    def enter_now(self, join: Join) -> bool:
        """Carry out a join that waits for nothing; False for any other, which `enter` carries out.

        The channel has subscribers here already, and neither messages nor members are to be read.
        """
        command, rule = join.command, join.rule
        channel, session = command.channel, self._session
        if (
            _reads(join)
            or rule.kind is ChannelKind.PRESENCE
            or channel in session.channels
            or len(session.patterns)
            or self._revoker.forbids(channel, session.bearer_of(join))
            or not self._traffic.acquire_active(channel)
        ):
            return False
        self._answer(join, self._traffic.position(channel), None, None)
        self._hub.add(channel, self._outbox)
        return True

    def left(self, effect: Leave | LeavePattern) -> None:
        """A channel or a pattern was left."""
        match effect:
            case Leave(channel):
                self._starts.pop(channel, None)
            case LeavePattern(pattern):
                self._pattern_starts.pop(pattern.filter, None)

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
        if is_revoked or self._revoker.forbids(channel, self._session.bearer(channel)):
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
            members = presence.members(channel) if _has_members(rule) else None
            return self._session.joined(command, rule, position, recovered, members)
        if _reads(effect) and not await self._may_read():
            return self._session.refused("rate_limited", _TOO_MUCH_HISTORY, channel, command.ref)
        try:
            position = await traffic.acquire(channel)
        except EventBusError as exc:
            message = fault_for_client("the channel could not be subscribed to", exc)
            return self._session.not_joined(command, message)
        backlog = traffic.hold(channel)
        has_patterns = len(self._session.patterns) > 0  # commands are handled one after another
        if has_patterns:
            traffic.wildcards.mute(channel, self._id, self._outbox.limit)
        is_forbidden = False
        try:
            on_read = functools.partial(self._admission.charge_history, self._address)
            caught_up = await traffic.catch_up(command, rule, position, on_read)
            if _has_members(rule):
                assert member is not None, "who joins a presence channel is known"
                await presence.enter(channel, member, info, self._id)
                await self._drained()  # a long list must not look like a slow client
            is_forbidden = self._is_forbidden(effect)
            if is_forbidden:
                message = f"access to {channel!r} was revoked while it was joined"
                return self._session.refused("forbidden", message, channel, command.ref)
            if not self._connection.is_closing:
                await self._begin(effect, caught_up, backlog)
        except PresenceRefused as exc:
            return self._session.refused(exc.code, str(exc), channel, command.ref)
        except EventBusError as exc:
            message = fault_for_client("the channel could not be read", exc)
            return self._session.not_joined(command, message)
        finally:
            self._hub.release(backlog)
            has_joined = channel in self._session.channels
            if has_patterns:
                traffic.wildcards.unmute(channel, self._id, has_joined=has_joined)
            if not has_joined:
                presence.leave(channel, member, self._id, lost=not is_forbidden)
                traffic.release(channel)
        return []

    def _is_forbidden(self, join: Join) -> bool:
        """Whether the channel was revoked since the join was allowed."""
        channel, bearer = join.command.channel, self._session.bearer_of(join)
        return self._is_revoked or self._revoker.forbids(channel, bearer)

    async def _may_read(self) -> bool:
        """Wait until the client may read stored messages; False if that takes too long.

        A client that reconnects after a fault must not be refused: it waits for its turn, as long
        as clients wait for an answer.
        """
        debt_s = self._admission.history_debt_s(self._address)
        if debt_s > MAX_HISTORY_WAIT_S:
            return False
        if debt_s:
            await asyncio.sleep(debt_s)
        return not self._admission.is_behind()

    async def _join_pattern(self, effect: JoinPattern) -> list[Effect]:
        command, pattern = effect
        patterns, traffic = self._session.patterns, self._traffic
        wildcards = traffic.wildcards
        if pattern in patterns:
            position = wildcards.position(pattern)
            return patterns.joined(command, pattern, position, _recovered(command, position))
        if command.resume is not None and not await self._may_read():
            return self._session.refused("rate_limited", _TOO_MUCH_HISTORY, None, command.ref)
        try:
            position = await wildcards.join(pattern, self._outbox)
        except EventBusError as exc:
            message = fault_for_client("the pattern could not be subscribed to", exc)
            return self._session.refused("unavailable", message, None, command.ref)
        backlog = traffic.hold_pattern(pattern, self._id)
        try:
            on_read = functools.partial(self._admission.charge_history, self._address)
            caught_up = await traffic.catch_up_pattern(command, pattern, position, on_read)
            if self._revoker.forbids_any(pattern, self._connection.user):
                message = f"a channel of {pattern.text!r} has been revoked for this token"
                return self._session.refused("forbidden", message, None, command.ref)
            if not self._connection.is_closing:
                await self._begin_pattern(effect, caught_up, backlog)
        except EventBusError as exc:
            message = fault_for_client("the pattern could not be read", exc)
            return self._session.refused("unavailable", message, None, command.ref)
        finally:
            if pattern not in patterns:
                wildcards.leave(pattern, self._id)
        return []

    async def _begin_pattern(
        self, join: JoinPattern, caught_up: CaughtUp, backlog: Backlog
    ) -> None:
        """Answer, send what was missed, and deliver live messages from exactly there on."""
        command, pattern = join
        patterns, wildcards = self._session.patterns, self._traffic.wildcards
        missed = self._uncovered(caught_up.messages, pattern)
        start = caught_up.start
        for effect in patterns.joined(command, pattern, start, caught_up.recovered):
            assert isinstance(effect, Send)
            self._connection.send(effect.reply)
        if start is not None:
            self._pattern_starts[pattern.filter] = start
        await self._send_all(missed)
        if pattern not in patterns:  # revoked meanwhile
            return
        if backlog.overflowed:
            self._connection.close(CloseReason.TOO_SLOW, _FELL_BEHIND)
            return
        # No await from here on: the next live message must follow what is sent here.
        live = wildcards.position(pattern)
        self._send_passed(caught_up.live(backlog, live))
        wildcards.follow(pattern, self._id, caught_up.ahead_of(live))

    def _uncovered(self, messages: Stored, pattern: Pattern) -> Stored:
        """The missed messages of a pattern without those that another subscription brings."""
        others = [one for one in self._session.patterns if one.filter != pattern.filter]
        if not messages or not (others or self._session.channels):
            return messages
        found = [one for one in messages if not self._is_covered(one, others)]
        return messages if len(found) == len(messages) else Stored(found)

    def _is_covered(self, message: ChannelMessage, patterns: Sequence[Pattern]) -> bool:
        channel, position = message.channel, message.position
        if channel in self._session.channels and _follows(position, self._starts.get(channel)):
            return True
        return any(
            one.match(channel) is not None
            and _follows(position, self._pattern_starts.get(one.filter))
            for one in patterns
        )

    async def _begin(self, join: Join, caught_up: CaughtUp, backlog: Backlog) -> None:
        """Answer, send what was missed, and let the hub deliver from exactly there on."""
        command, rule = join.command, join.rule
        members = None
        if _has_members(rule):
            members = self._presence.begin(command.channel, backlog)
        self._answer(join, caught_up.start, caught_up.recovered, members)
        if command.history and not caught_up.messages:
            nothing = NothingStored(command.channel, command.ref)
            self._connection.send(nothing)
            self._record(nothing)
        await self._send_all(caught_up.messages)
        if self._is_revoked:
            return
        if backlog.overflowed:
            self._connection.close(CloseReason.TOO_SLOW, _FELL_BEHIND)
            return
        # No await from here on: the hub's next message must follow what is sent here.
        live = self._traffic.position(command.channel)
        self._send_passed(caught_up.live(backlog, live))
        self._hub.add(command.channel, self._outbox, ahead=caught_up.ahead_of(live))

    def _answer(
        self, join: Join, start: Position | None, recovered: bool | None, members: Members | None
    ) -> None:
        """Confirm that the channel is joined: its messages after `start` follow."""
        session = self._session
        for effect in session.joined(
            join.command, join.rule, start, recovered, members, member=join.member
        ):
            assert isinstance(effect, Send)
            self._connection.send(effect.reply)
        claims = session.claims
        if start is not None and claims is not None and claims.grants:
            self._starts[join.command.channel] = start

    def _send_passed(self, live: Sequence[Passed]) -> None:
        """Send what passed while the client caught up."""
        for passed in live:
            if isinstance(passed, Subscribed | SubscribedPattern):
                self._hub.push(self._outbox, self._outbox.format.reply(passed))
            elif passed.exclude != self._id:
                self._send(passed)

    async def _send_all(self, messages: Stored) -> None:
        """Send stored messages as fast as the client reads; the rest counts as unsent meanwhile."""
        outbox, wire = self._outbox, self._outbox.format
        if not messages:
            return
        with self._hub.unsent.holding(messages.size):
            if wire.is_shared and messages.size <= MAX_JOINED_BYTES:
                data, frames = messages.joined(wire)
                if len(data) <= outbox.limit // 2:
                    await self._drained()
                    self._hub.push(outbox, data, frames)
                    wire.count(frames)
                    self._tally.count_delivered(frames)
                    return
            for message in messages:
                if self._is_revoked:
                    return
                self._send(message)
                await self._drained()

    def _send(self, message: ChannelMessage | PresenceChanged) -> None:
        self._hub.push(self._outbox, self._outbox.format.message(message))
        self._outbox.format.count(1)
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


def _follows(position: Position | None, start: Position | None) -> bool:
    """Whether a message follows the start of a subscription, or is in a newer stream."""
    if start is None or position is None:
        return False
    return position.epoch != start.epoch or position.offset > start.offset


def _reads(join: Join) -> bool:
    """Whether stored messages may have to be read."""
    return join.command.resume is not None or bool(join.command.history) or join.rule.retain


def _has_members(rule: Rule) -> bool:
    return rule.kind is ChannelKind.PRESENCE


def _recovered(command: Subscribe | SubscribePattern, position: Position | None) -> bool | None:
    """Whether a client that resumes has missed nothing: its position is that of the stream."""
    if command.resume is None:
        return None
    return position == command.resume
