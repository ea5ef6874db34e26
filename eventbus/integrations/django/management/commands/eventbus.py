"""`manage.py eventbus …`: every command of eventbus, with the settings of Django."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DEFAULT_DB_ALIAS, connections

from eventbus.cli.app import app
from eventbus.environment import set_environment
from eventbus.integrations.django.conf import environment

__all__ = ["Command"]

_VENDORS: Final = ("postgresql", "sqlite")


class Command(BaseCommand):
    """Passes its arguments on."""

    help = "Run a command of eventbus with the settings of EVENTBUS: manage.py eventbus doctor"

    def add_arguments(self, parser: CommandParser) -> None:
        """Called by Django for `call_command`."""
        parser.add_argument("args", nargs="*")

    def run_from_argv(self, argv: Sequence[str]) -> None:
        """Called by Django: nothing but eventbus reads the arguments."""
        set_environment(_environment())
        app(list(argv[2:]), prog_name="manage.py eventbus")

    def handle(self, *args: Any, **_options: Any) -> None:
        """Called by `call_command`."""
        set_environment(_environment())
        arguments = [str(arg) for arg in args]
        if code := app(arguments, prog_name="manage.py eventbus", standalone_mode=False):
            raise CommandError(f"eventbus {' '.join(arguments)} failed", returncode=code)


def _environment() -> Mapping[str, str]:
    """The settings, and the default database for the commands that look at the outbox."""
    given = environment()
    if connections[DEFAULT_DB_ALIAS].vendor not in _VENDORS:
        return given
    try:
        from eventbus.integrations.django.management.commands.eventbus_relay import (  # noqa: PLC0415
            database_url,
        )
    except ModuleNotFoundError:  # SQLAlchemy, and so the outbox is not used
        return given
    return {**given, "DATABASE_URL": database_url()}
