"""How commands run: an event loop of their own, and errors turned into messages and exit codes."""

import asyncio
import contextlib
import importlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, Final, TypeVar

import msgspec
import typer

from eventbus.bus import EventBus
from eventbus.cli.attaching import attached
from eventbus.cli.output import fail
from eventbus.config import Settings
from eventbus.errors import ConfigError, EventBusError, EventFieldError, InvalidName

__all__ = ["import_application", "interrupted", "on_interrupt", "opened_bus", "read_json", "run"]

T = TypeVar("T")
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


def import_application(module: str, option: str = "--app") -> None:
    """Import an application's module, also from the working folder, as `python -m` does.

    One that is not there, or that declares something wrong, ends the command with code 2.
    """
    if (here := os.getcwd()) not in sys.path:  # noqa: PTH109 - sys.path holds strings
        sys.path.insert(0, here)
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as exc:
        if exc.name is None or not f"{module}.".startswith(f"{exc.name}."):
            raise
        fail(f"{option} {module}: there is no such module (looked in {here} too)", code=2)
    except EventBusError as exc:
        fail(f"{option} {module}: {exc}", code=2)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop  # noqa: PLC0415 - not on Windows
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop
