"""Runs commands: opens the bus of a running cluster, loads the application, handles signals."""

import asyncio
import contextlib
import signal
from collections.abc import (
    AsyncIterator,
    Callable,
    Coroutine,
    Iterator,
    Sequence,
)
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Final,
    TypeVar,
)

import msgspec
import typer

from eventbus.application import (
    HOW_TO_NAME_ONE,
    Application,
    configured_application,
)
from eventbus.bus import EventBus
from eventbus.cli.output import fail
from eventbus.cli.reachable import require_reachable
from eventbus.config import Settings
from eventbus.drivers import drivers_of
from eventbus.errors import (
    ConfigError,
    ConnectionFailed,
    EventBusError,
    EventFieldError,
    InvalidName,
)
from eventbus.messages import MAX_DATA_DEPTH, decode_json
from eventbus.server import running_server

__all__ = [
    "Apps",
    "attached",
    "interrupted",
    "load_application",
    "on_interrupt",
    "opened_bus",
    "read_json",
    "require_application",
    "run",
]


def attached(settings: Settings, connection: str | None = None) -> Settings:
    """The settings, with the address of the embedded nats-server that another process runs.

    A command joins a running cluster and never starts a server, neither for the settings' driver
    nor for `connection`, another driver that the command uses. Raises ConnectionFailed if no
    embedded server is running, and ConfigError for the driver `memory`.
    """
    for variable, driver in (("BROADCAST_DRIVER", settings.driver), ("--connection", connection)):
        if driver == "memory":
            raise ConfigError(
                f"{variable}='memory': its messages do not leave the process, so a command cannot "
                "reach the cluster; allowed here: nats, redis, or another driver that uses the "
                "network",
                variable=variable,
            )
    names = (*drivers_of(settings), *drivers_of(settings, connection))
    if settings.nats_url or "nats" not in names:
        return settings
    folder = Path(settings.nats_data).absolute()
    if not (url := running_server(folder)):
        raise ConnectionFailed(
            f"NATS_URL is not set, and no embedded nats-server is running on {folder}: start one "
            "with `eventbus dev` or `eventbus edge run` and run this command in the same folder "
            "(or with the same BROADCAST_NATS_DATA), or set NATS_URL",
            driver="nats",
        )
    return msgspec.structs.replace(settings, nats_url=url)


T = TypeVar("T")
Apps = Annotated[
    list[str] | None,
    typer.Option(
        "--app",
        help="A module that defines events and listeners. Repeatable. Default: the application in "
        "pyproject.toml.",
    ),
]
_INTERRUPTED: Final = 130


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a command's coroutine. Ctrl-C exits with code 130, as in shells.

    Invalid settings and names exit with 2, and other errors of the library with 1.
    """
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(main)
    except (ConfigError, EventFieldError, InvalidName) as exc:
        fail(str(exc), code=2)
    except EventBusError as exc:
        fail(str(exc))
    except KeyboardInterrupt:
        raise typer.Exit(_INTERRUPTED) from None


@contextlib.asynccontextmanager
async def opened_bus(
    connection: str | None = None, *, is_service: bool = False
) -> AsyncIterator[EventBus]:
    """Open a bus on the running cluster, with the settings of the environment.

    `connection` is another driver that the command is going to use. If all servers of a broker
    refuse connections, it raises ConnectionFailed at once, except for a service, which waits for
    them. Raises an EventBusError if the bus cannot be opened. See `attached`.
    """
    settings = attached(Settings.from_env(), connection)
    if not is_service:
        await require_reachable(settings, connection)
    async with EventBus(settings) as bus:
        yield bus


def read_json(text: str, where: str) -> Any:
    """Decode JSON. Invalid JSON exits with code 2 and an error that names `where`."""
    try:
        return decode_json(text.encode("utf-8", "surrogateescape"), MAX_DATA_DEPTH)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        fail(f'{where}: invalid JSON: {exc}; example: {{"text":"hello"}}', code=2)


@contextlib.contextmanager
def interrupted() -> Iterator[asyncio.Event]:
    """An event that Ctrl-C or SIGTERM sets, for commands that then end normally."""
    stop = asyncio.Event()
    with on_interrupt(stop.set):
        yield stop


@contextlib.contextmanager
def on_interrupt(call: Callable[[], object]) -> Iterator[None]:
    """Within the block, call `call` for each Ctrl-C or SIGTERM."""
    loop, signals = asyncio.get_running_loop(), (signal.SIGTERM, signal.SIGINT)
    try:
        for each in signals:
            loop.add_signal_handler(each, call)
    except NotImplementedError:  # Windows: Ctrl-C raises KeyboardInterrupt
        yield
        return
    try:
        yield
    finally:
        for each in signals:
            loop.remove_signal_handler(each)


def load_application(given: Sequence[str] | None) -> Application | None:
    """Import the application from --app or pyproject.toml; None if neither names one.

    Exits with code 2 if a module does not exist or has an invalid declaration, or if pyproject.toml
    cannot be read.
    """
    try:
        if given:
            application: Application | None = Application(given, Path.cwd(), "--app ")
        else:
            application = configured_application()
        if application is not None:
            application.load()
    except ConfigError as exc:
        fail(str(exc), code=2)
    return application


def require_application(given: Sequence[str] | None) -> Application:
    """Like `load_application`, but exits with code 2 if no application is named."""
    application = load_application(given)
    if application is None:
        fail(f"no application is named: {HOW_TO_NAME_ONE}", code=2)
    return application


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop  # noqa: PLC0415 - not on Windows
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop
