"""The application, the relay and NATS are killed at random; every committed event arrives once."""

import asyncio
import json
import os
import random
import signal
import sys
import time
from collections import Counter

import pytest
import sqlalchemy as sa

from eventbus import EventBus
from eventbus.integrations.sqlalchemy import DatabaseOutbox, Outbox
from eventbus.outbox.database import engine_of

SECONDS = float(os.environ.get("EVENTBUS_CRASH_SECONDS", "6"))
"""How long the test kills; a minute or more finds rarer interleavings."""

APPLICATION = """
import os, random, sys
import sqlalchemy as sa
from sqlalchemy.orm import Session
from eventbus import Event, ShouldBroadcast
from eventbus.integrations.sqlalchemy import Outbox

class Placed(Event, ShouldBroadcast, channel="orders.{shop}", name="crash.placed"):
    shop: int
    order: str

metadata = sa.MetaData()
orders = sa.Table("orders", metadata, sa.Column("name", sa.Text, primary_key=True),
                  sa.Column("n", sa.Integer), sa.Column("shop", sa.Integer))
outbox = Outbox(metadata)
engine = sa.create_engine(os.environ["DATABASE_URL"])
with Session(engine) as session:
    for n in range(1_000_000):
        shop, name = random.randrange(3), f"{os.getpid()}-{n}"
        session.execute(orders.insert(), {"name": name, "n": n, "shop": shop})
        outbox.add(session, Placed(shop=shop, order=name))
        if random.random() < 0.2:
            session.flush()
            session.rollback()
        else:
            session.commit()
"""
RELAY = """
import asyncio, os
import sqlalchemy as sa
from eventbus import EventBus
from eventbus.integrations.sqlalchemy import Outbox
from eventbus.outbox.database import engine_of

async def main():
    async with EventBus.from_env() as bus:
        await Outbox(sa.MetaData()).relay(engine_of(os.environ["DATABASE_URL"]), bus).run()

asyncio.run(main())
"""


class Program:
    """A program that is started again whenever it is killed."""

    def __init__(self, code, environ):
        self._code = code
        self._environ = {**os.environ, **environ}
        self._process = None

    async def start(self):
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", self._code, env=self._environ,
            stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip

    async def kill(self):
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()


@pytest.fixture
async def start():
    """Starts programs, which end with the test, whatever became of it."""
    started = []

    async def start(code, environ):
        program = Program(code, environ)
        started.append(program)
        await program.start()
        return program

    yield start
    for program in started:
        await program.kill()


async def _count(engine, orders) -> int:
    async with engine.connect() as connection:
        return await connection.scalar(sa.select(sa.func.count()).select_from(orders)) or 0


@pytest.mark.timeout(200 + SECONDS)
@pytest.mark.parametrize("kind", [pytest.param("psycopg", marks=pytest.mark.postgres), "aiosqlite"])
async def test_every_committed_event_arrives_once_and_no_other(
    kind, new_database, own_nats_server, settings, start
):
    url = new_database(kind)
    engine = engine_of(url)
    metadata = sa.MetaData()
    orders = sa.Table(
        "orders", metadata, sa.Column("name", sa.Text, primary_key=True),
        sa.Column("n", sa.Integer), sa.Column("shop", sa.Integer),
    )  # fmt: skip
    outbox = Outbox(metadata)
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    environ = {
        "DATABASE_URL": url.replace("+aiosqlite", ""),
        "NATS_URL": own_nats_server.url,
        "BROADCAST_CHANNELS_PREFIX": settings.namespace,
        "BROADCAST_HISTORY_MESSAGES": "1000000",
        "BROADCAST_CONNECT_TIMEOUT": "60",
    }
    application, *relays = [await start(code, environ) for code in (APPLICATION, RELAY, RELAY)]
    chance = random.Random(7)
    end, orders_before = time.monotonic() + SECONDS, 0
    while time.monotonic() < end or not await _count(engine, orders):
        await asyncio.sleep(chance.uniform(0.3, 1.0))
        victim = chance.choice([application, *relays, own_nats_server])
        if victim is application and await _count(engine, orders) == orders_before:
            continue  # it is still starting: on a slow machine it would never come to anything
        if victim is own_nats_server:
            os.kill(own_nats_server.pid, signal.SIGKILL)
            await own_nats_server.stop()
            await own_nats_server.start()
        else:
            await victim.kill()
            if victim is application:
                orders_before = await _count(engine, orders)
            await victim.start()
    await application.kill()

    store = DatabaseOutbox(engine, outbox.table)
    async with asyncio.timeout(100):
        while (await store.stats()).waiting:  # noqa: ASYNC110 - it is in a database
            await asyncio.sleep(0.1)
    for relay in relays:
        await relay.kill()
    async with engine.connect() as connection:
        committed = (await connection.execute(sa.select(orders.c.name, orders.c.shop))).all()
    await engine.dispose()

    own = {"nats_url": own_nats_server.url, "history_messages": 1_000_000}
    received = {}
    async with EventBus(type(settings)(namespace=settings.namespace, **own)) as bus:
        for shop in range(3):
            page = await bus.driver.read(bus.subjects.live(f"orders.{shop}"), after=0, limit=10**6)
            received[shop] = [json.loads(each.payload)["data"]["order"] for each in page.messages]
    assert committed
    for shop, names in received.items():
        assert Counter(names) == Counter(name for name, of in committed if of == shop)
        for process in {name.partition("-")[0] for name in names}:
            numbers = [
                int(name.partition("-")[2]) for name in names if name.startswith(f"{process}-")
            ]
            assert numbers == sorted(numbers)
