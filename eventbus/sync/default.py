"""The default bus of the process, which `dispatch_sync` uses; it opens when it is first needed."""

import atexit
import contextlib
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar, Unpack

from eventbus import bus as asynchronous
from eventbus.config import Settings
from eventbus.events import PublishOptions, current
from eventbus.messages import Receipt
from eventbus.sync.process import here
from eventbus.sync.thread import refuse_in_event_loop

__all__ = ["close", "configure", "connect", "rescued", "run", "serve_event_loops", "shared"]

T = TypeVar("T")


def configure(settings: Settings) -> None:
    """Set the settings of the process's default bus, in place of those of the environment.

    Raises BusStateError if the default bus is already open.
    """
    here().configure(settings)


@contextlib.contextmanager
def shared(bus: asynchronous.EventBus) -> Iterator[None]:
    """Let blocking calls of other threads use an open async bus, within the block.

    For applications with both kinds of code: `dispatch_sync()` in a worker thread then uses the
    connection of the application's own event loop. Enter it in that loop. Raises BusStateError if
    the bus is not open.
    """
    with here().sharing(bus):
        yield


def run(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine function in the background loop, and return its result.

    `run(lambda: Broadcast.notify_user("7", "Shipped", "It is on its way"))`. Its current bus is the
    last sync bus opened in this process that is still open, or else the default one, which is
    opened for it. Raises BusStateError in a thread whose event loop is running.
    """
    refuse_in_event_loop("a blocking call", "await the async form of it")

    return here().run_current(work)


def _run_dispatch(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """The same for work that only sends events: it runs even if the bus cannot be opened.

    Its current bus stands in for it then: see `UnreachableBus`.
    """
    refuse_in_event_loop(
        "a blocking call", "`await event.dispatch()`, or for a broadcast `await broadcast(…)`"
    )

    return here().run_current(work, may_be_unreachable=True)


def connect() -> None:
    """Open the bus that `dispatch_sync` uses now, and not at the first event.

    Raises what the driver raises when it cannot open; the first event tries again then.
    """

    async def nothing() -> None:
        """Only opens the bus."""

    run(nothing)


def rescued() -> int:
    """How many messages the default bus could not send without an error.

    See `eventbus.EventBus.rescued`.
    """
    return here().rescued


def close() -> None:
    """Close every sync bus of this process within 15 seconds, and end its background thread.

    The exit of the process does the same. All callers wait for the same close, which goes on after
    a call that is interrupted. A call that comes meanwhile or later opens the default bus again.
    Raises BusStateError in the background thread itself, where listeners run; raises what a driver
    raises when it cannot close, once all buses have closed.
    """
    here().close()


def serve_event_loops() -> None:
    """Let `await event.dispatch()` use the default bus in event loops without an open bus.

    For frameworks that give no place to open one, as Django under ASGI.
    """
    current.provide_fallback(_FromEventLoops())


class _FromEventLoops:
    """The default bus, for coroutines of other event loops."""

    async def publish(
        self,
        channel: str,
        event: str,
        data: Any,
        *,
        via: str | None = None,
        **options: Unpack[PublishOptions],
    ) -> Receipt:
        """Publish one message."""
        return await here().await_current(
            lambda bus: bus.publish(channel, event, data, via=via, **options)
        )

    async def dispatch(
        self, *events: Any, raise_errors: bool = False, via: str | None = None
    ) -> tuple[Receipt, ...]:
        """Dispatch events."""
        return await here().await_current(
            lambda bus: bus.dispatch(*events, raise_errors=raise_errors, via=via)
        )

    def using(self, driver: str) -> asynchronous.Using:
        """The same bus through another driver."""
        return asynchronous.Using(self, driver)

    def report_rescued(self, event: str, destination: str, error: Exception) -> None:
        """Log and count what could not be sent."""
        here().default().rescues.rescued(event, destination, error)


atexit.register(close)
current.provide_blocking(_run_dispatch)
