"""Channel rules: which kind a channel is, who may join it, and who may whisper on it. Pure.

What decides about a channel, in this order; the first that has an answer is final:

1. the application's own rules, in the order they were added, where they say who may join;
2. the application's authorizers, in the order they were registered;
3. the default rules (`DEFAULT_RULES`, wire-protocol.md "Default channel rules");
4. nobody.

Kind, whispers, history and retained messages come from the first matching rule, own ones before the
defaults; a channel without a rule is private. An authorizer's channel is never public: a default
rule that says so is made private, so that registering a check cannot be without effect. An own rule
without `join` gives the rest and leaves the decision to the authorizer.

A `channels` grant of a token adds to all of these: it lets its bearer in where they would not, on
private and presence channels. It is looked at before an authorizer is asked.
"""

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
from eventbus.errors import EventBusError
from eventbus_edge.access.tokens import Claims
from eventbus_edge.protocols.vocabulary import Member

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
    """An authorizer that cannot be registered; raised where its decorator stands."""


class Who(msgspec.Struct, frozen=True, kw_only=True):
    """Those of whom one condition holds, whichever; without conditions nobody."""

    anyone: bool = False
    authenticated: bool = False
    user: str = ""
    """The named token of the pattern that must be the user's id."""
    roles: frozenset[str] = frozenset()
    permissions: frozenset[str] = frozenset()

    def includes(self, claims: Claims | None, captures: Mapping[str, str]) -> bool:
        """Whether the bearer of `claims` (None: no token) is one of them."""
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
    """What holds for the channels of one pattern. Whispers need a token in any case."""

    pattern: Pattern
    kind: ChannelKind = ChannelKind.PRIVATE
    join: Who | None = None
    """Who may join; None leaves it to an authorizer, and without one to grants."""
    whisper: Who = NOBODY
    retain: bool = False
    """Whether who subscribes without a place to resume gets the channel's last message."""
    history: bool | int = True
    """Whether clients may read stored messages, or how many of the last ones they may."""

    @property
    def most_history(self) -> int | None:
        """How many of a channel's last messages clients may read; None for all that are held."""
        return None if self.history is True else int(self.history)

    def __post_init__(self) -> None:
        """Raises ValueError for a rule that contradicts itself, TypeError for no Pattern."""
        if not isinstance(self.pattern, Pattern):
            raise TypeError(f"{self.pattern!r} is no Pattern: give Pattern({self.pattern!r})")
        for who in (self.join, self.whisper):
            if who is not None and who.user and who.user not in self.pattern.names:
                raise ValueError(
                    f"the rule for {self.pattern.text!r} names {{{who.user}}}, "
                    "which the pattern does not have"
                )
        if self.history < 0:
            raise ValueError(
                f"the rule for {self.pattern.text!r}: history is True, False or how many messages "
                f"clients may read, 0 or more; got {self.history!r}"
            )
        is_public = self.kind is ChannelKind.PUBLIC
        if is_public != (self.join is not None and self.join.anyone):
            raise ValueError(
                f"the rule for {self.pattern.text!r}: a public channel is one that anyone may "
                f"join, and no other is; got kind {self.kind.value} and join {self.join}"
            )


class Authorizer(msgspec.Struct, frozen=True):
    """An application's own check of who may join the channels of one pattern."""

    pattern: Pattern
    check: Check
    takes_channel: bool


class Allowed(msgspec.Struct, frozen=True):
    """May join, or whisper; `info` is what an authorizer adds to the presence info.

    `member` is who joins, where that is proven for this channel alone.
    """

    rule: Rule
    info: Mapping[str, Any] = _NOTHING
    member: Member | None = None


class Denied(msgspec.Struct, frozen=True):
    """May not, with the error's code and text.

    `fault` is for the metrics: why an authorizer that should have decided could not. It raised an
    `error`, passed its time limit (`timeout`), or gave a `verdict` of a wrong type.
    """

    code: Literal["unauthorized", "forbidden"]
    message: str
    fault: Fault | None = None


class Ask(msgspec.Struct, frozen=True):
    """An authorizer decides; `eventbus_edge.access.authorizers.ask` asks it."""

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
    # The catalogue's UserRegistered: a user who is called "registered" must not hear of all others.
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

_NO_RULE: Final = _rule(">", ChannelKind.PRIVATE, None)


class ChannelRules:
    """The rules and authorizers of one application. Channel names given must be valid ones."""

    def __init__(
        self, own: Iterable[Rule] = (), *, defaults: Iterable[Rule] = DEFAULT_RULES
    ) -> None:
        """`own` rules come before `defaults`."""
        self._before: tuple[Rule, ...] = ()
        self._is_taken: Callable[[str, Claims | None], bool] | None = None
        self._own = list(own)
        self._defaults = tuple(defaults)
        self._authorizers: list[Authorizer] = []

    def preceded_by(self, rules: Iterable[Rule]) -> "ChannelRules":
        """These rules, and `rules` before the own ones; what is added later is added to both."""
        made = ChannelRules(defaults=self._defaults)
        made._before = tuple(rules) + self._before
        made._own, made._authorizers = self._own, self._authorizers
        made._is_taken = self._is_taken
        return made

    def guarded(self, is_taken: Callable[[str, Claims | None], bool]) -> "ChannelRules":
        """These rules, but for whom `is_taken` tells that a channel has been taken away."""
        made = self.preceded_by(())
        made._is_taken = is_taken  # noqa: SLF001 - of the same class
        return made

    def add(self, *rules: Rule) -> None:
        """Add own rules, after those there are and before the defaults."""
        self._own.extend(rules)

    def authorize(self, pattern: str) -> Callable[[C], C]:
        """Decorate a function that decides who may join the channels of `pattern`.

        It is called with the user's Claims and each named token by its name, and with `channel`
        when it has a parameter of that name. It answers, at once or as a coroutine, True, False,
        or a mapping: allowed, with more presence info. A plain function must not block.

            @channels.authorize("team.{team_id}")
            async def in_team(user: Claims, team_id: str) -> bool: ...

        Raises InvalidPattern, and AuthorizerError when the function cannot be called so or the
        pattern has an authorizer already.
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
        """What holds for `channel`: its kind and whispers. There is always an answer."""
        return self._resolve(channel)[0]

    def explain(self, channel: str) -> tuple[Rule, Authorizer | None]:
        """What holds for `channel`, and the authorizer where it is that which decides."""
        rule, _, authorizer = self._resolve(channel)
        return rule, authorizer

    def decide(self, channel: str, claims: Claims | None) -> Decision:
        """Whether the bearer of `claims` (None: no token) may join `channel`."""
        if self._is_taken is not None and self._is_taken(channel, claims):
            return Denied("forbidden", f"{channel!r} has been taken away from this token")
        rule, captures, authorizer = self._resolve(channel)
        if rule.join is not None and rule.join.includes(claims, captures):
            return Allowed(rule)
        if claims is None:
            return Denied("unauthorized", f"{channel!r} needs a token")
        if claims.is_granted(channel):
            return Allowed(rule)
        if authorizer is not None:
            asked = authorizer.pattern.match(channel) or {}
            return Ask(channel, authorizer, asked, rule)
        return Denied("forbidden", f"the token does not allow joining {channel!r}")

    def decide_proven(self, channel: str, member: Member | None) -> Allowed | Denied:
        """Whether a client that has proven its right to `channel` may join it.

        The proof replaces what the rule asks of a token. `member` is who it names, if anyone.
        """
        if self._is_taken is not None and self._is_taken(channel, None):
            return Denied("forbidden", f"{channel!r} has been taken away")
        rule = self._resolve(channel)[0]
        if rule is _NO_RULE:
            return Denied("forbidden", f"no rule allows the channel {channel!r}")
        if rule.kind is ChannelKind.PRESENCE and member is None:
            return Denied("forbidden", f"{channel!r} is a presence channel: it needs a member")
        return Allowed(rule, member=member)

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
        """The rule, its captures, and the authorizer when it is that which decides."""
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
    """Whether `check` takes the channel's name too; AuthorizerError when it cannot be called."""
    try:
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
"""The application's rules. Its modules add to them: `from eventbus_edge import channels`."""

_GRANTED = "a token whose channels grant it"


def who_may_join(rules: ChannelRules, channel: str) -> list[str]:
    """Those who may join, one phrase for each condition; there is always one."""
    rule, authorizer = rules.explain(channel)
    if rule.join is not None:
        told = _phrases(rule.join)
    elif authorizer is not None:
        check = authorizer.check
        name = getattr(check, "__qualname__", None) or type(check).__qualname__
        told = [f"whom the authorizer {name} of {authorizer.pattern.text} lets in"]
    else:
        told = []
    is_open = rule.join is not None and rule.join.anyone
    return told if is_open else [*told, _GRANTED]


def who_may_whisper(rules: ChannelRules, channel: str) -> list[str]:
    """Those who may send client events, once they have joined; nobody when it is empty."""
    return _phrases(rules.explain(channel)[0].whisper)


def _phrases(who: Who) -> list[str]:
    told = []
    if who.anyone:
        told.append("anyone")
    if who.authenticated:
        told.append("any authenticated user")
    if who.user:
        told.append(f"the user whose id is the channel's {{{who.user}}}")
    told += [f"the role {role}" for role in sorted(who.roles)]
    told += [f"the permission {permission}" for permission in sorted(who.permissions)]
    return told
