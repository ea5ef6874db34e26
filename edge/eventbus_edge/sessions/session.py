"""One connection's state machine: commands and answers in, effects out. No I/O, no clock.

The connection carries out effects in their order, and reports results through `verified`,
`consulted`, `joined` and so on, each of which returns further effects. Commands of one connection
are handled strictly one after another. Times are monotonic seconds, except a token's `exp`.
"""

from collections.abc import (
    Iterator,
    Mapping,
)
from typing import (
    Any,
    Final,
)

from eventbus.channels import (
    ChannelKind,
    validate_channel,
)
from eventbus.cluster import Bearer
from eventbus.drivers import Position
from eventbus.errors import (
    InvalidChannel,
    InvalidEventName,
)
from eventbus.messages import client_event_name
from eventbus_edge.access import Allowed, Ask, ChannelRules, Claims, Denied, ProvenUser, Rule
from eventbus_edge.protocols import (
    Acknowledged,
    AskStats,
    Authenticate,
    Authenticated,
    CloseReason,
    Command,
    Connected,
    Liveness,
    Malformed,
    Member,
    Members,
    Ping,
    Pong,
    Presence,
    Prove,
    ReadHistory,
    Ref,
    SignedIn,
    SignIn,
    SignOfLife,
    Subscribe,
    Subscribed,
    SubscribePattern,
    Unsubscribe,
    Unsubscribed,
    UnsubscribePattern,
    Whisper,
)
from eventbus_edge.sessions.effects import (
    AnswerPresence,
    AnswerStats,
    ClaimUser,
    Close,
    Consult,
    Effect,
    Join,
    Leave,
    Read,
    Recheck,
    Send,
    UpdatePresence,
    Verify,
    Watch,
    WhisperOut,
    failed,
    not_subscribed,
)
from eventbus_edge.sessions.limits import (
    ANSWER_BYTES_PER_ACTION,
    BYTES_PER_ACTION,
    STRIKES,
    Pace,
    SessionLimits,
    Verdict,
)
from eventbus_edge.sessions.patterns import (
    JoinRefusal,
    SessionPatterns,
)
from eventbus_edge.sessions.timing import SessionTime

__all__ = ["Session"]


BAD_TOKENS: Final = 3
_OF_A_CHANNEL: Final = (Subscribe, Unsubscribe, Whisper, Presence, ReadHistory)
_PRICES: Final[Mapping[type, float]] = {Authenticate: 5.0, AskStats: 5.0}
"""Actions that cost the node more than others: a signature, a question to all nodes."""
_RECHECK_PRICE: Final = 0.5
"""Per channel that is checked again for a changed token."""
_LIVENESS: Final = Liveness()
_EXPIRED: Final = "the token has expired: give a new one by the action auth"


class Session:
    """The state of one connection, whatever protocol it speaks."""

    __slots__ = (
        "_bad_tokens", "_inbox", "_limits", "_liveness", "_members", "_opened_at", "_pace",
        "_prove", "_proven", "_rules", "_user", "channels", "claims", "connection_id", "patterns",
        "time",
    )  # fmt: skip

    def __init__(
        self,
        connection_id: str,
        rules: ChannelRules,
        limits: SessionLimits,
        now: float,
        *,
        liveness: Liveness = _LIVENESS,
        prove: Prove | None = None,
        opened_at: float | None = None,
    ) -> None:
        """`liveness` and `prove` are those of the connection's protocol.

        `opened_at` is when the connection was opened, in seconds since 1970. Without it, no proof
        lets a revoked user in.
        """
        self.connection_id = connection_id
        self.claims: Claims | None = None
        self.channels: dict[str, Rule] = {}
        self.patterns = SessionPatterns()
        self.time = SessionTime(limits, now)
        self._rules = rules
        self._limits = limits
        self._liveness = liveness
        self._prove = prove
        self._opened_at = opened_at
        self._proven: set[str] = set()
        """Channels whose subscription was proven, rather than allowed by the token."""
        self._user: Member | None = None
        """The user who has signed in."""
        self._inbox = ""
        """The channel that this user receives."""
        self._members: dict[str, Member] = {}
        """The users of those subscriptions whose proof names one."""
        self._bad_tokens = 0
        self._pace = Pace(limits.actions_per_s, limits.action_burst, now)

    def open(self, node: str) -> list[Effect]:
        """Greet a new connection."""
        limits = self._limits
        pace = limits.actions_per_s, limits.action_burst
        return [Send(Connected(self.connection_id, node, limits.heartbeat_s, *pace))]

    def receive(self, command: Command, now: float, size: int = 0) -> list[Effect]:
        """Answer one command, which came as a message of `size` bytes."""
        self.time.received(now)
        cost = _PRICES.get(type(command), 1.0) + size // BYTES_PER_ACTION
        verdict = self._pace.judge(now, cost)
        if verdict is not Verdict.SERVE:
            return self._too_fast(command.ref, is_last=verdict is Verdict.END)
        if isinstance(command, _OF_A_CHANNEL):
            try:
                validate_channel(command.channel)
            except InvalidChannel as exc:
                return [failed("invalid_channel", str(exc), None, command.ref)]
        return self._serve(command, now)

    def count(self, frames: int, now: float) -> tuple[bool, list[Effect]]:
        """Count frames that are not commands: pings, pongs, fragments of a message.

        Returns whether any was within the pace, and one error for all others.
        """
        if self._liveness.control_frames:
            self.time.received(now)
        served, verdict = self._pace.judge_all(now, frames)
        if verdict is Verdict.SERVE:
            return served > 0, []
        return served > 0, self._too_fast(None, is_last=verdict is Verdict.END)

    def answered(self, size: int, now: float) -> None:
        """Charge for a large answer, of `size` bytes."""
        if size >= ANSWER_BYTES_PER_ACTION:
            self._pace.charge(now, size // ANSWER_BYTES_PER_ACTION)

    def _serve(self, command: Command, now: float) -> list[Effect]:
        match command:
            case SignOfLife():
                return []
            case Ping(data, ref):
                return [Send(Pong(data, ref))]
            case Authenticate() | SignIn():
                return self._identify(command)
            case Subscribe():
                return self._subscribe(command, now)
            case Unsubscribe(channel, ref):
                return self._unsubscribe(channel, ref)
            case SubscribePattern():
                return self.patterns.subscribe(command, self.claims, self._join_refusal(now))
            case UnsubscribePattern():
                return self.patterns.unsubscribe(command)
            case Whisper():
                return self._whisper(command, now)
            case Presence():
                return self._presence(command, now)
            case ReadHistory():
                return self._history(command, now)
            case AskStats(ref):
                return self._stats(ref, now)
            case Malformed(code, message, ref):
                return [failed(code, message, None, ref)]

    def refused(self, code: str, message: str, channel: str | None, ref: Ref) -> list[Effect]:
        """The node refused a command; the connection stays as it was."""
        return [failed(code, message, channel, ref)]

    def _too_fast(self, ref: Ref, *, is_last: bool) -> list[Effect]:
        limits = self._limits
        message = (
            f"too many actions: {limits.actions_per_s:g} a second are allowed, "
            f"{limits.action_burst} at once after a rest"
        )
        effects: list[Effect] = [failed("rate_limited", message, None, ref)]
        if is_last:
            effects.append(
                Close(CloseReason.TOO_MANY_ACTIONS, f"{STRIKES} actions above the limit")
            )
        return effects

    # Tokens

    def authenticate(self, claims: Claims, expires_in: float, now: float) -> None:
        """Use a verified token, which expires in `expires_in` seconds."""
        self.claims = claims
        self.time.authenticate(claims, expires_in, now)

    def verified(self, claims: Claims, expires_in: float, ref: Ref, now: float) -> list[Effect]:
        """A token that the client sent in a command was accepted."""
        if self.claims is not None and self.claims.user_id != claims.user_id:
            message = "the token belongs to another user: open another connection for it"
            return [failed("forbidden", message, None, ref)]
        before = self.claims
        self.authenticate(claims, expires_in, now)
        self._bad_tokens = 0
        effects: list[Effect] = [Send(Authenticated(claims.user_id, claims.exp, ref))]
        if before is None or not claims.is_refresh_of(before):
            effects += self._recheck(claims.presence_changes(before) if before else {})
            self._pace.charge(now, _RECHECK_PRICE * len(self.channels))
        return effects

    def _recheck(self, changes: Mapping[str, Any]) -> list[Effect]:
        """Leave the channels that a changed token does not allow.

        `changes` are those of the presence info, for the other channels.
        """
        effects: list[Effect] = []
        for pattern in self.patterns:
            if self.claims is None or not self.claims.is_granted_all(pattern):
                effects += self.patterns.revoke(pattern)
        for channel in [name for name in self.channels if name not in self._proven]:
            match self._rules.decide(channel, self.claims):
                case Ask() as question:
                    effects.append(Recheck(channel, question, changes))
                case decision:
                    effects += self.rechecked(channel, decision, changes)
        return effects

    def rechecked(
        self, channel: str, decision: Allowed | Denied, changes: Mapping[str, Any]
    ) -> list[Effect]:
        """A joined channel was decided again: leave it if it is denied now."""
        if isinstance(decision, Denied):
            return self.revoke(channel)
        rule = self.channels.get(channel)
        if rule is None or rule.kind is not ChannelKind.PRESENCE:
            return []
        changes = {**changes, **decision.info}
        return [UpdatePresence(channel, changes)] if changes else []

    def revoke(self, channel: str) -> list[Effect]:
        """Leave a channel, and notify the client; no effects if it is not joined."""
        if self.channels.pop(channel, None) is None:
            return []
        return [Leave(channel), Send(Unsubscribed(channel, None, "revoked"))]

    def token_rejected(self, code: str, message: str, ref: Ref) -> list[Effect]:
        """A token that the client sent in a command was rejected; the connection stays open."""
        self._bad_tokens += code != "unavailable"  # that is not the client's fault
        effects: list[Effect] = [failed(code, message, None, ref)]
        if self._bad_tokens >= BAD_TOKENS:
            effects.append(Close(CloseReason.BAD_TOKENS, f"{BAD_TOKENS} tokens were refused"))
        return effects

    # Users who sign in

    @property
    def identity(self) -> Bearer | None:
        """The user of the connection: of its token, or who has signed in; None if anonymous."""
        if self.claims is None and self._user is not None:
            return ProvenUser(self._user.user_id, self._opened_at)
        return self.claims

    def _identify(self, command: Authenticate | SignIn) -> list[Effect]:
        match command:
            case Authenticate(token, ref):
                return [Verify(token, ref)]
            case SignIn():
                return self._sign_in(command)

    def _sign_in(self, command: SignIn) -> list[Effect]:
        if self._prove is None:
            return [failed("bad_request", "this protocol has no proofs", None, command.ref)]
        proven = self._prove(self.connection_id, command, self._user)
        user, error, inbox = proven.member, proven.error, proven.inbox
        if error is not None and proven.closes is not None:
            return [Close(proven.closes, error)]
        if error is None and user is not None:
            if self._user is None:
                decision = self._rules.decide_inbox(inbox, user, at=self._opened_at)
                match decision:
                    case Allowed(rule):
                        to_inbox = Subscribe(inbox, command.resume, 0, "", command.proof)
                        join = Join(to_inbox, rule, member=user)
                        return [ClaimUser(command, join, user, proven.watched)]
                    case Denied(message=message):
                        error = message
            elif self._user.user_id == user.user_id:
                return [Send(SignedIn(command.proof, command.ref))]
            else:
                error = "another user has signed in: open another connection"
        return [failed(proven.code, error or "the proof names no user", None, command.ref)]

    def signed_in(self, effect: ClaimUser) -> list[Effect]:
        """The connection was counted for the user, who now receives the inbox."""
        self._user = effect.user
        self._inbox = effect.join.command.channel
        self.time.proved()
        watch = [Watch(effect.watched)] if effect.watched else []
        return [Send(SignedIn(effect.command.proof, effect.command.ref)), effect.join, *watch]

    # Channels

    def _subscribe(self, command: Subscribe, now: float) -> list[Effect]:
        channel = command.channel
        if channel in self.channels:
            return self._subscribe_again(command)
        if (refusal := self._join_refusal(now)) is not None:
            return [failed(refusal.code, refusal.message, channel, command.ref)]
        return self._decide(command)

    def _subscribe_again(self, command: Subscribe) -> list[Effect]:
        """Confirm a joined channel; the proof must be valid again, and for the same member."""
        channel = command.channel
        if self._prove is not None and command.proof is not None and channel != self._inbox:
            proven = self._prove(self.connection_id, command, self._user)
            if proven.error is not None:
                return [failed(proven.code, proven.error, channel, command.ref)]
            known = self._members.get(channel)
            if known and proven.member and known.user_id != proven.member.user_id:
                message = f"{channel} is joined as another user: unsubscribe first"
                return [failed("forbidden", message, channel, command.ref)]
        return self.consulted(command, Allowed(self.channels[channel]))

    def _join_refusal(self, now: float) -> JoinRefusal | None:
        """Why nothing more may be joined at the moment; None if it may."""
        if self.time.has_expired(now):
            return JoinRefusal("token_expired", _EXPIRED)
        limit = self._limits.max_channels
        if len(self.channels) + len(self.patterns) >= limit:
            message = f"a connection may have {limit} channels: leave one first"
            return JoinRefusal("limit_exceeded", message)
        return None

    def member(self, channel: str) -> Member | None:
        """The user of the client in a channel; None for an anonymous client."""
        found = self._members.get(channel)
        if found is None and self.claims is not None:
            return Member(self.claims.user_id, self.claims.presence_info())
        return found

    def bearer(self, channel: str) -> Bearer | None:
        """The user of the subscription to a joined channel; None for an anonymous client."""
        if channel not in self._proven:
            return self.claims
        member = self._members.get(channel)
        return None if member is None else ProvenUser(member.user_id, self._opened_at)

    def bearer_of(self, join: Join) -> Bearer | None:
        """The user of a subscription that is being joined; None for an anonymous client."""
        if join.command.proof is None:
            return self.claims
        return None if join.member is None else ProvenUser(join.member.user_id, self._opened_at)

    def proven_users(self) -> Iterator[tuple[str, ProvenUser]]:
        """The joined channels whose proof names a user."""
        for channel, member in self._members.items():
            yield channel, ProvenUser(member.user_id, self._opened_at)

    def left(self, channel: str) -> None:
        """Forget the proof and the member of a channel that was left."""
        self._proven.discard(channel)
        self._members.pop(channel, None)

    def _check_proof(self, command: Subscribe) -> list[Effect]:
        channel, ref = command.channel, command.ref
        if self._prove is None:
            return [failed("bad_request", "this protocol has no proofs", channel, ref)]
        proven = self._prove(self.connection_id, command, self._user)
        if proven.error is not None:
            return [failed(proven.code, proven.error, channel, ref)]
        decision = self._rules.decide_proven(channel, proven.member, at=self._opened_at)
        return self.consulted(command, decision)

    def _decide(self, command: Subscribe | ReadHistory | Presence) -> list[Effect]:
        if isinstance(command, Subscribe) and command.proof is not None:
            return self._check_proof(command)
        match self._rules.decide(command.channel, self.claims):
            case Ask() as question:
                return [Consult(command, question)]
            case decision:
                return self.consulted(command, decision)

    def consulted(
        self, command: Subscribe | ReadHistory | Presence, decision: Allowed | Denied
    ) -> list[Effect]:
        """The rules, or the application's authorizer, have decided about a command."""
        match decision:
            case Denied(code, message):
                return [failed(code, message, command.channel, command.ref)]
            case Allowed(rule) if rule.most_history == 0 and _asks_for_history(command):
                message = f"the history of {command.channel} may not be read"
                return [failed("forbidden", message, command.channel, command.ref)]
            case Allowed() if not isinstance(command, Subscribe):
                return [Read(command)]
            case Allowed(rule, info, member):
                return [Join(command, rule, info, member)]

    def joined(
        self,
        command: Subscribe,
        rule: Rule,
        position: Position | None,
        recovered: bool | None,
        members: Members | None = None,
        *,
        member: Member | None = None,
    ) -> list[Effect]:
        """The channel is joined: exactly its messages after `position` follow.

        `member` is that of the Join.
        """
        channel = command.channel
        if command.proof is not None and channel not in self.channels:
            self._proven.add(channel)
            self.time.proved()
            if member is not None:
                self._members[channel] = member
        self.channels[channel] = rule
        return [Send(Subscribed(channel, rule.kind, position, recovered, command.ref, members))]

    def not_joined(self, command: Subscribe, message: str) -> list[Effect]:
        """The bus refused the subscription."""
        return [failed("unavailable", message, command.channel, command.ref)]

    def _history(self, command: ReadHistory, now: float) -> list[Effect]:
        channel = command.channel
        if channel in self.channels:
            return self.consulted(command, Allowed(self.channels[channel]))
        if self.time.has_expired(now):
            return [failed("token_expired", _EXPIRED, channel, command.ref)]
        return self._decide(command)

    def _stats(self, ref: Ref, now: float) -> list[Effect]:
        if self.claims is None:
            return [failed("unauthorized", "stats need a token", None, ref)]
        if self.time.has_expired(now):
            return [failed("token_expired", _EXPIRED, None, ref)]
        if not self.claims.is_admin:
            message = "stats need a token with the role or permission admin"
            return [failed("forbidden", message, None, ref)]
        return [AnswerStats(ref)]

    def _unsubscribe(self, channel: str, ref: Ref) -> list[Effect]:
        if self.channels.pop(channel, None) is None:
            return [failed("not_subscribed", not_subscribed(channel), channel, ref)]
        return [Leave(channel), Send(Unsubscribed(channel, ref))]

    def _presence(self, command: Presence, now: float) -> list[Effect]:
        channel, changes, ref = command
        rule = self.channels.get(channel) or self._rules.find(channel)
        if rule.kind is not ChannelKind.PRESENCE:
            message = (
                f"{channel} is a {rule.kind.value} channel: only presence channels have members"
            )
            return [failed("bad_request", message, channel, ref)]
        is_joined = channel in self.channels
        if changes is not None and not is_joined:
            return [failed("not_subscribed", not_subscribed(channel), channel, ref)]
        if self.time.has_expired(now) and (changes is not None or not is_joined):
            return [failed("token_expired", _EXPIRED, channel, ref)]
        return [AnswerPresence(command)] if is_joined else self._decide(command)

    # Client events

    def _whisper(self, command: Whisper, now: float) -> list[Effect]:
        channel, event, data, ref = command
        try:
            name = client_event_name(event)
        except InvalidEventName as exc:
            return [failed("bad_request", str(exc), channel, ref)]
        if channel not in self.channels:
            return [failed("not_subscribed", not_subscribed(channel), channel, ref)]
        if self.time.has_expired(now):
            return [failed("token_expired", _EXPIRED, channel, ref)]
        match self._rules.decide_whisper(channel, self.claims, is_proven=channel in self._proven):
            case Denied(code, message):
                return [failed(code, message, channel, ref)]
        limit = self._limits.max_whisper_bytes
        if len(data) > limit:
            message = f"the data has {len(data)} bytes: at most {limit} are allowed"
            return [failed("payload_too_large", message, channel, ref)]
        member = self.member(channel)
        return [WhisperOut(command, name, member.user_id if member else None)]

    def whispered(self, command: Whisper, fault: str | None) -> list[Effect]:
        """The client event was published, or `fault` says why not."""
        if fault is not None:
            return [failed("unavailable", fault, command.channel, command.ref)]
        return [] if command.ref is None else [Send(Acknowledged(command.channel, command.ref))]


def _asks_for_history(command: Subscribe | ReadHistory | Presence) -> bool:
    match command:
        case Subscribe():
            return command.history > 0
        case _:
            return isinstance(command, ReadHistory)
