"""What a check of the installation found; and how one is run, for a bounded time."""

import asyncio
from collections.abc import Awaitable
from typing import (
    Final,
    Literal,
)

import msgspec

from eventbus.errors import EventBusError

__all__ = ["CHECK_S", "Finding", "Status", "failed", "ok", "warning", "within"]


CHECK_S: Final = 10.0
"""How long one check may take, if nothing else is said."""

Status = Literal["ok", "warning", "failed"]


class Finding(msgspec.Struct, frozen=True):
    """One line of the report; `change` is what to do about it."""

    check: str
    status: Status
    found: str
    change: str = ""


def ok(check: str, found: str) -> Finding:
    """All is well."""
    return Finding(check, "ok", found)


def warning(check: str, found: str, change: str = "") -> Finding:
    """It works, and may not do what is wanted."""
    return Finding(check, "warning", found, change)


def failed(check: str, found: str, change: str = "") -> Finding:
    """It does not work."""
    return Finding(check, "failed", found, change)


async def within(
    check: str, findings: Awaitable[list[Finding]], seconds: float = CHECK_S
) -> list[Finding]:
    """A check's findings; that it raised, or took too long, is one."""
    try:
        async with asyncio.timeout(seconds):
            return await findings
    except TimeoutError:
        return [failed(check, f"the check did not end within {seconds:g} s")]
    except EventBusError as exc:
        return [failed(check, str(exc))]
