"""Runs the demo: an edge and a service in one process, and a nats-server as its child."""

import argparse
import asyncio
import contextlib
import logging
import secrets
import socket
import sys
from collections.abc import AsyncIterator, Callable
from typing import Final

import aiohttp

from eventbus.bus import EventBus
from eventbus.config import Settings
from eventbus.errors import EventBusError, ServerError
from eventbus.server import NatsServer
from eventbus_edge.config import EdgeSettings
from eventbus_edge.process.serving import serve
from scripts.demo import once
from scripts.demo.page import extend, guest_token, new_guest
from scripts.demo.service import serve_measurements

HOST: Final = "127.0.0.1"  # loopback only: everybody who can connect gets a token
EDGE_PORT: Final = 8080
NATS_PORT: Final = 4222
DRAIN_S: Final = 0.2
REMARK_EVERY_S: Final = 60.0
PRESENCE_GRACE_S: Final = 2.0  # shorter than the default, so that a closed tab soon shows
APP_ID: Final = "1"
APP_KEY: Final = "demo"  # static/demo-echo.js has it as well

BANNER: Final = """
  The page      {address}/demo
  Laravel Echo  {address}/demo?client=echo
  NATS          {nats}

  Open the pages in two tabs and chat. Publish from any NATS client:

    nats pub -s {nats} eb.event.general '{{"hello": "world"}}'

  or from Python:

    NATS_URL={nats} .venv/bin/python - <<END
    import asyncio
    from eventbus.bus import EventBus
    async def main():
        async with EventBus.from_env() as bus:
            await bus.publish("general", "greeting", {{"hello": "world"}})
    asyncio.run(main())
    END

  Press Ctrl-C to stop.
"""


def main() -> int:
    """Run the demo. Returns the exit code."""
    options = _parser().parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        return asyncio.run(_exit_code(options))
    except KeyboardInterrupt:  # before the edge handles the signal
        return 1 if options.once else 0


async def _exit_code(options: argparse.Namespace) -> int:
    code = 0
    try:
        await _run(options)
    except* (EventBusError, once.Incomplete, aiohttp.ClientError) as errors:
        for error in errors.exceptions:
            print(f"error: {error}", file=sys.stderr)
        code = 1
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/run", description="The demo of eventbus.")
    add = parser.add_argument
    add("--once", action="store_true", help="receive some events without a browser, then exit")
    add("--port", type=_port, help=f"the page's port (default: {EDGE_PORT}, or a free one)")
    add(
        "--interval",
        type=_seconds,
        help="seconds between measurements (default: 1, or 0.2 with --once)",
    )
    add(
        "--timeout",
        type=_seconds,
        default=30.0,
        help="time limit of --once in seconds (default: 30)",
    )
    return parser


def _port(text: str) -> int:
    if text.isascii() and text.isdigit() and int(text) <= 65535:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a port; allowed: 0 (a free one) to 65535")


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if 0 < seconds <= 3600:
        return seconds
    raise argparse.ArgumentTypeError(f"{text!r} is not a time; allowed: above 0, at most 3600 s")


async def _run(options: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + options.timeout
    died: asyncio.Future[None] = loop.create_future()
    async with _nats(0 if options.once else NATS_PORT, died.set_exception) as nats:
        settings = Settings(nats_url=nats.url)
        async with EventBus(settings), asyncio.TaskGroup() as tasks:
            secret = secrets.token_urlsafe(48)
            ready: asyncio.Future[str] = loop.create_future()
            node = serve(
                EdgeSettings(
                    host=HOST,
                    port=_edge_port(options),
                    jwt_secret=secret,
                    drain_time=DRAIN_S,
                    presence_grace=PRESENCE_GRACE_S,
                    pusher_app_id=APP_ID,
                    pusher_app_key=APP_KEY,
                    pusher_app_secret=secrets.token_hex(20),
                ),
                settings,
                on_ready=ready.set_result,
                extend=extend(secret, nats.url),
            )
            edge = tasks.create_task(node)
            watch = tasks.create_task(_until(died))
            address = await ready  # if the edge cannot start, the task group cancels this
            if options.once:
                token = guest_token(secret, new_guest())
                interval = options.interval or 0.2
                await once.run(address, token, interval, options.timeout, deadline)
                edge.cancel()
            else:
                print(BANNER.format(address=address, nats=nats.url), flush=True)
                service = serve_measurements(options.interval or 1.0, REMARK_EVERY_S)
                serving = tasks.create_task(service)
                await edge
                serving.cancel()
            watch.cancel()


@contextlib.asynccontextmanager
async def _nats(port: int, on_death: Callable[[ServerError], None]) -> AsyncIterator[NatsServer]:
    """A server on `port`, or on a free port if it is in use."""
    nats = NatsServer(port=_free(port), on_death=on_death)
    try:
        await nats.start()
    except ServerError:
        if not nats.port or _free(port):
            raise
        nats = NatsServer(on_death=on_death)  # another program has taken the port meanwhile
        await nats.start()
    try:
        yield nats
    finally:
        await nats.stop()


async def _until(died: asyncio.Future[None]) -> None:
    await died


def _edge_port(options: argparse.Namespace) -> int:
    if options.port is not None:
        return int(options.port)
    return 0 if options.once else _free(EDGE_PORT)


def _free(port: int) -> int:
    """Return the port if it is free, otherwise 0, which picks a free one."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return 0
    return port


if __name__ == "__main__":
    sys.exit(main())
