"""`python -m eventbus_edge`: one node, by the environment's settings, until SIGTERM."""

import asyncio
import gc
import logging
import sys

from eventbus.application import configured_application
from eventbus.config import Settings
from eventbus.errors import (
    ConfigError,
    EventBusError,
)
from eventbus_edge.config import EdgeSettings
from eventbus_edge.logs import configure
from eventbus_edge.process.serving import serve
from eventbus_edge.process.supervisor import (
    READY,
    Supervisor,
)

if sys.platform != "win32":
    import resource

try:
    import uvloop
except ImportError:  # Windows
    new_loop = asyncio.new_event_loop
else:
    new_loop = uvloop.new_event_loop

_log = logging.getLogger("edge")


def main() -> int:
    """Run a node; 0 when it was asked to end, 1 when it failed, 2 for settings that cannot be."""
    _allow_open_files()
    try:
        settings, bus_settings = EdgeSettings.from_env(), Settings.from_env()
        configure(settings.log_format, settings.log_level)
        with asyncio.Runner(loop_factory=new_loop) as runner:
            if settings.workers > 1:
                supervisor = Supervisor(settings, bus_settings, on_ready=_announce)
                return runner.run(supervisor.run())
            _load_configured_application(settings)
            runner.run(serve(settings, bus_settings, on_ready=_announce))
    except ConfigError as exc:
        print(f"error: {exc}", file=sys.stderr)  # noqa: T201
        return 2
    except EventBusError as exc:
        print(f"error: {exc}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


def _load_configured_application(settings: EdgeSettings) -> None:
    """Import the application that pyproject.toml names, where EDGE_APP names none."""
    application = None if settings.app else configured_application()
    if application is not None:
        application.load()
        _log.info("application %s, of %s", ", ".join(application.modules), application.folder)


def _allow_open_files() -> None:
    """Take as many descriptors as the system allows: each connection is one.

    The soft limit is mostly 1,024, for the sake of programs that call select(2), which this is none
    of; in containers nothing else would raise it.
    """
    if sys.platform == "linux":
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _announce(address: str) -> None:
    # What is there by now, modules above all, stays until the end: the garbage collector need not
    # look through it each time that connections come (a seventh less for each of them).
    gc.collect()
    gc.freeze()
    socket = address.replace("http", "ws", 1)
    print(f"{READY}{address} (WebSocket at {socket}/ws)", flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
