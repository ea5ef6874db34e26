"""JSON that is safe for a terminal, and output in any encoding."""

import codecs
import contextlib
import io
import re
import sys
from collections.abc import Iterator
from typing import Final

from eventbus.user_code import is_visible

__all__ = ["json_safe", "safe_output"]

_SUSPECT: Final = re.compile(r"[^\x20-\x7e]")
_PLAIN: Final = {
    "✓": "+", "✗": "x", "→": "->", "…": "...", "│": "|", "─": "-",
    **dict(zip("▁▂▃▄▅▆▇█", "._-=+*#@", strict=True)),
}  # fmt: skip
"""Replacements for the symbols of our own output, where the encoding lacks them."""
_HANDLER: Final = "eventbus.plain"


def json_safe(text: str) -> str:
    """Escape control and invisible characters in a JSON text, which keeps its meaning.

    JSON requires that only for the C0 controls. Line feeds remain: they separate tokens. If the
    encoding of stdout is not Unicode, everything but ASCII is escaped.
    """
    is_unicode = _is_unicode(sys.stdout.encoding)

    def shown(found: re.Match[str]) -> str:
        char = found[0]
        return char if char == "\n" or (is_unicode and is_visible(char)) else _json_escape(char)

    return _SUSPECT.sub(shown, text)


def _json_escape(char: str) -> str:
    units = char.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[n : n + 4]}" for n in range(0, len(units), 4))


def _is_unicode(encoding: str | None) -> bool:
    return (encoding or "").lower().replace("-", "").startswith(("utf", "cp65001"))


@contextlib.contextmanager
def safe_output() -> Iterator[None]:
    """Keep output from failing on a character that stdout or stderr cannot encode."""
    codecs.register_error(_HANDLER, _plain)
    streams = [each for each in (sys.stdout, sys.stderr) if isinstance(each, io.TextIOWrapper)]
    before = [stream.errors for stream in streams]
    for stream in streams:
        stream.reconfigure(errors=_HANDLER)
    try:
        yield
    finally:
        for stream, errors in zip(streams, before, strict=True):
            with contextlib.suppress(OSError, ValueError):  # it is closed, or nobody reads it
                stream.reconfigure(errors=errors)


def _plain(exc: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(exc, UnicodeEncodeError):
        raise exc
    text = "".join(_PLAIN.get(char) or _escaped(char) for char in exc.object[exc.start : exc.end])
    return text, exc.end


def _escaped(char: str) -> str:
    return char.encode("ascii", "backslashreplace").decode()
