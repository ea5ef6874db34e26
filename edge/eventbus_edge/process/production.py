"""What an edge must have before it may run in production, and what is at least odd there."""

import itertools
from collections import Counter
from typing import (
    Final,
    NamedTuple,
)
from urllib.parse import urlsplit

from eventbus.errors import ConfigError
from eventbus.urls import is_web_address
from eventbus_edge.access.hosts import is_loopback_host
from eventbus_edge.config import EdgeSettings

__all__ = ["Problems", "production_problems", "require_production", "weakness"]


MIN_SECRET_BYTES: Final = 32  # RFC 7518 §3.2, of HS256
MIN_KEY_BYTES: Final = 16
_WORDS: Final = (
    "change-me", "change_me", "changeme", "default", "development", "dev-secret", "dev_secret",
    "example", "insecure", "letmein", "password", "placeholder", "qwerty", "replace", "sample",
    "secret", "testing",
)  # fmt: skip
"""What placeholders are made of. Random text has one of them once in 10^6 secrets."""
_MIN_DISTINCT: Final = 8
"""32 random hexadecimal digits have fewer different ones once in 10^8 secrets."""
_HOW: Final = "allowed: random bytes, such as of: openssl rand -base64 48"


class Problems(NamedTuple):
    """What stands against a start in production."""

    refusals: tuple[str, ...]
    warnings: tuple[str, ...]
    variable: str
    """The variable of the first refusal; empty without one."""


def require_production(settings: EdgeSettings) -> tuple[str, ...]:
    """What to warn of. Raises ConfigError, with every reason, for what production refuses."""
    problems = production_problems(settings)
    if problems.refusals:
        raise ConfigError(
            f"BROADCAST_ENVIRONMENT=production: {'; '.join(problems.refusals)}",
            variable=problems.variable,
        )
    return problems.warnings


def production_problems(settings: EdgeSettings) -> Problems:
    """What stands against these settings in production; nothing does in development."""
    if settings.environment != "production":
        return Problems((), (), "")
    refusals: dict[str, str] = {}
    if not (settings.jwt_secret or settings.jwt_public_key or settings.jwt_jwks_url):
        refusals["JWT_SECRET"] = (
            "no key to check tokens with is set; allowed: one of JWT_SECRET, JWT_PUBLIC_KEY and "
            "JWT_JWKS_URL"
        )
    secrets = (
        ("JWT_SECRET", settings.jwt_secret, MIN_SECRET_BYTES),
        ("BROADCAST_API_KEY", settings.api_key, MIN_KEY_BYTES),
    )
    for variable, secret, at_least in secrets:
        if secret and (weak := weakness(secret, at_least)):
            refusals[variable] = f"{variable} {weak}; {_HOW}"
    return Problems(tuple(refusals.values()), tuple(_warnings(settings)), next(iter(refusals), ""))


def _warnings(settings: EdgeSettings) -> list[str]:
    found = []
    if "*" in settings.cors_allowed_origins:
        # Who one is stands in a token, never in a cookie: a page of another origin has no visitor's
        # rights. So this is right for public channels, and only odd elsewhere.
        found.append("CORS_ALLOWED_ORIGINS=*: any web page may connect; name your origins")
    if not settings.api_key:
        found.append(
            "BROADCAST_API_KEY is not set: nobody can use the HTTP API and the dashboard, nor the "
            "metrics unless BROADCAST_METRICS_OPEN is true"
        )
    if _is_sent_in_the_clear(settings.jwt_jwks_url):
        found.append(
            "JWT_JWKS_URL is an http:// address: who is between could put keys of their own there; "
            "use https://"
        )
    return found


def _is_sent_in_the_clear(url: str) -> bool:
    # One that is not a URL stops the start elsewhere; an error of urlsplit would quote it.
    return is_web_address(url, ("http",)) and not is_loopback_host(urlsplit(url).hostname or "")


def weakness(secret: str, at_least: int = MIN_SECRET_BYTES) -> str | None:
    """Why a secret could be guessed; None when nothing tells. Never quotes the secret.

    It sees what is short, patterns, and words of placeholders and of development; that a secret is
    random nobody can see.
    """
    size = len(secret.encode("utf-8", "surrogateescape"))
    if size < at_least:
        return f"has {size} bytes, {at_least} are needed"
    lower = secret.lower()
    word = next((word for word in _WORDS if word in lower), None)
    if word is not None:
        return f"has {word!r} in it, as secrets of development and of examples do"
    if len(Counter(secret)) < _MIN_DISTINCT:
        return f"has fewer than {_MIN_DISTINCT} different characters"
    if _repeats(secret):
        return "repeats a part of itself"
    if _runs(secret):
        return "is a row of characters that follow each other"
    return None


def _repeats(text: str) -> bool:
    """Whether it is one piece, twice or more, the last time perhaps in part."""
    return any(text[length:] == text[:-length] for length in range(1, len(text) // 2 + 1))


def _runs(text: str) -> bool:
    """Whether most characters are beside their neighbour in the alphabet, such as abc or 987."""
    beside = sum(abs(ord(a) - ord(b)) <= 1 for a, b in itertools.pairwise(text))
    return beside > 3 * len(text) // 4
