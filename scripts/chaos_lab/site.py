"""The servers of a run: nats-servers, edges, workers, an outbox and its relay."""

import asyncio
import contextlib
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple, Self

from eventbus import EventBus, Settings
from eventbus.cli.chaos import KINDS, Access, HttpSender, Log, Promise, Workload, library_sender
from eventbus.sync import EventBus as SyncBus
from scripts.chaos_lab.brokers import Brokers
from scripts.chaos_lab.client import ClientReceiver
from scripts.chaos_lab.events import PREFIX
from scripts.chaos_lab.handled import QUEUE, Handled
from scripts.chaos_lab.links import Link
from scripts.chaos_lab.machine import fake_time
from scripts.chaos_lab.processes import HOST, ROOT, Child, free_port
from scripts.chaos_lab.sabotage import sabotage
from scripts.chaos_lab.senders import OutboxSender, RawSender, queue_sender, sync_sender

__all__ = ["KEY", "SECRET", "Site", "Size"]

KEY: Final = "the-api-key-of-a-chaos-run"
PUSHER_KEY: Final = "chaos-lab"
NAMESPACE: Final = "chaos"
CHANNELS: Final = 6
_UNLIMITED: Final = "1000000"
SECRET: Final = "a-secret-of-chaos-runs-of-32-bytes-or-more"
_RULES: Final = f"""
[[rule]]
pattern = "{PREFIX}.>"
kind = "public"
join = "anyone"
"""


class Size(NamedTuple):
    """How many of each run at once."""

    edges: int = 3
    workers: int = 2
    clients: int = 300
    per_s: float = 5.0
    """Messages of each publisher."""
    crowd: int = 5000
    """Number of clients in the fault clients-return."""


class Site:
    """All servers of a run, and the workload on them: `async with Site(…) as site:`."""

    def __init__(
        self,
        folder: Path,
        brokers: Brokers,
        size: Size,
        *,
        is_sabotaged: bool = False,
        has_clock: bool = False,
    ) -> None:
        """Does not start anything.

        folder: for logs and files. is_sabotaged: see sabotage.py. has_clock: whether `set_clock` is
        used; all processes in Python then run with libfaketime.
        """
        self.folder = folder
        self.brokers = brokers
        self.size = size
        self._is_sabotaged = is_sabotaged
        self.run = secrets.token_hex(4)
        self.channels = [f"{PREFIX}.{self.run}.{number}" for number in range(CHANNELS)]
        self.volatile = f"{PREFIX}.{self.run}.volatile"
        """The channel whose messages are not stored."""
        self.workload = Workload(self.channels)
        self.hold = folder / "hold"
        """While this file exists, listeners of workers wait."""
        self.erased_at: list[float] = []
        """When the store was erased."""
        self._has_clock = has_clock
        self._clock = folder / "clock"
        self._handled = folder / "handled"
        self.handled = Handled(self._handled, self._log_of)
        self._logs: dict[str, Log] = {}
        self.link = Link(brokers.addresses[0])
        """Between the first broker, and the first edge and a publisher."""
        ports = [free_port() for _ in range(size.edges)]
        self.urls = [f"http://{HOST}:{port}" for port in ports]
        self.edges = [self._edge(number, port) for number, port in enumerate(ports)]
        self.workers = [self._worker(number) for number in range(size.workers)]
        self.relay = self._relay()
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._stack.aclose()

    async def _start(self) -> None:
        push = self._stack.push_async_callback
        push(self.brokers.aclose)
        await self.brokers.start()
        await self.link.start()
        push(self.link.aclose)
        for each in (*self.edges, *self.workers, self.relay):
            push(each.kill)
        await self._start_senders()
        await asyncio.gather(*(each.start() for each in (*self.edges, *self.workers)))
        await self.relay.start()
        push(self.workload.aclose)
        access = Access(self.urls, pusher_key=PUSHER_KEY)
        self.workload.add_receivers(self.size.clients, [*KINDS.values(), ClientReceiver], access)
        self.workload.add_volatile_receivers(len(self.urls), self.volatile, access)
        for number, channel in enumerate((*self.channels, QUEUE)):
            name = "queue" if channel == QUEUE else f"durable {number}"
            self._logs[channel] = self.workload.log(name, channel, Promise.AT_LEAST_ONCE)
        if self._is_sabotaged:
            sabotage(self.workload.logs)
        await self.workload.start_receivers()
        self.workload.start_publishers()

    async def _start_senders(self) -> None:
        stack, workload, pace = self._stack, self.workload, self.size.per_s
        bus = await stack.enter_async_context(EventBus(self.settings(self.link_url)))
        workload.add_publisher("library", library_sender(bus), pace)
        volatile = library_sender(bus, volatile=True)
        workload.add_publisher("volatile", volatile, pace, channels=[self.volatile])
        workload.add_publisher("queue", queue_sender(bus), pace, channels=[QUEUE])
        blocking = SyncBus(self.settings(self.brokers.url))
        await asyncio.to_thread(blocking.open)
        stack.push_async_callback(asyncio.to_thread, blocking.close)
        workload.add_publisher("sync", sync_sender(blocking), pace)
        http = HttpSender(self.urls, KEY)
        stack.push_async_callback(http.aclose)
        workload.add_publisher("http", http.send, pace)
        raw = self._raw = RawSender(self.brokers.url, NAMESPACE)
        await raw.open()
        stack.push_async_callback(raw.aclose)
        workload.add_publisher("raw", raw.send, pace)
        outbox = OutboxSender(self._database)
        await outbox.open()
        stack.push_async_callback(outbox.aclose)
        workload.add_publisher("outbox", outbox.send, pace)

    def settings(self, nats_url: str) -> Settings:
        """The settings of a bus."""
        return Settings.from_env(self.environ(nats_url))

    def environ(self, nats_url: str) -> dict[str, str]:
        """The settings that all processes share."""
        return {
            "NATS_URL": nats_url,
            "BROADCAST_CHANNELS_PREFIX": NAMESPACE,
            "BROADCAST_HISTORY_MESSAGES": "10000",
            "BROADCAST_HISTORY_SECONDS": "7200",
            "BROADCAST_HISTORY_BYTES": str(self.brokers.history_bytes),
            "BROADCAST_HISTORY_REPLICAS": str(self.brokers.replicas),
            "BROADCAST_QUEUE_LEASE": "5",
            "BROADCAST_PUBLISH_TIMEOUT": "30",
            "BROADCAST_CONNECT_TIMEOUT": "30",
        }

    async def stream_leader(self) -> str:
        """The name of the node that leads the event stream."""
        return await self._raw.leader(f"{NAMESPACE.upper()}_EVENTS")

    @property
    def link_url(self) -> str:
        """The brokers' addresses, the first one through the link."""
        return ",".join([f"nats://{HOST}:{self.link.port}", *self.brokers.urls[1:]])

    @property
    def _database(self) -> str:
        return f"sqlite:///{self.folder / 'outbox.db'}"

    def set_clock(self, offset_s: int) -> None:
        """Set the clock of edges, workers and relay to the real time plus an offset.

        The monotonic clock is not changed, since it never jumps on a real system either.
        """
        new = self._clock.with_suffix(".new")
        new.write_text(f"{offset_s:+}s\n", encoding="utf-8")
        new.replace(self._clock)

    def _clock_environ(self) -> dict[str, str]:
        library = fake_time()
        if library is None:
            return {}
        self.set_clock(0)
        return {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(self._clock),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_DONT_RESET": "1",
        }

    def _child(
        self, name: str, command: list[str], environ: Mapping[str, str], port: int | None = None
    ) -> Child:
        log = self.folder / f"{name.replace(' ', '-')}.log"
        address = None if port is None else (HOST, port)
        environ = {**environ, **self._clock_environ()} if self._has_clock else environ
        return Child(name, [sys.executable, *command], environ, log, address, folder=ROOT)

    def _edge(self, number: int, port: int) -> Child:
        rules = self.folder / "rules.toml"
        rules.write_text(_RULES, encoding="utf-8")
        environ = {
            **self.environ(self.link_url if number == 0 else self.brokers.url),
            "BROADCAST_WEBSOCKET_HOST": HOST,
            "BROADCAST_WEBSOCKET_PORT": str(port),
            "BROADCAST_RULES": str(rules),
            "BROADCAST_API_KEY": KEY,
            "BROADCAST_DRAIN_TIME": "2",
            "BROADCAST_HEARTBEAT": "5",
            "BROADCAST_MAX_CONNECTIONS_PER_ADDRESS": _UNLIMITED,
            "BROADCAST_MAX_REQUESTS_PER_ADDRESS": _UNLIMITED,
            "BROADCAST_MAX_HISTORY_PER_ADDRESS": _UNLIMITED,
            "EDGE_APP": "scripts.chaos_lab.edge_app",
            "JWT_SECRET": SECRET,
            "PUSHER_APP_ID": "1",
            "PUSHER_APP_KEY": PUSHER_KEY,
            "PUSHER_APP_SECRET": SECRET,
        }
        return self._child(f"edge {number}", ["-m", "eventbus_edge"], environ, port)

    def _worker(self, number: int) -> Child:
        environ = {
            **self.environ(self.brokers.url),
            "CHAOS_HANDLED": str(self._handled),
            "CHAOS_HOLD": str(self.hold),
        }
        return self._child(f"worker {number}", ["-m", "scripts.chaos_lab.worker"], environ)

    def _relay(self) -> Child:
        environ = {**self.environ(self.brokers.url), "DATABASE_URL": self._database}
        program = str(Path(sys.executable).with_name("eventbus"))
        return self._child("relay", [program, "outbox", "relay"], environ)

    def _log_of(self, channel: str) -> Log:
        return self._logs[channel]
