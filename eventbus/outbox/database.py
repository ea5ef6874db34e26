"""The outbox in a database, as a relay and the command line use it: PostgreSQL and SQLite."""

import asyncio
import contextlib
import datetime
import time
from collections.abc import AsyncIterator, Collection, Sequence
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from eventbus.errors import ConfigError
from eventbus.outbox import OutboxStats, Row, SetAside, StoredRow
from eventbus.outbox.postgres import qualified
from eventbus.outbox.store import OutboxReader

__all__ = ["DatabaseError", "DatabaseOutbox", "engine_of"]

DatabaseError = sa.exc.SQLAlchemyError
"""What the methods of an outbox raise, and OSError when there is no database."""
TAKEOVER_S: Final = 0.5
"""How often a waiting relay looks whether the active one is gone."""
LEASE_S: Final = 4.0
"""A relay that is silent for so long has lost the lead: it is stopped, or cut off."""
BEAT_S: Final = 1.0
"""How often the active relay shows that it runs."""
_LOCK_CLASS: Final = 722_584
"""Half of the key of the advisory lock; the other half is the table, of which there is one per
schema.
"""
SQLITE_POLL_S: Final = 0.05
_LOCK: Final = f"({_LOCK_CLASS}::bigint << 32) | CAST(CAST(:name AS text) AS regclass)::bigint"
_TRY_LOCK: Final = sa.text(f"SELECT pg_try_advisory_lock({_LOCK})")
_END_SILENT: Final = sa.text(f"""
SELECT pg_terminate_backend(pid) FROM pg_locks JOIN pg_stat_activity USING (pid)
WHERE locktype = 'advisory' AND granted AND objsubid = 1 AND classid = {_LOCK_CLASS}
    AND objid = CAST(CAST(:name AS text) AS regclass)::oid AND datname = current_database()
    AND (state = 'idle' OR wait_event = 'ClientWrite')
    AND clock_timestamp() - state_change > INTERVAL '{LEASE_S} seconds'
""")  # noqa: S608 - constants
"""Ends the connection of a relay that holds the lock, but no longer runs or is cut off."""
_DRIVERS: Final = {
    "postgresql": "postgresql+psycopg",
    "postgres": "postgresql+psycopg",
    "postgresql+psycopg2": "postgresql+psycopg",
    "sqlite": "sqlite+aiosqlite",
}


def engine_of(url: str) -> AsyncEngine:
    """An engine for the URL of an application's database. Raises ConfigError."""
    try:
        parsed = sa.make_url(url)
        parsed = parsed.set(drivername=_DRIVERS.get(parsed.drivername, parsed.drivername))
        if parsed.get_backend_name() not in ("postgresql", "sqlite"):
            raise ConfigError(
                f"an outbox cannot be in {parsed.get_backend_name()!r}; allowed: postgresql, sqlite"
            )
        return create_async_engine(parsed)
    except sa.exc.ArgumentError:  # its text quotes the URL, which may have a password
        raise ConfigError(
            "that is not a database URL; allowed: postgresql://user:password@host/database, "
            "sqlite:///path"
        ) from None
    except ModuleNotFoundError as exc:
        raise ConfigError(
            f"the database's driver is not installed: pip install {exc.name}"
        ) from None
    except sa.exc.InvalidRequestError as exc:
        raise ConfigError(
            f"the database URL names a driver without async support ({exc}); allowed: "
            "postgresql+psycopg, postgresql+asyncpg, sqlite+aiosqlite"
        ) from None


class DatabaseOutbox:
    """An `OutboxStore` in a database that SQLAlchemy reaches."""

    def __init__(self, engine: AsyncEngine, table: sa.Table) -> None:
        """`engine` is for PostgreSQL (psycopg or asyncpg) or SQLite (aiosqlite)."""
        self._engine = engine
        self._table = table
        self._is_postgres = engine.dialect.name == "postgresql"
        self._name = qualified(table.name, table.schema)

    @contextlib.asynccontextmanager
    async def lead(self) -> AsyncIterator[OutboxReader]:
        """See `OutboxStore`. The lock ends with the connection, and so with the process."""
        async with self._engine.connect() as connection:
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            async with self._lock(connection):
                yield await self._reader(connection)

    @contextlib.asynccontextmanager
    async def _lock(self, connection: AsyncConnection) -> AsyncIterator[None]:
        if not self._is_postgres:
            async with _file_lock(self._engine.url.database):
                yield
            return
        while not await connection.scalar(_TRY_LOCK, {"name": self._name}):
            await connection.execute(_END_SILENT, {"name": self._name})
            await asyncio.sleep(TAKEOVER_S)
        try:
            yield
        finally:
            await connection.invalidate()  # the pool must not keep a connection with the lock

    async def _reader(self, connection: AsyncConnection) -> "_Reader":
        if not self._is_postgres:
            return _Reader(connection, self._table, self._table.c.id)
        if not await self._has_trigger(connection):
            raise ConfigError(
                f"the table {self._table.name} has no trigger {self._table.name}_commit, which "
                "numbers its rows: run the statements of "
                "eventbus.outbox.postgres.CREATE_TRIGGER in a migration"
            )
        reader = _PostgresReader(connection, self._table, self._table.c.position)
        await reader.listen()
        return reader

    async def exists(self) -> bool:
        """Whether the table exists."""
        table = self._table
        async with self._engine.connect() as connection:
            return await connection.run_sync(
                lambda sync: sa.inspect(sync).has_table(table.name, table.schema)
            )

    async def has_trigger(self) -> bool:
        """Whether the table has its trigger, which it needs on PostgreSQL only."""
        async with self._engine.connect() as connection:
            return not self._is_postgres or await self._has_trigger(connection)

    async def _has_trigger(self, connection: AsyncConnection) -> bool:
        found = await connection.scalar(
            sa.text(
                "SELECT 1 FROM pg_trigger "
                "WHERE tgname = :trigger AND tgrelid = CAST(CAST(:name AS text) AS regclass)"
            ),
            {"trigger": f"{self._table.name}_commit", "name": self._name},
        )
        return found is not None

    async def stats(self) -> OutboxStats:
        """See `OutboxStore`."""
        table = self._table
        waiting = table.c.error.is_(None)
        query = sa.select(
            sa.func.count().filter(waiting),
            sa.func.count().filter(~waiting),
            sa.func.min(table.c.created_at).filter(waiting),
            sa.func.now(),
        ).select_from(table)
        async with self._engine.connect() as connection:
            count, set_aside, oldest, now = (await connection.execute(query)).one()
        lag = 0.0 if oldest is None else (_moment(now) - _moment(oldest)).total_seconds()
        return OutboxStats(waiting=count, set_aside=set_aside, lag_s=max(lag, 0.0))

    async def failures(self, limit: int) -> Sequence[SetAside]:
        """See `OutboxStore`."""
        table = self._table
        columns = [table.c[name] for name in SetAside.__struct_fields__]
        query = sa.select(*columns).where(table.c.error.is_not(None)).order_by(table.c.id)
        async with self._engine.connect() as connection:
            found = (await connection.execute(query.limit(limit))).mappings().all()
        return [SetAside(**row) for row in found]

    async def retry(self, ids: Sequence[int]) -> int:
        """See `OutboxStore`."""
        return await self._change(sa.update(self._table).values(error=None), ids)

    async def forget(self, ids: Sequence[int]) -> int:
        """See `OutboxStore`."""
        return await self._change(sa.delete(self._table), ids)

    async def _change(self, statement: Any, ids: Sequence[int]) -> int:
        table = self._table
        chosen = statement.where(table.c.id.in_(ids), table.c.error.is_not(None))
        async with self._engine.begin() as connection:
            return int((await connection.execute(chosen)).rowcount)


class _Reader:
    """Reads rows over the connection that holds the lock: without it, nothing is read."""

    def __init__(self, connection: AsyncConnection, table: sa.Table, order: Any) -> None:
        self._connection = connection
        self._table = table
        columns = [table.c[name] for name in Row.__struct_fields__]
        self._query = (
            sa.select(table.c.id, *columns)
            .where(table.c.error.is_(None), order.is_not(None))
            .order_by(order)
        )

    async def fetch(self, limit: int, without: Collection[str] = ()) -> Sequence[StoredRow]:
        """See `OutboxReader`."""
        query = self._query.limit(limit)
        if without:
            query = query.where(self._table.c.channel.not_in(without))
        found = await self._connection.execute(query)
        return [
            StoredRow(each.id, Row(**{name: getattr(each, name) for name in Row.__struct_fields__}))
            for each in found.all()
        ]

    async def delete(self, ids: Sequence[int]) -> None:
        """See `OutboxReader`."""
        await self._connection.execute(sa.delete(self._table).where(self._table.c.id.in_(ids)))

    async def set_aside(self, id: int, error: str) -> None:  # noqa: A002
        """See `OutboxReader`."""
        statement = sa.update(self._table).where(self._table.c.id == id).values(error=error)
        await self._connection.execute(statement)

    async def wait(self, seconds: float) -> None:
        """See `OutboxReader`. SQLite does not report commits, so it is polled."""
        await asyncio.sleep(min(seconds, SQLITE_POLL_S))

    @contextlib.asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """See `OutboxReader`. The lock on the file lasts as long as the process."""
        yield

    def leads(self) -> bool:
        """See `OutboxReader`."""
        return True


class _PostgresReader(_Reader):
    """Is woken by NOTIFY, which the trigger of the table sends."""

    async def listen(self) -> None:
        """Begin to listen."""
        self._notified = asyncio.Event()
        self._heard = time.monotonic()
        raw: Any = await self._connection.get_raw_connection()
        self._raw = raw.driver_connection
        if hasattr(self._raw, "add_listener"):  # asyncpg
            await self._raw.add_listener(self._table.name, lambda *_: self._notified.set())
            self._raw.add_termination_listener(lambda *_: self._notified.set())  # fetching raises
        else:
            await self._connection.execute(sa.text(f'LISTEN "{self._table.name}"'))

    async def wait(self, seconds: float) -> None:
        """See `OutboxReader`."""
        if hasattr(self._raw, "notifies"):  # psycopg
            async for _ in self._raw.notifies(timeout=seconds, stop_after=1):
                pass
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._notified.wait()
        self._notified.clear()

    @contextlib.asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """See `OutboxReader`. Other relays see the time of the connection's last query."""
        self._heard = time.monotonic()
        ended = asyncio.Event()
        beating = asyncio.create_task(self._beat(ended), name="keeping the lead of an outbox")
        try:
            yield
        finally:
            ended.set()  # a query must not be cancelled: the connection would be lost
            await beating

    async def _beat(self, ended: asyncio.Event) -> None:
        while not ended.is_set():
            try:
                async with asyncio.timeout(BEAT_S):
                    await ended.wait()
            except TimeoutError:
                await self._connection.execute(sa.select(1))
                self._heard = time.monotonic()

    def leads(self) -> bool:
        """See `OutboxReader`."""
        return time.monotonic() - self._heard < LEASE_S


@contextlib.asynccontextmanager
async def _file_lock(database: str | None) -> AsyncIterator[None]:
    """Hold a lock on a file beside the database, which ends with the process."""
    import fcntl  # noqa: PLC0415 - is not on Windows

    if not database or database == ":memory:":
        yield
        return
    with Path(f"{database}-relay-lock").open("w") as file:  # noqa: ASYNC230 - an empty file
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(TAKEOVER_S)
        yield


def _moment(value: datetime.datetime) -> datetime.datetime:
    """A time of the database; SQLite's have no time zone, and are in UTC."""
    return value if value.tzinfo is not None else value.replace(tzinfo=datetime.UTC)
