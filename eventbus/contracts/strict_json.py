"""Refuses duplicate keys in JSON files that people edit and merge."""

import json
from typing import Any

__all__ = ["refuse_duplicate_keys"]


def refuse_duplicate_keys(text: bytes) -> None:
    """Raise ValueError if an object has a key twice: decoders would silently keep the last one.

    `text` must be valid UTF-8 and JSON, and not nested too deeply.
    """
    json.loads(text, object_pairs_hook=_unique)


def _unique(pairs: list[tuple[str, Any]]) -> None:
    seen = set[str]()
    for key, _ in pairs:
        if key in seen:
            raise ValueError(f"duplicate key {key!r} in an object")
        seen.add(key)
