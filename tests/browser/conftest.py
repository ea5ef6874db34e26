"""Debian's Chromium, the demo as people start it, and edges that end and come back."""

import asyncio
import os
import re
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, async_playwright

from eventbus.bus import EventBus
from eventbus.cli.tokens.commands import issue_token
from eventbus.config import Settings

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
        async with asyncio.timeout(20):
            line = (await self._process.stdout.readline()).decode()
        address = re.search(r"http://127\.0\.0\.1:(\d+)", line)
        assert address is not None, f"the edge did not start: {line!r}; its log is on stderr"
        self.port = int(address[1])

    async def end(self, number: signal.Signals = signal.SIGKILL) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(number)
            async with asyncio.timeout(20):
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
        """From now on nothing of what is connected gets through, and nothing tells so."""
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
            writer.transport.abort()  # nobody listens there
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
        async with asyncio.timeout(30):
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
        return issue_token(SECRET, self.user, **claims)

    async def start(self, options: str = "{}") -> None:
        """Connect; gives way when the channel is joined."""
        await self.page.evaluate(f"start({options})")

    async def until(self, condition: str) -> None:
        await self.page.wait_for_function(condition, timeout=20_000)

    async def has_been(self, state: str) -> dict[str, Any]:
        """Wait for a state, and forget what was before it; gives it with its details."""
        found = f"states.findIndex((each) => each.state === '{state}')"
        await self.until(f"{found} >= 0")
        return await self.evaluate(f"states.splice(0, {found} + 1).at(-1)")

    async def has_all(self, numbers: Numbers, transport: str = "websocket") -> None:
        """Stop publishing, and check that every number came once and in order."""
        await numbers.stop()
        await self.until(f"got.length >= {numbers.count}")
        assert await self.evaluate("got") == list(range(numbers.count))
        assert False not in await self.evaluate("recovered")
        assert await self.evaluate("[bus.state, bus.transport]") == ["connected", transport]


@pytest_asyncio.fixture
async def bus(settings: Settings) -> AsyncIterator[EventBus]:
    async with EventBus(settings) as opened:
        yield opened


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """With a history that holds what is missed in a few seconds."""
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
    return issue_token(SECRET, "7")


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
