"""The check of an outbox: its table, rows that wait for a relay, and rows that were set aside."""

import contextlib
from pathlib import Path

from eventbus.cli.doctor.findings import Finding, failed, ok, warning
from eventbus.cli.output import counted, one_line, span
from eventbus.errors import ConfigError
from eventbus.outbox import TABLE

__all__ = ["check_outbox"]

_LAG_S = 60.0
"""A relay publishes in milliseconds; when rows wait for longer, it is away or cannot publish."""


async def check_outbox(database_url: str) -> list[Finding]:
    """Look at the outbox, if the database has one.

    Nothing is reported about a database that an outbox cannot be in, or that has none: many
    applications have DATABASE_URL for other reasons.
    """
    try:
        from eventbus.outbox.database import (  # noqa: PLC0415 - needs an extra
            DatabaseError,
            DatabaseOutbox,
            engine_of,
        )
        from eventbus.outbox.table import new_table  # noqa: PLC0415
    except ModuleNotFoundError:
        return []
    try:
        engine = engine_of(database_url)
    except ConfigError:
        return []
    if engine.dialect.name == "sqlite" and not _is_file(engine.url.database):
        return []  # connecting would create the file
    store = DatabaseOutbox(engine, new_table())
    try:
        if not await store.exists():
            return []
        stats = await store.stats()
        has_trigger = await store.has_trigger()
    except (DatabaseError, OSError) as exc:
        cause = one_line(str(getattr(exc, "orig", None) or exc), 200)
        return [failed("outbox", f"the database of DATABASE_URL refused: {cause}")]
    finally:
        with contextlib.suppress(Exception):
            await engine.dispose()
    if not has_trigger:
        return [
            failed(
                "outbox",
                f"the table {TABLE} has no trigger {TABLE}_commit: its rows are never published",
                "run the statements of eventbus.outbox.postgres.CREATE_TRIGGER in a migration",
            )
        ]
    findings = []
    if stats.set_aside:
        findings.append(
            warning(
                "outbox",
                f"{counted(stats.set_aside, 'row')} could not be published",
                "see `eventbus outbox list`, then retry or forget them",
            )
        )
    waiting = f"{counted(stats.waiting, 'row')}, the oldest for {span(stats.lag_s)}"
    if stats.lag_s > _LAG_S:
        findings.append(
            failed(
                "outbox",
                f"rows wait to be published: {waiting}",
                "run `eventbus outbox relay`; if it runs, its log has the reason",
            )
        )
    elif not findings:
        findings.append(ok("outbox", f"waiting: {waiting}" if stats.waiting else "no rows wait"))
    return findings


def _is_file(path: str | None) -> bool:
    return Path(path or "").is_file()
