"""Findings, which are the results of checks, and a time limit for running a check."""

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
"""The default time limit of a check."""

Status = Literal["ok", "warning", "failed"]


class Finding(msgspec.Struct, frozen=True):
    """One line of the report. `change` is the suggested fix."""

    check: str
    status: Status
    found: str
    change: str = ""


def ok(check: str, found: str) -> Finding:
    """A finding without a problem."""
    return Finding(check, "ok", found)


def warning(check: str, found: str, change: str = "") -> Finding:
    """A finding that works but may be unintended."""
    return Finding(check, "warning", found, change)


def failed(check: str, found: str, change: str = "") -> Finding:
    """A finding that does not work."""
    return Finding(check, "failed", found, change)


async def within(
    check: str, findings: Awaitable[list[Finding]], seconds: float = CHECK_S
) -> list[Finding]:
    """Run a check with a time limit. An error or a timeout becomes a failed finding."""
    try:
        async with asyncio.timeout(seconds):
            return await findings
    except TimeoutError:
        return [failed(check, f"the check timed out after {seconds:g} s")]
    except EventBusError as exc:
        return [failed(check, str(exc))]
