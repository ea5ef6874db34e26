"""The command `eventbus`: joins the groups of commands, one module each."""

import importlib.metadata
from typing import Annotated

import typer

from eventbus.cli import (
    edge as nodes,
    queue,
    setup,
)
from eventbus.cli.broadcast import commands as broadcast
from eventbus.cli.dev import command as dev
from eventbus.cli.doctor import command as doctor
from eventbus.cli.schema import commands as schema
from eventbus.cli.subjects import commands as subjects
from eventbus.cli.tokens import (
    commands as tokens,
    revoke,
)

__all__ = ["app", "main"]

app = typer.Typer(
    name="eventbus",
    help="Typed, real-time event broadcasting, with NATS at its centre.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(broadcast.app, name="broadcast")
app.add_typer(nodes.app, name="edge")
app.add_typer(queue.app, name="queue")
app.add_typer(schema.app, name="schema")
app.add_typer(subjects.app, name="subjects")
app.add_typer(tokens.app, name="token")
app.command("revoke")(revoke.revoke)
app.command("dev")(dev.dev)
app.command("doctor")(doctor.doctor)
app.command("setup")(setup.setup)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"eventbus {importlib.metadata.version('eventbus')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show it.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """The entry point of the command line."""
    app()
