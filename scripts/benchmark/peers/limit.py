"""The limit of the machine: a C program that only calls send()."""

import contextlib
from collections.abc import Iterator, Mapping

from scripts.benchmark.machine import free_port, start_process, version_of
from scripts.benchmark.peers.base import SSE, LinePeer, Site, Target

__all__ = ["LimitPeer"]


class LimitPeer(LinePeer):
    """limit.c."""

    name = "limit"
    title = "C send() loop"
    features = frozenset({SSE})
    settings = "one send() per client and message; no checks, limits or buffers"

    def version(self, site: Site) -> str:  # noqa: ARG002
        """Of the compiler."""
        return version_of(["cc", "--version"])

    @contextlib.contextmanager
    def start(self, site: Site, options: Mapping[str, str]) -> Iterator[Target]:  # noqa: ARG002
        """Run it."""
        port, publisher = free_port(), free_port()
        command = [site.built / "limit", str(port), str(publisher)]
        with start_process(
            command, core=site.cores.server, folder=site.folder, port=port
        ) as server:
            yield Target(server, port, publisher)
