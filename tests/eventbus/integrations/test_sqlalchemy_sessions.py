"""`after_commit` of SQLAlchemy: sessions hold events until they commit, on real databases."""

import asyncio
import contextlib
import json
import logging
import threading

import msgspec
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import (
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    mapped_column,
    scoped_session,
    sessionmaker,
)

from eventbus import EventBus, sync
from eventbus.attempts import RateLimitedLog
from eventbus.config import Settings
from eventbus.drivers.memory import MemoryDriver
from eventbus.errors import BusStateError, ConfigError, EventFieldError, PublishFailed
from eventbus.events import Event, ShouldBroadcast, ShouldQueue
from eventbus.events.transaction import MAX_HELD
from eventbus.integrations import sqlalchemy_sessions
from eventbus.integrations.sqlalchemy import after_commit
from eventbus.testing import fake

WAIT_S = 30
POSTGRES = pytest.param("psycopg", marks=pytest.mark.postgres)
MEMORY = Settings(driver="memory")


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)


class Placed(Event, ShouldBroadcast, channel="orders", name="sa.placed", after_commit=True):
    n: int


class Mailed(Event, ShouldQueue, name="sa.mailed", queue="mails", after_commit=True):
    n: int


class Seen(Event, ShouldBroadcast, channel="orders", name="sa.seen"):
    n: int


class Broker(MemoryDriver):
    """Notes what it gets."""

    def __init__(self):
        super().__init__()
        self.sent = []
        self.arrived = asyncio.Event()
        self.error = None

    async def publish(self, subject, payload, headers):
        if self.error is not None:
            raise self.error
        self.sent.append(json.loads(payload)["data"]["n"])
        self.arrived.set()
        return await super().publish(subject, payload, headers)


@pytest.fixture
async def bus():
    async with EventBus(MEMORY, Broker()) as opened:
        yield opened


@pytest.fixture(params=["psycopg", "asyncpg", "aiosqlite"])
def kind(request):
    if request.param != "aiosqlite":
        request.applymarker(pytest.mark.postgres)
    return request.param


@pytest.fixture
async def sessions(kind, new_database):
    """Makes async sessions that hold events."""
    engine = create_async_engine(new_database(kind))
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    made = async_sessionmaker(engine)
    after_commit(made)
    yield made
    await engine.dispose()


@pytest.fixture(params=["psycopg", "sqlite"])
def sync_sessions(request, new_database):
    """Makes sync sessions that hold events."""
    if request.param == "sqlite":
        url = new_database("aiosqlite").replace("+aiosqlite", "")
    else:
        url = new_database("psycopg")
    engine = sa.create_engine(url)
    Base.metadata.create_all(engine)
    made = sessionmaker(engine)
    after_commit(made)
    yield made
    engine.dispose()


@pytest.fixture
def sync_bus():
    driver = Broker()
    with sync.EventBus(MEMORY, driver) as opened:
        yield opened, driver
    sync.close()


# AsyncSession


async def test_event_waits_for_the_commit_though_nothing_was_written_yet(bus, sessions):
    async with sessions.begin() as session:
        session.add(Order(id=1))
        assert await bus.dispatch(Placed(n=1), Placed(n=2)) == ()
        assert len(await bus.dispatch(Placed(n=3), Seen(n=4))) == 1
        assert bus.driver.sent == [4]
    assert bus.driver.sent == [4, 1, 2, 3]


async def test_queued_event_waits_too(bus, sessions):
    async with sessions.begin():
        await Mailed(n=1).dispatch()
        assert await (await bus.queues()).stats() == []
    assert (await (await bus.queues()).stats())[0].ready == 1


@pytest.mark.parametrize("how", ["exception", "rollback", "close", "constraint"])
async def test_transaction_that_does_not_commit_drops_its_events(
    bus, sessions, how, caplog, monkeypatch
):
    log = RateLimitedLog(logging.getLogger(sqlalchemy_sessions.__name__))  # of this test alone
    monkeypatch.setattr(sqlalchemy_sessions, "_dropped_log", log)
    async with sessions.begin() as session:
        session.add(Order(id=1))
    errors = (ZeroDivisionError, sa.exc.IntegrityError)
    with contextlib.suppress(*errors):
        async with sessions() as session:
            session.add(Order(id=2 if how != "constraint" else 1))
            await Placed(n=1).dispatch()
            if how == "exception":
                raise ZeroDivisionError
            if how == "rollback":
                await session.rollback()
            if how == "constraint":
                await session.commit()
    assert len(await Placed(n=2).dispatch()) == 1, "a transaction that has ended holds nothing"
    assert bus.driver.sent == [2]
    assert ("closed without a commit" in caplog.text) == (how in ("close", "exception"))


async def test_savepoint_that_rolls_back_drops_what_was_added_since(bus, sessions):
    async with sessions.begin() as session:
        session.add(Order(id=1))
        await Placed(n=1).dispatch()
        async with session.begin_nested():
            await Placed(n=2).dispatch()
            with contextlib.suppress(ZeroDivisionError):
                async with session.begin_nested():
                    await Placed(n=3).dispatch()
                    raise ZeroDivisionError
            await Placed(n=4).dispatch()
        with contextlib.suppress(sa.exc.IntegrityError):
            async with session.begin_nested():
                session.add(Order(id=1))
                await Placed(n=5).dispatch()
        await Placed(n=6).dispatch()
    assert bus.driver.sent == [1, 2, 4, 6]


async def test_savepoint_is_dropped_with_the_transaction_around_it(bus, sessions):
    with contextlib.suppress(ZeroDivisionError):
        async with sessions.begin() as session:
            async with session.begin_nested():
                await Placed(n=1).dispatch()
            raise ZeroDivisionError
    assert bus.driver.sent == []


async def test_session_that_commits_many_times_sends_each_time(bus, sessions):
    async with sessions() as session:
        for n in range(3):
            session.add(Order(id=n))
            await Placed(n=n).dispatch()
            await session.commit()
            assert bus.driver.sent == list(range(n + 1))
        assert len(await Placed(n=3).dispatch()) == 1  # between transactions


async def test_concurrent_sessions_hold_their_own_events(bus, sessions, kind):
    async def work(n):
        with contextlib.suppress(ZeroDivisionError):
            async with sessions.begin() as session:
                await Placed(n=n).dispatch()
                await session.execute(sa.select(Order))
                if n % 2:
                    raise ZeroDivisionError

    await asyncio.gather(*map(work, range(8)))
    assert sorted(bus.driver.sent) == [0, 2, 4, 6]


async def test_of_two_sessions_the_one_that_began_last_holds(bus, sessions):
    async with sessions() as reading:
        await reading.execute(sa.select(Order))
        async with sessions.begin():
            await Placed(n=1).dispatch()
        assert bus.driver.sent == [1]
        await Placed(n=2).dispatch()
        assert bus.driver.sent == [1]
        await reading.commit()
    assert bus.driver.sent == [1, 2]


async def test_invalid_event_is_an_error_of_its_dispatch(bus, sessions):
    async with sessions.begin():
        with pytest.raises(EventFieldError):
            await bus.dispatch(Placed(n=1), Placed(n="x"))
    assert bus.driver.sent == []


async def test_broker_that_is_away_fails_no_commit(bus, sessions, caplog):
    heard = []
    bus.listen(Placed)(heard.append)
    async with sessions.begin() as session:
        session.add(Order(id=1))
        await bus.dispatch(Placed(n=1))
        await bus.dispatch(Placed(n=2))
        bus.driver.error = PublishFailed("the broker is away", driver="x")
    async with sessions() as session:
        assert await session.scalar(sa.select(sa.func.count()).select_from(Order)) == 1
    assert bus.rescued == 2
    assert heard == []
    (line,) = [each for each in caplog.messages if "sa.placed" in each]
    assert line == (
        "event 'sa.placed' could not be sent to orders after the commit of its transaction: "
        "the broker is away"
    )


async def test_bus_that_was_closed_before_the_commit_is_logged_and_fails_no_commit(
    sessions, caplog
):
    async with sessions.begin() as session:
        session.add(Order(id=1))
        async with EventBus(MEMORY, Broker()) as bus:
            await bus.dispatch(Placed(n=1))
    assert bus.rescued == 1
    assert "the bus is closed" in caplog.text


async def test_listener_runs_after_the_commit_and_may_use_the_session(bus, sessions):
    found = []

    @bus.listen(Placed)
    async def count(event):
        async with sessions() as other:
            found.append(await other.scalar(sa.select(sa.func.count()).select_from(Order)))
        await Seen(n=10 + event.n).dispatch()

    async with sessions.begin() as session:
        session.add(Order(id=1))
        await Placed(n=1).dispatch()
        assert found == []
    assert found == [1]
    assert bus.driver.sent == [1, 11]


async def test_transaction_holds_a_limited_number_of_events(bus, sessions):
    async with sessions.begin() as session:
        await bus.dispatch(*[Placed(n=1)] * (MAX_HELD - 1))
        async with session.begin_nested():
            with pytest.raises(BusStateError, match="at most"):
                await bus.dispatch(Placed(n=2), Placed(n=3))
            await bus.dispatch(Placed(n=4))
        await session.rollback()
    assert bus.driver.sent == []


@pytest.mark.parametrize("outer", ["bus", "session"])
@pytest.mark.parametrize("fails", ["bus", "session", "neither"])
async def test_event_within_both_kinds_of_transaction_waits_for_both(bus, sessions, outer, fails):
    @contextlib.asynccontextmanager
    async def failing(kind, block):
        with contextlib.suppress(ZeroDivisionError):
            async with block:
                yield
                if kind == fails:
                    raise ZeroDivisionError
        if kind != outer:
            assert bus.driver.sent == [], "the outer transaction still goes on"

    blocks = {"bus": bus.transaction(), "session": sessions.begin()}
    inner = "session" if outer == "bus" else "bus"
    async with failing(outer, blocks[outer]), failing(inner, blocks[inner]):
        await Placed(n=1).dispatch()
    assert bus.driver.sent == ([1] if fails == "neither" else [])


async def test_fake_records_an_event_at_the_commit(sessions):
    with fake() as events:
        async with sessions.begin():
            await Placed(n=1).dispatch()
            events.assert_nothing_dispatched()
        events.assert_dispatched(Placed, times=1)


async def test_tasks_that_go_on_after_the_commit_are_not_held(bus, sessions):
    committed = asyncio.Event()

    async def late():
        await committed.wait()
        return await Placed(n=1).dispatch()

    async with sessions.begin():
        task = asyncio.create_task(late())
    async with sessions.begin():
        committed.set()
        assert len(await task) == 1


async def test_thread_of_an_async_application_is_held_by_its_own_session(bus, sync_sessions):
    def place(n):
        with sync_sessions.begin() as session:
            session.add(Order(id=n))
            Placed(n=n).dispatch_sync()
            assert n not in bus.driver.sent

    with sync.shared(bus):
        await asyncio.to_thread(place, 1)
        assert bus.driver.sent == [1]


async def test_sync_session_in_an_event_loop_sends_in_the_background(sync_sessions):
    driver = Broker()
    async with EventBus(MEMORY, driver) as bus:
        with sync_sessions.begin() as session:
            session.add(Order(id=1))
            await Placed(n=1).dispatch()
        async with asyncio.timeout(WAIT_S):
            await driver.arrived.wait()
        with sync_sessions.begin():
            await Placed(n=2).dispatch()
        # closing the bus waits for it
    assert driver.sent == [1, 2]
    assert bus.rescued == 0


# Session, without an event loop


def test_sync_session_sends_before_its_commit_returns(sync_bus, sync_sessions):
    bus, driver = sync_bus
    with sync_sessions.begin() as session:
        session.add(Order(id=1))
        assert Placed(n=1).dispatch_sync() == ()
        with contextlib.suppress(ZeroDivisionError), session.begin_nested():
            bus.dispatch(Placed(n=2))
            raise ZeroDivisionError
        with session.begin_nested():
            bus.dispatch(Placed(n=3))
        with bus.transaction():
            bus.dispatch(Placed(n=4))
        assert driver.sent == []
    assert driver.sent == [1, 3, 4]


def test_session_that_begins_in_another_thread_holds_where_it_is_used(sync_bus, sync_sessions):
    bus, driver = sync_bus
    session = sync_sessions()

    def in_thread(work):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join(WAIT_S)
        assert not thread.is_alive()

    if session.get_bind().dialect.name == "sqlite":
        pytest.skip("a connection of sqlite3 belongs to its thread")
    in_thread(session.begin)
    session.add(Order(id=1))
    bus.dispatch(Placed(n=1))
    in_thread(lambda: (session.execute(sa.select(Order)), bus.dispatch(Placed(n=2))))
    assert driver.sent == []
    in_thread(session.commit)
    session.close()
    assert driver.sent == [1, 2]


def test_dispatch_within_a_flush_belongs_to_its_transaction(sync_bus, sync_sessions):
    bus, driver = sync_bus
    with sync_sessions() as session:

        @sa.event.listens_for(session, "after_flush")
        def flushed(_session, _context):
            bus.dispatch(Placed(n=1))

        session.add(Order(id=1))
        session.flush()
        session.rollback()
        assert driver.sent == []
        session.add(Order(id=1))
        session.commit()
        assert driver.sent == [1]


def test_broker_that_comes_back_before_the_commit_gets_the_event(
    sync_sessions, nats_server, namespace
):
    """The default bus cannot open at the dispatch, and opens at the commit."""
    away = Settings(nats_url="nats://127.0.0.1:1", connect_timeout=0.2, namespace=namespace)
    sync.configure(away)
    heard = []
    try:
        with sync_sessions.begin():
            assert Placed(n=1).dispatch_sync() == ()
            with pytest.raises(EventFieldError):
                Placed(n="x").dispatch_sync()
        assert sync.rescued() == 1
        with sync_sessions.begin():
            Placed(n=2).dispatch_sync()
            default = sync.process.here().default()
            default.settings = msgspec.structs.replace(
                away, nats_url=nats_server.url, history_bytes=4 * 1024**2, connect_timeout=5
            )
            default.listeners.listen(Placed)(heard.append)
        assert sync.rescued() == 1
        assert heard == [Placed(n=2)]
    finally:
        sync.close()
        sync.configure(MEMORY)


# What can be given


@pytest.mark.parametrize("make", [
    sessionmaker,
    lambda engine: scoped_session(sessionmaker(engine)),
    lambda engine: sessionmaker(engine, class_=type("Own", (Session,), {})),
])  # fmt: skip
def test_factories_hold_and_others_do_not(sync_bus, make, tmp_path):
    _bus, driver = sync_bus
    engine = sa.create_engine(f"sqlite:///{tmp_path}/a.db")
    Base.metadata.create_all(engine)
    held, plain = make(engine), sessionmaker(engine)
    after_commit(held)
    after_commit(held)  # the second time changes nothing
    with held() as session:
        session.add(Order(id=1))
        Placed(n=1).dispatch_sync()
        assert driver.sent == []
        session.commit()
    assert driver.sent == [1]
    with plain() as session:
        session.add(Order(id=2))
        Placed(n=2).dispatch_sync()
    assert driver.sent == [1, 2]
    engine.dispose()


async def test_async_classes_and_scopes_hold_and_others_do_not(bus, tmp_path):
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/a.db")

    class OwnSync(Session):
        pass

    class Own(AsyncSession):
        sync_session_class = OwnSync

    one = AsyncSession(engine)
    scope = async_scoped_session(async_sessionmaker(engine), asyncio.current_task)
    for n, (target, make) in enumerate(
        [(Own, lambda: Own(engine)), (one, lambda: one), (scope, scope)]
    ):
        after_commit(target)
        async with make() as session:
            await session.execute(sa.text("SELECT 1"))
            await Placed(n=n).dispatch()
            assert n not in bus.driver.sent
            await session.commit()
        assert n in bus.driver.sent
    async with AsyncSession(engine) as session:
        await session.execute(sa.text("SELECT 1"))
        assert len(await Placed(n=9).dispatch()) == 1
    await engine.dispose()


def test_class_that_shares_its_sync_sessions_is_refused():
    with pytest.raises(ConfigError, match="async_sessionmaker, or Session"):
        after_commit(AsyncSession)
    with pytest.raises(ConfigError, match="Mine has no sync_session_class"):
        after_commit(type("Mine", (AsyncSession,), {}))
    with pytest.raises(sa.exc.InvalidRequestError):
        after_commit(object())
