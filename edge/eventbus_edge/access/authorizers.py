"""Asks the application's authorizers within a time limit; one that fails denies."""

import asyncio
import functools
import logging
from collections.abc import (
    Callable,
    Mapping,
)
from typing import (
    Any,
    Final,
)

import msgspec

from eventbus.user_code import (
    call_apart,
    guarded,
)
from eventbus_edge.access.rules import (
    Allowed,
    Ask,
    ChannelRules,
    Denied,
    Fault,
)
from eventbus_edge.access.tokens import Claims
from eventbus_edge.logs import connection_logger

__all__ = ["Authorizers", "ask"]


_log: Final = logging.getLogger(__name__)


class Authorizers:
    """Decides who may join a channel, by the rules and by the authorizers that they name."""

    def __init__(
        self, rules: ChannelRules, timeout_s: float, on_fault: Callable[[Fault], object]
    ) -> None:
        """`on_fault` gets each fault of an authorizer; taking longer than `timeout_s` is one."""
        self._rules = rules
        self._timeout_s = timeout_s
        self._on_fault = on_fault

    async def decide(self, channel: str, claims: Claims | None) -> Allowed | Denied:
        """Whether the user with these claims may join the channel."""
        decision = self._rules.decide(channel, claims)
        if isinstance(decision, Ask):
            assert claims is not None, "an authorizer is asked about a user"
            return await self.ask(decision, claims)
        return decision

    async def ask(
        self, question: Ask, claims: Claims, connection_id: str | None = None
    ) -> Allowed | Denied:
        """Ask an authorizer; one that fails or takes too long denies."""
        decision = await ask(question, claims, limit_s=self._timeout_s, connection_id=connection_id)
        if isinstance(decision, Denied) and decision.fault:
            self._on_fault(decision.fault)
        return decision


async def ask(
    question: Ask, claims: Claims, *, limit_s: float, connection_id: str | None = None
) -> Allowed | Denied:
    """Call the question's authorizer and return its decision.

    An exception denies. So does an answer after `limit_s` seconds, and one that is neither a bool
    nor a mapping that can be encoded as JSON. These faults are logged and named in the answer's
    `fault`. Only a cancellation is raised.
    """
    authorizer, channel = question.authorizer, question.channel
    log = connection_logger(_log, connection_id)
    arguments = dict(question.captures)
    if authorizer.takes_channel:
        arguments["channel"] = channel
    limit = asyncio.timeout(limit_s)
    end = asyncio.get_running_loop().time() + limit_s
    try:
        async with limit:
            verdict = await call_apart(functools.partial(authorizer.check, claims, **arguments))
    except Exception:
        fault: Fault = "timeout" if limit.expired() else "error"
        log.exception("the authorizer for %r failed: %s (limit %s s)", channel, fault, limit_s)
        return _denied(fault, channel)
    if limit.expired() or asyncio.get_running_loop().time() > end:
        # It caught its cancellation, or blocked the loop, and answered late.
        log.error("the authorizer for %r took longer than %s s", channel, limit_s)
        return _denied("timeout", channel)
    if verdict is True:
        return Allowed(question.rule)
    if verdict is False:
        return Denied("forbidden", f"the application does not allow joining {channel!r}")
    try:
        with guarded():
            return Allowed(question.rule, _read_info(verdict))
    except Exception:
        log.exception("the authorizer for %r gave no usable answer", channel)
        return _denied("verdict", channel)


def _read_info(verdict: object) -> dict[str, Any]:
    if not isinstance(verdict, Mapping):
        raise TypeError(f"got {type(verdict).__name__}; allowed: a bool or a mapping")
    # Encoded here once: info that is not JSON must not fail later, in an announcement to members.
    encoded = msgspec.json.encode(dict(verdict))
    return msgspec.json.decode(encoded, type=dict[str, Any])


def _denied(fault: Fault, channel: str) -> Denied:
    return Denied("forbidden", f"the application could not allow joining {channel!r}", fault)
