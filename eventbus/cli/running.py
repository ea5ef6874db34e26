"""How commands run: an event loop of their own, and errors turned into messages and exit codes."""

import asyncio
import contextlib
import importlib
import os
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from eventbus.bus import EventBus
from eventbus.cli.output import fail
from eventbus.errors import ConfigError, EventBusError

__all__ = ["import_application", "opened_bus", "run"]

T = TypeVar("T")


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a command's coroutine to its end; Ctrl-C ends it with exit code 130, as shells do.

    Wrong settings end the command with 2, what else the library raises with 1.
    """
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(main)
    except ConfigError as exc:
        fail(str(exc), code=2)
    except EventBusError as exc:
        fail(str(exc))


@contextlib.asynccontextmanager
async def opened_bus() -> AsyncIterator[EventBus]:
    """The bus of the environment's settings. Raises an EventBusError when it cannot be opened."""
    async with EventBus.from_env() as bus:
        yield bus


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
