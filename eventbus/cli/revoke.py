"""`eventbus revoke`: take access back, on every node, before tokens expire."""

import re
import time
from typing import Annotated, Any, Final

import typer

from eventbus.cli.output import Json, fail, span, write_json
from eventbus.cli.running import opened_bus, run

__all__ = ["duration", "revoke"]

_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)?", re.ASCII)
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
MAX_S: Final = 31_536_000.0


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
    json: Json = False,
) -> None:
    """End what is named, on every node, and refuse it until the tokens would have expired.

    A user's tokens that are issued from now on are accepted. A connection is only ended.

    Example: eventbus revoke --user 42 --for 1h
    """
    from edge.revocation import Revocation  # noqa: PLC0415 - `eventbus --help` is to be fast
    from edge.revoking import tell  # noqa: PLC0415

    seconds = duration(lasting, "--for")
    now = time.time()
    try:
        revocation = Revocation(
            at=now, until=now + seconds, user_id=user, jti=jti, connection_id=connection,
            channel=channel,
        )  # fmt: skip
    except ValueError as exc:
        fail(
            f"{exc}. Give one of --user, --jti, --connection and --channel; "
            "--channel may stand beside --user or --jti",
            code=2,
        )

    async def send() -> None:
        async with opened_bus() as bus:
            await tell(bus.driver, bus.subjects, revocation)

    run(send())
    given: dict[str, Any] = {
        "user": user, "jti": jti, "connection": connection, "channel": channel
    }  # fmt: skip
    told = {name: value for name, value in given.items() if value is not None}
    if json:
        write_json({"revoked": told, "seconds": seconds if revocation.is_kept else None})
        return
    what = ", ".join(f"{name} {value}" for name, value in told.items())
    kept = f", refused for {span(seconds)}" if revocation.is_kept else ""
    typer.echo(f"revoked on every node: {what}{kept}")


def duration(text: str, where: str) -> float:
    """Seconds from `90s`, `10m`, `1.5h`, `2d`, or a plain number; anything else ends with 2."""
    found = _DURATION.fullmatch(text.strip())
    seconds = float(found[1]) * _UNITS[found[2] or "s"] if found else 0.0
    if not 0 < seconds <= MAX_S:
        fail(f"{where}: {text!r} is no length of time: allowed are 90s, 10m, 1.5h, 2d", code=2)
    return seconds
