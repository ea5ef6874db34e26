"""The page that `eventbus init` writes, in front of a real edge."""

import asyncio
import os
import sys
from pathlib import Path

import pytest
from playwright.async_api import expect

from tests.ports import free_port

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]

BIN = Path(sys.executable).parent
SECRET = "a-secret-of-tests-that-is-32-bytes-long"
PATIENCE_MS = 20_000


async def run(*command, **options):
    return await asyncio.create_subprocess_exec(
        *map(str, command),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        **options,
    )


@pytest.fixture
async def service(tmp_path, settings, gate):
    port = free_port()
    written = await run(BIN / "eventbus", "init", "flask", tmp_path / "app")
    assert await written.wait() == 0
    environ = {
        "PATH": os.environ["PATH"],
        "EDGE_URL": gate.url,
        "JWT_SECRET": SECRET,
        "NATS_URL": settings.nats_url,
        "BROADCAST_CHANNELS_PREFIX": settings.namespace,
    }
    process = await run(*(BIN / "flask", "run", "--port", port), cwd=tmp_path / "app", env=environ)
    async with asyncio.timeout(30):
        while b"Running on" not in (line := await process.stdout.readline()):
            assert line, "the application has ended"
    yield f"http://127.0.0.1:{port}", process
    if process.returncode is None:
        process.terminate()
        await process.communicate()


async def test_page_shows_messages_and_what_is_wrong(service, edge_process, open_tab):
    origin, process = service
    node = await edge_process(CORS_ALLOWED_ORIGINS=origin)
    page, other = await open_tab(origin, ready=""), await open_tab(origin, ready="")
    for each in (page, other):
        await expect(each.locator("#state")).to_have_text("connected", timeout=PATIENCE_MS)
    await page.fill("[name=text]", "<b>hello</b>")
    await page.click("button")
    for each in (page, other):
        rows = each.locator("#messages li")
        await expect(rows).to_have_count(1, timeout=PATIENCE_MS)
        await expect(rows).to_contain_text("<b>hello</b>")

    await node.end()
    await expect(other.locator("#state")).to_contain_text("waiting: ", timeout=PATIENCE_MS)
    await node.start()
    await expect(page.locator("#state")).to_have_text("connected", timeout=PATIENCE_MS)
    process.terminate()
    await process.communicate()
    await page.fill("[name=text]", "to nobody")
    await page.click("button")
    await expect(page.locator("#state")).to_have_text("not posted: the service answered nothing")
