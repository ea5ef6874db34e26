"""`eventbus revoke`: revokes access on every node before tokens expire, and undoes it."""

import datetime
import re
import time
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Final,
)

import typer

from eventbus.cli.output import (
    Json,
    fail,
    one_line,
    print_table,
    span,
    write_json,
)
from eventbus.cli.running import (
    opened_bus,
    run,
)
from eventbus.errors import EventBusError

if TYPE_CHECKING:
    from eventbus_edge.access.revocation import Revocation

__all__ = ["duration", "revoke"]


_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)?", re.ASCII)
_SECONDS: Final = re.compile(r"\d{1,12}(?:\.\d+)?", re.ASCII)
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
MAX_S: Final = 31_536_000.0


class NotRevoked(EventBusError):
    """There is no such revocation to undo."""


def revoke(
    user: Annotated[str | None, typer.Option(help="The id of a user.")] = None,
    jti: Annotated[str | None, typer.Option(help="The id of a token: its claim `jti`.")] = None,
    connection: Annotated[str | None, typer.Option(help="The id of a connection.")] = None,
    channel: Annotated[
        str | None,
        typer.Option(
            help="A channel. With --user or --jti, revoke only access to it; alone, for everybody."
        ),
    ] = None,
    lasting: Annotated[
        str,
        typer.Option(
            "--for",
            help="How long to refuse the tokens, such as 90s or 2h: at least their lifetime.",
        ),
    ] = "24h",
    issued_before: Annotated[
        str | None,
        typer.Option(
            help="Refuse only tokens with an earlier iat: seconds since 1970, or RFC 3339, by the "
            "issuer's clock. For --user or --channel."
        ),
    ] = None,
    undo: Annotated[
        bool, typer.Option("--undo", help="Undo the revocation with the same options.")
    ] = False,
    listed: Annotated[bool, typer.Option("--list", help="List the current revocations.")] = False,
    json: Json = False,
) -> None:
    """Revoke the access of a user, a token or a channel on all nodes, or close a connection.

    Access ends at once, and the tokens are refused for the time of --for. A user can come back with
    a token that is issued JWT_LEEWAY seconds after the revocation, or at --issued-before or later.

    With --connection, the client can reconnect. After --undo, the tokens are valid again.

    Example: eventbus revoke --user 42 --for 1h
    """
    about = {"user": user, "jti": jti, "connection": connection, "channel": channel}
    names = {name: value for name, value in about.items() if value is not None}
    if listed:
        if names or undo or issued_before is not None:
            fail("--list can only be combined with --json", code=2)
        _show(run(_current()), json=json)
        return
    seconds = duration(lasting, "--for")
    if undo and issued_before is not None:
        fail(
            "--undo and --issued-before cannot be combined: --undo undoes the whole revocation",
            code=2,
        )
    before = None if issued_before is None else _moment(issued_before)
    revocation = _revocation(names, seconds, before)
    what = ", ".join(f"{name} {value}" for name, value in names.items())
    if undo:
        if not revocation.is_kept:
            fail("--undo: a closed connection stays closed, but its client can reconnect", code=2)
        run(_undo(revocation, what))
        if json:
            write_json({"undone": names})
        else:
            typer.echo(f"allowed again on all nodes: {what}")
        return
    run(_publish(revocation))
    if json:
        write_json({"revoked": names, "seconds": seconds if revocation.is_kept else None})
        return
    if revocation.is_kept:
        typer.echo(f"revoked on all nodes: {what}, for {lasting.strip()}")
    else:
        typer.echo(f"closed on all nodes: {what}")


def _moment(text: str) -> float:
    """Parse seconds since 1970, or RFC 3339. Exits with code 2 for anything else."""
    if _SECONDS.fullmatch(text):
        return float(text)
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        fail(
            f"--issued-before: {text[:80]!r} is not a time; allowed: seconds since 1970, such as "
            "1795470000, or RFC 3339, such as 2026-11-24T03:00:12Z",
            code=2,
        )
    return moment.timestamp()


def _revocation(names: dict[str, str], seconds: float, before: float | None) -> "Revocation":
    """The revocation for the options. Exits with code 2 if they cannot be combined."""
    from eventbus_edge.access.revocation import Revocation  # noqa: PLC0415 - keeps `eventbus --help` fast

    targets = names.keys() - {"channel"}
    if not names or len(targets) > 1 or {"connection", "channel"} <= names.keys():
        given = " and ".join(f"--{name}" for name in names)
        fail(
            f"{f'{given} cannot be combined' if names else 'nothing to revoke'}: use one of "
            "--user, --jti, --connection and --channel, or --channel with --user or --jti",
            code=2,
        )
    if empty := [name for name, value in names.items() if not value]:
        fail(f"--{empty[0]} is empty", code=2)
    now = time.time()
    try:
        return Revocation(
            at=now,
            until=now + seconds,
            user_id=names.get("user"),
            jti=names.get("jti"),
            connection_id=names.get("connection"),
            channel=names.get("channel"),
            issued_before=before,
        )
    except ValueError as exc:
        fail(str(exc), code=2)


async def _publish(revocation: "Revocation") -> None:
    from eventbus_edge.access.revoker import announce  # noqa: PLC0415

    async with opened_bus() as bus:
        await announce(bus.driver, bus.subjects, revocation)


async def _undo(like: "Revocation", what: str) -> None:
    from eventbus_edge.access.revoker import announce, read_kept  # noqa: PLC0415

    async with opened_bus() as bus:
        current = (await read_kept(bus.driver)).get(like.key)
        if current is None:
            raise NotRevoked(f"not revoked: {what} (see `eventbus revoke --list`)")
        await announce(bus.driver, bus.subjects, current.lift(time.time()))


async def _current() -> "list[Revocation]":
    from eventbus_edge.access.revoker import read_kept  # noqa: PLC0415

    async with opened_bus() as bus:
        revocations = await read_kept(bus.driver)
    return sorted(revocations.values(), key=lambda revocation: -revocation.at)


def _show(revocations: "list[Revocation]", *, json: bool) -> None:
    if json:
        from eventbus_edge.http.revocations import shown  # noqa: PLC0415

        write_json({"revocations": [shown(revocation) for revocation in revocations]})
        return
    now = time.time()
    rows: list[list[Any]] = [
        [
            one_line(revocation.user_id or "", 100), one_line(revocation.jti or "", 100),
            revocation.channel or "",
            f"{datetime.datetime.fromtimestamp(revocation.at, datetime.UTC):%Y-%m-%d %H:%M:%SZ}",
            span(revocation.until - now),
        ]
        for revocation in revocations
    ]  # fmt: skip
    columns = ("user", "jti", "channel", "revoked at", "ends in")
    print_table(columns, rows, empty="no revocations", right=columns[4:])


def duration(text: str, where: str) -> float:
    """Parse `90s`, `10m`, `1.5h`, `2d` or a number of seconds. Otherwise exits with code 2."""
    found = _DURATION.fullmatch(text.strip())
    seconds = float(found[1]) * _UNITS[found[2] or "s"] if found else 0.0
    if not 0 < seconds <= MAX_S:
        fail(
            f"{where}: {text!r} is not a duration; allowed: a number with s, m, h or d, such as "
            "90s or 1.5h, at most 365d",
            code=2,
        )
    return seconds
