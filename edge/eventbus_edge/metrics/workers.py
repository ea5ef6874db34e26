"""One scrape for all workers of a supervisor, whichever worker the kernel gives it to.

Each worker serves its metrics on a Unix socket in a folder that only the supervisor's user can
access. The worker that is scraped reads the metrics of the others there. Over the bus, a scrape
would fail exactly when the bus is down, and would include workers of other machines.
"""

import asyncio
import contextlib
import logging
from collections.abc import (
    Iterable,
    Iterator,
)
from pathlib import Path
from typing import (
    Final,
    NamedTuple,
)

import msgspec
from prometheus_client import (
    Counter,
    generate_latest,
)
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

__all__ = ["LABEL", "WorkersMetrics"]


_log = logging.getLogger(__name__)

LABEL: Final = "worker"
"""The label with the worker's number, which a restarted worker keeps."""
_PATIENCE_S: Final = 0.8
_MAX_BYTES: Final = 8 * 1024**2


class _Sample(NamedTuple):
    name: str
    labels: dict[str, str]
    value: float


class _Family(NamedTuple):
    name: str
    documentation: str
    type: str
    samples: list[_Sample]


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(list[_Family]).decode


class WorkersMetrics:
    """The metrics of this worker and its siblings, with the worker as a label."""

    def __init__(
        self,
        registry: Collector,
        socket: Path,
        missing: Counter,
        *,
        patience: float = _PATIENCE_S,
    ) -> None:
        """`socket` is this worker's socket, named like its label, in the folder of all sockets.

        `missing` counts workers that do not answer within `patience` seconds.
        """
        self._registry = registry
        self._socket = socket
        self._missing = missing
        self._patience = patience
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Start serving metrics to siblings. Raises OSError."""
        self._socket.unlink(missing_ok=True)  # left by a worker that was killed
        self._server = await asyncio.start_unix_server(self._answer, self._socket)

    async def aclose(self) -> None:
        """Stop serving metrics."""
        if self._server is not None:
            self._server.close()
            self._socket.unlink(missing_ok=True)

    async def exposition(self) -> bytes:
        """The metrics of all workers in Prometheus's text format, within about a second.

        A worker that does not answer is left out and counted.
        """
        siblings = sorted(each for each in self._socket.parent.iterdir() if each != self._socket)
        answers = await asyncio.gather(*map(self._ask, siblings))
        families: dict[str, Metric] = {}
        for sibling, answer in zip(siblings, answers, strict=True):
            if answer is None:
                self._missing.inc()
            else:
                _merge(families, sibling.name, answer)
        _merge(families, self._socket.name, self._own())
        return generate_latest(_Merged(families.values()))

    async def _ask(self, sibling: Path) -> list[_Family] | None:
        """The metrics of a sibling; None if it does not answer in time."""
        try:
            async with asyncio.timeout(self._patience):
                reader, writer = await asyncio.open_unix_connection(sibling)
                try:
                    return _decode(await _read(reader))
                finally:
                    writer.close()
        except (OSError, TimeoutError, msgspec.DecodeError) as exc:
            reason = str(exc) or type(exc).__name__
            _log.warning("no metrics from worker %s: %s", sibling.name, reason)
            return None

    async def _answer(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, TimeoutError):  # the other worker no longer waits
            async with asyncio.timeout(self._patience):
                writer.write(_encode(self._own()))
                await writer.drain()
        writer.close()

    def _own(self) -> list[_Family]:
        return [
            _Family(
                family.name,
                family.documentation,
                family.type,
                [_Sample(one.name, one.labels, one.value) for one in family.samples],
            )
            for family in self._registry.collect()
        ]


async def _read(reader: asyncio.StreamReader) -> bytes:
    """The whole answer; cut off beyond the size of any real one."""
    body = bytearray()
    while len(body) < _MAX_BYTES and (part := await reader.read(65536)):
        body += part
    return bytes(body)


def _merge(families: dict[str, Metric], worker: str, answer: Iterable[_Family]) -> None:
    for name, documentation, kind, samples in answer:
        family = families.get(name)
        if family is None:
            family = families[name] = Metric(name, documentation, kind)
        for sample in samples:
            family.add_sample(sample.name, sample.labels | {LABEL: worker}, sample.value)


class _Merged(Collector):
    """Collects families that were gathered before."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        """The families."""
        return iter(self._families)
