"""What is measured: one function per workload, the same for every system."""

import contextlib
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from scripts.benchmark.loader import Loader, Order, Publication, Report, start_loader
from scripts.benchmark.machine import Process
from scripts.benchmark.peers.base import (
    Client,
    Peer,
    Resume,
    Site,
    Target,
    channel,
)

__all__ = ["FRAME_BYTES", "Bench", "Crowd", "Figures", "Options", "settled", "zipf_sizes"]

FRAME_BYTES: Final = 256
"""The payload of each frame that clients receive: what publishers send is padded to it."""
IN_FLIGHT: Final = 200
"""Connections that are being opened at the same time: below every server's backlog."""
PATIENCE_S: Final = 60.0
CHANNELS: Final = 100
"""Of the mixed workload, and of a stream with many channels."""
MISSED: Final = 50
_SEED: Final = 15
_WARM_UP: Final = 0.2
"""The share of a measurement's time that runs before it, for just-in-time compilers."""

Figures = Mapping[str, float]
"""By column. These are checked: `lost`, the messages that did not arrive; `loader`, the share of
its core that the load generator used; `waited`, the share of the time in which the server's core
was not free for it."""


class Options(NamedTuple):
    """The size of the measurements."""

    seconds: float
    scale: float
    """Factor for the numbers of clients, to try the benchmark itself."""

    def count(self, clients: int) -> int:
        """A number of clients, scaled."""
        return max(2, round(clients * self.scale))


class Bench(NamedTuple):
    """A measurement in progress."""

    site: Site
    options: Options

    @contextlib.contextmanager
    def crowd(
        self, peer: Peer, clients: Sequence[Client], settings: Mapping[str, str] | None = None
    ) -> Iterator["Crowd"]:
        """Run a system and the load generator. No client is connected yet."""
        site = self.site
        with (
            peer.start(site, settings or {}) as target,
            start_loader(site.built / "loader", site.cores.loader, site.folder) as loader,
        ):
            crowd = Crowd(peer, target, loader)
            crowd.bring(clients)
            yield crowd


class Crowd:
    """A running system and its clients."""

    def __init__(self, peer: Peer, target: Target, loader: Loader) -> None:
        self.peer = peer
        self.target = target
        self.loader = loader

    def bring(self, clients: Sequence[Client]) -> None:
        """Set who connects next."""
        plans = [self.peer.plan(client) for client in clients]
        self.loader.clients(self.target.port, plans, self.peer.replies)

    def open(self, count: int) -> Report:
        """Connect this many more clients, and wait until they have subscribed."""
        report = self.loader.open(count, IN_FLIGHT)
        self.target.server.check()
        if report.ready < count:
            raise RuntimeError(f"{self.peer.name}: only {report.ready} clients could subscribe")
        return report

    def publish_to(self, fan_outs: Mapping[str, int], sequence: Sequence[int]) -> None:
        """Connect the publisher. `sequence` has indices of the channels.

        Payloads are padded so that all systems send frames of the same size.
        """
        padding = self._padding(next(iter(fan_outs.items())))
        self._set_publisher(fan_outs, sequence, padding)

    def _padding(self, to: tuple[str, int]) -> int:
        name, fan_out = to
        self._set_publisher({name: fan_out}, [0], 0)
        self.loader.do("reset")
        self.loader.do("sample")  # forget the last one
        self.loader.report("send 1")
        self.expect(fan_out)
        return max(0, FRAME_BYTES - len(self.loader.sample()))

    def _set_publisher(
        self, fan_outs: Mapping[str, int], sequence: Sequence[int], padding: int
    ) -> None:
        peer = self.peer
        publications = [
            Publication(peer.publication(name, peer.payload(name, padding)), fan_out)
            for name, fan_out in fan_outs.items()
        ]
        order = Order(publications, sequence)
        self.loader.publisher(self.target.publisher_port, self.target.preamble, order)

    def publish_without_clients(self, names: Sequence[str], messages: int = 0) -> None:
        """Connect the publisher for channels whose deliveries are not waited for.

        Publishes this many messages on each, one channel after another.
        """
        sequence = [at for at in range(len(names)) for _ in range(max(1, messages))]
        self._set_publisher(dict.fromkeys(names, 0), sequence, 0)
        self.loader.do("reset")
        if messages:
            self.loader.report(f"send {len(sequence)}")

    def expect(self, messages: int) -> Report:
        """Wait until this many messages have arrived."""
        report = self.loader.report(f"expect {messages} {PATIENCE_S:g}")
        if report.messages < messages:
            self.target.server.check()
            raise RuntimeError(
                f"{self.peer.name}: only {report.messages} of {messages} messages have arrived"
            )
        return report

    def run(self, command: str, seconds: float) -> Figures:
        """Publish for some time, after a warm-up."""
        server = self.target.server
        self.loader.report(f"{command} {seconds * _WARM_UP:g}")
        cpu, waited = server.cpu_s(), server.waited_s()
        report = self.loader.report(f"{command} {seconds:g}")
        cpu, waited = server.cpu_s() - cpu, server.waited_s() - waited
        server.check()
        if not report.messages:
            raise RuntimeError(f"{self.peer.name}: no message has arrived")
        is_paced = command.startswith("paced")  # nothing piles up while the server waits
        return {
            "per_cpu_s": report.messages / cpu,
            "per_s": report.messages / report.seconds,
            "p50_ms": report.p50_us / 1e3,
            "p99_ms": report.p99_us / 1e3,
            "server": cpu / report.seconds,
            "waited_paced" if is_paced else "waited": waited / report.seconds,
            "loader": report.loader_cpu,
            "frame_bytes": report.frame_bytes / report.messages,
            "lost": 0 if command.startswith("window") else report.expected - report.messages,
        }


def zipf_sizes(channels: int, most: int, least: int) -> list[int]:
    """How many clients each channel has: the k-th one has 1/k of the first, but some at least."""
    return [max(least, round(most / rank)) for rank in range(1, channels + 1)]


def _one_channel(
    bench: Bench, peer: Peer, clients: int, command: str, *, is_stream: bool = False
) -> Figures:
    count = bench.options.count(clients)
    name = channel(0)
    with bench.crowd(peer, [Client(n, [name], is_stream=is_stream) for n in range(count)]) as crowd:
        crowd.open(count)
        crowd.publish_to({name: count}, [0])
        return crowd.run(command, bench.options.seconds)


def fan_out(bench: Bench, peer: Peer) -> Figures:
    """One message at a time, to all clients of one channel: the next when all have it."""
    return _one_channel(bench, peer, 1000, "paced 60")


def sustained(ahead: int) -> Callable[[Bench, Peer], Figures]:
    """As fast as it goes, with at most this many messages on their way."""
    return lambda bench, peer: _one_channel(bench, peer, 1000, f"window {ahead}")


def unicast(bench: Bench, peer: Peer) -> Figures:
    """Each client has a channel of its own."""
    count = bench.options.count(1000)
    names = [channel(number) for number in range(count)]
    with bench.crowd(peer, [Client(n, [name]) for n, name in enumerate(names)]) as crowd:
        crowd.open(count)
        crowd.publish_to(dict.fromkeys(names, 1), _shuffled(count))
        return crowd.run("window 200", bench.options.seconds)


def mixed(bench: Bench, peer: Peer) -> Figures:
    """Channels of many sizes, in turn."""
    sizes = zipf_sizes(CHANNELS, bench.options.count(1000), bench.options.count(10))
    names = [channel(number) for number in range(CHANNELS)]
    clients = [
        Client(number, [name])
        for number, name in enumerate(
            name for name, size in zip(names, sizes, strict=True) for _ in range(size)
        )
    ]
    with bench.crowd(peer, clients) as crowd:
        crowd.open(len(clients))
        crowd.publish_to(dict(zip(names, sizes, strict=True)), _shuffled(CHANNELS))
        return crowd.run("paced 400", bench.options.seconds)


def _shuffled(count: int) -> list[int]:
    sequence = list(range(count))
    random.Random(_SEED).shuffle(sequence)  # noqa: S311 - the same for every system
    return sequence


def idle(bench: Bench, peer: Peer) -> Figures:
    """Memory of connections that are only held."""
    few, many = bench.options.count(500), bench.options.count(5000)
    with bench.crowd(peer, [Client(n, [channel(0)]) for n in range(few + many)]) as crowd:
        crowd.open(few)  # these also pay for what all share
        before = settled(crowd.target.server)
        report = crowd.loader.open(many, IN_FLIGHT)
        kib = (settled(crowd.target.server) - before) / many / 2**10
        return {"kib": kib, "loader": report.loader_cpu, "lost": few + many - report.ready}


def settled(server: Process) -> int:
    """Resident memory, when it has not changed for a while."""
    last, since = 0, time.monotonic()
    until = since + 10
    while (now := time.monotonic()) < until and now - since < 1:
        time.sleep(0.1)
        resident = server.resident()
        if abs(resident - last) > 2**16:
            last, since = resident, time.monotonic()
    return last


def connects(*, has_token: bool = False) -> Callable[[Bench, Peer], Figures]:
    """CPU time to connect and subscribe."""

    def measure(bench: Bench, peer: Peer) -> Figures:
        few, many = bench.options.count(500), bench.options.count(2000)
        clients = [Client(n, [channel(0)], has_token=has_token) for n in range(few + many)]
        with bench.crowd(peer, clients) as crowd:
            crowd.open(few)
            cpu = crowd.target.server.cpu_s()
            report = crowd.loader.open(many, IN_FLIGHT)
            cpu = crowd.target.server.cpu_s() - cpu
            return {
                "us": cpu / many * 1e6,
                "per_s": many / report.seconds,
                "loader": report.loader_cpu,
                "lost": few + many - report.ready,
            }

    return measure


def stream_fan_out(bench: Bench, peer: Peer) -> Figures:
    """One message at a time, to all streams of Server-Sent Events of one channel."""
    return _one_channel(bench, peer, 1000, "paced 60", is_stream=True)


def stream_of_channels(bench: Bench, peer: Peer) -> Figures:
    """One stream of Server-Sent Events with many channels."""
    names = [channel(number) for number in range(CHANNELS)]
    with bench.crowd(peer, [Client(0, names, is_stream=True)]) as crowd:
        crowd.open(1)
        crowd.publish_to(dict.fromkeys(names, 1), _shuffled(CHANNELS))
        figures = crowd.run("window 200", bench.options.seconds)
        return {**figures, "us": 1e6 / figures["per_cpu_s"]}


def latency(clients: int) -> Callable[[Bench, Peer], Figures]:
    """From the publisher's socket to the clients', ten messages a second."""

    def measure(bench: Bench, peer: Peer) -> Figures:
        return _one_channel(bench, peer, clients, "rate 10")

    return measure


def storm(bench: Bench, peer: Peer) -> Figures:
    """All clients lose their connection, miss messages, and come back at once."""
    count = bench.options.count(2000)
    name = channel(0)
    with bench.crowd(peer, [Client(n, [name]) for n in range(count)]) as crowd:
        crowd.open(count)
        crowd.publish_to({name: count}, [0])
        crowd.loader.do("reset")
        crowd.loader.do("sample")
        crowd.loader.report("send 1")
        crowd.expect(count)
        resume = Resume(name, crowd.loader.sample())
        crowd.loader.do("cut")
        crowd.loader.report(f"send {MISSED}")
        time.sleep(1)  # the server notices that they are gone, and the broker stores the messages
        crowd.bring([Client(n, [name], resume) for n in range(count)])
        crowd.loader.do("reset")
        cpu, start = crowd.target.server.cpu_s(), time.monotonic()
        opened = crowd.open(count)
        crowd.expect(count * MISSED)
        seconds = time.monotonic() - start
        cpu = crowd.target.server.cpu_s() - cpu
        return {
            "seconds": seconds,
            "ms_each": cpu / count * 1e3,
            "loader": opened.loader_cpu,
            "lost": 0,
        }
