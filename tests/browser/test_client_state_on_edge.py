"""Pages that load their state from a database while it is written, in front of a real edge."""

import asyncio
import random
import signal
import sqlite3

import msgspec
import pytest
from aiohttp import web

from eventbus.bus import EventBus

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]

WRITES = 1_000
OPEN = """
(url) => {
  globalThis.tables = [];
  globalThis.loads = 0;
  globalThis.open = () => {
    const table = new Map();
    const state = async () => {
      loads += 1;
      const answer = await fetch(url);
      if (!answer.ok) throw new Error(`answered ${answer.status}`);
      return answer.json();
    };
    const handle = bus.subscribe("chat.7", {
      Written: ({ key, value }) => table.set(key, value),
    }, {
      state,
      onState: (rows) => { table.clear(); for (const [key, value] of rows) table.set(key, value); },
    });
    tables.push(table);
    return handle;
  };
  globalThis.shows = (rows) => tables.every(
    (table) => table.size === rows.length && rows.every(([key, value]) => table.get(key) === value),
  );
}
"""


class Service:
    """Rows in SQLite; each write is committed, and then published."""

    def __init__(self, bus: EventBus) -> None:
        self.bus = bus
        self.url = ""
        self._random = random.Random(7)
        self._database = sqlite3.connect(":memory:")
        self._database.execute("CREATE TABLE items (key INTEGER PRIMARY KEY, value INTEGER)")

    def close(self) -> None:
        self._database.close()

    def rows(self) -> list[tuple[int, int]]:
        return self._database.execute("SELECT key, value FROM items ORDER BY key").fetchall()

    async def state(self, _: web.Request) -> web.Response:
        position = await self.bus.position("chat.7")
        await asyncio.sleep(self._random.random() / 20)
        rows = self.rows()
        await asyncio.sleep(self._random.random() / 20)
        return web.json_response(
            position.as_dict() | {"data": rows},
            headers={"Access-Control-Allow-Origin": "*"},
        )

    async def write(self, number: int) -> None:
        """A new row, or every third time another value for an earlier one."""
        key = number // 2 if number % 3 == 0 else number
        with self._database:
            self._database.execute("INSERT OR REPLACE INTO items VALUES (?, ?)", (key, number))
        await self.bus.publish("chat.7", "Written", {"key": key, "value": number})


@pytest.fixture
async def open_service():
    runners = []
    services = []

    async def open_service(bus):
        service = Service(bus)
        services.append(service)
        app = web.Application()
        app.router.add_get("/state", service.state)
        runners.append(web.AppRunner(app, shutdown_timeout=1))
        await runners[-1].setup()
        await web.TCPSite(runners[-1], "127.0.0.1", 0).start()
        service.url = f"http://127.0.0.1:{runners[-1].addresses[0][1]}/state"
        return service

    yield open_service
    for runner in runners:
        await runner.cleanup()
    for service in services:
        service.close()


async def test_loads_that_race_with_writes_end_in_what_the_database_has(
    edge_process, client, bus, open_service
):
    await edge_process()
    service = await open_service(bus)
    page = await client()
    await page.evaluate(OPEN, service.url)
    for number in range(WRITES):
        if number % 40 == 0:
            await page.evaluate("void open()")
        await service.write(number)
    rows = [list(row) for row in service.rows()]
    assert len(rows) > WRITES / 2
    await page.page.wait_for_function("(rows) => shows(rows)", arg=rows, timeout=40_000)
    # One load for each of them: no gap, and none older than its subscription.
    assert await page.evaluate("[tables.length, loads, errors]") == [25, 25, []]


async def test_page_equals_the_database_after_gaps_that_cannot_be_recovered(
    edge_process, client, settings, open_service
):
    small = msgspec.structs.replace(
        settings, history_messages=5, namespace=f"{settings.namespace}s"
    )
    async with EventBus(small) as bus:
        node = await edge_process(
            BROADCAST_HISTORY_MESSAGES="5", BROADCAST_CHANNELS_PREFIX=small.namespace
        )
        service = await open_service(bus)
        page = await client("{ maxDelay: 200 }")
        await page.evaluate(OPEN, service.url)
        await page.evaluate("void open()")
        await page.until("loads === 1")
        for number in range(WRITES):
            if number in (300, 600):
                await node.end(signal.SIGKILL)
            if number in (400, 700):
                await node.start()
                await page.has_been("connected")
            await service.write(number)
        rows = [list(row) for row in service.rows()]
        await page.page.wait_for_function("(rows) => shows(rows)", arg=rows, timeout=40_000)
        # One for each gap, unless the second came before the load of the first.
        assert await page.evaluate("loads") >= 2
        assert await page.evaluate("errors") == []


async def test_page_equals_the_database_whatever_happens_to_its_connection(
    edge_process, client, bus, open_service
):
    node = await edge_process(BROADCAST_TOKEN_GRACE="0", JWT_LEEWAY="0")
    service = await open_service(bus)
    page = await client(None)
    issue = page.token
    issued = []

    def token():
        issued.append(issue(lifetime=3600 if issued else 12))
        return issued[-1]

    page.token = token
    await page.start()
    await page.evaluate(OPEN, service.url)
    await page.evaluate("globalThis.handles = [open(), open()]; null")
    devtools = await page.page.context.new_cdp_session(page.page)
    numbers = iter(range(WRITES))

    async def writes(count):
        for _ in range(count):
            await service.write(next(numbers))

    await writes(50)
    await node.end(signal.SIGKILL)
    await writes(50)
    await node.start()
    await page.has_been("connected")
    await writes(50)
    await page.page.context.set_offline(True)
    await page.has_been("offline")
    await writes(50)
    await page.page.context.set_offline(False)
    await page.has_been("connected")
    await devtools.send("Page.setWebLifecycleState", {"state": "frozen"})
    await writes(50)
    await devtools.send("Page.setWebLifecycleState", {"state": "active"})
    await page.evaluate("dispatchEvent(new PageTransitionEvent('pagehide', { persisted: true }))")
    await writes(50)
    await page.evaluate("dispatchEvent(new PageTransitionEvent('pageshow', { persisted: true }))")
    await page.has_been("connected")
    # One of two components is unmounted, and mounted again.
    await page.evaluate("tables.pop(); handles.pop().unsubscribe(); void handles.push(open())")
    await writes(50)
    async with asyncio.timeout(40):
        while len(issued) < 2:  # the first token ends
            await writes(1)
            await asyncio.sleep(0.02)
    await writes(50)
    rows = [list(row) for row in service.rows()]
    await page.page.wait_for_function("(rows) => shows(rows)", arg=rows, timeout=40_000)
    assert await page.evaluate("[tables.length, loads, errors]") == [2, 3, []]
    assert len(issued) > 1
