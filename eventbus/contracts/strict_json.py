"""JSON files that people edit and merge: a key that stands twice in one object is a mistake."""

import json
from typing import Any

__all__ = ["refuse_duplicate_keys"]


def refuse_duplicate_keys(text: bytes) -> None:
    """Raise ValueError naming the key; of two, decoders silently keep the last.

    `text` is UTF-8 that a decoder has accepted.
    """
    json.loads(text, object_pairs_hook=_unique)


def _unique(pairs: list[tuple[str, Any]]) -> None:
    seen = set[str]()
    for key, _ in pairs:
        if key in seen:
            raise ValueError(f"the key {key!r} stands twice in one object")
        seen.add(key)
