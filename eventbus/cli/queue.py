"""`eventbus queue`: runs a worker, and manages queues and failed jobs."""

import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Annotated, Any, Final, NamedTuple, TypeVar

import typer

from eventbus.cli.completion import complete_failed_jobs, complete_queues
from eventbus.cli.durations import duration
from eventbus.cli.output import Json, counted, fail, one_line, print_table, say, write_json
from eventbus.cli.running import (
    Apps,
    load_application,
    on_interrupt,
    opened_bus,
    run as run_command,
)
from eventbus.drivers import QueueStore, check_name
from eventbus.errors import ConfigError
from eventbus.log_lines import LineFormatter
from eventbus.queue import FailedJob, Worker, failed_jobs

__all__ = ["app"]

app = typer.Typer(help="Run workers, and manage queues and failed jobs.", no_args_is_help=True)

T = TypeVar("T")
Connection = Annotated[
    str | None,
    typer.Option(help="The driver whose queues to use. Default: BROADCAST_DRIVER."),
]
_MAX_FAILED: Final = 10_000
_LEAST_PREFIX: Final = 4
_SHOWN: Final = 5
Ids = Annotated[
    list[str] | None,
    typer.Argument(
        help="Ids of failed jobs, or the first characters of ids: at least 4, and enough to be "
        "unique.",
        show_default=False,
        autocompletion=complete_failed_jobs,
    ),
]


@app.command("work", rich_help_panel="Work")
def work(
    application: Apps = None,
    queue: Annotated[
        str,
        typer.Option(
            help="Queues by priority, the highest first, separated by commas.",
            autocompletion=complete_queues,
        ),
    ] = "default",
    concurrency: Annotated[int, typer.Option(min=1, help="How many jobs run at once.")] = 16,
    grace: Annotated[
        str, typer.Option(help="How long running jobs get to finish on shutdown.")
    ] = "30s",
    max_jobs: Annotated[int | None, typer.Option(min=1, help="Stop after this many jobs.")] = None,
    max_time: Annotated[str | None, typer.Option(help="Stop after this time, such as 1h.")] = None,
    connection: Connection = None,
) -> None:
    """Run the listeners of queued events until SIGTERM or SIGINT.

    The first signal waits for running jobs, at most for --grace; a second one stops at once.
    Settings come from the environment.

    Example: eventbus queue work --app shop.events --queue high_priority,default --concurrency 16
    """
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    load_application(application)
    queues = [name for name in (part.strip() for part in queue.split(",")) if name]
    _check_connection(connection)
    grace_s = duration(grace, "--grace", zero=True)
    max_time_s = None if max_time is None else duration(max_time, "--max-time", zero=True)

    async def run() -> None:
        async with opened_bus(connection, is_service=True) as bus:
            try:
                worker = Worker(
                    bus,
                    queues=queues,
                    concurrency=concurrency,
                    connection=connection,
                    grace=grace_s,
                    max_jobs=max_jobs,
                    max_time=max_time_s,
                )
            except ValueError as exc:
                fail(f"--queue: {exc}", code=2)
            with on_interrupt(_stopping(worker.stop)):
                await worker.run()

    run_command(run())


@app.command("stats", rich_help_panel="Work")
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
        whole=("queue",),
    )
    say(f"failed: {failed}")


@app.command("failed", rich_help_panel="Failed jobs")
def failed(
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="The maximum number.")] = 100,
    json: Json = False,
    connection: Connection = None,
) -> None:
    """List the failed jobs, oldest first. With --json, also show the tracebacks.

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
        ("id", "event", "error", "queue", "attempts", "failed at"),
        [
            [
                job.id,
                job.event or "?",
                one_line(f"{job.error}: {job.message}"),
                job.queue,
                job.attempts,
                job.failed_at.strftime("%Y-%m-%d %H:%M:%SZ"),
            ]
            for job in jobs
        ],
        empty="no failed jobs",
        right=("attempts", "failed at"),
        whole=("id", "queue"),
    )


@app.command("retry", rich_help_panel="Failed jobs")
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

    async def again() -> _Result:
        async with _store(connection) as store:
            job_ids = ids or [failure.id for failure in await store.failures(_MAX_FAILED)]
            return await _each(store, store.retry, job_ids)

    _report("retried", run_command(again()), json=json)


@app.command("forget", rich_help_panel="Failed jobs")
def forget(ids: Ids = None, json: Json = False, connection: Connection = None) -> None:
    """Delete failed jobs.

    Example: eventbus queue forget 01a209d5-bb7d-74f2-a426-e7fa10d2806d
    """
    _require_ids(ids, every=False, otherwise="delete all of them with `eventbus queue flush`")

    async def drop() -> _Result:
        async with _store(connection) as store:
            return await _each(store, store.forget, ids or [])

    _report("forgotten", run_command(drop()), json=json)


@app.command("flush", rich_help_panel="Failed jobs")
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
        say(f"deleted {counted(count, 'failed job')}")


def _check_connection(name: str | None) -> None:
    if name is not None:
        try:
            check_name(name, "--connection")
        except ConfigError as exc:
            fail(str(exc), code=2)


@contextlib.asynccontextmanager
async def _store(connection: str | None) -> AsyncIterator[QueueStore]:
    _check_connection(connection)
    async with opened_bus(connection) as bus:
        yield await bus.queues(connection)


def _stopping(stop: Callable[..., None]) -> Callable[[], None]:
    """A signal handler: the first signal stops gracefully, the second one at once."""
    is_stopping = False

    def on_signal() -> None:
        nonlocal is_stopping
        stop(at_once=is_stopping)
        is_stopping = True

    return on_signal


class _Result(NamedTuple):
    """What was done with which ids."""

    done: list[str]
    unknown: list[str]
    ambiguous: dict[str, list[str]]
    """Prefixes, and the ids that begin with them."""


async def _each(
    store: QueueStore, call: Callable[[str], Coroutine[Any, Any, bool]], ids: Sequence[str]
) -> _Result:
    """Call once per id, which can be a unique prefix of one."""
    result = _Result([], [], {})
    for given in dict.fromkeys(ids):
        if await call(given):
            result.done.append(given)
            continue
        matches = []
        if len(given) >= _LEAST_PREFIX:
            failures = await store.failures(_MAX_FAILED)
            matches = [each.id for each in failures if each.id.startswith(given)]
        if len(matches) > 1:
            result.ambiguous[given] = matches
        elif matches and await call(matches[0]):
            result.done.append(matches[0])
        else:
            result.unknown.append(given)
    return result


def _require_ids(ids: list[str] | None, *, every: bool, otherwise: str) -> None:
    if bool(ids) == every:
        fail(f"give the ids of failed jobs (see `eventbus queue failed`), or {otherwise}", code=2)


def _report(what: str, result: _Result, *, json: bool) -> None:
    if json:
        write_json({what: result.done, "unknown": result.unknown, "ambiguous": result.ambiguous})
    else:
        for job_id in result.done:
            say(f"{what} {job_id}")
    faults = [
        f"{given} is the start of {len(ids)} ids: {', '.join(ids[:_SHOWN])}"
        f"{' …' if len(ids) > _SHOWN else ''}"
        for given, ids in result.ambiguous.items()
    ]
    if result.unknown:
        faults.append(f"no such failed job: {', '.join(result.unknown)}")
    if faults:
        fail("; ".join(faults))
