r"""Writes settings in nats-server's configuration language.

It looks like JSON, but its strings know other escapes: `\xXX` for a byte, and none for a code
point. Its quoted keys know no escapes at all. See conf/lex.go of nats-server.
"""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any, Final

from eventbus.errors import ServerError

__all__ = ["configuration"]

_ESCAPES: Final = {ord('"'): '\\"', ord("\\"): "\\\\"}
_LIMIT: Final = 2**63


def configuration(settings: Mapping[str, Any]) -> str:
    """The text of a configuration file with these settings.

    Values are strings, paths, numbers, booleans, sequences and mappings. A string keeps its type
    whatever it looks like, and may contain any character; one that stands for a file name may have
    surrogates, see `os.fsencode`. Raises ServerError for anything else.
    """
    return "".join(f"{_key(key)}: {_value(value)}\n" for key, value in settings.items())


def _value(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int() if -_LIMIT <= value < _LIMIT:
            return str(int(value))
        case float() if math.isfinite(value):
            return f"{value:f}"  # it knows no exponents
        case str() | PurePath():
            return _string(os.fspath(value))
        case Mapping():
            return f"{{{', '.join(f'{_key(key)}: {_value(one)}' for key, one in value.items())}}}"
        case Sequence() if not isinstance(value, bytes | bytearray | memoryview):
            return f"[{', '.join(map(_value, value))}]"
    raise ServerError(
        f"nats-server has no value like {value!r}; allowed: strings, paths, booleans, finite "
        "numbers, integers of 64 bits, sequences and mappings",
        driver="nats",
    )


def _string(text: str) -> str:
    try:
        data = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise ServerError(
            f"nats-server cannot read {text!r}: it is not Unicode", driver="nats"
        ) from None
    parts = (
        _ESCAPES.get(byte, chr(byte)) if 32 <= byte < 127 else f"\\x{byte:02x}" for byte in data
    )
    return f'"{"".join(parts)}"'


def _key(key: Any) -> str:
    if isinstance(key, str) and key.isprintable() and key:
        for quote in "\"'":
            if quote not in key:
                return f"{quote}{key}{quote}"
    raise ServerError(
        f"nats-server cannot read the key {key!r}; allowed: printable characters, without single "
        "and double quotes at once",
        driver="nats",
    )
