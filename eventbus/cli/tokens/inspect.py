"""`eventbus token inspect`: shows a token, and whether an edge with these settings accepts it."""

import base64
import binascii
import datetime
import sys
import time
from typing import (
    Annotated,
    Any,
    Final,
)

import msgspec
import typer
from rich.text import Text

from eventbus.cli.dev.secret import (
    DEV_SECRET,
    dev_secret,
)
from eventbus.cli.output import (
    Json,
    console,
    fail,
    one_line,
    write_json,
)
from eventbus.cli.running import run
from eventbus.messages import decode_json

__all__ = ["inspect"]


_TIMES: Final = ("exp", "nbf", "iat", "auth_time")
_MEANINGS: Final = {
    "sub": "user id", "aud": "audience", "iss": "issuer",
    "exp": "expires at", "nbf": "valid from", "iat": "issued at", "jti": "token id",
    "channels": "granted in addition to the rules",
    "name": "visible to members", "info": "visible to members", "alg": "algorithm",
    "kid": "key id", "typ": "type",
}  # fmt: skip
_MAX_TOKEN: Final = 64 * 1024
_NO_KEYS: Final = (
    "not checked, since the settings have no keys: set JWT_SECRET, JWT_PUBLIC_KEY or JWT_JWKS_URL "
    "to the value that your edges use, or use --dev-secret"
)


class Verdict(msgspec.Struct, frozen=True):
    """Whether an edge would accept the token; `accepted` is None if there are no keys."""

    accepted: bool | None
    why: str
    code: str | None = None
    reason: str | None = None


def inspect(
    token: Annotated[
        str, typer.Argument(help="The token. With - or without it, read it from standard input.")
    ] = "-",
    dev: Annotated[
        bool,
        typer.Option("--dev-secret", help=f"Check with the secret in {DEV_SECRET}."),
    ] = False,
    json: Json = False,
) -> None:
    """Show a token's header and claims, and whether an edge with these settings accepts it.

    Does not show the signature. Exits with 1 if an edge would refuse the token.

    Example: eventbus token issue alice | JWT_SECRET=… eventbus token inspect
    """
    if token == "-":
        token = sys.stdin.read(_MAX_TOKEN)
    token = token.strip().removeprefix("Bearer ").strip()
    if not token:
        fail("no token: pass it as an argument or on standard input", code=2)
    header, claims = _parts(token)
    if header is None:
        verdict = Verdict(False, "the token is not a JWT", "unauthorized", "malformed")
    else:
        verdict = run(_verify(token, dev=dev))
    if json:
        verdict_json = msgspec.to_builtins(verdict)
        write_json({"header": header, "claims": claims, "verdict": verdict_json})
    else:
        _show(header, claims, verdict)
    if verdict.accepted is False:
        raise typer.Exit(1)


async def _verify(token: str, *, dev: bool) -> Verdict:
    from eventbus_edge.access import (  # noqa: PLC0415 - keeps `eventbus --help` fast
        TokenRejected,
        fetched_keys,
        make_verifier,
    )
    from eventbus_edge.config import EdgeSettings  # noqa: PLC0415

    settings = EdgeSettings.from_env()
    if dev:
        settings = msgspec.structs.replace(
            settings, jwt_secret=dev_secret(), jwt_public_key="", jwt_jwks_url=""
        )
    keys = fetched_keys(settings)
    verifier = make_verifier(settings, keys)
    if verifier is None:
        return Verdict(None, _NO_KEYS)
    try:
        if keys is not None:
            await keys.open(lambda _: None)
        claims = await verifier.verify(token)
    except TokenRejected as exc:
        return Verdict(False, str(exc), exc.code, exc.reason)
    finally:
        if keys is not None:
            await keys.aclose()
    left = claims.exp - time.time()
    if left <= 0:
        return Verdict(True, f"only within the leeway: it expired {_span(-left)} ago")
    return Verdict(True, f"valid for another {_span(left)}")


def _parts(token: str) -> tuple[Any, Any]:
    """The unverified header and claims; None for a part that cannot be decoded."""
    header, _, rest = token.partition(".")
    return _read(header), _read(rest.partition(".")[0])


def _read(part: str) -> Any:
    try:
        return decode_json(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except (binascii.Error, ValueError):  # msgspec's are ValueErrors
        return None


def _show(header: Any, claims: Any, verdict: Verdict) -> None:
    out = console()
    for title, part in (("Header", header), ("Claims", claims)):
        out.print(Text(title, style="bold"))
        if not isinstance(part, dict):
            out.print(Text("  unreadable: not a JSON object in base64url", style="yellow"))
            continue
        width = max((len(one_line(name, 30)) for name in part), default=0)
        for name, value in part.items():
            line = Text("  ").append(one_line(name, 30).ljust(width + 2), style="cyan")
            line.append(_shown(name, value))
            if name in _MEANINGS:
                line.append(f"  {_MEANINGS[name]}", style="dim")
            out.print(line)
    styles = {
        True: ("green", "✓ accepted: "),
        False: ("red", "✗ refused: "),
        None: ("yellow", "? "),
    }
    style, mark = styles[verdict.accepted]
    out.print(Text(mark + verdict.why, style=style))


def _shown(name: str, value: Any) -> str:
    if name in _TIMES and isinstance(value, int | float):
        return _time(value)
    if isinstance(value, str):
        return one_line(value, 200)
    return one_line(msgspec.json.encode(value).decode(), 200)


def _time(seconds: float) -> str:
    try:
        moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    except (ValueError, OverflowError, OSError):
        return f"{seconds} (not a valid time)"
    away = seconds - time.time()
    distance = f"in {_span(away)}" if away > 0 else f"{_span(-away)} ago"
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC, {distance}"


def _span(seconds: float) -> str:
    """A duration in its two largest units."""
    left, words = round(seconds), list[str]()
    for unit, name in ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        if left >= unit or (unit == 1 and not words):
            count, left = divmod(left, unit)
            words.append(f"{count} {name}")
        if len(words) == 2:
            break
    return " ".join(words)
