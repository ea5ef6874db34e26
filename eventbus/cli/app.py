"""The command `eventbus`, assembled from its groups of commands."""

import importlib.metadata
import inspect
from typing import Annotated, Any, Final

import typer
import typer.core

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

_VALIDATION_PREFIX: Final = "Value error, "


class _Root(typer.core.TyperGroup):
    """Removes the validation library's prefix from error messages about arguments."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except typer.BadParameter as exc:
            exc.message = exc.message.removeprefix(_VALIDATION_PREFIX)
            raise


app = typer.Typer(
    name="eventbus",
    cls=_Root,
    help="Typed real-time event broadcasting on NATS.",
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
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    pass


def _unwrap_help(group: typer.Typer) -> None:
    """Join the lines of each paragraph of help, so that it wraps at the terminal's width."""
    for command in group.registered_commands:
        text = inspect.cleandoc(command.help or inspect.getdoc(command.callback) or "")
        paragraphs = (" ".join(paragraph.split()) for paragraph in text.split("\n\n"))
        command.help = "\n\n".join(paragraphs)
    for each in group.registered_groups:
        if each.typer_instance is not None:
            _unwrap_help(each.typer_instance)


_unwrap_help(app)


def main() -> None:
    """The entry point of the command line."""
    app()
