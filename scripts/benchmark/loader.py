"""The compiled load generator (loader.c): its input files, its commands and its reports."""

import contextlib
import json
import os
import struct
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from scripts.benchmark.machine import HOST

__all__ = [
    "BUSY", "MARK", "NONCE", "Loader", "Order", "Plan", "Publication", "Report", "Step",
    "client_file", "publisher_file", "start_loader", "text_frame",
]  # fmt: skip

NONCE: Final = "ZXZlbnRidXMtYmVuY2gtMQ=="
"""The Sec-WebSocket-Key of all clients. They do not check the answer."""
MARK: Final = "~~000000000000"
"""What a payload must contain, and a message id may: the publisher replaces the digits."""
BUSY: Final = 0.9
"""Above this share of its core, the load generator may be what is measured."""


class Step(NamedTuple):
    """Wait until `marker` has arrived `times` times (not at all if it is empty), then send."""

    marker: bytes
    send: bytes = b""
    times: int = 1


class Plan(NamedTuple):
    """How a client connects: the request, then steps until it is ready."""

    path: str
    steps: Sequence[Step]
    headers: Sequence[str] = ()
    is_stream: bool = False

    def head(self) -> bytes:
        """The request."""
        lines = [f"GET {self.path} HTTP/1.1", f"Host: {HOST}"]
        if not self.is_stream:
            lines += [
                "Connection: Upgrade", "Upgrade: websocket",
                "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {NONCE}",
            ]  # fmt: skip
        return "\r\n".join([*lines, *self.headers, "", ""]).encode()


class Publication(NamedTuple):
    """What the publisher sends for one message, and how many clients it reaches."""

    bytes_: bytes
    fan_out: int


class Order(NamedTuple):
    """What the publisher sends, and in which order; it starts again at the end."""

    publications: Sequence[Publication]
    sequence: Sequence[int]


class Report(msgspec.Struct, frozen=True):
    """What the load generator has counted."""

    published: int
    expected: int
    messages: int
    frames: int
    frame_bytes: int
    seconds: float
    first_s: float
    """From the start of the command until the first message arrived; 0 if none did."""
    last_s: float
    p50_us: int
    p90_us: int
    p99_us: int
    max_us: int
    loader_cpu: float
    """The share of its core that the load generator has used."""
    join_p50_us: int
    """From a client's last command until it is ready, of the clients that `open` has opened."""
    join_max_us: int
    least: int
    """The messages of the client that received the fewest."""
    most: int
    ready: int
    lost: int

    @property
    def is_busy(self) -> bool:
        """Whether the load generator itself may be what was measured."""
        return self.loader_cpu > BUSY


def text_frame(payload: str | bytes) -> bytes:
    """A client's text frame, masked with zeros (RFC 6455, section 5.3)."""
    data = payload.encode() if isinstance(payload, str) else payload
    size = len(data)
    if size < 126:
        head = struct.pack("!BB", 0x81, 0x80 | size)
    elif size < 65536:
        head = struct.pack("!BBH", 0x81, 0xFE, size)
    else:
        head = struct.pack("!BBQ", 0x81, 0xFF, size)
    return head + bytes(4) + data


def _text(data: bytes) -> bytes:
    return struct.pack("<I", len(data)) + data


def client_file(port: int, plans: Sequence[Plan], replies: Sequence[tuple[str, str]] = ()) -> bytes:
    """The file of the command `clients`. `replies` answer the pings of a peer's protocol."""
    parts = [struct.pack("<II", port, len(replies))]
    for reply in replies:
        parts += [_text(side.encode()) for side in reply]
    parts.append(struct.pack("<I", len(plans)))
    for plan in plans:
        parts += [
            struct.pack("<I", plan.is_stream), _text(plan.head()),
            struct.pack("<I", len(plan.steps)),
        ]  # fmt: skip
        for step in plan.steps:
            parts += [_text(step.marker), struct.pack("<I", step.times), _text(step.send)]
    return b"".join(parts)


def publisher_file(preamble: bytes, order: Order) -> bytes:
    """The file of the command `publisher`."""
    parts = [_text(preamble), struct.pack("<I", len(order.publications))]
    for publication in order.publications:
        parts += [struct.pack("<I", publication.fan_out), _text(publication.bytes_)]
    parts.append(struct.pack("<I", len(order.sequence)))
    parts.append(struct.pack(f"<{len(order.sequence)}I", *order.sequence))
    return b"".join(parts)


class Loader:
    """The running load generator."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self._process = process
        self._folder = folder

    def clients(
        self, port: int, plans: Sequence[Plan], replies: Sequence[tuple[str, str]] = ()
    ) -> None:
        """Set which clients `open` opens."""
        path = self._folder / "clients"
        path.write_bytes(client_file(port, plans, replies))
        self._ask(f"clients {path}")

    def open(self, count: int, in_flight: int) -> Report:
        """Open more clients. Raises RuntimeError if they are not all ready in time."""
        report = self.report(f"open {count} {in_flight}")
        if report.lost:
            raise RuntimeError(f"{report.lost} clients lost their connection")
        return report

    def publisher(self, port: int, preamble: bytes, order: Order) -> None:
        """Connect the publisher."""
        path = self._folder / "publisher"
        path.write_bytes(publisher_file(preamble, order))
        self._ask(f"publisher {port} {path}")

    def sample(self) -> bytes:
        """A message as a client received it, since the last call."""
        return bytes.fromhex(self._ask("sample")["hex"])

    def do(self, command: str) -> None:
        """A command without a report."""
        self._ask(command)

    def report(self, command: str) -> Report:
        """A command with a report."""
        return msgspec.convert(self._ask(command), Report)

    def _ask(self, command: str) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(f"{command}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise RuntimeError(f"the load generator exited before {command!r}") from None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the load generator exited at {command!r}; see its output above")
        return json.loads(line)


@contextlib.contextmanager
def start_loader(program: Path, core: int, folder: Path) -> Iterator[Loader]:
    """Run the load generator on one core."""
    process = subprocess.Popen(  # noqa: S603 - the program of this benchmark
        ["taskset", "-c", str(core), program, HOST],  # noqa: S607 - util-linux
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={"PATH": os.environ["PATH"]},
    )
    try:
        yield Loader(process, folder)
    finally:
        process.kill()
        process.wait()
