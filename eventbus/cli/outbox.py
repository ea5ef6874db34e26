"""`eventbus outbox`: runs the relay of an outbox, and manages rows that could not be published."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Annotated, Any, Final, Literal

import typer

from eventbus.bus import EventBus
from eventbus.cli.output import Json, counted, fail, one_line, print_table, span, write_json
from eventbus.cli.running import attached, on_interrupt, run as run_command
from eventbus.config import Settings
from eventbus.log_lines import LineFormatter
from eventbus.outbox import TABLE, Relay, SetAside
from eventbus.outbox.metrics import RelayMetrics

try:
    from sqlalchemy.exc import SQLAlchemyError

    from eventbus.outbox.database import DatabaseOutbox, engine_of
    from eventbus.outbox.table import create, new_table
except ModuleNotFoundError as exc:
    fail(f"{exc.name} is not installed: pip install 'eventbus[sqlalchemy]'")

__all__ = ["app"]

app = typer.Typer(
    help="Publish the events of an outbox, and manage its rows.", no_args_is_help=True
)

_REFRESH_S: Final = 5.0
"""How often the metrics of the database are read."""
Database = Annotated[
    str,
    typer.Option(
        "--database-url",
        envvar="DATABASE_URL",
        show_envvar=True,
        help="The application's database, PostgreSQL or SQLite. Prefer the environment "
        "variable: `ps` shows options.",
    ),
]
Ids = Annotated[list[int] | None, typer.Argument(help="Ids of rows.", show_default=False)]
Everything = Annotated[bool, typer.Option("--all", help="All rows that were set aside.")]


@app.command("setup")
def setup(database_url: Database) -> None:
    """Create the table and its trigger, for applications without migrations.

    Example: DATABASE_URL=postgresql://… eventbus outbox setup
    """

    async def make() -> bool:
        async with _opened(database_url) as (_, engine):
            return await create(engine)

    is_new = run_command(make())
    typer.echo("created eventbus_outbox" if is_new else "eventbus_outbox exists already")


@app.command("relay")
def relay(
    database_url: Database,
    metrics_port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Serve metrics for Prometheus on this port."),
    ] = None,
    metrics_address: Annotated[str, typer.Option(help="The address of the metrics.")] = "127.0.0.1",
) -> None:
    """Publish the rows of an outbox until SIGTERM or SIGINT.

    Several relays may run: one is active, and another one takes over within 5 seconds when it dies.

    Example: DATABASE_URL=postgresql://… eventbus outbox relay --metrics-port 9109
    """
    run_relay(database_url, metrics_port, metrics_address)


def run_relay(
    database_url: str,
    metrics_port: int | None,
    metrics_address: str,
    settings: Settings | None = None,
) -> None:
    """Run a relay until SIGTERM or SIGINT, with logs on stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    metrics = RelayMetrics()
    if metrics_port is not None:
        try:
            metrics.serve(metrics_port, metrics_address)
        except OSError as exc:
            fail(f"--metrics-port: {metrics_address}:{metrics_port} cannot be used: {exc}")

    async def serve() -> None:
        async with (
            _opened(database_url) as (store, _),
            EventBus(attached(settings or Settings.from_env())) as bus,
        ):
            relay = Relay(store, bus, on_published=metrics.published.inc)
            async with asyncio.TaskGroup() as tasks:
                running = [tasks.create_task(relay.run())]
                if metrics_port is not None:
                    running.append(tasks.create_task(_measure(store, relay, metrics)))

                def stop() -> None:
                    for task in running:
                        task.cancel()

                with on_interrupt(stop):
                    await asyncio.wait(running)

    run_command(serve())


async def _measure(store: DatabaseOutbox, relay: Relay, metrics: RelayMetrics) -> None:
    while True:
        try:
            metrics.show(await store.stats(), is_active=relay.is_active)
        except Exception as exc:  # noqa: BLE001 - the relay itself reports what lasts
            logging.getLogger(__name__).debug("the outbox cannot be measured: %s", exc)
        await asyncio.sleep(_REFRESH_S)


@app.command("list")
def list_(
    database_url: Database,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="The maximum number.")] = 100,
    json: Json = False,
) -> None:
    """Show how many rows wait, and list those that could not be published.

    Example: DATABASE_URL=postgresql://… eventbus outbox list
    """

    async def ask() -> tuple[Any, list[SetAside]]:
        async with _opened(database_url) as (store, _):
            return await store.stats(), list(await store.failures(limit))

    stats, failures = run_command(ask())
    if json:
        write_json({"stats": stats, "set_aside": failures})
        return
    typer.echo(
        f"waiting: {counted(stats.waiting, 'row')}, the oldest for {span(stats.lag_s)}"
        if stats.waiting
        else "waiting: no rows"
    )
    print_table(
        ("id", "channel", "event", "created at", "error"),
        [
            [
                str(row.id),
                one_line(row.channel),
                one_line(row.event),
                f"{row.created_at:%Y-%m-%d %H:%M:%S}",
                one_line(row.error),
            ]
            for row in failures
        ],
        empty="no row was set aside",
    )


@app.command("retry")
def retry(database_url: Database, ids: Ids = None, everything: Everything = False) -> None:
    """Publish rows that were set aside, for instance after permissions were fixed.

    Example: eventbus outbox retry 1042
    """
    done = _change("retry", database_url, ids, everything)
    typer.echo(f"to be published again: {counted(done, 'row')}")


@app.command("forget")
def forget(database_url: Database, ids: Ids = None, everything: Everything = False) -> None:
    """Delete rows that were set aside. They will not be published.

    Example: eventbus outbox forget 1042
    """
    done = _change("forget", database_url, ids, everything)
    typer.echo(f"deleted: {counted(done, 'row')}")


def _change(
    what: Literal["retry", "forget"], database_url: str, ids: list[int] | None, everything: bool
) -> int:
    if bool(ids) == everything:
        fail("give the ids of rows, or --all", code=2)

    async def change() -> int:
        async with _opened(database_url) as (store, _):
            chosen = ids or [row.id for row in await store.failures(10_000)]
            return int(await getattr(store, what)(chosen))

    done = run_command(change())
    if ids and done < len(set(ids)):
        fail(f"{len(set(ids)) - done} of these ids are not rows that were set aside", code=1)
    return done


@contextlib.asynccontextmanager
async def _opened(database_url: str) -> AsyncIterator[tuple[DatabaseOutbox, Any]]:
    engine = engine_of(database_url)
    try:
        yield DatabaseOutbox(engine, new_table()), engine
    except SQLAlchemyError as exc:
        cause = one_line(str(getattr(exc, "orig", None) or exc), 300)
        hint = "; `eventbus outbox setup` creates the table" if TABLE in cause else ""
        fail(f"the database refused: {cause}{hint}")
    finally:
        await engine.dispose()
