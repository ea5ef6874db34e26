"""Nodes that run in a thread of their own, on the event loop of production (uvloop)."""

import asyncio
import concurrent.futures
import contextlib
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from typing import Any, Final

import trustme
import uvloop
from aiohttp import web
from aiohttp.typedefs import Middleware

from eventbus.bus import EventBus
from eventbus.config import Settings
from eventbus_edge.access.rules import ChannelRules
from eventbus_edge.app import create_app, make_runner
from eventbus_edge.config import EdgeSettings
from eventbus_edge.keys import NODE
from eventbus_edge.node import Node
from tests.conformance.wire import APP

LIMIT: Final = 131_072
"""The largest message of a client, in bytes: as large as the largest of the cases 12 and 13."""
KEY: Final = "the-key-of-conformance"
SECRET: Final = "a-secret-of-tests-that-is-32-bytes-long"
APP_SECRET: Final = "a-secret-of-tests-of-the-app"
LOOPS: Final = {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}

_NO_PACE: Final = {
    "max_actions_per_second": 1e6,
    "action_burst": 10**6,
    "max_requests_per_address": 1e6,
    "max_whispers_per_channel": 1e6,
}


class Edge:
    """A node with a plain port and a TLS port."""

    def __init__(self, runner: web.AppRunner, bus: EventBus, trust: ssl.SSLContext) -> None:
        self.node: Node = runner.app[NODE]
        self.bus = bus
        self.trust = trust
        self.plain, self.tls = (address[1] for address in runner.addresses)
        self._loop = asyncio.get_running_loop()

    def port(self, tls: bool) -> int:
        """The port for a client with or without TLS."""
        return self.tls if tls else self.plain

    def context(self, tls: bool) -> ssl.SSLContext | None:
        """The TLS context for a client, or None without TLS."""
        return self.trust if tls else None

    async def call(self, function: Callable[[], Any]) -> Any:
        """Call a function in the node's thread."""

        async def called() -> Any:
            return function()

        return await self.run(called())

    async def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine in the node's thread."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, self._loop))


@contextlib.asynccontextmanager
async def _serving(
    settings: EdgeSettings, authority: trustme.CA, middlewares: Sequence[Middleware]
) -> AsyncIterator[Edge]:
    tls, trust = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    authority.configure_trust(trust)
    async with EventBus(Settings(driver="memory")) as bus:
        app = create_app(settings, bus, rules=ChannelRules())
        app.middlewares.extend(middlewares)
        runner = make_runner(app, settings.request_timeout)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
        try:
            yield Edge(runner, bus, trust)
        finally:
            await runner.cleanup()


@contextlib.contextmanager
def serving(
    loop: str = "uvloop", *, middlewares: Sequence[Middleware] = (), **changes: Any
) -> Iterator[Edge]:
    """A node in a thread; `changes` are settings. By default, rates are not limited."""
    settings = EdgeSettings(
        **{
            **_NO_PACE,
            "api_key": KEY,
            "jwt_secret": SECRET,
            "drain_time": 0.0,
            "max_frame_bytes": LIMIT,
            "pusher_app_id": "1",
            "pusher_app_key": APP,
            "pusher_app_secret": APP_SECRET,
        }
        | changes
    )
    started: concurrent.futures.Future[tuple[Edge, Callable[[], object]]] = (
        concurrent.futures.Future()
    )

    async def main() -> None:
        stop = asyncio.Event()
        running = asyncio.get_running_loop()
        async with _serving(settings, trustme.CA(), middlewares) as edge:
            started.set_result((edge, lambda: running.call_soon_threadsafe(stop.set)))
            await stop.wait()

    def serve() -> None:
        try:
            with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
                runner.run(main())
        except BaseException as exc:
            if not started.done():
                started.set_exception(exc)
            raise

    thread = threading.Thread(target=serve, name="a node")
    thread.start()
    try:
        edge, stop = started.result(30)
        yield edge
        stop()
    finally:
        thread.join(30)
