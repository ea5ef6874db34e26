"""What applications of FastAPI and Starlette (under uvicorn) and of Flask may look like."""

import asyncio
import contextlib
import socket
import threading
from typing import Annotated

import aiohttp
import flask
import litestar
import pytest
import sqlalchemy as sa
import uvicorn
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, WebSocket
from litestar.di import Provide
from sqlalchemy.orm import sessionmaker
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from eventbus import EventBus, Settings, sync
from eventbus.bus import BusState
from eventbus.events import Event, ShouldBroadcast, current
from eventbus.integrations import (
    fastapi as for_fastapi,
    flask as for_flask,
    litestar as for_litestar,
    starlette,
)
from eventbus.integrations.sqlalchemy import after_commit
from eventbus.testing import fake

MEMORY = Settings(driver="memory")
WAIT_S = 30


class Shipped(Event, ShouldBroadcast, channel="orders.{n}", name="asgi.shipped"):
    n: int


class Placed(Event, ShouldBroadcast, channel="orders.{n}", name="asgi.placed", after_commit=True):
    n: int


@pytest.fixture
def events():
    with fake() as events:
        yield events


@contextlib.asynccontextmanager
async def _served(app):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        # Older uvicorns use what `websockets` has deprecated, unless set otherwise.
        config = uvicorn.Config(app, log_config=None, lifespan="on", ws="websockets-sansio")
        server = uvicorn.Server(config)
        running = asyncio.create_task(server.serve([listener]))
        async with asyncio.timeout(WAIT_S):
            while not server.started:  # noqa: ASYNC110 - no event says so
                await asyncio.sleep(0.01)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with aiohttp.ClientSession(url, timeout=aiohttp.ClientTimeout(WAIT_S)) as http:
            yield http
        server.should_exit = True
        await running


async def _get(http, path):
    async with http.get(path) as response:
        return response.status


def _numbers(events):
    return [event.n for event in events.dispatched(Shipped)]


async def test_bus_is_open_within_the_whole_lifespan_of_the_application(events):
    seen = []

    @contextlib.asynccontextmanager
    async def lifespan(app):
        await Shipped(n=1).dispatch()
        yield {"shelf": "B7"}
        await Shipped(n=3).dispatch()
        seen.append(app.state.eventbus.state)

    async def ship(request):
        await starlette.bus_of(request).dispatch(Shipped(n=2))
        seen.append(request.state.shelf)
        return PlainTextResponse("")

    app = Starlette(routes=[Route("/ship", ship)], lifespan=lifespan)
    starlette.setup(app, lambda: EventBus(MEMORY))
    for _ in range(2):  # a new bus per start
        async with _served(app) as http:
            assert await _get(http, "/ship") == 200
    assert _numbers(events) == [1, 2, 3] * 2
    assert seen == ["B7", BusState.OPEN] * 2
    assert not current.is_any() or current.current_bus() is events.bus


async def test_mounted_application_uses_the_bus_of_the_one_around_it(events):
    inner = FastAPI()

    @inner.get("/bus")
    async def with_bus(bus: for_fastapi.Bus) -> None:
        await bus.dispatch(Shipped(n=1))

    @inner.get("/sync")
    def in_a_thread() -> None:
        Shipped(n=2).dispatch_sync()

    async def plain(request):
        await starlette.bus_of(request).dispatch(Shipped(n=3))
        return PlainTextResponse("")

    app = FastAPI()
    for_fastapi.setup(app, lambda: EventBus(MEMORY))
    app.mount("/inner", inner)
    app.mount("/plain", Starlette(routes=[Mount("/deep", Starlette(routes=[Route("/", plain)]))]))
    async with _served(app) as http:
        for path in ("/inner/bus", "/inner/sync", "/plain/deep/"):
            assert await _get(http, path) == 200
    assert _numbers(events) == [1, 2, 3]


async def test_application_without_setup_is_told_how_to_get_a_bus(caplog):
    app = FastAPI()

    @app.get("/")
    async def with_bus(bus: for_fastapi.Bus) -> None:
        """Never runs."""

    async with _served(app) as http:
        assert await _get(http, "/") == 500
    assert "call setup(app) before it starts" in caplog.text


async def test_background_tasks_and_web_sockets_have_the_bus(events):
    app = FastAPI()
    for_fastapi.setup(app, lambda: EventBus(MEMORY))

    @app.get("/later")
    async def later(tasks: BackgroundTasks) -> None:
        tasks.add_task(Shipped(n=1).dispatch)
        tasks.add_task(Shipped(n=2).dispatch_sync)

    @app.websocket("/ws")
    async def socket_(socket: WebSocket, bus: for_fastapi.Bus) -> None:
        await socket.accept()
        await bus.dispatch(Shipped(n=3))
        await socket.close()

    async with _served(app) as http:
        assert await _get(http, "/later") == 200
        async with http.ws_connect("/ws") as client:
            await client.receive()
        async with asyncio.timeout(WAIT_S):
            while len(_numbers(events)) < 3:  # noqa: ASYNC110 - tasks run after the response
                await asyncio.sleep(0.01)
    assert sorted(_numbers(events)) == [1, 2, 3]


async def test_blocking_call_in_an_async_endpoint_is_refused_with_the_remedy(events, caplog):
    app = FastAPI()
    for_fastapi.setup(app, lambda: EventBus(MEMORY))

    @app.get("/")
    async def ship() -> None:
        Shipped(n=1).dispatch_sync()

    async with _served(app) as http:
        assert await _get(http, "/") == 500
    assert "await event.dispatch()" in caplog.text
    assert _numbers(events) == []


def test_async_views_of_flask_await_the_default_bus():
    app = flask.Flask(__name__)
    for_flask.setup(app, MEMORY)

    @app.get("/<int:number>")
    async def ship(number):
        (receipt,) = await Shipped(n=number).dispatch()
        return str(receipt.offset)

    try:
        client = app.test_client()
        assert [client.get("/7").text for _ in range(2)] == ["1", "2"]  # on one bus
    finally:
        sync.close()
        current.provide_fallback(None)


def test_tab_of_a_request_of_flask_is_known_while_it_lasts(events):
    app = flask.Flask(__name__)
    for_flask.setup(app)

    @app.get("/streamed")
    def streamed():
        def parts():
            yield "first "
            Shipped(n=1).to_others().dispatch_sync()
            yield str(current.current_connection())

        return flask.Response(flask.stream_with_context(parts()))

    @app.get("/nested")
    def nested():
        with app.test_request_context(headers={"X-Eventbus-Connection": "inner"}):
            inner = current.current_connection()
        return f"{inner} {current.current_connection()}"

    @app.get("/other")
    def other():
        with flask.Flask("other").test_request_context(headers=mine):  # has no setup()
            return str(current.current_connection())

    mine = {"X-Eventbus-Connection": "outer"}
    client = app.test_client()
    assert client.get("/streamed", headers=mine).text == "first outer"
    assert client.get("/nested", headers=mine).text == "inner outer"
    assert client.get("/other").text == "None"
    of_echo = {"X-Socket-ID": "1234.5678"}
    assert client.get("/nested", headers=of_echo).text == "inner 1234.5678"
    assert client.get("/nested", headers={"X-Eventbus-Connection": "b c"}).text == "inner None"
    assert current.current_connection() is None
    (message,) = events.broadcasts("orders.1")
    assert message.except_connection == "outer"


# Sessions of SQLAlchemy in threads: each plain function of a request has a thread of its own, and
# a copy of the request's context.

ONE = sa.text("SELECT 1")


@pytest.fixture
def sessions(tmp_path):
    url = f"sqlite:///{tmp_path}/shop.db"
    engine = sa.create_engine(url, connect_args={"check_same_thread": False})
    made = sessionmaker(engine)
    after_commit(made)
    yield made
    engine.dispose()


def _placed(events):
    return [event.n for event in events.dispatched(Placed)]


@pytest.fixture
def shop(sessions, events):
    """An application whose session is used by a dependency, before the endpoint."""

    def session():
        with sessions() as session:
            yield session

    def order(session=Depends(session)):  # noqa: B008 - as FastAPI has it
        return session.execute(ONE).scalar_one()

    app = FastAPI()
    for_fastapi.setup(app, lambda: EventBus(MEMORY))

    @app.get("/rollback")
    def rollback(order=Depends(order), session=Depends(session)):  # noqa: B008
        Placed(n=1).dispatch_sync()
        session.rollback()

    @app.get("/commit")
    def commit(order=Depends(order), session=Depends(session)):  # noqa: B008
        Placed(n=2).dispatch_sync()
        assert _placed(events) == []
        session.commit()
        assert _placed(events) == [2]
        assert len(Placed(n=3).dispatch_sync()) == 1, "a transaction that has ended holds nothing"

    @app.get("/async")
    async def in_the_event_loop(order=Depends(order), session=Depends(session)):  # noqa: B008
        await Placed(n=4).dispatch()
        await asyncio.to_thread(session.rollback)

    @app.websocket("/ws")
    async def socket_(socket: WebSocket, order=Depends(order), session=Depends(session)):  # noqa: B008
        await socket.accept()
        await Placed(n=5).dispatch()
        session.rollback()
        await socket.close()

    return app


async def test_session_that_a_dependency_began_in_its_thread_holds_events_of_the_endpoint(
    shop, events
):
    async with _served(shop) as http:
        for path in ("/rollback", "/async"):
            assert await _get(http, path) == 200
        async with http.ws_connect("/ws") as client:
            await client.receive()
        assert _placed(events) == []
        assert await _get(http, "/commit") == 200
        assert _placed(events) == [2, 3]


@pytest.mark.filterwarnings("ignore:.*Inferred dependency field")  # the new form is of 2.23
async def test_session_of_a_dependency_of_litestar_holds_events_of_the_handler(sessions, events):
    def session():
        session = sessions()
        session.execute(ONE)
        return session

    @litestar.get("/", sync_to_thread=True)
    def place(session: object) -> None:
        Placed(n=1).dispatch_sync()
        session.close()

    app = litestar.Litestar(
        [place],
        dependencies={"session": Provide(session, sync_to_thread=True)},
        plugins=[for_litestar.EventBusPlugin(lambda: EventBus(MEMORY))],
    )
    async with _served(app) as http:
        assert await _get(http, "/") == 200
    assert _placed(events) == []


@pytest.mark.parametrize(("fails", "sent"), [(False, [1, 2]), (True, [])])
async def test_transaction_of_the_bus_in_a_dependency_holds_events_of_the_endpoint(fails, sent):
    heard, during = [], []
    app, bus = FastAPI(), sync.EventBus(MEMORY)
    bus.listeners.listen(Placed)(lambda event: heard.append(event.n))
    for_fastapi.setup(app, lambda: EventBus(MEMORY))

    def transaction():  # entered in one thread, and left in another
        with bus.transaction():
            yield

    @app.get("/")
    def place(transaction=Depends(transaction)):  # noqa: B008 - as FastAPI has it
        bus.dispatch(Placed(n=1))
        with bus.transaction():
            bus.dispatch(Placed(n=2))
        during.extend(heard)
        if fails:
            raise HTTPException(409)

    await asyncio.to_thread(bus.open)
    try:
        async with _served(app) as http:
            assert await _get(http, "/") == (409 if fails else 200)
    finally:
        await asyncio.to_thread(bus.close)
    assert (during, heard) == ([], sent)


async def test_session_holds_no_events_of_another_request_nor_of_a_task_that_outlives_its_own(
    sessions, events
):
    opened, answered, tasks = threading.Event(), threading.Event(), []
    left = []
    app = FastAPI()
    for_fastapi.setup(app, lambda: EventBus(MEMORY))

    def waiting():
        left.append(sessions())
        left[0].execute(ONE)
        opened.set()
        assert answered.wait(WAIT_S)

    async def late(request_has_ended):
        await request_has_ended.wait()
        return await Placed(n=2).dispatch()

    request_has_ended = asyncio.Event()

    @app.get("/waiting")
    async def with_session(_: Annotated[None, Depends(waiting)]) -> None:
        tasks.append(asyncio.create_task(late(request_has_ended)))

    @app.get("/other")
    def without_session() -> None:
        assert len(Placed(n=1).dispatch_sync()) == 1

    async with _served(app) as http:
        first = asyncio.create_task(_get(http, "/waiting"))
        assert await asyncio.to_thread(opened.wait, WAIT_S)
        assert await _get(http, "/other") == 200
        assert _placed(events) == [1]
        answered.set()
        assert await first == 200
        request_has_ended.set()
        assert len(await tasks[0]) == 1, "held by a session that was left open"
    left[0].close()


async def test_of_threads_of_one_request_each_is_held_by_its_own_session(sessions, events):
    both, app = threading.Barrier(2), FastAPI()
    for_fastapi.setup(app, lambda: EventBus(MEMORY))

    def place(n, end):
        with sessions() as session:
            session.execute(ONE)
            both.wait(WAIT_S)
            Placed(n=n).dispatch_sync()
            both.wait(WAIT_S)
            getattr(session, end)()

    @app.get("/")
    async def two() -> None:
        await asyncio.gather(
            asyncio.to_thread(place, 1, "commit"), asyncio.to_thread(place, 2, "rollback")
        )

    async with _served(app) as http:
        assert await _get(http, "/") == 200
    assert _placed(events) == [1]
