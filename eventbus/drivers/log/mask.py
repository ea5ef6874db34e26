"""Secrets masked in JSON: decoded, masked and encoded again."""

import decimal
import operator
import re
from collections.abc import Iterable
from typing import (
    Any,
    Final,
)

import msgspec

from eventbus.messages import TooDeep, json_decoder

__all__ = ["MASK", "Mask", "normal"]


MASK: Final = "***"

_MAX_DEPTH: Final = 5
"""Levels of JSON in strings that are searched; deeper ones become MASK."""
_ESCAPE: Final = re.compile(r"\\u([0-9A-Fa-f]{4})")
_NOISE: Final = re.compile(r"[\W_]+")

# Decimal preserves the digits of numbers.
_decode: Final = json_decoder(Any, float_hook=decimal.Decimal)
_encode: Final = msgspec.json.Encoder(decimal_format="number").encode


def normal(name: str) -> str:
    """A name without case and separators: `X-Api-Key`, `apiKey` and `api_key` are equal."""
    return _NOISE.sub("", name).casefold()


class Mask:
    """Replaces the values of keys whose names contain one of a few words.

    `token` masks `token`, `accessToken` and `X-Auth-Token` alike, at any depth; a whole object or
    list below such a key becomes one `"***"`. JSON within a string is masked too.
    """

    def __init__(self, names: Iterable[str]) -> None:
        """`names` are the words, compared in their `normal` form."""
        words = sorted(filter(None, map(normal, names)))
        self._hits = re.compile("|".join(map(re.escape, words))).search if words else None

    def hides(self, key: str) -> bool:
        """Whether the value of `key` is a secret."""
        return self._hits is not None and self._hits(normal(key)) is not None

    def hides_within(self, payload: bytes) -> bool:
        """Whether bytes that are not JSON, and so have no keys, may contain a masked word."""
        text = payload.decode("latin-1")
        return self.hides(_ESCAPE.sub(lambda found: chr(int(found[1], 16)), text))

    def apply(self, text: str) -> str:
        """The JSON `text` with its secrets masked.

        Raises msgspec.DecodeError if it is not JSON or is nested too deeply, and RecursionError for
        JSON in strings that is so in total.
        """
        return text if self._hits is None else _encode(self._masked(_decode(text), 0)).decode()

    def _masked(self, value: Any, depth: int) -> Any:
        """A value with its secrets masked; the same object if there are none."""
        if isinstance(value, str):
            return self._masked_text(value, depth)
        if isinstance(value, list):
            items = [self._masked(each, depth) for each in value]
            return value if all(map(operator.is_, items, value)) else items
        if isinstance(value, dict):
            fields = {
                key: MASK if self.hides(key) else self._masked(each, depth)
                for key, each in value.items()
            }
            return value if all(map(operator.is_, fields.values(), value.values())) else fields
        return value

    def _masked_text(self, text: str, depth: int) -> str:
        """A string, with secrets masked if it is JSON itself."""
        if text.lstrip()[:1] not in {"{", "[", '"'}:
            return text
        try:
            value = _decode(text)
        except TooDeep:
            return MASK
        except msgspec.DecodeError:
            return text
        if depth == _MAX_DEPTH:
            return MASK
        masked = self._masked(value, depth + 1)
        return text if masked is value else _encode(masked).decode()
