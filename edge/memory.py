"""How much memory this process has in use."""

import os
from pathlib import Path
from typing import Final

__all__ = ["resident_bytes"]

_STATM: Final = Path("/proc/self/statm")


def resident_bytes() -> int | None:
    """The resident set's size, as the kernel tells it (proc(5)); None where it does not.

    `resource.getrusage` is no substitute: it tells the peak, which never sinks again.
    """
    try:
        pages = int(_STATM.read_bytes().split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")
