"""`eventbus revoke`: take access back, on every node, before tokens expire; and give it back."""

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
    """There is nothing to take back."""


def revoke(
    user: Annotated[str | None, typer.Option(help="A user's id.")] = None,
    jti: Annotated[str | None, typer.Option(help="A token's id, its `jti`.")] = None,
    connection: Annotated[str | None, typer.Option(help="A connection's id.")] = None,
    channel: Annotated[
        str | None,
        typer.Option(help="A channel: only that, beside --user or --jti; alone, from everybody."),
    ] = None,
    lasting: Annotated[
        str,
        typer.Option("--for", help="How long tokens are refused: as long as yours live. 90s, 2h."),
    ] = "24h",
    issued_before: Annotated[
        str | None,
        typer.Option(
            help="Only tokens whose iat is earlier, by the issuer's clock: seconds since 1970, or "
            "RFC 3339. Beside --user or --channel."
        ),
    ] = None,
    undo: Annotated[
        bool, typer.Option("--undo", help="Give back what was revoked by the same names.")
    ] = False,
    listed: Annotated[bool, typer.Option("--list", help="List what is revoked.")] = False,
    json: Json = False,
) -> None:
    """End what is named, on every node, and refuse it until the tokens would have expired.

    A user's tokens that are issued JWT_LEEWAY seconds after it are accepted, or at once with
    --issued-before. A connection is only ended. With --undo the tokens are good again, those who
    were put out may come back.

    Example: eventbus revoke --user 42 --for 1h
    """
    about = {"user": user, "jti": jti, "connection": connection, "channel": channel}
    names = {name: value for name, value in about.items() if value is not None}
    if listed:
        if names or undo or issued_before is not None:
            fail("--list stands alone, or with --json", code=2)
        _show(run(_held()), json=json)
        return
    seconds = duration(lasting, "--for")
    if undo and issued_before is not None:
        fail(
            "--undo gives back all that was revoked by the names: leave --issued-before out", code=2
        )
    before = None if issued_before is None else _moment(issued_before)
    revocation = _revocation(names, seconds, before)
    what = ", ".join(f"{name} {value}" for name, value in names.items())
    if undo:
        if not revocation.is_kept:
            fail(
                "--undo: a connection that was ended stays so; its client may connect again", code=2
            )
        run(_lift(revocation, what))
        if json:
            write_json({"undone": names})
        else:
            typer.echo(f"allowed again on every node: {what}")
        return
    run(_tell(revocation))
    if json:
        write_json({"revoked": names, "seconds": seconds if revocation.is_kept else None})
        return
    kept = f", refused for {span(seconds)}" if revocation.is_kept else ""
    typer.echo(f"revoked on every node: {what}{kept}")


def _moment(text: str) -> float:
    """Seconds since 1970, given as such or as RFC 3339; anything else ends with 2."""
    if _SECONDS.fullmatch(text):
        return float(text)
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        fail(
            f"--issued-before: {text[:80]!r} is not a moment: allowed are seconds since 1970, such "
            "as 1795470000, and RFC 3339, such as 2026-11-24T03:00:12Z",
            code=2,
        )
    return moment.timestamp()


def _revocation(names: dict[str, str], seconds: float, before: float | None) -> "Revocation":
    """What the options say; those that cannot stand together end the command with 2."""
    from eventbus_edge.access.revocation import Revocation  # noqa: PLC0415 - `eventbus --help` is to be fast

    whom = names.keys() - {"channel"}
    if not names or len(whom) > 1 or {"connection", "channel"} <= names.keys():
        given = " and ".join(f"--{name}" for name in names)
        fail(
            f"{f'{given} cannot stand together' if names else 'nothing is named'}: give one of "
            "--user, --jti, --connection and --channel, or --channel beside --user or --jti",
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


async def _tell(revocation: "Revocation") -> None:
    from eventbus_edge.access.revoker import announce  # noqa: PLC0415

    async with opened_bus() as bus:
        await announce(bus.driver, bus.subjects, revocation)


async def _lift(like: "Revocation", what: str) -> None:
    from eventbus_edge.access.revoker import announce, read_kept  # noqa: PLC0415

    async with opened_bus() as bus:
        held = (await read_kept(bus.driver)).get(like.key)
        if held is None:
            raise NotRevoked(f"not revoked: {what} (see `eventbus revoke --list`)")
        await announce(bus.driver, bus.subjects, held.lift(time.time()))


async def _held() -> "list[Revocation]":
    from eventbus_edge.access.revoker import read_kept  # noqa: PLC0415

    async with opened_bus() as bus:
        held = await read_kept(bus.driver)
    return sorted(held.values(), key=lambda revocation: -revocation.at)


def _show(held: "list[Revocation]", *, json: bool) -> None:
    if json:
        from eventbus_edge.http.revocations import entry_of  # noqa: PLC0415

        write_json({"revocations": [entry_of(revocation) for revocation in held]})
        return
    now = time.time()
    rows: list[list[Any]] = [
        [
            one_line(revocation.user_id or "", 100), one_line(revocation.jti or "", 100),
            revocation.channel or "",
            f"{datetime.datetime.fromtimestamp(revocation.at, datetime.UTC):%Y-%m-%d %H:%M:%SZ}",
            span(revocation.until - now),
        ]
        for revocation in held
    ]  # fmt: skip
    columns = ("user", "jti", "channel", "revoked at", "ends in")
    print_table(columns, rows, empty="nothing is revoked", right=columns[4:])


def duration(text: str, where: str) -> float:
    """Seconds from `90s`, `10m`, `1.5h`, `2d`, or a plain number; anything else ends with 2."""
    found = _DURATION.fullmatch(text.strip())
    seconds = float(found[1]) * _UNITS[found[2] or "s"] if found else 0.0
    if not 0 < seconds <= MAX_S:
        fail(f"{where}: {text!r} is no length of time: allowed are 90s, 10m, 1.5h, 2d", code=2)
    return seconds
