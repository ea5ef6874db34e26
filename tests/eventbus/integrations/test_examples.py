"""Each example's application runs under its own server, and reaches a client of a real edge."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import aiohttp
import pytest
import redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from eventbus.channels import ChannelKind, Pattern
from eventbus.testing.edge import EdgeServer
from eventbus_edge.access.rules import AUTHENTICATED, ChannelRules, Rule
from eventbus_edge.config import EdgeSettings
from tests.ports import free_port

EXAMPLES = Path(__file__).parents[3] / "examples"
SECRET = "a-secret-of-tests-" + "x" * 32
BIN = Path(sys.executable).parent
UVICORN = ("uvicorn", "app:app", "--port", "{port}")
GUNICORN = ("gunicorn", "app:app", "--bind", "127.0.0.1:{port}", "--workers", "2")
UWSGI = ("uwsgi", "--http-socket", "127.0.0.1:{port}", "--module", "app:app", "--master",
         "--processes", "2", "--enable-threads", "--die-on-term", "--disable-logging")  # fmt: skip
CELERY = ("celery", "--app", "app", "worker", "--concurrency", "2", "--without-gossip",
          "--without-mingle", "--loglevel", "ERROR", "--pool")  # fmt: skip
SHIP = "/orders/42/ship"


class Application(NamedTuple):
    """An application of `examples/`, and its real server."""

    folder: str
    command: Sequence[str]
    paths: Sequence[str] = (SHIP,)
    """Requests that ship order 42, each in another way; a task of Celery has none."""


ASGI = (SHIP, f"/sync{SHIP}")
DJANGO = (SHIP, f"/async{SHIP}")
MATRIX = {
    "starlette-uvicorn": Application("starlette", UVICORN, ASGI),
    "fastapi-uvicorn": Application("fastapi", UVICORN, ASGI),
    "fastapi-uvicorn-workers": Application("fastapi", (*UVICORN, "--workers", "2"), ASGI),
    "litestar-uvicorn": Application("litestar", UVICORN, ASGI),
    "flask-gunicorn": Application("flask", GUNICORN),
    "flask-gunicorn-threads": Application("flask", (*GUNICORN, "--threads", "2")),
    "flask-gunicorn-preload": Application("flask", (*GUNICORN, "--preload")),
    "flask-uwsgi": Application("flask", UWSGI),
    "django-gunicorn": Application("django", ("gunicorn", "shop.wsgi", *GUNICORN[2:]), DJANGO),
    "django-gunicorn-preload": Application(
        "django", ("gunicorn", "shop.wsgi", *GUNICORN[2:], "--preload"), DJANGO
    ),
    "django-uvicorn": Application(
        "django", ("uvicorn", "shop.asgi:application", *UVICORN[2:]), DJANGO
    ),
    "celery-prefork": Application("celery", (*CELERY, "prefork"), ()),
    "celery-threads": Application("celery", (*CELERY, "threads"), ()),
    "celery-solo": Application("celery", (*CELERY, "solo"), ()),
}
"""Every integration, from a real server of its kind to a real edge and real WebSocket clients."""


@pytest.fixture
def event_bus_settings(nats_settings):
    return nats_settings


@pytest.fixture
async def edge(event_bus):
    rules = ChannelRules(
        [Rule(Pattern("orders.{order_id}"), kind=ChannelKind.PRIVATE, join=AUTHENTICATED)]
    )
    settings = EdgeSettings(jwt_secret=SECRET, drain_time=0.0)
    async with EdgeServer(settings, event_bus, rules=rules) as server:
        yield server


def _environment(settings):
    return {
        **os.environ,
        "NATS_URL": settings.nats_url,
        "BROADCAST_CHANNELS_PREFIX": settings.namespace,
        "BROADCAST_HISTORY_BYTES": str(settings.history_bytes),
        "JWT_SECRET": SECRET,
    }


@contextlib.contextmanager
def _running(command, folder, settings, **environ):
    process = subprocess.Popen(
        [str(BIN / command[0]), *command[1:]], cwd=folder, env=_environment(settings) | environ,
        start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            assert process.wait(20) in (0, -signal.SIGTERM)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise


def _http():
    # uWSGI closes connections without saying so in a header.
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True))


async def _ready(http, url):
    async with asyncio.timeout(30):
        while True:
            try:
                async with http.get(url):
                    return
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.05)


class WebApplication:
    """A running application that takes requests."""

    def __init__(self, http, url):
        self._http = http
        self._url = url

    async def token(self):
        async with self._http.get(f"{self._url}/token") as refused:
            assert refused.status == 401
        async with self._http.get(f"{self._url}/token", cookies={"session": "7"}) as response:
            assert response.status == 200
            assert "no-store" in response.headers["Cache-Control"]
            return await response.text()

    async def ship(self, path, connection=None, header="X-Eventbus-Connection"):
        headers = {} if connection is None else {header: connection}
        async with self._http.post(f"{self._url}{path}", headers=headers) as response:
            assert response.status == 204, await response.text()


@contextlib.asynccontextmanager
async def _web(application, settings, tmp_path):
    folder, port = EXAMPLES / application.folder, free_port()
    environ = {"SHOP_DATABASE": str(tmp_path / "shop.db")}
    if application.folder == "django":
        await _python(folder, settings, "manage.py", "migrate", "-v", "0", **environ)
    command = [part.format(port=port) for part in application.command]
    url = f"http://127.0.0.1:{port}"
    with _running(command, folder, settings, **environ):
        async with _http() as http:
            await _ready(http, f"{url}/token")
            yield WebApplication(http, url)


async def _python(folder, settings, *arguments, **environ):
    done = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, cwd=folder, env=_environment(settings) | environ
    )
    assert await done.wait() == 0


@pytest.mark.parametrize("name", [name for name in MATRIX if not name.startswith("celery")])
async def test_requests_publish_to_clients_of_an_edge(name, edge, event_bus_settings, tmp_path):
    application = MATRIX[name]
    if not (BIN / application.command[0]).exists():
        pytest.skip(f"{application.command[0]} is not installed")
    async with _web(application, event_bus_settings, tmp_path) as running:
        token = await running.token()
        mine = await edge.connect("orders.42", token=token)
        other = await edge.connect("orders.42", token=token)
        for path in application.paths:
            await running.ship(path)
            await running.ship(path, mine.connection_id)  # the tab whose request it is
            await running.ship(path, mine.connection_id, "X-Socket-ID")  # as Laravel Echo does
            await running.ship(path, "not an id\t")
            for client, count in ((mine, 2), (other, 4)):
                received = [await client.receive(timeout=30) for _ in range(count)]
                assert {each["event"] for each in received} == {"order.shipped"}
                assert {each["data"]["order_id"] for each in received} == {42}


@pytest.mark.redis
@pytest.mark.parametrize("name", [name for name in MATRIX if name.startswith("celery")])
async def test_tasks_publish_to_clients_of_an_edge(name, edge, event_bus_settings, redis_url):
    clients = [await edge.connect("orders.42", user="7") for _ in range(2)]
    folder, broker = EXAMPLES / "celery", {"CELERY_BROKER_URL": redis_url}
    with _running(MATRIX[name].command, folder, event_bus_settings, **broker):
        send = "import app\nfor number in range(20): app.ship.delay(42, number)"
        await _python(folder, event_bus_settings, "-c", send, **broker)
        for client in clients:
            received = [await client.receive(timeout=30) for _ in range(20)]
            assert sorted(each["data"]["carrier"] for each in received) == sorted(
                f"DHL {number}" for number in range(20)
            )


WSGI = """
import os

from flask import Flask

from eventbus import Event, ShouldBroadcast
from eventbus.integrations.flask import setup


class Counted(Event, ShouldBroadcast, name="counted", channel="orders.1"):
    number: int
    process: int


app = Flask(__name__)
setup(app)
Counted(number=-1, process=os.getpid()).dispatch_sync()  # opens a bus in the master


@app.post("/<int:number>")
def count(number):
    Counted(number=number, process=os.getpid()).dispatch_sync()
    return str(os.getpid())
"""


@pytest.mark.parametrize(
    "server",
    [
        (*GUNICORN, "--preload"),
        (*GUNICORN, "--preload", "--max-requests", "10"),
        (*GUNICORN, "--threads", "4", "--preload", "--max-requests", "10"),
        UWSGI,
    ],
    ids=["gunicorn", "gunicorn-max-requests", "gunicorn-threads-max-requests", "uwsgi"],
)
async def test_workers_forked_after_the_bus_opened_publish_everything_once(
    server, edge, event_bus_settings, tmp_path
):
    if not (BIN / server[0]).exists():
        pytest.skip(f"{server[0]} is not installed")
    (tmp_path / "app.py").write_text(WSGI)
    port = free_port()
    command = [part.format(port=port) for part in server]
    url = f"http://127.0.0.1:{port}"
    client = await edge.connect("orders.1", user="7")
    with _running(command, tmp_path, event_bus_settings):
        async with _http() as http:
            await _ready(http, url)
            limit = asyncio.Semaphore(8)

            async def count(number):
                async with limit, http.post(f"{url}/{number}") as response:
                    assert response.status == 200
                    return int(await response.text())

            processes = set(await asyncio.gather(*map(count, range(40))))
    received = [(await client.receive())["data"] for _ in range(41)]
    assert sorted(data["number"] for data in received) == list(range(-1, 40))
    assert {data["process"] for data in received[1:]} == processes
    assert received[0]["process"] not in processes


@pytest.fixture
def redis_url(tmp_path):
    port = free_port()
    command = ("redis-server", "--port", str(port), "--save", "", "--dir", str(tmp_path))
    process = subprocess.Popen([*command, "--bind", "127.0.0.1"], stdout=subprocess.DEVNULL)
    try:
        retry = Retry(ConstantBackoff(0.05), 400)
        with redis.Redis(port=port, retry=retry) as client:
            client.ping()
        yield f"redis://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


TASKS = """
import os, pathlib, sys
from celery import Celery
from eventbus import Event, ShouldBroadcast
from eventbus.integrations.celery import setup

app = Celery("app", broker=os.environ["CELERY_BROKER_URL"])
setup(app)

class Counted(Event, ShouldBroadcast, name="counted", channel="orders.1"):
    number: int
    process: int

if "celery" in sys.argv[0] and "EARLY" in os.environ:
    Counted(number=-1, process=os.getpid()).dispatch_sync()  # opens a bus before the fork

@app.task
def touch(path):
    pathlib.Path(path).touch()

@app.task
def count(number):
    Counted(number=number, process=os.getpid()).dispatch_sync()
"""


@pytest.mark.redis
async def test_celery_processes_that_are_replaced_publish_everything_once(
    edge, event_bus_settings, redis_url, tmp_path
):
    (tmp_path / "app.py").write_text(TASKS)
    client = await edge.connect("orders.1", user="7")
    command = (*CELERY, "prefork", "--max-tasks-per-child", "5")
    broker = {"CELERY_BROKER_URL": redis_url}
    with _running(command, tmp_path, event_bus_settings, **broker, EARLY="1"):
        send = "import app\nfor number in range(20): app.count.delay(number)"
        await _python(tmp_path, event_bus_settings, "-c", send, **broker)
        received = [(await client.receive(timeout=30))["data"] for _ in range(21)]
    assert sorted(data["number"] for data in received) == list(range(-1, 20))
    assert len({data["process"] for data in received}) > 3


@pytest.mark.redis
async def test_celery_workers_start_while_nats_is_away(event_bus_settings, redis_url, tmp_path):
    (tmp_path / "app.py").write_text(TASKS)
    command = (*CELERY, "prefork")
    away = {"CELERY_BROKER_URL": redis_url, "NATS_URL": "nats://127.0.0.1:1"}
    away["BROADCAST_CONNECT_TIMEOUT"] = "60"
    with _running(command, tmp_path, event_bus_settings, **away):
        send = "import app\napp.touch.delay('done')"
        await _python(tmp_path, event_bus_settings, "-c", send, **away)
        async with asyncio.timeout(30):
            while not (tmp_path / "done").exists():  # noqa: ASYNC110 - in another process
                await asyncio.sleep(0.1)


@pytest.mark.parametrize("name", ["django-gunicorn-preload", "django-uvicorn"])
async def test_django_publishes_from_transactions_models_and_the_outbox(
    name, edge, event_bus_settings, tmp_path
):
    relay = (Path(sys.executable).name, "manage.py", "eventbus_relay")
    database = {"SHOP_DATABASE": str(tmp_path / "shop.db")}
    async with _web(MATRIX[name], event_bus_settings, tmp_path) as running:
        client = await edge.connect("orders.42", user="7")
        with _running(relay, EXAMPLES / "django", event_bus_settings, **database):
            await running.ship(f"{SHIP}?fail")  # dropped with its transaction
            await running.ship(SHIP)
            assert (await client.receive(timeout=30))["data"] == {"order_id": 42, "carrier": "DHL"}
            await running.ship(f"/outbox{SHIP}?fail")  # nothing of it is ever published
            await running.ship(f"/outbox{SHIP}")
            received = [await client.receive(timeout=30) for _ in range(3)]
    assert sorted([(each["event"], each["data"]) for each in received], key=str) == [
        ("OrderCreated", {"id": 42, "status": "new"}),
        ("OrderUpdated", {"id": 42, "status": "shipped"}),
        ("order.shipped", {"order_id": 42, "carrier": "outbox"}),
    ]
