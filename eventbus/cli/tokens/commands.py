"""`eventbus token`: tokens for development and tests; in production your own service signs them."""

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


app = typer.Typer(
    help="Issue tokens for development, and see what is in one.", no_args_is_help=True
)


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
    """A signed token with the claims that an edge reads (docs: the wire protocol's "Token")."""
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
    user_id: Annotated[str, typer.Argument(help="Who the token is for: its `sub`.")],
    secret: Annotated[
        str,
        typer.Option(
            envvar="JWT_SECRET",
            show_default=False,
            help="The secret to sign with; ps does not show the environment's.",
        ),
    ] = "",
    dev: Annotated[
        bool,
        typer.Option(
            "--dev-secret",
            help=f"Sign with the secret of `eventbus dev` in this folder ({DEV_SECRET}).",
        ),
    ] = False,
    name: Annotated[str, typer.Option(help="A name, shown to presence members.")] = "",
    role: Annotated[list[str] | None, typer.Option(help="A role; may be repeated.")] = None,
    permission: Annotated[list[str] | None, typer.Option(help="A permission; repeatable.")] = None,
    channel: Annotated[
        list[str] | None, typer.Option(help="A channel or pattern to grant; repeatable.")
    ] = None,
    lifetime: Annotated[int, typer.Option(min=1, help="Seconds until it expires.")] = 3600,
) -> None:
    """Print a token signed by HS256.

    Example: JWT_SECRET=… eventbus token issue alice --role admin --channel 'orders.*'
    """
    if dev:
        secret = dev_secret()
    elif not secret:
        fail(
            "JWT_SECRET is not set: set it to the secret of your edges, or give --dev-secret for a "
            "token that only `eventbus dev` in this folder accepts",
            code=2,
        )
    if len(secret.encode()) < 32:
        fail("JWT_SECRET: 32 bytes or more are needed to sign with HS256 (RFC 7518, 3.2)", code=2)
    if not user_id:
        fail("the user's id is empty: an edge needs one", code=2)
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
