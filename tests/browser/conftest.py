"""Debian's Chromium, the demo as people start it, and edges that end and come back."""

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from aiohttp import web
from playwright.async_api import Browser, Page, async_playwright

from eventbus.bus import EventBus
from eventbus.config import Settings
from eventbus.tokens import issue_token
from eventbus_edge.app import STATIC
from tests.browser import scripted

ROOT = Path(__file__).parents[2]
ARTIFACTS = ROOT / "tests" / "artifacts"
CHROMIUM_ARGS = [
    "--headless",
    "--remote-debugging-port=0",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-sync",
    # As Playwright does: pages that nobody looks at are as quick as others.
    "--disable-background-timer-throttling",
    "--disable-backgrounding-occluded-windows",
    "--disable-hang-monitor",
    "--disable-ipc-flooding-protection",
    "--disable-renderer-backgrounding",
    "--force-color-profile=srgb",
    "--hide-scrollbars",
    "--password-store=basic",
]
PATIENCE_S = 30.0

SCRIPT = """
import { connect } from "/static/eventbus.js";
Object.assign(globalThis, { connect, states: [], got: [], recovered: [], errors: [] });
globalThis.start = (options) => {
  const token = () => issueToken();
  globalThis.bus = connect({ url: "/ws", token, minDelay: 50, maxDelay: 500, ...options });
  bus.on("state", (state) => states.push(state));
  bus.on("error", ({ code }) => errors.push(code));
  globalThis.room = bus.subscribe("chat.7", {
    Number: (number) => got.push(number),
    "eb:subscribed": (data) => recovered.push(data.recovered),
  });
  return room.ready;
};
"""
SECRET = "a-secret-of-tests-that-is-32-bytes-long"
HISTORY = {"BROADCAST_HISTORY_MESSAGES": "5000", "BROADCAST_HISTORY_BYTES": str(8 * 1024**2)}

OpenTab = Callable[..., Awaitable[Page]]


class Demo:
    """The demo's process; started again, it listens on the port that it had."""

    def __init__(self) -> None:
        self.url = ""
        self.page = ""
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
        output = ""
        async with asyncio.timeout(40):
            while "Ctrl-C" not in output:
                line = await self._process.stdout.readline()
                assert line, "the demo has ended"
                output += line.decode()
        self.page = re.search(r"http://\S+/demo", output)[0]
        self.url = self.page.removesuffix("/demo")
        self.nats_url = re.search(r"nats://\S+", output)[0]
        self._port = self.url.rpartition(":")[2]

    async def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGINT)
            async with asyncio.timeout(40):
                await process.communicate()
            assert process.returncode == 0


@pytest_asyncio.fixture
async def demo() -> AsyncIterator[Demo]:
    demo = Demo()
    await demo.start()
    yield demo
    await demo.stop()


class Chromium:
    """A Chromium of Debian. It is started when it is needed, and again if it has died."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def address(self) -> str:
        """Where it listens for the DevTools protocol."""
        found = self._folder / "DevToolsActivePort"
        if self._process is None or self._process.poll() is not None:
            path = shutil.which("chromium")
            assert path is not None, "these tests need Debian's package chromium"
            found.unlink(missing_ok=True)
            self._process = subprocess.Popen(
                [path, *CHROMIUM_ARGS, f"--user-data-dir={self._folder}", "about:blank"],
                stderr=subprocess.DEVNULL,
            )
        deadline = time.monotonic() + PATIENCE_S
        while not found.exists() or not (lines := found.read_text().split()):
            assert self._process.poll() is None, "chromium has ended"
            assert time.monotonic() < deadline, "chromium does not listen"
            time.sleep(0.02)
        return f"http://127.0.0.1:{lines[0]}"

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(PATIENCE_S)


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    """One for all tests of a worker."""
    started = Chromium(tmp_path_factory.mktemp("chromium"))
    yield started
    started.stop()


@pytest_asyncio.fixture
async def browser(chromium: Chromium) -> AsyncIterator[Browser]:
    """A connection to it. Contexts made here are new profiles, which end with the test."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.connect_over_cdp(chromium.address())
        yield browser
        await browser.close()  # and the contexts; Chromium goes on


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


@pytest.fixture(scope="session")
def echo_packages() -> Path:
    """Laravel Echo and pusher-js, where the demo loads them from. Needs npm."""
    done = subprocess.run(
        [ROOT / "scripts" / "demo" / "packages"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return ROOT / "scripts" / "demo" / "node_modules"


@pytest.fixture
def keep(request: pytest.FixtureRequest) -> Callable[[Page, str], Awaitable[None]]:
    """Keeps a picture of a page among the tests' artefacts."""

    async def keep(page: Page, name: str) -> None:
        ARTIFACTS.mkdir(exist_ok=True)
        await page.screenshot(path=ARTIFACTS / f"{name}.png", full_page=True)

    return keep


class EdgeProcess:
    """`python -m eventbus_edge`, to be killed and started again on a port of its own."""

    def __init__(self, environ: dict[str, str]) -> None:
        self.environ = environ
        self.port = 0
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, **environ: str) -> None:
        self.environ |= environ
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "eventbus_edge"),
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
            env={"PATH": os.environ["PATH"], "BROADCAST_WEBSOCKET_PORT": str(self.port)}
            | self.environ,
        )
        assert self._process.stdout is not None
        async with asyncio.timeout(40):
            line = (await self._process.stdout.readline()).decode()
        address = re.search(r"http://127\.0\.0\.1:(\d+)", line)
        assert address is not None, f"the edge did not start: {line!r}; its log is on stderr"
        self.port = int(address[1])

    async def end(self, number: signal.Signals = signal.SIGKILL) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(number)
            async with asyncio.timeout(40):
                await process.communicate()


class Gate:
    """What pages connect to: passes bytes on to one node, or to another one."""

    def __init__(self) -> None:
        self.target = 0
        self.url = ""
        self._links: set[_Link] = set()
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def stall(self) -> None:
        """From now on, connected clients get nothing, and no error either."""
        for link in self._links:
            link.is_stalled = True

    async def close(self) -> None:
        self._server.close()
        tasks = [link.task for link in self._links]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = _Link(asyncio.current_task())
        self._links.add(link)
        ends = [writer]
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self.target)
            ends.append(back)
            passing = {
                asyncio.create_task(link.carry(reader, back)),
                asyncio.create_task(link.carry_back(there, writer)),
            }
            try:
                await asyncio.wait(passing, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in passing:
                    task.cancel()
                await asyncio.gather(*passing, return_exceptions=True)
        except ConnectionError:
            writer.transport.abort()  # no server listens there
        finally:
            self._links.discard(link)
            for end in ends:
                end.close()


class _Link:
    def __init__(self, task: asyncio.Task[None]) -> None:
        self.task = task
        self.is_stalled = False

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            if not self.is_stalled:
                writer.write(data)
                await writer.drain()

    async def carry_back(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self.carry(reader, writer)
        if self.is_stalled:  # the node's end of it does not reach the page either
            await asyncio.Event().wait()


@pytest_asyncio.fixture
async def gate() -> AsyncIterator[Gate]:
    gate = Gate()
    await gate.open()
    yield gate
    await gate.close()


StartEdge = Callable[..., Awaitable[EdgeProcess]]


@pytest_asyncio.fixture
async def edge_process(settings: Settings, gate: Gate) -> AsyncIterator[StartEdge]:
    """Starts nodes: `await edge_process(BROADCAST_HEARTBEAT="1")`; the gate leads to the last."""
    started: list[EdgeProcess] = []

    async def start(**environ: str) -> EdgeProcess:
        node = EdgeProcess(
            {
                "NATS_URL": settings.nats_url,
                "BROADCAST_CHANNELS_PREFIX": settings.namespace,
                "BROADCAST_WEBSOCKET_HOST": "127.0.0.1",
                "BROADCAST_DRAIN_TIME": "0.2",
                "JWT_SECRET": SECRET,
            }
            | HISTORY
            | environ
        )
        started.append(node)
        await node.start()
        gate.target = node.port
        return node

    yield start
    for node in started:
        await node.end()


class Numbers:
    """Publishes 0, 1, 2, … on a channel all the while."""

    def __init__(self, bus: EventBus, channel: str) -> None:
        self.count = 0
        self._bus = bus
        self._channel = channel
        self._is_over = False
        self._task = asyncio.create_task(self._publish())

    async def _publish(self) -> None:
        while not self._is_over:
            await self._bus.publish(self._channel, "Number", self.count)
            self.count += 1
            await asyncio.sleep(0.02)

    async def some_more(self, count: int = 15) -> None:
        goal = self.count + count
        async with asyncio.timeout(50):
            while self.count < goal:  # noqa: ASYNC110 - counting is the event
                await asyncio.sleep(0.01)

    async def stop(self) -> None:
        self._is_over = True
        await self._task


class ClientPage:
    """A page with one bus, and a subscription to the numbers of `chat.7`."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.evaluate = page.evaluate
        self.user = "7"

    def token(self, **claims: Any) -> str:
        return issue_token(self.user, secret=SECRET, **claims)

    async def start(self, options: str = "{}") -> None:
        """Connect; gives way when the channel is joined."""
        await self.page.evaluate(f"start({options})")

    async def until(self, condition: str) -> None:
        await self.page.wait_for_function(condition, timeout=40_000)

    async def has_been(self, state: str) -> dict[str, Any]:
        """Wait for a state, and forget earlier ones; returns it with its details."""
        found = f"states.findIndex((each) => each.status === '{state}')"
        await self.until(f"{found} >= 0")
        return await self.evaluate(f"states.splice(0, {found} + 1).at(-1)")

    async def has_all(self, numbers: Numbers, transport: str = "websocket") -> None:
        """Stop publishing, and check that every number came once and in order."""
        await numbers.stop()
        await self.until(f"got.length >= {numbers.count}")
        assert await self.evaluate("got") == list(range(numbers.count))
        assert False not in await self.evaluate("recovered")
        assert await self.evaluate("[bus.state.status, bus.transport]") == ["connected", transport]


@pytest_asyncio.fixture
async def bus(settings: Settings) -> AsyncIterator[EventBus]:
    async with EventBus(settings) as opened:
        yield opened


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """With a history of a few seconds."""
    return msgspec.structs.replace(settings, history_messages=5000, history_bytes=8 * 1024**2)


OpenClient = Callable[..., Awaitable[ClientPage]]


@pytest_asyncio.fixture
async def client(gate: Gate, open_tab: OpenTab) -> OpenClient:
    """Opens a page that has the client, from the gate's address, and starts it."""

    async def client(options: str | None = "{}") -> ClientPage:
        async def issue() -> str:
            return made.token()

        page = await open_tab("about:blank", ready="")
        made = ClientPage(page)
        await page.expose_function("issueToken", issue)
        await page.goto(f"{gate.url}/healthz")  # a page of the edge's own origin
        await page.add_script_tag(content=SCRIPT, type="module")
        await made.until("typeof start === 'function'")
        if options is not None:
            await made.start(options)
        return made

    return client


@pytest.fixture
def client_token() -> str:
    """For a client that is no page."""
    return issue_token("7", secret=SECRET)


@pytest_asyncio.fixture
async def numbers(bus: EventBus) -> AsyncIterator[Callable[[], Numbers]]:
    """Begins to publish."""
    begun: list[Numbers] = []

    def begin(on: EventBus = bus) -> Numbers:
        begun.append(Numbers(on, "chat.7"))
        return begun[-1]

    yield begin
    for each in begun:
        await each.stop()


@pytest_asyncio.fixture
async def server() -> AsyncIterator[scripted.Server]:
    server = scripted.Server()

    async def page(_: web.Request) -> web.Response:
        return web.Response(text=scripted.PAGE, content_type="text/html")

    async def script(_: web.Request) -> web.Response:
        return web.Response(text=scripted.SCRIPT, content_type="text/javascript")

    async def stores(_: web.Request) -> web.FileResponse:
        return web.FileResponse(ROOT / "npm" / "client" / "stores.js")

    app = web.Application()
    app.router.add_get("/", page)
    app.router.add_get("/page.js", script)
    app.router.add_get("/ws", server.socket)
    app.router.add_get("/static/stores.js", stores)
    app.router.add_static("/static", STATIC)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield server
    await runner.cleanup()


@pytest_asyncio.fixture
async def loaded(server, open_tab) -> Page:
    """A page that has the client, and has not called it."""
    page = await open_tab(server.url, ready="")
    await page.wait_for_function("document.title === 'ready'")
    return page


@pytest_asyncio.fixture
async def page(loaded) -> Page:
    await loaded.evaluate("start()")
    return loaded
