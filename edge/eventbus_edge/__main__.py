"""`python -m eventbus_edge`: runs a node with settings from the environment, until SIGTERM."""

import asyncio
import gc
import logging
import sys

from eventbus.application import configured_application
from eventbus.config import Settings
from eventbus.environment import unknown_variables
from eventbus.errors import (
    ConfigError,
    EventBusError,
)
from eventbus.user_code import printable
from eventbus_edge.config import EdgeSettings
from eventbus_edge.logs import configure
from eventbus_edge.process import READY, Supervisor, serve

if sys.platform != "win32":
    import resource

try:
    import uvloop
except ImportError:  # Windows
    new_loop = asyncio.new_event_loop
else:
    new_loop = uvloop.new_event_loop

_log = logging.getLogger("eventbus_edge")


def main() -> int:
    """Run a node; returns 0 after a signal, 1 for a failure, 2 for invalid settings."""
    _allow_open_files()
    try:
        settings, bus_settings = EdgeSettings.from_env(), Settings.from_env()
        configure(settings.log_format, settings.log_level)
        if not settings.supervised:  # the supervisor has logged them
            _report_misspelt_variables()
        with asyncio.Runner(loop_factory=new_loop) as runner:
            if settings.workers > 1:
                supervisor = Supervisor(settings, bus_settings, on_ready=_announce)
                return runner.run(supervisor.run())
            _load_configured_application(settings)
            runner.run(serve(settings, bus_settings, on_ready=_announce))
    except ConfigError as exc:
        print(f"error: {printable(str(exc))}", file=sys.stderr)  # noqa: T201
        return 2
    except EventBusError as exc:
        print(f"error: {printable(str(exc))}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


def _report_misspelt_variables() -> None:
    for name, nearest in unknown_variables((EdgeSettings, Settings)):
        if nearest:
            _log.warning("%s is not a setting: did you mean %s?", name, nearest)


def _load_configured_application(settings: EdgeSettings) -> None:
    """Import the application of pyproject.toml, unless EDGE_APP is set."""
    application = None if settings.app else configured_application()
    if application is not None:
        application.load()
        _log.info(
            "loaded application %s from %s", ", ".join(application.modules), application.folder
        )


def _allow_open_files() -> None:
    """Raise the limit of file descriptors to the maximum, because each connection needs one.

    The soft limit is usually 1,024, for programs that call select(2), which this one does not. In
    containers nothing else raises it.
    """
    if sys.platform == "linux":
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _announce(address: str) -> None:
    # The objects so far, mostly modules, live until the end. Without them the garbage collector
    # has less to scan, which makes each new connection a seventh cheaper.
    gc.collect()
    gc.freeze()
    # Connections leave hardly any cycles behind, so rare collections are enough.
    gc.set_threshold(10_000, 10, 10)
    socket = address.replace("http", "ws", 1)
    print(f"{READY}{address} (WebSocket at {socket}/ws)", flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
