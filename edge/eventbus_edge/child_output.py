"""The standard output of a child process: passed on, and searched for the address that it prints.

An application may print anything: a line may be of any length, or never end.
"""

import asyncio
import codecs
import logging
import sys
from collections.abc import Callable
from typing import Final

from eventbus.attempts import RateLimitedLog

__all__ = ["MAX_PIECE", "pass_on"]

_faults: Final = RateLimitedLog(logging.getLogger(__name__))

MAX_PIECE: Final = 64 * 1024
"""A longer line is passed on in pieces."""
_CHUNK: Final = 64 * 1024
_KEPT: Final = 512
"""How much of the end of a long line is kept, because a marker may begin there."""


async def pass_on(
    stream: asyncio.StreamReader, marker: str, on_marked: Callable[[str], object]
) -> None:
    """Write the lines of a child's output to our own, until its end.

    The rest of a line after `marker` goes to `on_marked` instead, wherever in the line it begins:
    the application may have printed before it, without ending the line.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    rest = ""
    while chunk := await stream.read(_CHUNK):
        *lines, rest = (rest + decoder.decode(chunk)).split("\n")
        for line in lines:
            before, found, after = line.partition(marker)
            if found:
                _write(before and f"{before}\n")
                on_marked(after)
            else:
                _write(f"{line}\n")
        if len(rest) > MAX_PIECE and marker not in rest:
            _write(rest[:-_KEPT])
            rest = rest[-_KEPT:]
    _write(rest)


def _write(text: str) -> None:
    out = sys.stdout
    try:
        try:
            out.write(text)
        except UnicodeEncodeError:  # a terminal or a file of another encoding
            encoding = out.encoding or "ascii"
            out.write(text.encode(encoding, "backslashreplace").decode(encoding))
        out.flush()
    except (OSError, ValueError) as exc:  # closed: the child's output must be read anyway
        _faults.log(logging.WARNING, "the output of a child process is lost: %s", exc)
