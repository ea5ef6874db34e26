"""Channel rules: the kind of a channel, who may join it, and who may whisper on it. Pure.

The first of these that gives an answer decides:

1. the application's own rules that say who may join, in the order they were added;
2. the application's authorizers, in the order they were registered;
3. the default rules (`DEFAULT_RULES`, wire-protocol.md "Default channel rules");
4. nobody.

Kind, whispers, history and retained messages come from the first matching rule; own rules come
before the defaults. A channel without a rule is private. The channel of an authorizer is never
public: a public default rule becomes private, so that a registered check always has an effect. An
own rule without `join` sets everything else, and leaves the decision to the authorizer.

A `channels` grant of a token is in addition to all of these: its bearer may join private and
presence channels that the rules deny. It is checked before an authorizer is called.
"""

import functools
import inspect
from collections.abc import (
    Awaitable,
    Callable,
    Iterable,
    Mapping,
)
from types import MappingProxyType
from typing import (
    Any,
    Final,
    Literal,
    TypeAlias,
    TypeVar,
)

import msgspec

from eventbus.channels import (
    ChannelKind,
    Pattern,
)
from eventbus.cluster import Bearer
from eventbus.errors import EventBusError
from eventbus.user_code import check_callable
from eventbus_edge.access.revocation import ProvenUser
from eventbus_edge.access.tokens import Claims
from eventbus_edge.protocols import Member

__all__ = [
    "ANYONE",
    "AUTHENTICATED",
    "DEFAULT_RULES",
    "NOBODY",
    "Allowed",
    "Ask",
    "Authorizer",
    "AuthorizerError",
    "ChannelRules",
    "Decision",
    "Denied",
    "Fault",
    "Rule",
    "Who",
    "channels",
    "who_may_join",
    "who_may_whisper",
]


Verdict: TypeAlias = bool | Mapping[str, Any]
Check: TypeAlias = Callable[..., Verdict | Awaitable[Verdict]]
Fault: TypeAlias = Literal["error", "timeout", "verdict"]
C = TypeVar("C", bound=Check)

_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})


class AuthorizerError(EventBusError, TypeError):
    """The authorizer cannot be registered; raised by its decorator."""


class Who(msgspec.Struct, frozen=True, kw_only=True):
    """The users who meet at least one condition; nobody if there are no conditions."""

    anyone: bool = False
    authenticated: bool = False
    user: str = ""
    """The named token of the pattern that must be the user's id."""
    roles: frozenset[str] = frozenset()
    permissions: frozenset[str] = frozenset()

    def includes(self, claims: Claims | None, captures: Mapping[str, str]) -> bool:
        """Whether the bearer of `claims` (None: no token) meets a condition."""
        if self.anyone:
            return True
        if claims is None:
            return False
        return (
            self.authenticated
            or captures.get(self.user) == claims.user_id
            or not self.roles.isdisjoint(claims.roles)
            or not self.permissions.isdisjoint(claims.permissions)
        )


ANYONE: Final = Who(anyone=True)
AUTHENTICATED: Final = Who(authenticated=True)
NOBODY: Final = Who()


class Rule(msgspec.Struct, frozen=True):
    """The rule for the channels of one pattern. Whispers always need a token."""

    pattern: Pattern
    kind: ChannelKind = ChannelKind.PRIVATE
    join: Who | None = None
    """Who may join; None leaves it to an authorizer or, without one, to grants."""
    whisper: Who = NOBODY
    retain: bool = False
    """Whether a client that subscribes without a position gets the channel's last message."""
    history: bool | int = True
    """Whether clients may read stored messages, or how many of the latest ones."""

    @property
    def most_history(self) -> int | None:
        """How many of a channel's latest messages clients may read; None for all stored ones."""
        return None if self.history is True else int(self.history)

    def __post_init__(self) -> None:
        """Raises ValueError if the rule contradicts itself, TypeError if `pattern` is a str."""
        if not isinstance(self.pattern, Pattern):
            raise TypeError(f"{self.pattern!r} is not a Pattern: give Pattern({self.pattern!r})")
        for who in (self.join, self.whisper):
            if who is not None and who.user and who.user not in self.pattern.names:
                raise ValueError(
                    f"the rule for {self.pattern.text!r} names {{{who.user}}}, "
                    "which the pattern does not have"
                )
        if self.history < 0:
            raise ValueError(
                f"the rule for {self.pattern.text!r}: history must be True, False or the number of "
                f"messages that clients may read, 0 or more; got {self.history!r}"
            )
        is_public = self.kind is ChannelKind.PUBLIC
        if is_public != (self.join is not None and self.join.anyone):
            raise ValueError(
                f"the rule for {self.pattern.text!r}: a channel is public if, and only if, anyone "
                f"may join it; got kind {self.kind.value} and join {self.join}"
            )


class Authorizer(msgspec.Struct, frozen=True):
    """An application's function that decides who may join the channels of one pattern."""

    pattern: Pattern
    check: Check
    takes_channel: bool


class Allowed(msgspec.Struct, frozen=True):
    """The user may join, or whisper; `info` is added to the presence info by an authorizer.

    `member` is the user who joins, if the subscription itself has proven that.
    """

    rule: Rule
    info: Mapping[str, Any] = _NOTHING
    member: Member | None = None


class Denied(msgspec.Struct, frozen=True):
    """The user may not join, or whisper; with the code and message of the error.

    `fault` is for metrics: why an authorizer failed to decide. It raised an `error`, exceeded its
    time limit (`timeout`), or returned a `verdict` of a wrong type.
    """

    code: Literal["unauthorized", "forbidden"]
    message: str
    fault: Fault | None = None


class Ask(msgspec.Struct, frozen=True):
    """An authorizer must decide; `eventbus_edge.access.authorizers.ask` calls it."""

    channel: str
    authorizer: Authorizer
    captures: Mapping[str, str]
    rule: Rule


Decision: TypeAlias = Allowed | Denied | Ask


def _rule(pattern: str, kind: ChannelKind, join: Who | None, whisper: Who = NOBODY) -> Rule:
    return Rule(Pattern(pattern), kind, join, whisper)


_ADMINS: Final = Who(roles=frozenset({"admin"}), permissions=frozenset({"admin_channels"}))

DEFAULT_RULES: Final = (
    _rule("general", ChannelKind.PUBLIC, ANYONE),
    _rule("public", ChannelKind.PUBLIC, ANYONE),
    _rule("announcements", ChannelKind.PUBLIC, ANYONE),
    _rule("notifications", ChannelKind.PRIVATE, AUTHENTICATED),
    # For the catalogue's UserRegistered: a user with the id "registered" must not receive it.
    _rule("user.registered", ChannelKind.PRIVATE, _ADMINS),
    _rule("user.{user_id}", ChannelKind.PRIVATE, Who(user="user_id")),
    _rule("admin", ChannelKind.PRIVATE, _ADMINS),
    _rule("admin.>", ChannelKind.PRIVATE, _ADMINS),
    _rule("team.{team_id}", ChannelKind.PRIVATE, None),
    _rule("org.{organization_id}", ChannelKind.PRIVATE, None),
    _rule("chat.{room_id}", ChannelKind.PRIVATE, AUTHENTICATED, AUTHENTICATED),
    _rule("presence.>", ChannelKind.PRESENCE, AUTHENTICATED, AUTHENTICATED),
    _rule("system", ChannelKind.PRIVATE, AUTHENTICATED),
)

_MAX_CACHED: Final = 4096
"""Channels whose rule is kept."""
_NO_RULE: Final = _rule(">", ChannelKind.PRIVATE, None)


class ChannelRules:
    """The rules and authorizers of one application. Methods expect valid channel names."""

    def __init__(
        self, own: Iterable[Rule] = (), *, defaults: Iterable[Rule] = DEFAULT_RULES
    ) -> None:
        """`own` rules come before `defaults`."""
        self._before: tuple[Rule, ...] = ()
        self._is_revoked: Callable[[str, Bearer | None], bool] | None = None
        self._own = list(own)
        self._defaults = tuple(defaults)
        self._authorizers: list[Authorizer] = []
        self._cached = functools.lru_cache(maxsize=_MAX_CACHED)(self._look_up)

    def preceded_by(self, rules: Iterable[Rule]) -> "ChannelRules":
        """A copy with `rules` before its own ones; rules added to either later apply to both."""
        combined = ChannelRules(defaults=self._defaults)
        combined._before = tuple(rules) + self._before
        combined._own, combined._authorizers = self._own, self._authorizers
        combined._is_revoked = self._is_revoked
        return combined

    def guarded(self, is_revoked: Callable[[str, Bearer | None], bool]) -> "ChannelRules":
        """A copy that denies a channel if `is_revoked` returns True for it and the claims."""
        guarded = self.preceded_by(())
        guarded._is_revoked = is_revoked  # noqa: SLF001 - of the same class
        return guarded

    def add(self, *rules: Rule) -> None:
        """Add own rules, after the existing ones and before the defaults."""
        self._own.extend(rules)

    def authorize(self, pattern: str) -> Callable[[C], C]:
        """Decorate a function that decides who may join the channels of `pattern`.

        It is called with the user's Claims, with each named token as a keyword, and with `channel`
        if it has a parameter of that name. It may be async, and returns True, False, or a mapping,
        which allows and adds to the presence info. A plain function must not block.

            @channels.authorize("team.{team_id}")
            async def in_team(user: Claims, team_id: str) -> bool: ...

        Raises InvalidPattern, and AuthorizerError if the function cannot be called that way or the
        pattern already has an authorizer.
        """
        parsed = Pattern(pattern)

        def register(check: C) -> C:
            for other in self._authorizers:
                if other.pattern.filter == parsed.filter:
                    raise AuthorizerError(
                        f"{pattern!r} has an authorizer already: "
                        f"{_name(other.check)}, for {other.pattern.text!r}"
                    )
            takes_channel = _check_signature(check, parsed)
            self._authorizers.append(Authorizer(parsed, check, takes_channel))
            return check

        return register

    def find(self, channel: str) -> Rule:
        """The rule for `channel`; there is always one."""
        return self._resolve(channel)[0]

    def explain(self, channel: str) -> tuple[Rule, Authorizer | None]:
        """The rule for `channel`, and the authorizer if one decides who may join."""
        rule, _, authorizer = self._resolve(channel)
        return rule, authorizer

    def decide(self, channel: str, claims: Claims | None) -> Decision:
        """Whether the bearer of `claims` (None: no token) may join `channel`."""
        if self._is_revoked is not None and self._is_revoked(channel, claims):
            return Denied("forbidden", f"access to {channel!r} has been revoked for this token")
        rule, captures, authorizer = self._resolve(channel)
        if rule.join is not None and rule.join.includes(claims, captures):
            return Allowed(rule)
        if claims is None:
            return Denied("unauthorized", f"{channel!r} needs a token")
        if claims.is_granted(channel):
            return Allowed(rule)
        if authorizer is not None:
            parameters = authorizer.pattern.match(channel) or {}
            return Ask(channel, authorizer, parameters, rule)
        why = f"no rule matches {channel!r}, and " if rule is _NO_RULE else ""
        return Denied("forbidden", f"{why}the token does not allow joining {channel!r}")

    def decide_proven(
        self, channel: str, member: Member | None, *, at: float | None = None
    ) -> Allowed | Denied:
        """Whether a client that has proven its right to `channel` may join it.

        The proof replaces what the rule requires of a token. `member` is the user it names, if any,
        and `at` is when its connection was opened; see ProvenUser.
        """
        user = None if member is None else ProvenUser(member.user_id, at)
        if self._is_revoked is not None and self._is_revoked(channel, user):
            return Denied("forbidden", f"access to {channel!r} has been revoked for this user")
        rule = self._resolve(channel)[0]
        if rule is _NO_RULE:
            return Denied(
                "forbidden", f"no rule matches the channel {channel!r}: add one on the edge"
            )
        if rule.kind is ChannelKind.PRESENCE and member is None:
            return Denied("forbidden", f"{channel!r} is a presence channel: it needs a member")
        return Allowed(rule, member=member)

    def decide_inbox(self, channel: str, member: Member, *, at: float | None = None) -> Decision:
        """Whether a user who has signed in may receive the channel of its own.

        No rule is needed for that. `at` is as for `decide_proven`.
        """
        if self._is_revoked is not None and self._is_revoked(
            channel, ProvenUser(member.user_id, at)
        ):
            return Denied("forbidden", "the access of this user has been revoked")
        return Allowed(_NO_RULE, member=member)

    def decide_whisper(
        self, channel: str, claims: Claims | None, *, is_proven: bool = False
    ) -> Allowed | Denied:
        """Whether the bearer of `claims` may send client events on `channel`, once subscribed.

        `is_proven`: the subscription was proven, which is as good as a token here.
        """
        rule, captures, _ = self._resolve(channel)
        if is_proven and rule.whisper != NOBODY:
            return Allowed(rule)
        if claims is None and rule.whisper != NOBODY:
            return Denied("unauthorized", f"client events on {channel!r} need a token")
        if rule.whisper.includes(claims, captures):
            return Allowed(rule)
        return Denied("forbidden", f"client events are not allowed on {channel!r}")

    def _resolve(self, channel: str) -> tuple[Rule, Mapping[str, str], Authorizer | None]:
        """The rule, its captures, and the authorizer if one decides who may join."""
        # Rules and authorizers are only ever added, so their numbers identify them.
        return self._cached(channel, len(self._own), len(self._authorizers))

    def _look_up(
        self, channel: str, _own: int, _authorizers: int
    ) -> tuple[Rule, Mapping[str, str], Authorizer | None]:
        own = _first(self._before, channel) or _first(self._own, channel)
        if own is not None and own[0].join is not None:
            return (*own, None)
        rule, captures = own or _first(self._defaults, channel) or (_NO_RULE, _NOTHING)
        for authorizer in self._authorizers:
            if authorizer.pattern.match(channel) is not None:
                return _left_to_authorizer(rule), captures, authorizer
        return rule, captures, None


def _first(rules: Iterable[Rule], channel: str) -> tuple[Rule, Mapping[str, str]] | None:
    for rule in rules:
        captures = rule.pattern.match(channel)
        if captures is not None:
            return rule, captures
    return None


def _left_to_authorizer(rule: Rule) -> Rule:
    kind = ChannelKind.PRIVATE if rule.kind is ChannelKind.PUBLIC else rule.kind
    return msgspec.structs.replace(rule, kind=kind, join=None)


def _name(check: Check) -> str:
    return getattr(check, "__qualname__", None) or type(check).__qualname__


def _check_signature(check: Check, pattern: Pattern) -> bool:
    """Whether `check` has a parameter `channel`. Raises AuthorizerError if it cannot be called."""
    try:
        check_callable(check, "an authorizer")
        signature = inspect.signature(check)
    except (TypeError, ValueError) as exc:
        raise AuthorizerError(f"{check!r} cannot be an authorizer: {exc}") from None
    takes_channel = "channel" in signature.parameters and "channel" not in pattern.names
    given = dict.fromkeys(pattern.names + ("channel",) * takes_channel, "")
    try:
        signature.bind(None, **given)
    except TypeError as exc:
        wanted = ", ".join(["user", *pattern.names])
        raise AuthorizerError(
            f"the authorizer {_name(check)}{signature} does not fit {pattern.text!r}: {exc}; "
            f"it must take ({wanted}), and may take `channel`"
        ) from None
    return takes_channel


channels: Final = ChannelRules()
"""The application's rules, which its modules add to: `from eventbus_edge import channels`."""

_GRANTED = "holders of a token whose channels grant it"


def who_may_join(rules: ChannelRules, channel: str) -> list[str]:
    """Who may join, with one phrase per condition; never empty."""
    rule, authorizer = rules.explain(channel)
    if rule.join is not None:
        phrases = _phrases(rule.join)
    elif authorizer is not None:
        check = authorizer.check
        name = getattr(check, "__qualname__", None) or type(check).__qualname__
        phrases = [f"users whom the authorizer {name} of {authorizer.pattern.text} allows"]
    else:
        phrases = []
    is_open = rule.join is not None and rule.join.anyone
    return phrases if is_open else [*phrases, _GRANTED]


def who_may_whisper(rules: ChannelRules, channel: str) -> list[str]:
    """Who may send client events after joining; empty if nobody may."""
    return _phrases(rules.explain(channel)[0].whisper)


def _phrases(who: Who) -> list[str]:
    phrases = []
    if who.anyone:
        phrases.append("anyone")
    if who.authenticated:
        phrases.append("any authenticated user")
    if who.user:
        phrases.append(f"the user whose id is the channel's {{{who.user}}}")
    phrases += [f"the role {role}" for role in sorted(who.roles)]
    phrases += [f"the permission {permission}" for permission in sorted(who.permissions)]
    return phrases
