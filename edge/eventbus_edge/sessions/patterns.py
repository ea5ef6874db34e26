"""The patterns of channels that one connection has joined. Pure."""

from collections.abc import Iterator
from typing import NamedTuple

from eventbus.channels import (
    Pattern,
    validate_pattern,
)
from eventbus.drivers import Position
from eventbus.errors import InvalidPattern
from eventbus_edge.access import Claims
from eventbus_edge.protocols import (
    SubscribedPattern,
    SubscribePattern,
    UnsubscribedPattern,
    UnsubscribePattern,
)
from eventbus_edge.sessions.effects import (
    Effect,
    JoinPattern,
    LeavePattern,
    Send,
    failed,
    not_subscribed,
)

__all__ = ["JoinRefusal", "SessionPatterns"]


class JoinRefusal(NamedTuple):
    """Why a connection may join nothing more at the moment, as code and message of an error."""

    code: str
    message: str


class SessionPatterns:
    """Joined patterns by their filters, in which names of tokens do not count."""

    __slots__ = ("_joined",)

    def __init__(self) -> None:
        self._joined: dict[str, Pattern] = {}

    def __len__(self) -> int:
        return len(self._joined)

    def __contains__(self, pattern: Pattern) -> bool:
        return pattern.filter in self._joined

    def __iter__(self) -> Iterator[Pattern]:
        return iter(list(self._joined.values()))

    def subscribe(
        self, command: SubscribePattern, claims: Claims | None, refusal: JoinRefusal | None
    ) -> list[Effect]:
        """Answer the command; `refusal` is why nothing more may be joined at the moment."""
        ref = command.ref
        try:
            pattern = validate_pattern(command.pattern)
        except InvalidPattern as exc:
            return [failed("invalid_channel", str(exc), None, ref)]
        if pattern.filter in self._joined:
            return [JoinPattern(command, pattern)]
        if refusal is not None:
            return [failed(refusal.code, refusal.message, None, ref)]
        if claims is None:
            return [failed("unauthorized", "patterns need a token", None, ref)]
        if not claims.is_granted_all(pattern):
            message = f"no grant in the token's channels contains {pattern.text!r}"
            return [failed("forbidden", message, None, ref)]
        return [JoinPattern(command, pattern)]

    def joined(
        self,
        command: SubscribePattern,
        pattern: Pattern,
        position: Position | None,
        recovered: bool | None,
    ) -> list[Effect]:
        """The pattern is joined: exactly its messages after `position` follow."""
        self._joined.setdefault(pattern.filter, pattern)
        return [Send(SubscribedPattern(pattern.text, command.ref, position, recovered))]

    def unsubscribe(self, command: UnsubscribePattern) -> list[Effect]:
        """Answer the command."""
        text, ref = command
        try:
            pattern = validate_pattern(text)
        except InvalidPattern as exc:
            return [failed("invalid_channel", str(exc), None, ref)]
        if self._joined.pop(pattern.filter, None) is None:
            return [failed("not_subscribed", not_subscribed(text), None, ref)]
        return [LeavePattern(pattern), Send(UnsubscribedPattern(text, ref))]

    def revoke(self, pattern: Pattern) -> list[Effect]:
        """Leave a pattern, and notify the client; no effects if it is not joined."""
        joined = self._joined.pop(pattern.filter, None)
        if joined is None:
            return []
        return [LeavePattern(joined), Send(UnsubscribedPattern(joined.text, None, "revoked"))]

    def clear(self) -> None:
        """Drop all: the connection has ended."""
        self._joined.clear()
