"""Debian's Chromium, and the demo as people start it."""

import asyncio
import re
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, async_playwright

ROOT = Path(__file__).parents[2]
ARTIFACTS = ROOT / "tests" / "artifacts"
CHROMIUM_ARGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

OpenTab = Callable[..., Awaitable[Page]]


class Demo:
    """The demo's process; started again, it listens on the port that it had."""

    def __init__(self) -> None:
        self.url = ""
        self.nats_url = ""
        self._port = "0"
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "scripts.demo", "--port", self._port, "--interval", "0.25"),
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
        )
        assert self._process.stdout is not None
        said = ""
        async with asyncio.timeout(20):
            while "Ctrl-C" not in said:
                line = await self._process.stdout.readline()
                assert line, "the demo has ended"
                said += line.decode()
        self.url = re.search(r"http://\S+", said)[0]
        self.nats_url = re.search(r"nats://\S+", said)[0]
        self._port = self.url.rpartition(":")[2]

    async def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGINT)
            async with asyncio.timeout(20):
                await process.communicate()
            assert process.returncode == 0


@pytest_asyncio.fixture
async def demo() -> AsyncIterator[Demo]:
    demo = Demo()
    await demo.start()
    yield demo
    await demo.stop()


@pytest_asyncio.fixture
async def browser() -> AsyncIterator[Browser]:
    path = shutil.which("chromium")
    assert path is not None, "these tests need Debian's package chromium"
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=CHROMIUM_ARGS)
        yield browser
        await browser.close()


@pytest_asyncio.fixture
async def open_tab(browser: Browser) -> AsyncIterator[OpenTab]:
    """Opens a tab of its own storage. What the page throws or the policy blocks fails the test."""
    faults: list[str] = []

    async def open_tab(url: str, *, ready: str = "connected", **options: object) -> Page:
        context = await browser.new_context(**options)
        page = await context.new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on(
            "console",
            lambda message: "Content Security" in message.text and faults.append(message.text),
        )
        await page.goto(url)
        if ready:
            await page.wait_for_selector(f"[data-state={ready}]")
        return page

    yield open_tab
    assert faults == []


@pytest.fixture
def keep(request: pytest.FixtureRequest) -> Callable[[Page, str], Awaitable[None]]:
    """Keeps a picture of a page among the tests' artefacts."""

    async def keep(page: Page, name: str) -> None:
        ARTIFACTS.mkdir(exist_ok=True)
        await page.screenshot(path=ARTIFACTS / f"{name}.png", full_page=True)

    return keep
