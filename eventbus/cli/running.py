"""Which bus a command speaks to: the cluster's, never one that the command itself has started."""

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
from eventbus.config import Settings
from eventbus.drivers.registry import canonical_name
from eventbus.errors import (
    ConfigError,
    ConnectionFailed,
    EventBusError,
    EventFieldError,
    InvalidName,
)
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


def attached(settings: Settings) -> Settings:
    """The settings with the address of the embedded server that another process runs.

    Raises ConnectionFailed where there is none, and ConfigError for the driver `memory`.
    """
    driver = canonical_name(settings.driver)
    if driver == "memory":
        raise ConfigError(
            "BROADCAST_DRIVER='memory': its messages do not leave a process, so that a command "
            "would see only itself; allowed here: nats, redis, or another that reaches the cluster",
            variable="BROADCAST_DRIVER",
        )
    names = settings.stack if driver == "stack" else (driver,)
    if settings.nats_url or "nats" not in map(canonical_name, names):
        return settings
    folder = Path(settings.nats_data).absolute()
    if not (url := running_server(folder)):
        raise ConnectionFailed(
            f"NATS_URL is empty, and no embedded nats-server runs with its data in {folder}: start "
            "one by `eventbus dev` or `eventbus edge run`, and call this in the same folder (or "
            "with the same BROADCAST_NATS_DATA); or set NATS_URL to the address of a server",
            driver="nats",
        )
    return msgspec.structs.replace(settings, nats_url=url)


T = TypeVar("T")
Apps = Annotated[
    list[str] | None,
    typer.Option(
        "--app",
        help="A module that defines events and listeners; repeatable. [default: that of "
        "pyproject.toml]",
    ),
]
_INTERRUPTED: Final = 130


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a command's coroutine to its end; Ctrl-C ends it with exit code 130, as shells do.

    Wrong settings and names that cannot be end the command with 2, what else the library raises
    with 1.
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
async def opened_bus() -> AsyncIterator[EventBus]:
    """The bus of the environment's settings, of whose cluster a command is a part.

    Raises an EventBusError when it cannot be opened; see `attached`.
    """
    async with EventBus(attached(Settings.from_env())) as bus:
        yield bus


def read_json(text: str, where: str) -> Any:
    """What a JSON text says; one that is none ends the command with code 2, naming `where`."""
    try:
        return msgspec.json.decode(text.encode("utf-8", "surrogateescape"))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        fail(f'{where}: not JSON: {exc}; allowed is JSON, such as {{"text":"hello"}}', code=2)


@contextlib.contextmanager
def interrupted() -> Iterator[asyncio.Event]:
    """An event that Ctrl-C or SIGTERM sets, for commands that run until then and end well."""
    asked = asyncio.Event()
    with on_interrupt(asked.set):
        yield asked


@contextlib.contextmanager
def on_interrupt(call: Callable[[], object]) -> Iterator[None]:
    """Within the block, each Ctrl-C or SIGTERM is a call."""
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
    """Import the application of --app, or else of pyproject.toml; None where neither names one.

    A module that does not exist or that declares something wrong, and a pyproject.toml that cannot
    be read, end the command with code 2.
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
    """The same for a command that needs one; without one it ends with code 2 and says how."""
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
