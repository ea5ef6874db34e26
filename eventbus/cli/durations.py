"""Durations in options: `90s`, `10m`, `1.5h`, `2d`, or a number of seconds."""

import re
from typing import Final

from eventbus.cli.output import fail

__all__ = ["MAX_S", "duration"]

_DURATION: Final = re.compile(r"(\d{1,12}(?:\.\d{1,12})?) ?(ms|s|m|h|d)?", re.ASCII)
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
MAX_S: Final = 31_536_000.0


def duration(
    text: str,
    where: str,
    *,
    least: float = 0.001,
    most: float = MAX_S,
    zero: bool = False,
) -> float:
    """Parse an option's value into seconds. Exits with code 2 for anything else.

    `zero` allows 0, and `where` is the option for the error.
    """
    found = _DURATION.fullmatch(text.strip())
    seconds = float(found[1]) * _UNITS[found[2] or "s"] if found else -1.0
    is_allowed = (zero and seconds == 0) or least <= seconds <= most
    if not is_allowed:
        what = f"{'0 or ' if zero else ''}a duration of {_shown(least)} to {_shown(most)}"
        fail(
            f"{where}: {text[:80]!r} is not {what}; allowed: a number with ms, s, m, h or d, such "
            "as 90s, 10m or 1.5h, or seconds without a unit",
            code=2,
        )
    return seconds


def _shown(seconds: float) -> str:
    for unit in ("d", "h", "m", "s"):
        if seconds >= _UNITS[unit] and seconds % _UNITS[unit] == 0:
            return f"{seconds / _UNITS[unit]:g}{unit}"
    return f"{seconds * 1000:g}ms"
