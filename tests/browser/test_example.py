"""The example application, in front of a real edge, as the README says to start it."""

import asyncio
import os
import sys
from pathlib import Path

import pytest
from playwright.async_api import expect

from tests.ports import free_port

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]

APP = Path(__file__).parents[2] / "examples" / "orders" / "app.py"
SECRET = "a-secret-of-tests-that-is-32-bytes-long"
PATIENCE_MS = 20_000


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
async def start_app(settings, gate, port):
    started = []

    async def start(**environ):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-u", str(APP)),
            stdout=asyncio.subprocess.PIPE,
            env={
                "PATH": os.environ["PATH"],
                "PORT": str(port),
                "EDGE_URL": gate.url,
                "JWT_SECRET": SECRET,
                "NATS_URL": settings.nats_url,
                "BROADCAST_CHANNELS_PREFIX": settings.namespace,
            }
            | environ,
        )
        started.append(process)
        async with asyncio.timeout(30):
            while b"Running on" not in (line := await process.stdout.readline()):
                assert line, "the example has ended"

    yield start
    for process in started:
        process.terminate()
        async with asyncio.timeout(40):
            await process.communicate()


async def test_page_of_another_origin_shows_what_the_service_dispatches(
    edge_process, start_app, open_tab, gate, port
):
    origin = f"http://127.0.0.1:{port}"
    node = await edge_process(CORS_ALLOWED_ORIGINS=origin)
    await start_app()
    first = await open_tab(origin, ready="")
    await expect(first.locator("#state")).to_have_text("connected", timeout=PATIENCE_MS)
    await expect(first.locator("#here")).to_have_text("1", timeout=PATIENCE_MS)
    await first.fill("[name=place]", "<b>Hamburg</b>")
    await first.click("button")
    rows = first.locator("#places li")
    await expect(rows).to_have_count(1, timeout=PATIENCE_MS)
    await expect(rows.first).to_have_text("<b>Hamburg</b>")

    second = await open_tab(origin, ready="")  # comes later, and sees what was
    await expect(second.locator("#places li")).to_have_count(1, timeout=PATIENCE_MS)
    await node.end()
    await expect(first.locator("#state")).to_contain_text("waiting", timeout=PATIENCE_MS)
    await first.click("button")
    await node.start()
    await expect(rows).to_have_count(2, timeout=PATIENCE_MS)
    await expect(second.locator("#places li")).to_have_count(2, timeout=PATIENCE_MS)


async def test_page_shows_that_the_service_could_not_publish(
    edge_process, start_app, open_tab, own_nats_server, port
):
    origin = f"http://127.0.0.1:{port}"
    await edge_process(CORS_ALLOWED_ORIGINS=origin, NATS_URL=own_nats_server.url)
    await start_app(NATS_URL=own_nats_server.url)
    page = await open_tab(origin, ready="")
    await expect(page.locator("#state")).to_have_text("connected", timeout=PATIENCE_MS)
    await own_nats_server.stop()
    await page.click("button")
    await expect(page.locator("#error")).to_contain_text("503: ", timeout=PATIENCE_MS)
