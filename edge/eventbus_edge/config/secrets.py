"""Secrets that could be guessed."""

import itertools
from collections import Counter
from typing import Final

__all__ = ["HOW_TO_MAKE_A_SECRET", "MIN_KEY_BYTES", "MIN_SECRET_BYTES", "weakness"]


MIN_SECRET_BYTES: Final = 32  # RFC 7518 §3.2, of HS256
MIN_KEY_BYTES: Final = 16
_WORDS: Final = (
    "change-me", "change_me", "changeme", "default", "development", "dev-secret", "dev_secret",
    "example", "insecure", "letmein", "password", "placeholder", "qwerty", "replace", "sample",
    "secret", "testing",
)  # fmt: skip
"""Parts of placeholders. Of 10^6 random secrets, about one contains one of them."""
_MIN_DISTINCT: Final = 8
"""Of 10^8 secrets of 32 random hexadecimal digits, about one has fewer different ones."""
HOW_TO_MAKE_A_SECRET: Final = "random bytes, such as from: openssl rand -base64 48"


def weakness(secret: str, at_least: int = MIN_SECRET_BYTES) -> str | None:
    """Why a secret could be guessed; None if nothing is found. Never quotes the secret.

    It detects short secrets, patterns, and words of placeholders and development secrets. Nothing
    can verify that a secret is random.
    """
    size = len(secret.encode("utf-8", "surrogateescape"))
    if size < at_least:
        return f"has {size} bytes; at least {at_least} are needed"
    lower = secret.lower()
    word = next((word for word in _WORDS if word in lower), None)
    if word is not None:
        return f"contains {word!r}, like secrets of development and of examples"
    if len(Counter(secret)) < _MIN_DISTINCT:
        return f"has fewer than {_MIN_DISTINCT} different characters"
    if _repeats(secret):
        return "repeats a part of itself"
    if _runs(secret):
        return "is a sequence of consecutive characters"
    return None


def _repeats(text: str) -> bool:
    """Whether it repeats one piece, the last time possibly only in part."""
    return any(text[length:] == text[:-length] for length in range(1, len(text) // 2 + 1))


def _runs(text: str) -> bool:
    """Whether most characters are consecutive, as in abc or 987."""
    beside = sum(abs(ord(a) - ord(b)) <= 1 for a, b in itertools.pairwise(text))
    return beside > 3 * len(text) // 4
