"""Asking an application's authorizer: awaited, within a time limit, and never let fail open."""

import asyncio
import functools
import logging
from collections.abc import Mapping
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
    Denied,
    Fault,
)
from eventbus_edge.access.tokens import Claims
from eventbus_edge.logs import of_connection

__all__ = ["ask"]


_log: Final = logging.getLogger(__name__)


async def ask(
    question: Ask, claims: Claims, *, limit_s: float, connection_id: str | None = None
) -> Allowed | Denied:
    """Put `question` to its authorizer and give its answer.

    An exception, an answer after `limit_s` seconds, and one that is neither a bool nor a mapping
    that can be JSON deny; they are logged, and named in the answer's `fault`. Only being cancelled
    is raised.
    """
    authorizer, channel = question.authorizer, question.channel
    log = of_connection(_log, connection_id)
    given = dict(question.captures)
    if authorizer.takes_channel:
        given["channel"] = channel
    limit = asyncio.timeout(limit_s)
    end = asyncio.get_running_loop().time() + limit_s
    try:
        async with limit:
            verdict = await call_apart(functools.partial(authorizer.check, claims, **given))
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
        raise TypeError(f"got {type(verdict).__name__}; allowed are bool and mapping")
    # Made JSON once, here: what cannot be shown to members must not fail when they are told.
    encoded = msgspec.json.encode(dict(verdict))
    return msgspec.json.decode(encoded, type=dict[str, Any])


def _denied(fault: Fault, channel: str) -> Denied:
    return Denied("forbidden", f"the application could not allow joining {channel!r}", fault)
