"""`manage.py eventbus_relay`: publishes the rows of the outbox."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from django.core.management.base import BaseCommand, CommandParser
from django.db import DEFAULT_DB_ALIAS, connections

from eventbus.cli.outbox import run_relay
from eventbus.integrations.django.conf import bus_settings

__all__ = ["Command", "database_url"]


class Command(BaseCommand):
    """Runs the relay until SIGTERM or SIGINT."""

    help = "Publish the events of the outbox. Several relays may run: one is active."

    def add_arguments(self, parser: CommandParser) -> None:
        """Called by Django."""
        parser.add_argument("--database", default=DEFAULT_DB_ALIAS, choices=tuple(connections))
        parser.add_argument("--metrics-port", type=int, help="serve metrics for Prometheus there")
        parser.add_argument("--metrics-address", default="127.0.0.1")

    def handle(self, *_args: Any, **options: Any) -> None:
        """Called by Django."""
        run_relay(
            database_url(options["database"]),
            options["metrics_port"],
            options["metrics_address"],
            bus_settings(),
        )


_NOT_LIBPQ: Final = {
    "assume_role", "client_encoding", "cursor_factory", "isolation_level", "pool",
    "server_side_binding",
}  # fmt: skip
"""OPTIONS that are Django's own, or psycopg's; all others are libpq's, such as sslmode."""


def database_url(alias: str = DEFAULT_DB_ALIAS) -> str:
    """The database of Django as a URL of SQLAlchemy."""
    given = connections[alias].settings_dict
    if connections[alias].vendor == "sqlite":
        return sa.URL.create("sqlite", database=str(given["NAME"])).render_as_string(
            hide_password=False
        )
    host, is_socket = given["HOST"] or None, str(given["HOST"]).startswith("/")
    return sa.URL.create(
        "postgresql" if connections[alias].vendor == "postgresql" else connections[alias].vendor,
        username=given["USER"] or None,
        password=given["PASSWORD"] or None,
        host=None if is_socket else host,
        port=int(given["PORT"]) if given["PORT"] else None,
        database=given["NAME"],
        query=({"host": host} if is_socket and host else {}) | _options(given.get("OPTIONS", {})),
    ).render_as_string(hide_password=False)


def _options(options: Mapping[str, Any]) -> dict[str, str]:
    return {
        name: str(value)
        for name, value in options.items()
        if name not in _NOT_LIBPQ and isinstance(value, str | int | Path)
    }
