"""`eventbus doctor`: runs all checks, and reports problems with a fix for each."""

import asyncio
import logging
import os
import shutil
from collections.abc import Sequence
from typing import Final

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
)
from eventbus.cli.doctor.findings import (
    Finding,
    failed,
    ok,
    within,
)
from eventbus.cli.output import (
    Json,
    console,
    write_json,
)
from eventbus.cli.running import run
from eventbus.config import Settings
from eventbus.errors import ConfigError

__all__ = ["doctor"]


_MARKS: Final = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "failed": ("✗", "red")}


def doctor(json: Json = False) -> None:
    """Check settings, brokers, streams, clock, keys, port and limits, and suggest fixes.

    Changes nothing, except that it stores a small probe message in the stream. Exits with 1 if a
    check failed. Warnings do not count.

    Example: NATS_URL=nats://127.0.0.1:4222 eventbus doctor
    """
    logging.getLogger().addHandler(logging.NullHandler())  # the findings report it
    findings = run(_examine())
    has_failed = any(finding.status == "failed" for finding in findings)
    if json:
        write_json({"ok": not has_failed, "findings": findings})
    else:
        _show(findings)
    if has_failed:
        raise typer.Exit(1)


async def _examine() -> list[Finding]:
    from eventbus_edge.config import EdgeSettings  # noqa: PLC0415 - keeps `eventbus --help` fast

    findings = check_settings(os.environ, (Settings, EdgeSettings))
    try:
        settings, edge = Settings.from_env(), EdgeSettings.from_env()
    except ConfigError as exc:
        if not any(finding.status == "failed" for finding in findings):
            findings.append(failed("settings", str(exc)))
        return findings
    drivers = settings.stack if settings.driver == "stack" else (settings.driver,)
    checks = [
        within("JWT keys", check_keys(edge)),
        within("port", check_port(edge)),
    ]
    if "nats" in drivers or "websocket" in drivers:
        checks.append(within("NATS", check_nats(settings, edge.jwt_leeway), NATS_S))
    if "redis" in drivers:
        checks.append(within("Redis", check_redis(settings, edge.jwt_leeway)))
    findings.append(ok("driver", ", ".join(drivers)))
    findings += check_environment(edge)
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
        for line in _wrapped(Text(finding.found), out, indent):
            out.print(head + line)
            head = Text(" " * indent)
        for line in _wrapped(Text(f"→ {finding.change}", style="cyan"), out, indent):
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
