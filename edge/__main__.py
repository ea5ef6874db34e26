"""`python -m edge`: one node, by the environment's settings, until SIGTERM."""

import asyncio
import logging
import sys

from edge.app import serve
from edge.config import EdgeSettings
from eventbus.config import Settings
from eventbus.errors import ConfigError, EventBusError

try:
    import uvloop
except ImportError:  # Windows
    new_loop = asyncio.new_event_loop
else:
    new_loop = uvloop.new_event_loop


def main() -> int:
    """Run a node; 0 when it was asked to end, 1 when it failed, 2 for settings that cannot be."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s"
    )
    try:
        settings, bus_settings = EdgeSettings.from_env(), Settings.from_env()
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(serve(settings, bus_settings, on_ready=_announce))
    except ConfigError as exc:
        print(f"error: {exc}", file=sys.stderr)  # noqa: T201
        return 2
    except EventBusError as exc:
        print(f"error: {exc}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


def _announce(address: str) -> None:
    socket = address.replace("http", "ws", 1)
    print(f"edge ready on {address} (WebSocket at {socket}/ws)", flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
