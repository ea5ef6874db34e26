"""`eventbus token`: tokens for development and tests. In production, your service signs them."""

from typing import Annotated

import typer

from eventbus.cli.completion import complete_channels
from eventbus.cli.dev.secret import (
    DEV_SECRET,
    dev_secret,
)
from eventbus.cli.durations import duration
from eventbus.cli.output import fail, say
from eventbus.cli.secret_options import secret_of_option
from eventbus.cli.tokens.inspect import inspect
from eventbus.errors import EventBusError, InvalidPattern
from eventbus.tokens import issue_token

__all__ = ["app"]


app = typer.Typer(help="Issue tokens for development, and inspect tokens.", no_args_is_help=True)


@app.command("issue")
def issue(
    user_id: Annotated[str, typer.Argument(help="The user's id: the claim `sub`.")],
    secret: Annotated[
        str,
        typer.Option(
            envvar="JWT_SECRET",
            callback=secret_of_option,
            show_default=False,
            help="The secret to sign with. Prefer the environment variable: `ps` shows options.",
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
        list[str] | None,
        typer.Option(
            help="A channel or pattern to grant. Repeatable.", autocompletion=complete_channels
        ),
    ] = None,
    lifetime: Annotated[
        str, typer.Option(help="How long the token is valid, such as 15m or 24h.")
    ] = "1h",
) -> None:
    """Print a token, signed with HS256.

    Example: JWT_SECRET=… eventbus token issue alice --role admin --channel 'orders.*'
    """
    if dev:
        secret = dev_secret()
    elif not secret:
        fail(
            "JWT_SECRET is not set: set it to the secret of your edges, or JWT_SECRET_FILE to the "
            "path of a file with it, or use --dev-secret for a token that only `eventbus dev` in "
            "this folder accepts",
            code=2,
        )
    seconds = duration(lifetime, "--lifetime", least=1)
    try:
        token = issue_token(
            user_id,
            secret=secret,
            lifetime=seconds,
            name=name or None,
            roles=role or (),
            permissions=permission or (),
            channels=channel or (),
        )
    except InvalidPattern as exc:
        fail(f"--channel: {exc}", code=2)
    except (EventBusError, ValueError) as exc:
        fail(str(exc), code=2)
    say(token)


app.command("inspect")(inspect)
