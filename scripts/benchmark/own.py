"""Workloads that only eventbus has: the library, growth, joins with history, TLS."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import trustme

from scripts.benchmark.loader import Plan, Step
from scripts.benchmark.machine import HOST
from scripts.benchmark.peers.base import Client, Peer, channel, nats
from scripts.benchmark.peers.eventbus import UNLIMITED, action
from scripts.benchmark.sizing.crowd import Guest, How, start_crowd
from scripts.benchmark.workloads import Bench, Crowd, Figures, settled

__all__ = ["dispatches", "growth", "idle_tls", "joins"]

ACTIVE: Final = 100_000
PER_CLIENT: Final = 1000
STORED: Final = 100
JOINS: Final = 20
GREEDY: Final = 50
READS: Final = 100
"""Of each greedy client, one after another."""
_MANY: Final = {
    "BROADCAST_MAX_CHANNELS_PER_CONNECTION": UNLIMITED,
    "BROADCAST_MAX_ACTIONS_PER_SECOND": UNLIMITED,
    "BROADCAST_ACTION_BURST": UNLIMITED,
    "BROADCAST_MAX_FRAME_BYTES": str(2**20),
}


def dispatches(event: str) -> Callable[[Bench, Peer], Figures]:
    """`dispatch()` of one process with 100 concurrent publishers, to NATS."""

    def measure(bench: Bench, peer: Peer) -> Figures:  # noqa: ARG001
        site = bench.site
        with nats(site) as (_, port):
            done = subprocess.run(  # noqa: S603 - a module of this benchmark
                [  # noqa: S607 - util-linux
                    "taskset", "-c", str(site.cores.server), sys.executable, "-m",
                    "scripts.benchmark.parts.dispatching", "--json", "--url", f"nats://{HOST}:{port}",
                ],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"dispatching failed: {done.stderr[-500:]}")
        found: Mapping[str, Mapping[str, float]] = json.loads(done.stdout)
        return found[event]

    return measure


def growth(bench: Bench, peer: Peer) -> Figures:
    """The cost of a message with one active channel and with many, and of one for other nodes."""
    holders = max(1, round(ACTIVE / PER_CLIENT * bench.options.scale))
    seconds = bench.options.seconds
    with bench.crowd(peer, [Client(0, [channel(0)])], _MANY) as crowd:
        crowd.open(1)
        crowd.publish_to({channel(0): 1}, [0])
        before = 1e6 / crowd.run("window 20", seconds)["per_cpu_s"]

        plans = [peer.plan(Client(0, [channel(0)]))]
        for holder in range(holders):
            first = 1 + holder * PER_CLIENT
            names = [channel(number) for number in range(first, first + PER_CLIENT)]
            joined = b"".join(action("subscribe", name) for name in names)
            plans.append(Plan("/ws", [Step(b"", joined), Step(b"eb:subscribed", times=len(names))]))
        crowd.loader.clients(crowd.target.port, plans)
        crowd.open(holders)
        after = 1e6 / crowd.run("window 20", seconds)["per_cpu_s"]

        idle = _cpu_per_s(crowd, seconds)
        crowd.publish_without_clients([channel(ACTIVE * 2)])
        cpu = crowd.target.server.cpu_s()
        report = crowd.loader.report(f"rate 1000 {seconds:g}")
        cpu = crowd.target.server.cpu_s() - cpu - idle * report.seconds
        foreign = max(0.0, cpu) / report.published * 1e6
        return {
            "growth": (after / before - 1) * 100,
            "us": after,
            "us_one_channel": before,
            "foreign": foreign / before * 100,
            "loader": report.loader_cpu,
        }


def _cpu_per_s(crowd: Crowd, seconds: float) -> float:
    cpu = crowd.target.server.cpu_s()
    time.sleep(seconds)
    return (crowd.target.server.cpu_s() - cpu) / seconds


def joins(bench: Bench, peer: Peer) -> Figures:
    """Join a channel with 100 stored messages: alone, and while others read much history."""
    first = [channel(number) for number in range(JOINS)]
    second = [channel(JOINS + number) for number in range(JOINS)]
    read = [channel(2 * JOINS + number) for number in range(GREEDY)]
    names = [*first, *second, *read]
    witness = Client(0, [names[-1]])
    with bench.crowd(peer, [witness], _MANY) as crowd:
        crowd.open(1)
        crowd.publish_without_clients(names, STORED)
        crowd.expect(STORED)  # of the last channel: those before it are stored, too
        alone = _join(crowd, first)
        shared = _join(crowd, [first[0]] * JOINS)
        greedy = b"".join(action("history", names[-1], limit=STORED) for _ in range(READS))
        crowd.loader.clients(
            crowd.target.port,
            [Plan("/ws", [Step(b"eb:connected", _for(greedy, names[-1], name))]) for name in read],
        )
        crowd.loader.do("cut")
        crowd.open(GREEDY)
        behind = _join(crowd, second, keep=GREEDY)
        return {"alone": alone, "shared": shared, "behind": behind}


def _for(frames: bytes, placeholder: str, name: str) -> bytes:
    return frames.replace(placeholder.encode(), name.encode())


def _join(crowd: Crowd, names: Sequence[str], keep: int = 0) -> float:
    """Milliseconds from the command until all messages are there; clients join in turn."""
    plans = [
        Plan("/ws", [Step(b"eb:connected", action("subscribe", name, history=STORED)),
                     Step(b"~~", times=STORED)])
        for name in names
    ]  # fmt: skip
    if not keep:
        crowd.loader.do("cut")
    filler = [Plan("/ws", [])] * keep  # the file's first clients are those that are open
    crowd.loader.clients(crowd.target.port, [*filler, *plans])
    return crowd.loader.open(len(plans), 1).join_p50_us / 1e3


def idle_tls(bench: Bench, peer: Peer) -> Figures:
    """Memory of connections with TLS. Their clients are Python: they are not what is measured."""
    folder = bench.site.folder
    authority, ca = trustme.CA(), folder / "ca.pem"
    authority.cert_pem.write_to_path(str(ca))
    authority.issue_cert(HOST).private_key_and_cert_chain_pem.write_to_path(
        str(folder / "edge.pem")
    )
    few, many = bench.options.count(500), bench.options.count(5000)
    settings = {"BROADCAST_TLS_CERT": str(folder / "edge.pem")}
    guests = [Guest(f"/ws?channel={channel(0)}")]

    async def measure() -> float:
        how = How(ca=str(ca))
        with peer.start(bench.site, settings) as target:
            async with start_crowd(2) as clients:
                await clients.open(target.port, guests * few, how)
                before = await asyncio.to_thread(settled, target.server)
                await clients.open(target.port, guests * many, how)
                after = await asyncio.to_thread(settled, target.server)
        return (after - before) / many / 2**10

    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {bench.site.cores.loader})  # the clients inherit it
    try:
        return {"kib": asyncio.run(measure())}
    finally:
        os.sched_setaffinity(0, cores)
