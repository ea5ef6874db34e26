"""One scrape for all workers of a supervisor, whichever of them the kernel gives it to.

Each worker serves what it has counted on a Unix socket in a folder that only the supervisor's user
may enter, and whoever is scraped asks the others there. Over the bus a scrape would go without
answers exactly when the bus is away, and would find workers of other machines too.
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
    CollectorRegistry,
    Counter,
    generate_latest,
)
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

__all__ = ["LABEL", "WorkersMetrics"]


_log = logging.getLogger(__name__)

LABEL: Final = "worker"
"""Names the worker by its place among the workers, which it hands on to its successor."""
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
    """What this worker and its siblings have counted, each sample labelled with its worker."""

    def __init__(
        self,
        registry: CollectorRegistry,
        socket: Path,
        missing: Counter,
        *,
        patience: float = _PATIENCE_S,
    ) -> None:
        """`socket` is this worker's; its name is the label, and its folder holds the siblings'.

        `missing` counts workers that did not answer within `patience` seconds.
        """
        self._registry = registry
        self._socket = socket
        self._missing = missing
        self._patience = patience
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Begin to answer siblings. Raises OSError."""
        self._socket.unlink(missing_ok=True)  # of the one before, which was killed
        self._server = await asyncio.start_unix_server(self._answer, self._socket)

    async def aclose(self) -> None:
        """Answer no more."""
        if self._server is not None:
            self._server.close()
            self._socket.unlink(missing_ok=True)

    async def exposition(self) -> bytes:
        """The metrics of all workers in Prometheus's text format, in about a second at most.

        A worker that does not answer is left out, and counted.
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
        """What a sibling has counted; None where it does not say so in time."""
        try:
            async with asyncio.timeout(self._patience):
                reader, writer = await asyncio.open_unix_connection(sibling)
                try:
                    return _decode(await _read(reader))
                finally:
                    writer.close()
        except (OSError, TimeoutError, msgspec.DecodeError) as exc:
            reason = str(exc) or type(exc).__name__
            _log.warning("worker %s did not tell its metrics: %s", sibling.name, reason)
            return None

    async def _answer(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, TimeoutError):  # who asked does not wait any more
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
    """All that comes; cut where it is more than any worker has to say."""
    body = bytearray()
    while len(body) < _MAX_BYTES and (part := await reader.read(65536)):
        body += part
    return bytes(body)


def _merge(families: dict[str, Metric], worker: str, told: Iterable[_Family]) -> None:
    for name, documentation, kind, samples in told:
        family = families.get(name)
        if family is None:
            family = families[name] = Metric(name, documentation, kind)
        for sample in samples:
            family.add_sample(sample.name, sample.labels | {LABEL: worker}, sample.value)


class _Merged(Collector):
    """Families that were gathered already."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        """The families."""
        return iter(self._families)
