"""The setting EVENTBUS: variables of eventbus, which override those of the environment."""

from collections.abc import Mapping
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from eventbus.config import Settings
from eventbus.environment import FILE_SUFFIX, child_environment, variables
from eventbus.errors import ConfigError
from eventbus.tokens import TokenIssuer

__all__ = ["bus_settings", "environment", "token_issuer"]


def environment() -> Mapping[str, str]:
    """The process's environment with the values of EVENTBUS. Raises ImproperlyConfigured."""
    given = getattr(settings, "EVENTBUS", {})
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise ImproperlyConfigured(
            'EVENTBUS is a dict of variables, such as {"NATS_URL": "nats://127.0.0.1:4222"}'
        )
    return child_environment({name: _text(name, value) for name, value in given.items()})


def bus_settings() -> Settings:
    """The settings of the bus. Raises ImproperlyConfigured."""
    _check_names()
    try:
        return Settings.from_env(environment())
    except ConfigError as exc:
        raise ImproperlyConfigured(f"EVENTBUS: {exc}") from None


def token_issuer() -> TokenIssuer:
    """The signer of the token view. Raises ConfigError."""
    return TokenIssuer.from_env(environment())


def _check_names() -> None:
    """Refuse a misspelt variable, which nothing would read. Edges' variables are allowed."""
    own = {each.name for struct in (Settings, TokenIssuer) for each in variables(struct)}
    for name in getattr(settings, "EVENTBUS", {}):
        plain = name.removesuffix(FILE_SUFFIX)
        if plain not in own and not plain.startswith(("JWT_", "EDGE_", "BROADCAST_")):
            raise ImproperlyConfigured(
                f"EVENTBUS has {name!r}, which is not a variable of eventbus: see docs/settings.md"
            )


def _text(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    if value is None or isinstance(value, str | int | float):
        return "" if value is None else str(value)
    raise ImproperlyConfigured(
        f"EVENTBUS[{name!r}] is of type {type(value).__name__}; allowed: text, numbers, true and "
        "false, lists of these"
    )
