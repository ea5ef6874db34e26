"""What Chromium agrees on, reads and writes when messages are deflated."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from aiohttp import web
from playwright.async_api import Browser

from eventbus.bus import EventBus
from eventbus.config import Settings
from eventbus_edge.app import (
    create_app,
    make_runner,
)
from eventbus_edge.config import EdgeSettings
from eventbus_edge.keys import NODE

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]

LONG = "the same words again and again, " * 200
SCRIPT = """
async (url) => {
  const socket = new WebSocket(url);
  const got = [];
  let heard = () => {};
  socket.onmessage = (event) => { got.push(JSON.parse(event.data)); heard(); };
  const until = async (count) => {
    while (got.length < count) await new Promise((resolve) => { heard = resolve; });
  };
  globalThis.probe = { socket, got, until };
  await until(2);
  return socket.extensions;
}
"""
PING = """
async (text) => {
  const { socket, got, until } = globalThis.probe;
  socket.send(JSON.stringify({ action: "ping", data: text }));
  await until(got.length + 1);
  return got.at(-1).data.echo_data;
}
"""


@pytest_asyncio.fixture
async def bus() -> AsyncIterator[EventBus]:
    async with EventBus(Settings(driver="memory")) as opened:
        yield opened


@pytest_asyncio.fixture
async def runner(bus: EventBus) -> AsyncIterator[web.AppRunner]:
    runner = make_runner(create_app(EdgeSettings(compression=True), bus))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield runner
    await runner.cleanup()


async def test_chromium_agrees_on_it_and_reads_and_writes(
    browser: Browser, bus: EventBus, runner: web.AppRunner
):
    port = runner.addresses[0][1]
    page = await browser.new_page()
    await page.goto(f"http://127.0.0.1:{port}/healthz")
    agreed = await page.evaluate(SCRIPT, f"ws://127.0.0.1:{port}/ws/general")
    assert agreed == "permessage-deflate; server_no_context_takeover"
    for number in range(3):
        await bus.publish("general", "news", {"number": number, "text": LONG})
    received = await page.evaluate(
        "async () => { await probe.until(5); return probe.got.slice(2).map((m) => m.data); }"
    )
    assert received == [{"number": number, "text": LONG} for number in range(3)]
    stages = runner.app[NODE].metrics.deflated_bytes
    before, after = (stages.labels(stage)._value.get() for stage in ("before", "after"))
    assert before > 3 * len(LONG)
    assert after < before / 10
    for _ in range(2):  # Chromium deflates its own, the second one with what the first one had
        assert await page.evaluate(PING, LONG) == LONG
    await page.close()
