"""`eventbus revoke`: revokes access on every node before tokens expire, and undoes it."""

import datetime
import re
import time
from collections.abc import Iterable, Mapping
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Final,
)

import msgspec
import typer

from eventbus.bus import EventBus
from eventbus.cli.completion import complete_channels
from eventbus.cli.durations import duration
from eventbus.cli.output import Json, fail, print_table, say, span, write_json
from eventbus.cli.running import (
    opened_bus,
    run,
)
from eventbus.errors import EventBusError

if TYPE_CHECKING:
    from eventbus.cluster import Revocation

__all__ = ["revoke"]


_SECONDS: Final = re.compile(r"\d{1,12}(?:\.\d+)?", re.ASCII)

_LEAST_PREFIX: Final = 4


class NotRevoked(EventBusError):
    """There is no such revocation to undo."""


class NoConnection(EventBusError):
    """No connection, or more than one, has the id."""


def revoke(
    user: Annotated[str | None, typer.Option(help="The id of a user.")] = None,
    jti: Annotated[
        str | None,
        typer.Option(
            help="The id of a token: its claim `jti`, in full: it could be the start of another "
            "one. With --undo, its first characters are enough."
        ),
    ] = None,
    connection: Annotated[
        str | None,
        typer.Option(help="The id of a connection. Its first characters are enough."),
    ] = None,
    channel: Annotated[
        str | None,
        typer.Option(
            help="A channel. With --user or --jti, revoke only access to it; alone, for everybody.",
            autocompletion=complete_channels,
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
    what = _described(names)
    if undo:
        if not revocation.is_kept:
            fail("--undo: a closed connection stays closed, but its client can reconnect", code=2)
        undone = run(_undo(revocation, what))
        if undone.jti is not None:
            names["jti"] = undone.jti
        if json:
            write_json({"undone": names})
        else:
            say(f"allowed again on all nodes: {_described(names)}")
        return
    revocation = run(_publish(revocation))
    if revocation.connection_id is not None:
        names["connection"] = revocation.connection_id
    what = _described(names)
    if json:
        write_json({"revoked": names, "seconds": seconds if revocation.is_kept else None})
        return
    if revocation.is_kept:
        say(f"revoked on all nodes: {what}, for {lasting.strip()}")
    else:
        say(f"closed on all nodes: {what}")


def _described(names: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in names.items())


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
    from eventbus.cluster import Revocation  # noqa: PLC0415 - keeps `eventbus --help` fast

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


async def _publish(revocation: "Revocation") -> "Revocation":
    """Revoke on all nodes, and return what was revoked: with the whole id of a connection."""
    from eventbus.cluster import announce_revocation  # noqa: PLC0415

    async with opened_bus() as bus:
        if revocation.connection_id is not None:
            found = await _whole_id(bus, revocation.connection_id)
            revocation = msgspec.structs.replace(revocation, connection_id=found)
        await announce_revocation(bus.driver, bus.subjects, revocation)
    return revocation


async def _whole_id(bus: EventBus, start: str) -> str:
    """The id of the only connection whose id begins with `start`. Raises NoConnection."""
    ids, missing = await (await bus.cluster()).connections(start)
    if start in ids:
        return start
    if len(ids) > 1:
        raise NoConnection(f"{start} is the start of {len(ids)} ids: {', '.join(ids)}")
    if ids and len(start) >= _LEAST_PREFIX:
        return ids[0]
    if missing:
        return start  # whole, perhaps, and of a node that did not answer
    raise NoConnection(
        f"no connection has the id {start}, or one that begins so (at least {_LEAST_PREFIX} "
        "characters)"
    )


async def _undo(like: "Revocation", what: str) -> "Revocation":
    """Undo the revocation that is like the given one, and return it."""
    from eventbus.cluster import announce_revocation, stored_revocations  # noqa: PLC0415

    async with opened_bus() as bus:
        revocations = await stored_revocations(bus.driver)
        current = revocations.get(like.key) or _by_prefix(revocations.values(), like)
        if current is None:
            raise NotRevoked(f"not revoked: {what} (see `eventbus revoke --list`)")
        await announce_revocation(bus.driver, bus.subjects, current.lift(time.time()))
        return current


def _by_prefix(revocations: "Iterable[Revocation]", like: "Revocation") -> "Revocation | None":
    """The only revocation of a token whose id begins with the given one."""
    if like.jti is None or len(like.jti) < _LEAST_PREFIX:
        return None
    found = [
        each
        for each in revocations
        if each.jti is not None and each.jti.startswith(like.jti) and each.channel == like.channel
    ]
    if len(found) > 1:
        raise NotRevoked(f"{like.jti} is the start of {len(found)} revoked tokens: use a whole id")
    return found[0] if found else None


async def _current() -> "list[Revocation]":
    from eventbus.cluster import stored_revocations  # noqa: PLC0415

    async with opened_bus() as bus:
        revocations = await stored_revocations(bus.driver)
    return sorted(revocations.values(), key=lambda revocation: -revocation.at)


def _show(revocations: "list[Revocation]", *, json: bool) -> None:
    if json:
        from eventbus_edge.http import active_revocation  # noqa: PLC0415

        write_json({"revocations": [active_revocation(revocation) for revocation in revocations]})
        return
    now = time.time()
    rows: list[list[Any]] = [
        [
            revocation.user_id or "", revocation.jti or "", revocation.channel or "",
            span(revocation.until - now),
            f"{datetime.datetime.fromtimestamp(revocation.at, datetime.UTC):%Y-%m-%d %H:%M:%SZ}",
        ]
        for revocation in revocations
    ]  # fmt: skip
    columns = ("user", "jti", "channel", "ends in", "revoked at")
    print_table(
        columns, rows, empty="no revocations", right=("ends in", "revoked at"), whole=columns[:3]
    )
