"""`eventbus token`: tokens for development and tests. In production, your service signs them."""

import time
import uuid
from typing import (
    Annotated,
    Any,
)

import jwt
import typer

from eventbus.channels import Pattern
from eventbus.cli.dev.secret import (
    DEV_SECRET,
    dev_secret,
)
from eventbus.cli.output import fail
from eventbus.cli.tokens.inspect import inspect
from eventbus.errors import InvalidPattern

__all__ = ["app", "issue_token"]


app = typer.Typer(help="Issue tokens for development, and inspect tokens.", no_args_is_help=True)


def issue_token(
    secret: str,
    user_id: str,
    *,
    lifetime_s: int = 3600,
    name: str | None = None,
    roles: list[str] | None = None,
    permissions: list[str] | None = None,
    channels: list[str] | None = None,
    audience: str = "websocket",
    algorithm: str = "HS256",
) -> str:
    """Return a signed token with the claims that an edge reads (docs/wire-protocol.md, "Token")."""
    now = int(time.time())
    claims: dict[str, Any] = {
        "sub": user_id,
        "aud": audience,
        "iat": now,
        "exp": now + lifetime_s,
        "jti": str(uuid.uuid4()),
    }
    given = {"name": name, "roles": roles, "permissions": permissions, "channels": channels}
    claims |= {claim: value for claim, value in given.items() if value}
    return jwt.encode(claims, secret, algorithm=algorithm)


@app.command("issue")
def issue(
    user_id: Annotated[str, typer.Argument(help="The user's id: the claim `sub`.")],
    secret: Annotated[
        str,
        typer.Option(
            envvar="JWT_SECRET",
            show_default=False,
            help="The secret to sign with. Prefer the variable: ps shows options.",
        ),
    ] = "",
    dev: Annotated[
        bool,
        typer.Option(
            "--dev-secret",
            help=f"Sign with the secret of `eventbus dev` in this folder ({DEV_SECRET}).",
        ),
    ] = False,
    name: Annotated[str, typer.Option(help="The name that presence members see.")] = "",
    role: Annotated[list[str] | None, typer.Option(help="A role. Repeatable.")] = None,
    permission: Annotated[list[str] | None, typer.Option(help="A permission. Repeatable.")] = None,
    channel: Annotated[
        list[str] | None, typer.Option(help="A channel or pattern to grant. Repeatable.")
    ] = None,
    lifetime: Annotated[int, typer.Option(min=1, help="Seconds until the token expires.")] = 3600,
) -> None:
    """Print a token, signed with HS256.

    Example: JWT_SECRET=… eventbus token issue alice --role admin --channel 'orders.*'
    """
    if dev:
        secret = dev_secret()
    elif not secret:
        fail(
            "JWT_SECRET is not set: set it to the secret of your edges, or use --dev-secret for a "
            "token that only `eventbus dev` in this folder accepts",
            code=2,
        )
    if len(secret.encode()) < 32:
        fail("JWT_SECRET is too short: HS256 needs at least 32 bytes (RFC 7518, 3.2)", code=2)
    if not user_id:
        fail("the user's id is empty", code=2)
    for pattern in channel or ():
        try:
            Pattern(pattern)
        except InvalidPattern as exc:
            fail(f"--channel: {exc}", code=2)
    token = issue_token(
        secret,
        user_id,
        lifetime_s=lifetime,
        name=name,
        roles=role,
        permissions=permission,
        channels=channel,
    )
    typer.echo(token)


app.command("inspect")(inspect)
