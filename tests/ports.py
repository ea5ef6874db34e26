"""Ports for servers that are started later, or again: no connection takes one of them meanwhile.

The system gives outgoing connections, and sockets bound to port 0, ports of its ephemeral range
(Linux: 32768 to 60999, ip(7)). These are below it, and each worker of a test run has its own.
"""

import itertools
import os
import random
import socket
from typing import Final

_ALL: Final = (*range(14_000, 20_000), *range(24_000, 32_700))
"""Others are for Redis: see tests/eventbus/drivers/conftest.py."""
_WORKERS: Final = 16
_worker: Final = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _WORKERS
_own: Final = _ALL[_worker::_WORKERS]
_start: Final = random.SystemRandom().randrange(len(_own))
_ports: Final = itertools.cycle([*_own[_start:], *_own[:_start]])


def free_ports(count: int) -> list[int]:
    """Different ports on which nothing listens. They are not given again for a long time."""
    return list(itertools.islice(filter(_is_free, _ports), count))


def free_port() -> int:
    """A port on which nothing listens."""
    return free_ports(1)[0]


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
