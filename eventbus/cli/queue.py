"""`eventbus queue`: runs a worker, and manages queues and failed jobs."""

import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Annotated, Any, TypeVar

import typer

from eventbus.cli.output import Json, counted, fail, one_line, print_table, write_json
from eventbus.cli.running import (
    Apps,
    load_application,
    on_interrupt,
    opened_bus,
    run as run_command,
)
from eventbus.drivers.queues import QueueStore
from eventbus.drivers.registry import check_name
from eventbus.errors import ConfigError
from eventbus.queue import FailedJob, Worker, failed_jobs

__all__ = ["app"]

app = typer.Typer(help="Run workers, and manage queues and failed jobs.", no_args_is_help=True)

T = TypeVar("T")
Connection = Annotated[
    str | None,
    typer.Option(help="The driver whose queues to use. Default: BROADCAST_DRIVER."),
]
Ids = Annotated[list[str] | None, typer.Argument(help="Ids of failed jobs.", show_default=False)]


@app.command("work")
def work(
    application: Apps = None,
    queue: Annotated[
        str, typer.Option(help="Queues by priority, the highest first, separated by commas.")
    ] = "default",
    concurrency: Annotated[int, typer.Option(min=1, help="How many jobs run at once.")] = 16,
    grace: Annotated[
        float, typer.Option(min=0, help="Seconds that running jobs get to finish on shutdown.")
    ] = 30.0,
    max_jobs: Annotated[int | None, typer.Option(min=1, help="Stop after this many jobs.")] = None,
    max_time: Annotated[
        float | None, typer.Option(min=0, help="Stop after this many seconds.")
    ] = None,
    connection: Connection = None,
) -> None:
    """Run the listeners of queued events until SIGTERM or SIGINT.

    The first signal waits for running jobs, at most for --grace; a second one stops at once.
    Settings come from the environment.

    Example: eventbus queue work --app shop.events --queue high_priority,default --concurrency 16
    """
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s"
    )
    load_application(application)
    queues = [name for name in (part.strip() for part in queue.split(",")) if name]
    _check_connection(connection)

    async def run() -> None:
        async with opened_bus() as bus:
            try:
                worker = Worker(
                    bus,
                    queues=queues,
                    concurrency=concurrency,
                    connection=connection,
                    grace=grace,
                    max_jobs=max_jobs,
                    max_time=max_time,
                )
            except ValueError as exc:
                fail(f"--queue: {exc}", code=2)
            with on_interrupt(_stopping(worker.stop)):
                await worker.run()

    run_command(run())


@app.command("stats")
def stats(json: Json = False, connection: Connection = None) -> None:
    """Show how many jobs each queue has, and how many have failed.

    Example: eventbus queue stats --json
    """

    async def ask() -> tuple[list[dict[str, Any]], int]:
        async with _store(connection) as store:
            rows = [each._asdict() for each in await store.stats()]
            return rows, await store.failure_count()

    rows, failed = run_command(ask())
    if json:
        write_json({"queues": rows, "failed": failed})
        return
    columns = ("queue", "ready", "taken", "delayed")
    print_table(
        columns,
        [[row[column] for column in columns] for row in rows],
        empty="no queue has jobs",
        right=columns[1:],
    )
    typer.echo(f"failed: {failed}")


@app.command("failed")
def failed(
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="The maximum number.")] = 100,
    json: Json = False,
    connection: Connection = None,
) -> None:
    """List the failed jobs, oldest first. With --json, the tracebacks too.

    Example: eventbus queue failed --limit 20
    """

    async def ask() -> list[FailedJob]:
        async with _store(connection) as store:
            return await failed_jobs(store, limit)

    jobs = run_command(ask())
    if json:
        write_json(jobs)
        return
    print_table(
        ("id", "queue", "event", "attempts", "failed at", "error"),
        [
            [
                job.id,
                job.queue,
                job.event or "?",
                str(job.attempts),
                job.failed_at.strftime("%Y-%m-%d %H:%M:%SZ"),
                one_line(f"{job.error}: {job.message}"),
            ]
            for job in jobs
        ],
        empty="no failed jobs",
    )


@app.command("retry")
def retry(
    ids: Ids = None,
    every: Annotated[bool, typer.Option("--all", help="Retry all failed jobs.")] = False,
    json: Json = False,
    connection: Connection = None,
) -> None:
    """Queue failed jobs again, with a new set of attempts.

    Example: eventbus queue retry 01a209d5-bb7d-74f2-a426-e7fa10d2806d
    """
    _require_ids(ids, every=every, otherwise="give --all")

    async def again() -> tuple[list[str], list[str]]:
        async with _store(connection) as store:
            wanted = ids or [failure.id for failure in await store.failures(10_000)]
            return await _each(store.retry, wanted)

    _report("retried", *run_command(again()), json=json)


@app.command("forget")
def forget(ids: Ids = None, json: Json = False, connection: Connection = None) -> None:
    """Delete failed jobs.

    Example: eventbus queue forget 01a209d5-bb7d-74f2-a426-e7fa10d2806d
    """
    _require_ids(ids, every=False, otherwise="delete all of them with `eventbus queue flush`")

    async def drop() -> tuple[list[str], list[str]]:
        async with _store(connection) as store:
            return await _each(store.forget, ids or [])

    _report("forgotten", *run_command(drop()), json=json)


@app.command("flush")
def flush(
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    json: Json = False,
    connection: Connection = None,
) -> None:
    """Delete all failed jobs.

    Example: eventbus queue flush --yes
    """
    if not yes:
        typer.confirm("Delete all failed jobs?", abort=True)

    async def drop() -> int:
        async with _store(connection) as store:
            return await store.flush()

    count = run_command(drop())
    if json:
        write_json({"flushed": count})
    else:
        typer.echo(f"deleted {counted(count, 'failed job')}")


def _check_connection(name: str | None) -> None:
    if name is not None:
        try:
            check_name(name, "--connection")
        except ConfigError as exc:
            fail(str(exc), code=2)


@contextlib.asynccontextmanager
async def _store(connection: str | None) -> AsyncIterator[QueueStore]:
    _check_connection(connection)
    async with opened_bus() as bus:
        yield await bus.queues(connection)


def _stopping(stop: Callable[..., None]) -> Callable[[], None]:
    """A signal handler: the first signal stops gracefully, the second one at once."""
    is_stopping = False

    def on_signal() -> None:
        nonlocal is_stopping
        stop(at_once=is_stopping)
        is_stopping = True

    return on_signal


async def _each(
    call: Callable[[str], Coroutine[Any, Any, bool]], ids: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Call once per id. Returns the ids with the result True, and the others."""
    done: list[str] = []
    unknown: list[str] = []
    for job_id in dict.fromkeys(ids):
        (done if await call(job_id) else unknown).append(job_id)
    return done, unknown


def _require_ids(ids: list[str] | None, *, every: bool, otherwise: str) -> None:
    if bool(ids) == every:
        fail(f"give the ids of failed jobs (see `eventbus queue failed`), or {otherwise}", code=2)


def _report(what: str, done: list[str], unknown: list[str], *, json: bool) -> None:
    if json:
        write_json({what: done, "unknown": unknown})
    else:
        for job_id in done:
            typer.echo(f"{what} {job_id}")
    if unknown:
        fail(f"no such failed job: {', '.join(unknown)}")
