"""The pytest plugin, loaded by its entry point: fixtures for a fake and for real servers.

    event_fake          a fake for the whole test (see `eventbus.testing.fake`)
    nats_server         a real nats-server for the session, with JetStream
    nats_settings       settings for a bus on that server, in a namespace of its own
    event_bus           an open bus, on the memory driver unless `event_bus_settings` is overridden
    sync_event_bus      the same for tests without an event loop, such as those of Flask's views
    edge_server         a real edge on that bus and a free port
    websocket_client    connects clients to that edge: `await websocket_client("chat.7", user="42")`

Override `event_bus_settings`, `edge_settings` and `nats_server_config` to change the settings. The
async fixtures need pytest-asyncio (in either mode) or anyio's plugin.
"""

import asyncio
import contextlib
import secrets
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import pytest

from eventbus import sync
from eventbus.bus import EventBus
from eventbus.config import Settings
from eventbus.server import NatsServer
from eventbus.testing.faking import EventFake, fake

if TYPE_CHECKING:  # importing them is slow: they load aiohttp and the edge
    from eventbus.testing.edge import EdgeServer
    from eventbus.testing.websocket import Connect
    from eventbus_edge.config import EdgeSettings

try:
    from pytest_asyncio import fixture as async_fixture
except ModuleNotFoundError:  # anyio's plugin runs plain async fixtures
    from pytest import fixture as async_fixture  # type: ignore[no-redef]  # noqa: PT013

__all__ = [
    "edge_server",
    "edge_settings",
    "event_bus",
    "event_bus_settings",
    "event_fake",
    "nats_server",
    "nats_server_config",
    "nats_settings",
    "sync_event_bus",
    "websocket_client",
]

Work = Coroutine[Any, Any, None]
_NATS_S: Final = 60.0
_MEBIBYTE: Final = 1024**2


@pytest.fixture
def event_fake() -> Iterator[EventFake]:
    """Records all events and messages of the test instead of sending them."""
    with fake() as events:
        yield events


@pytest.fixture(scope="session")
def nats_server_config() -> Mapping[str, Any]:
    """Additional settings of the nats-server. Override it in a conftest.py, with this scope."""
    return {}


@pytest.fixture(scope="session")
def nats_server(nats_server_config: Mapping[str, Any]) -> Iterator[NatsServer]:
    """A nats-server for all tests of a process, which use different namespaces. Do not stop it.

    It runs in the event loop of a separate thread, so tests can use any event loop.
    """
    server = NatsServer(config=nats_server_config)
    with _background_loop() as run:
        run(server.start())
        try:
            yield server
        finally:
            run(server.stop())


@pytest.fixture
def nats_settings(nats_server: NatsServer) -> Settings:
    """Settings for the shared server, with a unique namespace.

    The streams are small, since the server reserves their size on disk.
    """
    return Settings(
        nats_url=nats_server.url,
        namespace=f"t{secrets.token_hex(5)}",
        history_bytes=4 * _MEBIBYTE,
        queue_bytes=4 * _MEBIBYTE,
        failed_bytes=_MEBIBYTE,
    )


@pytest.fixture
def event_bus_settings() -> Settings:
    """The settings of the buses below. Override it, for example to return `nats_settings`."""
    return Settings(driver="memory")


@async_fixture
async def event_bus(event_bus_settings: Settings) -> AsyncIterator[EventBus]:
    """An open bus. It is the current bus, which `event.dispatch()` uses.

    So does `event.dispatch_sync()` in threads that the test starts, as by `asyncio.to_thread`.
    """
    async with EventBus(event_bus_settings) as bus:
        with sync.shared(bus):
            yield bus


@pytest.fixture
def sync_event_bus(event_bus_settings: Settings) -> Iterator[sync.EventBus]:
    """An open bus of `eventbus.sync`, which `event.dispatch_sync()` uses."""
    with sync.EventBus(event_bus_settings) as bus:
        yield bus


@pytest.fixture
def edge_settings() -> "EdgeSettings":
    """The settings of `edge_server`, with a random secret. Override it to change them."""
    from eventbus_edge.config import EdgeSettings  # noqa: PLC0415

    return EdgeSettings(jwt_secret=secrets.token_hex(32), drain_time=0.0, unsubscribe_after=0.05)


@async_fixture
async def edge_server(
    event_bus: EventBus, edge_settings: "EdgeSettings"
) -> AsyncIterator["EdgeServer"]:
    """A running edge on `event_bus` and a free port."""
    from eventbus.testing.edge import EdgeServer  # noqa: PLC0415

    async with EdgeServer(edge_settings, event_bus) as server:
        yield server


@pytest.fixture
def websocket_client(edge_server: "EdgeServer") -> "Connect":
    """Connects a client to `edge_server` and subscribes it. See `EdgeServer.connect`."""
    return edge_server.connect


@contextlib.contextmanager
def _background_loop() -> Iterator[Callable[[Work], None]]:
    """Run an event loop in a thread, and yield a function that runs coroutines in it."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="nats-server", daemon=True)
    thread.start()
    try:
        yield lambda work: asyncio.run_coroutine_threadsafe(work, loop).result(_NATS_S)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
