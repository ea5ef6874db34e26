"""Checks client events against the schemas of their channels and events. Pure.

The schemas are in an AsyncAPI document of `eventbus schema export`, where the system receives what
clients send. They are compiled once. The cost of a check is bounded: so is the size of client
events, and regular expressions run in linear time.
"""

from collections.abc import (
    Iterator,
    Mapping,
)
from typing import (
    Any,
    Final,
    NamedTuple,
    Protocol,
)

from eventbus.errors import ConfigError
from eventbus.messages import CLIENT_EVENT_PREFIX, MAX_DATA_DEPTH, decode_json

__all__ = ["ClientEvents"]


_MAX_SHOWN: Final = 200


class _Validator(Protocol):
    """The method of jsonschema_rs.Draft7Validator that is used."""

    def validate(self, instance: Any) -> None: ...
    def is_valid(self, instance: Any) -> bool: ...


class _Declared(NamedTuple):
    """One client event: where it may be sent, and its data."""

    where: str
    channel: _Validator
    data: _Validator


class ClientEvents:
    """The client events that are declared."""

    def __init__(self, document: Mapping[str, Any], *, strict: bool) -> None:
        """`strict`: events that are not declared for a channel may not be sent there.

        Raises ConfigError for a document that is not as `eventbus schema export` makes it, and
        without the package jsonschema-rs.
        """
        self._strict = strict
        self._declared: dict[str, list[_Declared]] = {}
        try:
            for name, declared in _read(document):
                self._declared.setdefault(name, []).append(declared)
        except (LookupError, TypeError, AttributeError, ValueError) as exc:
            raise ConfigError(
                "BROADCAST_CLIENT_EVENTS: the contract's client events cannot be read: "
                f"{type(exc).__name__}: {str(exc)[:_MAX_SHOWN]}; allowed: an AsyncAPI 3.0 "
                "document of `eventbus schema export --format asyncapi`",
                variable="BROADCAST_CONTRACT",
            ) from exc

    def fault(self, channel: str, event: str, data: bytes) -> str | None:
        """Why an event of a client is not valid, as a text for the client; None if it is.

        `event` has the prefix `client-`, and `data` are JSON.
        """
        known = self._declared.get(event, [])
        bare = event.removeprefix(CLIENT_EVENT_PREFIX)
        for declared in known:
            if declared.channel.is_valid(channel):
                return _fault(bare, declared.data, data)
        if not self._strict:
            return None
        where = ", ".join(sorted({declared.where for declared in known}))
        hint = f"it may be sent on {where}" if where else "it is not declared"
        return f"the client event {bare[:_MAX_SHOWN]!r} is not allowed on {channel!r}: {hint}"


def _fault(event: str, validator: _Validator, data: bytes) -> str | None:
    from jsonschema_rs import ValidationError  # noqa: PLC0415 - an optional dependency

    try:
        validator.validate(decode_json(data, MAX_DATA_DEPTH))
    except ValidationError as exc:
        path = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in exc.instance_path)
        return f"data of {event!r}: data{path[:_MAX_SHOWN]}: {exc.message[:_MAX_SHOWN]}"
    except ValueError as exc:  # not JSON, nested too deeply, or not Unicode text
        return f"data of {event!r} cannot be checked: {str(exc)[:_MAX_SHOWN]}"
    return None


def _read(document: Mapping[str, Any]) -> Iterator[tuple[str, _Declared]]:
    operations = document.get("operations", {})
    components = {"schemas": document.get("components", {}).get("schemas", {})}
    for name in sorted(operations):
        operation = operations[name]
        if operation["action"] != "receive":
            continue
        address = _resolved(operation["channel"], document)["address"]
        for each in operation["messages"]:
            message = _resolved(each, document)
            properties = _resolved(message["payload"], document)["properties"]
            yield (
                message["name"],
                _Declared(
                    address,
                    _compile(properties["channel"], components),
                    _compile(properties["data"], components),
                ),
            )


def _compile(schema: Mapping[str, Any], components: Mapping[str, Any]) -> _Validator:
    try:
        import jsonschema_rs  # noqa: PLC0415 - an optional dependency
    except ImportError as exc:
        raise ConfigError(
            "BROADCAST_CLIENT_EVENTS: checking what clients send needs the package jsonschema-rs: "
            "pip install 'eventbus[contracts]'",
            variable="BROADCAST_CLIENT_EVENTS",
        ) from exc
    validator: _Validator = jsonschema_rs.Draft7Validator(
        {"allOf": [schema], "components": components},
        validate_formats=True,
        ignore_unknown_formats=True,
        pattern_options=jsonschema_rs.RegexOptions(),
    )
    return validator


def _resolved(value: Mapping[str, Any], document: Mapping[str, Any]) -> Mapping[str, Any]:
    """Resolve a reference within the document (RFC 6901), in a few steps at most."""
    for _ in range(8):
        if "$ref" not in value:
            return value
        found: Any = document
        for token in str(value["$ref"]).removeprefix("#/").split("/"):
            found = found[token.replace("~1", "/").replace("~0", "~")]
        value = found
    raise ValueError("a reference is circular")
