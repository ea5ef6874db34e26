"""The table of the benchmark: what each workload is called, its columns and its target."""

from collections.abc import Callable
from typing import Final, NamedTuple

from scripts.benchmark import own, workloads as measure
from scripts.benchmark.peers.base import HISTORY, LIBRARY, RESIDENT, SSE, TLS, TOKENS, Peer
from scripts.benchmark.workloads import Bench, Figures

__all__ = ["CASES", "LETTERS", "Case", "Column", "Goal"]


class Goal(NamedTuple):
    """A goal of eventbus: a value, or a ratio to the limit of the machine."""

    value: float
    is_of_limit: bool = False


class Column(NamedTuple):
    """A figure of a workload."""

    key: str
    title: str
    digits: int = 0
    goal: Goal | None = None
    is_less_better: bool = False


class Case(NamedTuple):
    """A workload."""

    key: str
    """Its letter, and a word if a letter has several."""
    title: str
    columns: tuple[Column, ...]
    """Systems are compared by the first one."""
    run: Callable[[Bench, Peer], Figures]
    needs: frozenset[str] = frozenset()
    """What a system must have; the others have no such workload."""

    @property
    def letter(self) -> str:
        """For `--only`."""
        return self.key[0]


def _per_cpu_s(goal: float, *, is_of_limit: bool = False) -> tuple[Column, ...]:
    return Column("per_cpu_s", "per CPU s", 0, Goal(goal, is_of_limit)), Column("per_s", "per s")


def _less(key: str, title: str, digits: int, goal: float) -> Column:
    return Column(key, title, digits, Goal(goal), is_less_better=True)


def _latency(p50: float, p99: float) -> tuple[Column, ...]:
    return _less("p50_ms", "p50 ms", 1, p50), _less("p99_ms", "p99 ms", 1, p99)


def _dispatch(per_s: float, us: float) -> tuple[Column, ...]:
    return Column("per_s", "per s", 0, Goal(per_s)), _less("us", "CPU µs", 1, us)


_CONNECT: Final = (_less("us", "µs", 0, 200), Column("per_s", "per s"))

CASES: Final = (
    Case(
        "a", "fan-out: 1 channel, 1,000 clients, one message at a time",
        _per_cpu_s(0.75, is_of_limit=True), measure.fan_out,
    ),
    Case(
        "b-50", "sustained: 1 channel, 1,000 clients, 50 messages ahead",
        _per_cpu_s(1.5e6), measure.sustained(50),
    ),
    Case(
        "b-1000", "sustained: 1 channel, 1,000 clients, 1,000 messages ahead",
        _per_cpu_s(2.5e6), measure.sustained(1000),
    ),
    Case("c", "unicast: 1,000 channels, 1 client each", _per_cpu_s(60_000), measure.unicast),
    Case(
        "d", "mixed: 100 channels, 10 to 1,000 clients (Zipf), one message at a time",
        _per_cpu_s(0.6, is_of_limit=True), measure.mixed,
    ),
    Case(
        "e", "idle: 5,000 connections with one channel, memory of each",
        (_less("kib", "KiB", 1, 6),), measure.idle,
        needs=frozenset({RESIDENT}),
    ),
    Case(
        "e-tls", "the same over TLS", (_less("kib", "KiB", 1, 30),),
        own.idle_tls, needs=frozenset({TLS}),
    ),
    Case(
        "f", "connect and subscribe to one channel, CPU time", _CONNECT,
        measure.connects(), needs=frozenset({RESIDENT}),
    ),
    Case(
        "f-token", "the same, each with a signed token of its own", _CONNECT,
        measure.connects(has_token=True), needs=frozenset({TOKENS}),
    ),
    Case(
        "g-100", "latency, publisher to client: 100 clients, 10 messages/s",
        _latency(1, 2), measure.latency(100),
    ),
    Case(
        "g-1000", "latency, publisher to client: 1,000 clients, 10 messages/s",
        _latency(4, 8), measure.latency(1000),
    ),
    Case(
        "h", "storm: 2,000 clients come back at once, 50 missed messages each",
        (_less("seconds", "s", 2, 0.6), _less("ms_each", "CPU ms each", 2, 0.3)),
        measure.storm, needs=frozenset({HISTORY}),
    ),
    Case(
        "i", "dispatch() of the library, 100 concurrent publishers: durable events",
        _dispatch(40_000, 25), own.dispatches("Moved"), needs=frozenset({LIBRARY}),
    ),
    Case(
        "i-volatile", "the same, volatile events", _dispatch(150_000, 7),
        own.dispatches("Typing"), needs=frozenset({LIBRARY}),
    ),
    Case(
        "j", "growth: from 1 to 100,000 active channels; and messages for other nodes",
        (_less("growth", "% more each", 0, 20), _less("foreign", "% if foreign", 0, 20)),
        own.growth, needs=frozenset({LIBRARY}),
    ),
    Case(
        "k", "Server-Sent Events: 1 channel, 1,000 clients, one message at a time",
        _per_cpu_s(0.6, is_of_limit=True), measure.stream_fan_out, needs=frozenset({SSE}),
    ),
    Case(
        "k-100", "one stream of Server-Sent Events with 100 channels, a message",
        (_less("us", "CPU µs", 1, 8), Column("per_s", "per s")),
        measure.stream_of_channels, needs=frozenset({SSE}),
    ),
    Case(
        "l", "join with 100 messages of history: alone, behind 50 greedy readers",
        (_less("alone", "ms alone", 1, 2), _less("behind", "ms behind", 1, 10)),
        own.joins, needs=frozenset({LIBRARY}),
    ),
)  # fmt: skip
"""In the order of the tables."""

LETTERS: Final = tuple(dict.fromkeys(case.letter for case in CASES))
