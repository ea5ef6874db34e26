"""The cost of deflating a message in the event loop, compared with sending it.

    python -m scripts.benchmark.parts.deflating

Prints for messages of several sizes the compression ratio and the time to deflate one. The time is
also given as the number of clients that the plain message could be sent to in the same time, over
local sockets.
"""

import functools
import json
import random
import socket
import time
from collections.abc import Callable, Iterator

from eventbus.drivers.base import Position
from eventbus_edge.config import EdgeSettings
from eventbus_edge.delivery.wire import Wire, Wires
from eventbus_edge.framing.deflate import DeflatedFramings
from eventbus_edge.framing.frames import TEXT_FRAMES
from eventbus_edge.protocols.native import NATIVE
from eventbus_edge.protocols.vocabulary import ChannelMessage

SIZES = (1_000, 4_000, 16_000, 64_000, 1_000_000)
LEVELS = (1, EdgeSettings().compression_level, 6, 9)
RUNS = 100
WORDS = ("order", "shipped", "pending", "customer", "the", "total", "of", "paid", "by", "card")


def message(size: int) -> ChannelMessage:
    """A message with a list of small objects, as a typical application publishes."""
    data: list[dict[str, object]] = []
    pick = random.Random(size)  # noqa: S311 - deterministic, not a secret
    while len(json.dumps(data)) < size:
        text = " ".join(pick.choice(WORDS) for _ in range(6))
        data.append({"id": f"{pick.getrandbits(64):x}", "amount": pick.randrange(10**6), "t": text})
    body = json.dumps({"channel": "orders", "event": "listed", "data": data}).encode()
    return ChannelMessage("orders", "listed", body, None, None)


def numbered(made: ChannelMessage, number: int) -> ChannelMessage:
    """The same message with another offset, since the frame of the last message is cached."""
    return made._replace(position=Position(number, "E"))


def deflate_next(wire: Wire, messages: Iterator[ChannelMessage]) -> None:
    """Make one more frame."""
    wire.message(next(messages))


def best(work: Callable[[], object], runs: int = RUNS) -> float:
    """The shortest of many runs, in seconds: the one with the least interference."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def sending(frame: bytes) -> float:
    """The time to write a frame to a client's socket."""
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * len(frame))
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        sent = ours.send(frame)
        times.append(time.perf_counter() - start)
        while sent:
            sent -= len(theirs.recv(sent))
    ours.close()
    theirs.close()
    return min(times)


def main() -> None:
    """Print one line per size and level."""
    for size in SIZES:
        made = message(size)
        wires = Wires()
        plain = wires.shared(NATIVE, TEXT_FRAMES).message(made) or b""
        sent = sending(plain)
        for level in LEVELS:
            deflated = DeflatedFramings(min_bytes=1, level=level, on_deflated=lambda *_: None)
            wire = wires.own(NATIVE, deflated.framing(15))
            frame = wire.message(made) or b""
            others = iter([numbered(made, number) for number in range(RUNS)])
            took = best(functools.partial(deflate_next, wire, others))
            print(
                f"{size:>9,} bytes, level {level}: {len(frame) / len(plain):4.0%} of its size; "
                f"{took * 1e6:8.0f} µs, like sending it plain to {took / sent:3.0f} clients"
            )


if __name__ == "__main__":
    main()
