"""The limit on the nesting of JSON, which is the same on every node and Python version.

msgspec and the standard library limit it by the recursion limit of the interpreter: it differs
between Python versions and depends on the depth of the caller's stack. So one node would accept a
payload that another one rejects. Everything that decodes JSON from outside uses `json_decoder`.
"""

import functools
import itertools
import operator
from collections.abc import Callable
from typing import Any, Final, TypeVar

import msgspec

from eventbus.messages.models import decodable, decode_model, explained

__all__ = [
    "MAX_DATA_DEPTH",
    "MAX_DEPTH",
    "TooDeep",
    "check_depth",
    "decode_json",
    "is_deeper",
    "json_decoder",
]

T = TypeVar("T")
JsonText = bytes | str | msgspec.Raw

MAX_DATA_DEPTH: Final = 100
"""Levels of objects and arrays in a message's data, and in any other data of applications."""
MAX_DEPTH: Final = MAX_DATA_DEPTH + 8
"""Levels of a whole JSON text: envelopes, frames and bodies put their own levels around data."""

_STRUCTURE: Final = b'{}[]"'
_REST: Final = bytes(set(range(256)) - set(_STRUCTURE))
_AS_BITS: Final = bytes.maketrans(b"{[}]", b"1100")
"""Brackets as binary digits, so that eight of them are one byte, whose effect is known."""


def _peak(byte: int) -> int:
    """How many levels eight brackets reach above the level before them; 0 if none."""
    return max(itertools.accumulate(_steps(byte), initial=0))


def _steps(byte: int) -> list[int]:
    return [1 if byte >> bit & 1 else -1 for bit in range(7, -1, -1)]


_PEAKS: Final = bytes(map(_peak, range(256)))
_SUMS: Final = bytes(sum(_steps(byte)) % 256 for byte in range(256))
"""By how many levels eight brackets go up in all, as signed bytes."""


class TooDeep(msgspec.DecodeError):
    """JSON is nested too deeply."""


def json_decoder(
    type_: type[T], levels: int = MAX_DEPTH, *, float_hook: Callable[[str], Any] | None = None
) -> Callable[[JsonText], T]:
    """A function that decodes JSON to a type, which may be or have Pydantic models.

    It raises what msgspec does, and TooDeep.
    """
    decoder = msgspec.json.Decoder(decodable(type_), dec_hook=decode_model, float_hook=float_hook)
    return functools.partial(_decode, decoder.decode, levels)


def decode_json(text: JsonText, levels: int = MAX_DEPTH) -> Any:
    """Decode any JSON. Raises what msgspec does, and TooDeep."""
    return _decode(msgspec.json.decode, levels, text)


def _decode(decode: Callable[[JsonText], T], levels: int, text: JsonText) -> T:
    if len(text) > 2 * levels + 1:  # no call for short text: this runs for each message
        check_depth(text, levels)
    try:
        return decode(text)
    except msgspec.ValidationError as exc:
        raise explained(exc) from None
    except RecursionError:  # the caller's own stack is nearly exhausted
        raise TooDeep("JSON is nested too deeply for the depth of the call stack") from None


def check_depth(text: JsonText, levels: int = MAX_DEPTH) -> None:
    """Raises TooDeep for JSON with more than `levels` levels of objects and arrays."""
    if len(text) > 2 * levels + 1 and is_deeper(text, levels):
        raise TooDeep(f"JSON is nested too deeply: at most {levels} levels are allowed")


def is_deeper(text: JsonText, levels: int) -> bool:
    """Whether JSON has more than `levels` levels of objects and arrays.

    It takes 0.6 µs per KB for text with few brackets, at most 20 µs per KB for brackets alone, and
    does not recurse. Text that is not valid JSON may get any answer.
    """
    if len(text) <= 2 * levels + 1:  # each level has a bracket at both ends
        return False
    encoded = text if isinstance(text, bytes) else _encoded(text)
    brackets = encoded.translate(_AS_BITS, _REST)
    if brackets.count(b"1") <= levels:
        return False
    if b"\\" in encoded:
        plain = encoded.replace(b"\\\\", b"").replace(b'\\"', b"")
        brackets = plain.translate(_AS_BITS, _REST)
    return _reaches(_outside_of_strings(brackets), levels)


def _encoded(text: str | msgspec.Raw) -> bytes:
    return text.encode("utf-8", "surrogatepass") if isinstance(text, str) else bytes(text)


def _outside_of_strings(brackets: bytes) -> bytes:
    """The brackets that are not part of a string; `brackets` has all of them, and the quotes."""
    outside = brackets.translate(None, b'"')
    # A bracket in a string has an odd number of quotes before it. So when all quotes stand in
    # pairs, there is none.
    if 2 * brackets.count(b'""') == len(brackets) - len(outside):
        return outside
    return b"".join(brackets.replace(b'""', b"").split(b'"')[::2])


def _reaches(brackets: bytes, levels: int) -> bool:
    """Whether brackets are nested more than `levels` deep."""
    while True:  # most JSON is wide, not deep: without its leaves it is small
        if brackets.count(b"1") <= levels:
            return False
        if levels < 1:
            return True
        inner = brackets.replace(b"10", b"")
        if 2 * len(inner) > len(brackets):
            break
        brackets, levels = inner, levels - 1
    if b"1" * (levels + 1) in brackets:
        return True
    size = (len(brackets) + 7) // 8
    packed = int(brackets.ljust(8 * size, b"0"), 2).to_bytes(size)
    before = itertools.accumulate(memoryview(packed.translate(_SUMS)).cast("b"), initial=0)
    most: int = max(map(operator.add, before, packed.translate(_PEAKS)))
    return most > levels
