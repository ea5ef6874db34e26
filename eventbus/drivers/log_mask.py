"""Secrets masked in JSON text, without decoding it: all else stays the very text it was."""

import re
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

__all__ = ["MASK", "Mask", "normal"]

MASK: Final = "***"

_MAX_DEPTH: Final = 5
"""How many levels of JSON within strings within JSON are looked into; deeper is masked whole."""
_STRING: Final = r'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_TOKEN: Final = re.compile(rf"({_STRING})(\s*:\s*)?", re.DOTALL)
# In JSON a string before a colon is always a key: whoever reads string by string cannot be misled
# by what stands inside of them.
_NESTING: Final = re.compile(rf"{_STRING}|[{{}}\[\]]", re.DOTALL)
_VALUE: Final = re.compile(rf"{_STRING}|[^\s,}}\]]+", re.DOTALL)
_ESCAPE: Final = re.compile(r"\\u([0-9A-Fa-f]{4})")
_NOISE: Final = re.compile(r"[\W_]+")


def normal(name: str) -> str:
    """A name without case and separators: `X-Api-Key`, `apiKey` and `api_key` are one."""
    return _NOISE.sub("", name).casefold()


class Mask:
    """Replaces the values of keys whose names contain one of a few words.

    `token` masks `token`, `accessToken` and `X-Auth-Token` alike, at any depth; a whole object or
    list below such a key is one `"***"`. JSON within a string is masked too.
    """

    def __init__(self, names: Iterable[str]) -> None:
        """`names` are the words; see `normal` for how they are compared."""
        words = sorted(filter(None, map(normal, names)))
        self._hits = re.compile("|".join(map(re.escape, words))).search if words else None

    def hides(self, key: str) -> bool:
        """Whether the value of `key` is a secret."""
        return self._hits is not None and self._hits(normal(key)) is not None

    def hides_within(self, payload: bytes) -> bool:
        """Whether bytes that are no JSON, and so have no keys, may hold a secret's name."""
        text = payload.decode("latin-1")
        return self.hides(_ESCAPE.sub(lambda found: chr(int(found[1], 16)), text))

    def apply(self, text: str) -> str:
        """`text`, which must be valid JSON, with its secrets masked."""
        return text if self._hits is None else self._apply(text, 0)

    def _apply(self, text: str, depth: int) -> str:
        return "".join(self._parts(text, depth))

    def _parts(self, text: str, depth: int) -> Iterator[str]:
        kept = at = 0  # what stands before `kept` has been given, and before `at` looked at
        while (found := _TOKEN.search(text, at)) is not None:
            at = found.end()
            string, colon = found[1], found[2]
            if colon is None:
                if (masked := self._inner(string, depth)) != string:
                    yield text[kept : found.start()]
                    yield masked
                    kept = at
            elif (key := _decode(string)) is None or self.hides(key):
                yield text[kept:at]
                yield f'"{MASK}"'
                kept = at = _end_of_value(text, at)
        yield text[kept:]

    def _inner(self, string: str, depth: int) -> str:
        """A string's literal, masked where the string is JSON itself."""
        if "\\" not in string:  # JSON with a key has quotes, which are escaped here
            return string
        text = _decode(string)
        if text is None or text.lstrip()[:1] not in {"{", "[", '"'} or not _is_json(text):
            return string
        if depth == _MAX_DEPTH:
            return f'"{MASK}"'
        masked = self._apply(text, depth + 1)
        return string if masked == text else msgspec.json.encode(masked).decode()


def _end_of_value(text: str, at: int) -> int:
    if text[at] not in "{[":
        scalar = _VALUE.match(text, at)
        assert scalar is not None, "valid JSON has a value after a colon"
        return scalar.end()
    depth = 0
    for found in _NESTING.finditer(text, at):
        if found[0] in "{[":
            depth += 1
        elif found[0] in "}]":
            depth -= 1
            if not depth:
                return found.end()
    raise AssertionError("valid JSON closes what it opens")


def _decode(literal: str) -> str | None:
    """What a string's literal says; None where it says no text, as half a surrogate pair."""
    if "\\" not in literal:
        return literal[1:-1]
    try:
        return msgspec.json.decode(literal, type=str)
    except msgspec.DecodeError:
        return None


def _is_json(text: str) -> bool:
    try:
        msgspec.json.decode(text, type=msgspec.Raw)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True
