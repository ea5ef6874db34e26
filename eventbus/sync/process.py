"""What all blocking calls of a process share: a background thread, and the buses in its loop."""

import asyncio
import contextlib
import functools
import logging
import os
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Final, NamedTuple, TypeVar

from eventbus import bus as asynchronous, tracing
from eventbus.config import Settings
from eventbus.drivers import Driver
from eventbus.errors import BusStateError, DriverError
from eventbus.events import Listeners, Rescues, carried, current, default_listeners, rescue_counter
from eventbus.sync.thread import CLOSED, EXIT_S, LoopCalls, LoopThread

__all__ = ["BusFactory", "Buses", "Process", "here"]

_log = logging.getLogger(__name__)

T = TypeVar("T")


class BusFactory:
    """Creates the async bus that does the work of a blocking one, in the process that uses it."""

    def __init__(
        self,
        settings: Settings,
        driver: Driver | None = None,
        *,
        listeners: Listeners = default_listeners,
    ) -> None:
        """See `eventbus.EventBus`."""
        self.settings = settings
        self.listeners = Listeners(listeners)
        self.rescues = Rescues()
        self._driver = driver
        self._home = os.getpid()

    def create(self) -> asynchronous.EventBus:
        """An unopened async bus for this process.

        Raises BusStateError in a forked child if the bus was given a driver: that is its parent's.
        """
        if self._driver is not None and os.getpid() != self._home:
            raise BusStateError(
                "the bus was given a driver before this process was forked: create the bus in the "
                "child, or give it settings only"
            )
        return asynchronous.EventBus(
            self.settings, self._driver, listeners=self.listeners, rescues=self.rescues
        )


class Buses:
    """The async buses that live in one background loop, where all coroutines run."""

    def __init__(self, settings: Callable[[], Settings]) -> None:
        """`settings` gives those of the default bus, when it is first needed."""
        self._settings = settings
        self._tasks: dict[BusFactory, asyncio.Task[asynchronous.EventBus]] = {}
        self._closing: dict[BusFactory, asyncio.Task[None]] = {}
        self._is_ending = False
        self._lock = threading.Lock()
        self._default: BusFactory | None = None

    @property
    def has_opened(self) -> bool:
        """Whether the program has opened a bus itself, besides the default one."""
        return any(bus is not self._default for bus in self._tasks.copy())

    async def ensure_current(self) -> None:
        """Open the default bus, unless this loop has a current bus or a fake takes its place."""
        if current.is_any():
            return
        await self.opened(self.default())

    async def ensure_current_or_stand_in(self) -> asynchronous.UnreachableBus | None:
        """The stand-in for the default bus if that cannot be opened."""
        try:
            await self.ensure_current()
        except DriverError as exc:
            return self.unreachable(self.default(), exc)
        return None

    def unreachable(self, bus: BusFactory, error: DriverError) -> asynchronous.UnreachableBus:
        """The stand-in for a bus that could not be opened."""
        return asynchronous.UnreachableBus(
            bus.settings,
            error,
            listeners=bus.listeners,
            rescues=bus.rescues,
            reopen=lambda: self.opened(bus),
        )

    def default(self) -> BusFactory:
        """The default bus, which may not be open yet."""
        with self._lock:
            if self._default is None:
                self._default = BusFactory(self._settings())
            return self._default

    @property
    def used_default(self) -> BusFactory | None:
        """The default bus, once it has been used."""
        return self._default

    async def opened(self, bus: BusFactory) -> asynchronous.EventBus:
        """The async bus of a blocking one. Concurrent calls share one attempt to open it.

        Raises BusStateError once `close_all` has begun: nobody would close the bus.
        """
        if self._is_ending:
            raise BusStateError(CLOSED)
        task = self._tasks.get(bus)
        if task is None:
            task = self._tasks[bus] = asyncio.create_task(_open(bus), name="opening a bus")
            task.add_done_callback(lambda done: self._forget_failed(bus, done))
        return task.result() if task.done() else await asyncio.shield(task)

    def _forget_failed(self, bus: BusFactory, task: asyncio.Task[asynchronous.EventBus]) -> None:
        """Let the next call try again."""
        if (task.cancelled() or task.exception() is not None) and self._tasks.get(bus) is task:
            del self._tasks[bus]

    async def closed(self, bus: BusFactory) -> None:
        """Close the async bus of a blocking one, if it has one.

        All callers wait for the same close, which goes on if they are cancelled.
        """
        if (task := self._tasks.pop(bus, None)) is not None:
            self._closing[bus] = asyncio.create_task(_close(task), name="closing a bus")
            self._closing[bus].add_done_callback(lambda _: self._closing.pop(bus))
        if (closing := self._closing.get(bus)) is not None:
            await asyncio.shield(closing)

    async def close_all(self) -> None:
        """Close all buses, within `EXIT_S`; no other is opened.

        When buses fail to close, it raises the first error once all have ended.
        """
        self._is_ending = True
        buses = [*self._tasks, *self._closing]
        try:
            async with asyncio.timeout(EXIT_S):
                outcomes = await asyncio.gather(*map(self.closed, buses), return_exceptions=True)
        except TimeoutError:
            _log.warning("the buses of eventbus.sync did not close within %g s", EXIT_S)
            return
        for error in filter(None, outcomes):
            raise error


class _Running(NamedTuple):
    """A background thread, and the buses in its loop."""

    thread: LoopThread
    buses: Buses


class Process:
    """The background thread of a process, with its buses.

    The lock is held for moments only, and never while the loop has to do something.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self.pid: Final = os.getpid()
        self._settings = settings
        self._lock = threading.Lock()
        self._running: _Running | None = None
        self._ending: list[_Running] = []
        """Those that `close` ends."""
        self._shared: list[LoopCalls] = []

    def child(self) -> "Process":
        """The state of a process that has just been forked: its settings, and nothing that runs."""
        return Process(self._settings)

    def configure(self, settings: Settings) -> None:
        """Set the settings of the default bus; see `eventbus.sync.configure`."""
        with self._lock:
            default = self._running and self._running.buses.used_default
            if default is not None and default.settings != settings:
                raise BusStateError(
                    "the default bus is already open: call configure() before the first event is "
                    "dispatched, or call eventbus.sync.close() first"
                )
            self._settings = settings

    def _default_settings(self) -> Settings:
        return self._settings or Settings.from_env()

    def run(self, work: Callable[[Buses], Coroutine[Any, Any, T]]) -> T:
        """Run `work` in the loop, and wait for its result."""
        thread, buses = self._start()
        return thread.calls.run(lambda: work(buses))

    def forget(self, bus: BusFactory) -> None:
        """Close a bus, if it is open in this process, or wait for the close that is under way."""
        with self._lock:
            running = self._running
            ending = [each for each in self._ending if not each.thread.has_ended]
        for each in ending:
            each.thread.run_before_end(functools.partial(each.buses.closed, bus))
        if running is not None:
            with contextlib.suppress(BusStateError):  # `close` came first, and has closed it
                running.thread.calls.run(lambda: running.buses.closed(bus))

    def _start(self) -> _Running:
        with self._lock:
            if self._running is None:
                self._running = _Running(LoopThread(), Buses(self._default_settings))
            return self._running

    async def await_current(
        self, work: Callable[[current.Dispatcher], Coroutine[Any, Any, T]]
    ) -> T:
        """Run `work` with the current bus, and await its result in another event loop."""
        thread, buses = self._start()

        async def call() -> T:
            if (stand_in := await buses.ensure_current_or_stand_in()) is not None:
                return await work(stand_in)
            return await work(current.current_bus())

        with carried():
            return await asyncio.wrap_future(thread.calls.submit(call))

    @contextlib.contextmanager
    def sharing(self, bus: asynchronous.EventBus) -> Iterator[None]:
        """See `eventbus.sync.shared`."""
        if bus.state is not asynchronous.BusState.OPEN:
            raise BusStateError(f"only an open bus can be shared, and this one is {bus.state}")
        calls = LoopCalls(asyncio.get_running_loop())
        self._shared.append(calls)
        try:
            yield
        finally:
            self._shared.remove(calls)
            calls.refuse()

    def run_current(
        self, work: Callable[[], Coroutine[Any, Any, T]], *, may_be_unreachable: bool = False
    ) -> T:
        """Run `work` where the current bus is, and wait for its result."""
        has_opened = self._running is not None and self._running.buses.has_opened
        if not has_opened and (shared := [each for each in self._shared if each.can_run]):
            return shared[-1].run(work)

        async def call(buses: Buses) -> T:
            if not may_be_unreachable:
                await buses.ensure_current()
            elif (stand_in := await buses.ensure_current_or_stand_in()) is not None:
                with current.standing_in(stand_in):
                    return await work()
            return await work()

        return self.run(call)

    def default(self) -> BusFactory:
        """The default bus, which may not be open yet."""
        return self._start().buses.default()

    @property
    def rescued(self) -> int:
        """See `eventbus.sync.rescued`."""
        default = None if self._running is None else self._running.buses.used_default
        return 0 if default is None else default.rescues.count

    def close(self) -> None:
        """Close all buses within `EXIT_S`, and end the thread; see `eventbus.sync.close`.

        Work that comes meanwhile starts another thread. Raises BusStateError in a thread that it
        would end, and leaves all as it is.
        """
        with self._lock:
            ending = [each for each in self._ending if not each.thread.has_ended]
            if self._running is not None:
                ending.append(self._running)
            for each in ending:
                each.thread.refuse_in_itself()
            self._running, self._ending = None, ending
            for each in ending:
                each.thread.start_ending(each.buses.close_all)
        with contextlib.ExitStack() as waits:  # for all of them, also if one raises
            for each in ending:
                waits.callback(each.thread.wait_until_ended)


async def _open(bus: BusFactory) -> asynchronous.EventBus:
    with _imports:
        opened = bus.create()
        tracing.load()
        rescue_counter()
    await opened.open()
    return opened


async def _close(task: asyncio.Task[asynchronous.EventBus]) -> None:
    if not task.done():
        task.cancel()
        await asyncio.wait([task])
    if not task.cancelled() and task.exception() is None:
        await task.result().aclose()


_imports = threading.Lock()
"""Held while a bus imports its modules, and while the process forks: a child that is forked during
an import would find the module locked for ever."""
_process = Process()
_of_parents: list[Process] = []
"""Kept forever: closing a parent's loop or sockets in a child would disturb the parent's."""


def _after_fork() -> None:
    global _process  # noqa: PLW0603 - the state of a process
    _of_parents.append(_process)
    _process = _process.child()


def here() -> Process:
    """The state of this process. uWSGI forks without calling what is registered below."""
    if _process.pid != os.getpid():
        _after_fork()
    return _process


os.register_at_fork(
    before=_imports.acquire, after_in_parent=_imports.release, after_in_child=_imports.release
)
os.register_at_fork(after_in_child=_after_fork)
