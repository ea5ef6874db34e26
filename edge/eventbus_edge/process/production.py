"""Checks of the settings in production: which ones prevent a start, and which ones warn."""

from typing import NamedTuple
from urllib.parse import urlsplit

from eventbus.errors import ConfigError
from eventbus.urls import is_web_address
from eventbus_edge.access import is_loopback_host
from eventbus_edge.config import (
    HOW_TO_MAKE_A_SECRET,
    MIN_KEY_BYTES,
    MIN_SECRET_BYTES,
    EdgeSettings,
    weakness,
)

__all__ = ["Problems", "production_problems", "require_production"]


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
            refusals[variable] = f"{variable} {weak}; allowed: {HOW_TO_MAKE_A_SECRET}"
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
