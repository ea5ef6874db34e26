"""The pytest plugin, which pytest loads by its entry point: fixtures of a fake and of real parts.

    event_fake          a fake for the whole test (see `eventbus.testing.fake`)
    nats_server         a real nats-server for the session, with JetStream
    nats_settings       settings of a bus on it, in a namespace of the test's own
    event_bus           an open bus; over the memory driver unless `event_bus_settings` says else
    edge_server         a real edge on a free port, over that bus
    websocket_client    makes clients of that edge, with tokens: `await websocket_client("chat.7")`

`event_bus_settings`, `edge_settings` and `nats_server_config` are there to be overridden. What is
async needs pytest-asyncio (in either mode) or anyio's plugin.
"""

import asyncio
import contextlib
import secrets
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import pytest

from eventbus.bus import EventBus
from eventbus.config import Settings
from eventbus.server import NatsServer
from eventbus.testing.faking import EventFake, fake

if TYPE_CHECKING:  # they load aiohttp and the edge, which a test that does not use them is spared
    from eventbus.testing.edge import EdgeServer
    from eventbus.testing.websocket import Connect
    from eventbus_edge.config import EdgeSettings

try:
    from pytest_asyncio import fixture as async_fixture
except ModuleNotFoundError:  # anyio's plugin runs plain ones
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
    "websocket_client",
]

Work = Coroutine[Any, Any, None]
_NATS_S: Final = 30.0
_MEBIBYTE: Final = 1024**2


@pytest.fixture
def event_fake() -> Iterator[EventFake]:
    """Whatever would be sent during the test is checked, kept, and not sent."""
    with fake() as events:
        yield events


@pytest.fixture(scope="session")
def nats_server_config() -> Mapping[str, Any]:
    """Further settings of the nats-server; override it in a conftest.py, with the same scope."""
    return {}


@pytest.fixture(scope="session")
def nats_server(nats_server_config: Mapping[str, Any]) -> Iterator[NatsServer]:
    """A nats-server for all tests of a process, which part by their namespaces; do not stop it.

    It lives in a thread with a loop of its own, and so serves tests of whatever event loop.
    """
    server = NatsServer(config=nats_server_config)
    with _loop_aside() as run:
        run(server.start())
        try:
            yield server
        finally:
            run(server.stop())


@pytest.fixture
def nats_settings(nats_server: NatsServer) -> Settings:
    """Settings for the shared server, in a namespace that no other test has.

    Streams are small, for their bytes count against the server's disk from the start.
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
    """The settings of `event_bus`; override it, as to return `nats_settings`."""
    return Settings(driver="memory")


@async_fixture
async def event_bus(event_bus_settings: Settings) -> AsyncIterator[EventBus]:
    """A bus that is open during the test, and the current one: `event.dispatch()` finds it."""
    async with EventBus(event_bus_settings) as bus:
        yield bus


@pytest.fixture
def edge_settings() -> "EdgeSettings":
    """The settings of `edge_server`, with a secret of its own; override it to change them."""
    from eventbus_edge.config import EdgeSettings  # noqa: PLC0415

    return EdgeSettings(jwt_secret=secrets.token_hex(32), drain_time=0.0, unsubscribe_after=0.05)


@async_fixture
async def edge_server(
    event_bus: EventBus, edge_settings: "EdgeSettings"
) -> AsyncIterator["EdgeServer"]:
    """An edge that listens on a free port during the test, over `event_bus`."""
    from eventbus.testing.edge import EdgeServer  # noqa: PLC0415

    async with EdgeServer(edge_settings, event_bus) as server:
        yield server


@pytest.fixture
def websocket_client(edge_server: "EdgeServer") -> "Connect":
    """Make a client of `edge_server` that has joined channels: see `EdgeServer.connect`."""
    return edge_server.connect


@contextlib.contextmanager
def _loop_aside() -> Iterator[Callable[[Work], None]]:
    """Runs coroutines in a loop of a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="nats-server", daemon=True)
    thread.start()
    try:
        yield lambda work: asyncio.run_coroutine_threadsafe(work, loop).result(_NATS_S)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
