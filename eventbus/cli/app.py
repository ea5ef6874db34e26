"""The command `eventbus`, assembled from its commands and groups of commands.

Only the command that runs is imported: `eventbus --help` and shell completion stay quick.
"""

import importlib
import inspect
from typing import Annotated, Any, Final, NamedTuple

import typer
import typer.core
import typer.main

from eventbus.cli.terminal import safe_output

__all__ = ["all_commands", "app", "main"]

_VALIDATION_PREFIX: Final = "Value error, "


class _Entry(NamedTuple):
    """A command or group, which is imported when it is used."""

    panel: str
    module: str
    """The module, in which a group is `app` and a command has the name of its function."""
    function: str
    help: str


_DEVELOP: Final = "Develop"
_MESSAGES: Final = "Messages"
_OPERATE: Final = "Operate"
_ENTRIES: Final = {  # in the order of use
    "dev": _Entry(
        _DEVELOP, "dev.command", "dev",
        "Run a nats-server and an edge for development, and restart the edge when files change.",
    ),
    "init": _Entry(
        _DEVELOP, "init", "init", "Write a small application of FastAPI, Django or Flask."
    ),
    "schema": _Entry(
        _DEVELOP, "schema.commands", "", "Create, show, export and check the contracts of events."
    ),
    "token": _Entry(
        _DEVELOP, "tokens.commands", "", "Issue tokens for development, and inspect tokens."
    ),
    "doctor": _Entry(
        _DEVELOP, "doctor.command", "doctor",
        "Check settings, brokers, streams, clock, keys, port and limits, and suggest fixes.",
    ),
    "broadcast": _Entry(
        _MESSAGES, "broadcast.commands", "", "Publish messages, and show the nodes of the cluster."
    ),
    "subjects": _Entry(
        _MESSAGES, "subjects.commands", "", "Inspect channels, and manage stored messages."
    ),
    "setup": _Entry(
        _OPERATE, "setup", "setup",
        "Create the streams for events, queues, failed jobs and the state of edge nodes.",
    ),
    "edge": _Entry(_OPERATE, "edge", "", "Run edge nodes."),
    "queue": _Entry(_OPERATE, "queue", "", "Run workers, and manage queues and failed jobs."),
    "outbox": _Entry(
        _OPERATE, "outbox", "", "Publish the events of an outbox, and manage its rows."
    ),
    "revoke": _Entry(
        _OPERATE, "tokens.revoke", "revoke",
        "Revoke the access of a user, a token or a channel on all nodes, or close a connection.",
    ),
    "chaos": _Entry(
        _OPERATE, "chaos.command", "chaos",
        "Check that a running cluster loses no message while connections break and edges drain.",
    ),
}  # fmt: skip


class _Command(typer.core.TyperCommand):
    def get_params(self, ctx: Any) -> list[Any]:
        return _without_types_of_flags(super().get_params(ctx))


class _Group(typer.core.TyperGroup):
    def get_params(self, ctx: Any) -> list[Any]:
        return _without_types_of_flags(super().get_params(ctx))


class Root(_Group):
    """The group of all commands, which imports one when it is used.

    It also removes the validation library's prefix from errors about arguments, and lets its output
    be in any encoding.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for name, entry in _ENTRIES.items():
            self.add_command(
                typer.core.TyperCommand(name, help=entry.help, rich_help_panel=entry.panel)
            )

    def main(self, *args: Any, **options: Any) -> Any:
        """Called for every entry point: `eventbus`, `manage.py eventbus` and `call_command`."""
        with safe_output():
            return super().main(*args, **options)

    def load(self, name: str) -> Any:
        """Import a command or group."""
        entry = _ENTRIES[name]
        module = importlib.import_module(f"eventbus.cli.{entry.module}")
        parent = typer.Typer(add_completion=False)
        if entry.function:
            parent.command(name)(getattr(module, entry.function))
            _prepare(parent)
        else:
            parent.add_typer(module.app, name=name, cls=_Group)
            _prepare(module.app)
        return typer.main.get_group(parent).commands[name]

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[Any, Any, list[str]]:
        """Replace the entry of the list by the command itself."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, self.load(name) if name is not None else command, rest

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except typer.BadParameter as exc:
            exc.message = exc.message.removeprefix(_VALIDATION_PREFIX)
            raise


app = typer.Typer(
    name="eventbus",
    cls=Root,
    help="Typed real-time event broadcasting on NATS.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def all_commands() -> dict[str, Any]:
    """Import all commands and groups, by name, for the reference in the docs."""
    root = typer.main.get_command(app)
    assert isinstance(root, Root)
    return {name: root.load(name) for name in _ENTRIES}


def _print_version(requested: bool) -> None:
    if requested:
        from importlib.metadata import version  # noqa: PLC0415 - slow, and rarely needed

        typer.echo(f"eventbus {version('eventbus')}")
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


def _prepare(group: typer.Typer) -> None:
    """Set the class of the group's commands, and unwrap their help."""
    for info in group.registered_commands:
        info.cls = _Command
        info.help = _unwrapped(info.help or inspect.getdoc(info.callback) or "")


def _unwrapped(help_text: str) -> str:
    """Join the lines of each paragraph of help, so that it wraps at the terminal's width."""
    paragraphs = inspect.cleandoc(help_text).split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def _without_types_of_flags(params: list[Any]) -> list[Any]:
    """Keep typer from listing `--json <bool>` for options without a value."""
    for param in params:
        if getattr(param, "is_flag", False):
            param.metavar = ""
    return params


def main() -> None:
    """The entry point of the command line."""
    app()
