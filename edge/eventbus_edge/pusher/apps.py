"""The apps that clients connect to: one from the environment, others from a TOML file.

    [[app]]
    id = "1002"
    key = "shop-key"
    secret = "…"
    max_connections = 500
    allowed_origins = ["https://shop.example"]

The app from the environment shares the namespace of native clients. Each app in the file has a
namespace of its own, and is a tenant of the process.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn

import msgspec

from eventbus.environment import variables
from eventbus.errors import ConfigError
from eventbus.integrations.pusher import PusherApp, decode_key
from eventbus.urls import is_web_address
from eventbus_edge.access import is_allowed_entry, make_verifier
from eventbus_edge.config import (
    HOW_TO_MAKE_A_SECRET,
    MIN_KEY_BYTES,
    MIN_SECRET_BYTES,
    EdgeSettings,
    weakness,
)

__all__ = ["App", "read_app", "read_apps", "read_key"]


VARIABLE: Final = "PUSHER_APPS"
MAX_APPS: Final = 100
"""Each app has its own connection to the bus and its own streams."""
_MAX_BYTES: Final = 1024 * 1024
_COOKIE: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]*", re.ASCII)  # RFC 9110, 5.6.2


class App(NamedTuple):
    """An app from the file."""

    credentials: PusherApp
    settings: EdgeSettings
    """The settings of its node: those of the process, with the app's own in their place."""

    @property
    def id(self) -> str:
        """The app's id, as in its URLs."""
        return self.credentials.id


def read_key(settings: EdgeSettings) -> bytes:
    """The master key of encrypted channels; empty without one. Raises ConfigError."""
    key = decode_key(settings.pusher_encryption_key)
    if key is None:
        raise ConfigError(
            "PUSHER_ENCRYPTION_KEY is not 32 bytes in Base64, such as from "
            "`openssl rand -base64 32`",
            variable="PUSHER_ENCRYPTION_KEY",
        )
    return key


def read_app(settings: EdgeSettings) -> PusherApp | None:
    """The app from the environment, or None without one. Raises ConfigError."""
    if not _COOKIE.fullmatch(settings.pusher_auth_cookie):
        raise ConfigError(
            f"PUSHER_AUTH_COOKIE={settings.pusher_auth_cookie!r} is not the name of a cookie",
            variable="PUSHER_AUTH_COOKIE",
        )
    read_key(settings)
    app_id, key, secret = (
        settings.pusher_app_id, settings.pusher_app_key, settings.pusher_app_secret,
    )  # fmt: skip
    if not any((app_id, key, secret)):
        return None
    return PusherApp(id=app_id, key=key, secret=secret)


# The file

_OWN: Final = ("id", "key", "secret")
_FIELDS: Final[Mapping[str, str]] = {
    **{name: f"pusher_app_{name}" for name in _OWN},
    "encryption_key": "pusher_encryption_key",
    "auth_cookie": "pusher_auth_cookie",
    "subscription_counts": "pusher_subscription_counts",
    "webhook_url": "pusher_webhook_url",
    "webhook_events": "pusher_webhook_events",
    "allowed_origins": "cors_allowed_origins",
} | {
    name: name
    for name in (
        "jwt_secret", "jwt_public_key", "jwt_audience", "jwt_issuer",
        "max_connections", "max_connections_per_user", "max_channels_per_connection",
        "max_actions_per_second", "action_burst", "max_frame_bytes", "max_whisper_bytes",
        "max_whispers_per_channel", "max_joins_per_member", "max_unsent_bytes",
        "presence_grace", "presence_max_members", "presence_max_info_bytes",
    )
}  # fmt: skip
"""The fields that a table may have, and the edge's setting that each replaces."""
_RESET: Final = {
    "pusher_encryption_key": "",
    "pusher_webhook_url": "",
    "pusher_apps": "",
    "webhook_url": "",
}
"""Secrets and webhook receivers that tenants do not inherit from the process."""
_CHECKS: Final[Mapping[str, Callable[[Any], bool]]] = {
    "encryption_key": lambda text: decode_key(text) is not None,
    "auth_cookie": lambda text: _COOKIE.fullmatch(text) is not None,
    "webhook_url": is_web_address,
    "allowed_origins": lambda entries: all(map(is_allowed_entry, entries)),
}
"""Checks beyond the types."""


class _Field(NamedTuple):
    type: Any
    allowed: str


def _fields() -> dict[str, _Field]:
    """The types and descriptions of the fields, taken from the settings."""
    declared = {
        (struct, each.field): _Field(info.type, each.allowed)
        for struct in (EdgeSettings, PusherApp)
        for info in msgspec.structs.fields(struct)
        for each in variables(struct)
        if each.field == info.name
    }
    return {
        name: declared[PusherApp, name] if name in _OWN else declared[EdgeSettings, field]
        for name, field in _FIELDS.items()
    }


class _File(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    app: list[dict[str, Any]] = []


def read_apps(settings: EdgeSettings) -> list[App]:
    """The apps in the file that the settings name, in its order.

    Raises ConfigError, which names the file, the app, the field and the allowed values. It quotes
    no values, since some are secret.
    """
    path = settings.pusher_apps
    if not path:
        return []
    tables = _read_tables(path)
    fields = _fields()
    apps = [
        _read_table(table, f"[[app]] number {number}", path, fields, settings)
        for number, table in enumerate(tables, 1)
    ]
    ids, keys = {settings.pusher_app_id}, {settings.pusher_app_key}
    for number, app in enumerate(apps, 1):
        where = f"[[app]] number {number} (id {app.id})"
        for name, value, taken in (("id", app.id, ids), ("key", app.credentials.key, keys)):
            if value in taken:
                _wrong(path, f"{where}: another app has the same {name}", f"each {name} once")
            taken.add(value)
    return apps


def _read_tables(path: str) -> list[dict[str, Any]]:
    try:
        size = Path(path).stat().st_size
        text = Path(path).read_text(encoding="utf-8") if size <= _MAX_BYTES else None
    except (OSError, ValueError) as exc:
        _wrong(path, str(exc), "the path of a TOML file that can be read")
    if text is None:
        _wrong(path, f"has {size} bytes", f"at most {_MAX_BYTES}")
    try:
        tables = msgspec.toml.decode(text, type=_File).app
    except (msgspec.DecodeError, RecursionError) as exc:
        _wrong(path, str(exc), "TOML whose only tables are [[app]]")
    if not 1 <= len(tables) <= MAX_APPS:
        _wrong(path, f"has {len(tables)} apps", f"1 to {MAX_APPS}")
    return tables


def _read_table(
    table: Mapping[str, Any],
    where: str,
    path: str,
    fields: Mapping[str, _Field],
    settings: EdgeSettings,
) -> App:
    if re.fullmatch("[0-9]{1,20}", app_id := str(table.get("id", ""))):
        where += f" (id {app_id})"
    values: dict[str, Any] = {}
    for name in table:
        if name not in fields:
            _wrong(path, f"{where}: there is no field {name!r}", ", ".join(fields))
    for name in _OWN:
        if name not in table:
            _wrong(path, f"{where}: {name} is missing", fields[name].allowed)
    for name, value in table.items():
        field = fields[name]
        try:
            values[name] = msgspec.convert(value, field.type)
        except msgspec.ValidationError as exc:
            _wrong(path, f"{where}: {name}: {exc}", field.allowed)
        if name in _CHECKS and not _CHECKS[name](values[name]):
            _wrong(path, f"{where}: {name} is not valid", field.allowed)
    if settings.environment == "production":
        _require_strong(values, where, path)
    if values.get("webhook_url") and settings.lifecycle == "off":
        problem = f"{where}: webhook_url with BROADCAST_LIFECYCLE=off would post nothing"
        _wrong(path, problem, "BROADCAST_LIFECYCLE=auto")
    changes = dict(_changes(values))
    try:
        own = msgspec.structs.replace(settings, **changes)
        if "jwt_algorithms" in changes:
            make_verifier(own, None)
    except ConfigError as exc:
        _wrong(path, f"{where}: {exc}", "a key that fits the edge's algorithms")
    return App(PusherApp(**{name: values[name] for name in _OWN}), own)


def _require_strong(values: Mapping[str, Any], where: str, path: str) -> None:
    for name, at_least in (("secret", MIN_KEY_BYTES), ("jwt_secret", MIN_SECRET_BYTES)):
        if (secret := values.get(name)) and (weak := weakness(secret, at_least)):
            problem = f"{where}: {name} {weak}, which production does not allow"
            _wrong(path, problem, HOW_TO_MAKE_A_SECRET)


def _changes(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The settings that differ from those of the process."""
    yield from _RESET.items()
    # No app accepts the tokens of another app's users, even if the same key signs them.
    yield "jwt_audience", f"app-{values['id']}"
    if values.get("jwt_secret") or values.get("jwt_public_key"):
        for name in ("jwt_secret", "jwt_public_key", "jwt_jwks_url"):
            yield name, ""
        yield "jwt_algorithms", ()
    for name, value in values.items():
        yield _FIELDS[name], value


def _wrong(path: str, problem: str, allowed: str) -> NoReturn:
    raise ConfigError(f"{VARIABLE}={path}: {problem}; allowed: {allowed}", variable=VARIABLE)
