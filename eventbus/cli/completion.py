"""Shell completion for the names of channels, events, queues and failed jobs.

A completion is quick and silent: without a broker, or an application, there are no suggestions.
"""

import asyncio
import contextlib
import io
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, cast

import typer

from eventbus.bus import EventBus
from eventbus.channels import Pattern
from eventbus.cli.running import load_application, opened_bus
from eventbus.contracts import catalogue
from eventbus.drivers import Capability, MaintenanceDriver

__all__ = ["complete_channels", "complete_events", "complete_failed_jobs", "complete_queues"]

_PATIENCE_S: Final = 2.0
_NODES_S: Final = 0.5
_MAX: Final = 200
"""Suggestions, at most: a shell asks before it shows more."""


def complete_channels(incomplete: str) -> list[str]:
    """Channels with subscribers or stored messages."""

    async def names(bus: EventBus) -> Iterable[str]:
        from eventbus.cluster import ListQuery  # noqa: PLC0415

        found = dict[str, None]()
        if Capability.MAINTENANCE in bus.driver.capabilities:
            driver = cast(MaintenanceDriver, bus.driver)
            stored = await driver.stored(bus.subjects.live_filter(Pattern(">")), _MAX * 10)
            found |= dict.fromkeys(map(bus.subjects.channel_of, stored))
        with contextlib.suppress(TimeoutError):  # without nodes, there are only stored messages
            async with asyncio.timeout(_NODES_S):
                subscribed = await (await bus.cluster()).channels(ListQuery(limit=_MAX * 10))
                found |= dict.fromkeys(each.channel for each in subscribed.channels)
        return found

    return _matching(incomplete, _ask(names))


def complete_queues(ctx: typer.Context, incomplete: str) -> list[str]:
    """Queues that exist, after the ones that are named before the last comma."""
    before, comma, last = incomplete.rpartition(",")
    connection = ctx.params.get("connection")

    async def names(bus: EventBus) -> Iterable[str]:
        return [each.queue for each in await (await bus.queues(connection)).stats()]

    return [f"{before}{comma}{name}" for name in _matching(last, _ask(names, connection))]


def complete_failed_jobs(ctx: typer.Context, incomplete: str) -> list[str]:
    """The ids of failed jobs."""
    connection = ctx.params.get("connection")

    async def ids(bus: EventBus) -> Iterable[str]:
        return [each.id for each in await (await bus.queues(connection)).failures(_MAX * 10)]

    return _matching(incomplete, _ask(ids, connection))


def complete_events(ctx: typer.Context, incomplete: str) -> list[str]:
    """The events of --app, or of the application in pyproject.toml."""

    def names() -> Iterable[str]:
        load_application(ctx.params.get("application"))
        return [each.name for each in catalogue()]

    return _matching(incomplete, _silently(names))


def _matching(incomplete: str, names: Iterable[str]) -> list[str]:
    return sorted(name for name in names if name.startswith(incomplete))[:_MAX]


def _ask(
    names: Callable[[EventBus], Awaitable[Iterable[str]]], connection: str | None = None
) -> Iterable[str]:
    async def ask() -> Iterable[str]:
        async with asyncio.timeout(_PATIENCE_S), opened_bus(connection) as bus:
            return await names(bus)

    return _silently(lambda: asyncio.run(ask()))


def _silently(names: Callable[[], Iterable[str]]) -> Iterable[str]:
    """Suppress errors and output, which would appear in the line that the user is typing."""
    logging.disable()
    nowhere = io.StringIO()
    with (
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
        contextlib.suppress(Exception, SystemExit),  # the application may raise anything
    ):
        return names()
    return ()
