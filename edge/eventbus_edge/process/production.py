"""Checks of the settings in production: which ones prevent a start, and which ones warn."""

import itertools
from collections import Counter
from typing import (
    Final,
    NamedTuple,
)
from urllib.parse import urlsplit

from eventbus.errors import ConfigError
from eventbus.urls import is_web_address
from eventbus_edge.access import is_loopback_host
from eventbus_edge.config import EdgeSettings

__all__ = ["Problems", "production_problems", "require_production", "weakness"]


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
_HOW: Final = "allowed: random bytes, such as from: openssl rand -base64 48"


class Problems(NamedTuple):
    """Problems of settings in production: refusals prevent a start."""

    refusals: tuple[str, ...]
    warnings: tuple[str, ...]
    variable: str
    """The variable of the first refusal; empty if there is none."""


def require_production(settings: EdgeSettings) -> tuple[str, ...]:
    """The warnings for production. Raises ConfigError with all reasons for a refusal."""
    problems = production_problems(settings)
    if problems.refusals:
        raise ConfigError(
            f"BROADCAST_ENVIRONMENT=production: {'; '.join(problems.refusals)}",
            variable=problems.variable,
        )
    return problems.warnings


def production_problems(settings: EdgeSettings) -> Problems:
    """The problems of settings in production; there are none in development."""
    if settings.environment != "production":
        return Problems((), (), "")
    refusals: dict[str, str] = {}
    if not (settings.jwt_secret or settings.jwt_public_key or settings.jwt_jwks_url):
        refusals["JWT_SECRET"] = (
            "no key to check tokens with is set; allowed: one of JWT_SECRET, JWT_PUBLIC_KEY and "
            "JWT_JWKS_URL"
        )
    keys = [(variable, key, MIN_KEY_BYTES) for variable, key in settings.keys.items()]
    for variable, secret, at_least in (
        ("JWT_SECRET", settings.jwt_secret, MIN_SECRET_BYTES),
        *keys,
    ):
        if secret and (weak := weakness(secret, at_least)):
            refusals[variable] = f"{variable} {weak}; {_HOW}"
    return Problems(tuple(refusals.values()), tuple(_warnings(settings)), next(iter(refusals), ""))


def _warnings(settings: EdgeSettings) -> list[str]:
    found = []
    if "*" in settings.cors_allowed_origins:
        # Users are identified by tokens, never by cookies, so a page of another origin does not act
        # as its visitor. This is fine for public channels, and merely unusual otherwise.
        found.append("CORS_ALLOWED_ORIGINS=*: any web page may connect; name your origins")
    if not settings.api_key:
        found.append(
            "BROADCAST_API_KEY is not set: nobody can use the HTTP API and the dashboard, or the "
            "metrics unless BROADCAST_METRICS_OPEN is true"
        )
    if _is_sent_in_the_clear(settings.jwt_jwks_url):
        found.append(
            "JWT_JWKS_URL is an http:// address: an attacker on the network could replace the "
            "keys; use https://"
        )
    return found


def _is_sent_in_the_clear(url: str) -> bool:
    # An invalid URL is refused elsewhere; an error of urlsplit would quote its secrets.
    return is_web_address(url, ("http",)) and not is_loopback_host(urlsplit(url).hostname or "")


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
