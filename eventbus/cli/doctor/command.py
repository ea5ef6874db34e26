"""`eventbus doctor`: runs all checks, and reports problems with a fix for each."""

import asyncio
import logging
import os
import shutil
from collections.abc import Sequence
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.text import Text

from eventbus.cli.doctor.brokers import (
    NATS_S,
    check_nats,
    check_redis,
)
from eventbus.cli.doctor.environment import (
    check_cors,
    check_environment,
    check_files,
    check_keys,
    check_port,
    check_settings,
    check_tables,
)
from eventbus.cli.doctor.findings import (
    Finding,
    failed,
    ok,
    within,
)
from eventbus.cli.doctor.outbox import check_outbox
from eventbus.cli.output import (
    Json,
    console,
    write_json,
)
from eventbus.cli.running import run
from eventbus.config import Settings
from eventbus.drivers import drivers_of
from eventbus.errors import ConfigError
from eventbus.user_code import printable

__all__ = ["doctor"]


_MARKS: Final = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "failed": ("✗", "red")}


def doctor(
    json: Json = False,
    monitor: Annotated[
        list[str] | None,
        typer.Option(
            help="The monitoring address of a NATS server, to check what power cuts may lose."
        ),
    ] = None,
) -> None:
    """Check settings, brokers, streams, clock, keys, port and limits, and suggest fixes.

    Reports what acknowledged messages survive. Only the monitoring ports of NATS servers show
    whether they sync each write to disk: pass one --monitor per server.

    If DATABASE_URL is the database of an outbox, check that as well.

    Changes nothing, except that it stores a small probe message in the stream. Exits with 1 if a
    check failed. Warnings do not count.

    Example: NATS_URL=nats://127.0.0.1:4222 eventbus doctor --monitor http://127.0.0.1:8222
    """
    logging.getLogger().addHandler(logging.NullHandler())  # the findings report it
    findings = run(_examine(monitor or ()))
    has_failed = any(finding.status == "failed" for finding in findings)
    if json:
        write_json({"ok": not has_failed, "findings": findings})
    else:
        _show(findings)
    if has_failed:
        raise typer.Exit(1)


async def _examine(monitors: Sequence[str]) -> list[Finding]:
    from eventbus_edge.config import EdgeSettings  # noqa: PLC0415 - keeps `eventbus --help` fast

    findings = check_settings(os.environ, (Settings, EdgeSettings))
    try:
        settings, edge = Settings.from_env(), EdgeSettings.from_env()
    except ConfigError as exc:
        if not any(finding.status == "failed" for finding in findings):
            findings.append(failed("settings", str(exc)))
        return findings
    drivers = drivers_of(settings)
    checks = [
        within("JWT keys", check_keys(edge)),
        within("port", check_port(edge)),
    ]
    if "nats" in drivers:
        checks.append(within("NATS", check_nats(settings, edge.jwt_leeway, monitors), NATS_S))
    if "redis" in drivers:
        checks.append(within("Redis", check_redis(settings, edge.jwt_leeway)))
    if database := os.environ.get("DATABASE_URL"):
        checks.append(within("outbox", check_outbox(database)))
    findings.append(ok("driver", ", ".join(drivers)))
    findings += check_environment(edge)
    findings += check_tables(edge)
    findings += check_cors(edge)
    findings += check_files(edge)
    for found in await asyncio.gather(*checks):
        findings += found
    return findings


def _show(findings: Sequence[Finding]) -> None:
    out = console()
    width = max(len(finding.check) for finding in findings) + 2
    indent = width + 2
    for finding in findings:
        mark, style = _MARKS[finding.status]
        head = Text(f"{mark} ", style=style).append(finding.check.ljust(width), style="bold")
        for line in _wrapped(Text(printable(finding.found, keep="\n")), out, indent):
            out.print(head + line)
            head = Text(" " * indent)
        for line in _wrapped(Text(f"→ {printable(finding.change)}", style="cyan"), out, indent):
            if finding.change:
                out.print(head + line)
    counts = {status: sum(f.status == status for f in findings) for status in _MARKS}
    warnings = f"{counts['warning']} warning{'s' * (counts['warning'] != 1)}"
    summary = f"{counts['ok']} ok, {warnings}, {counts['failed']} failed"
    style = "red" if counts["failed"] else "yellow" if counts["warning"] else "green"
    out.print(Text(summary, style=style))


def _wrapped(text: Text, out: Console, indent: int) -> Sequence[Text]:
    """Lines that fit next to an indent, in the width of the terminal (in a pipe, COLUMNS)."""
    lines = text.wrap(out, max(shutil.get_terminal_size().columns - indent, 40))
    for line in lines:
        line.rstrip()
    return list(lines)
