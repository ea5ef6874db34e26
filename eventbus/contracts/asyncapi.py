"""Events as an AsyncAPI document (asyncapi.com/docs/reference/specification/v3.0.0).

The schemas are draft-07, which every AsyncAPI tool must support. The document is written from the
system's point of view: it sends broadcast events, and receives client events.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from eventbus.channels import Pattern
from eventbus.contracts.catalogue import Contract, Kind, channel_contracts
from eventbus.contracts.jsonschema import Schema, envelope, schemas_of

__all__ = ["Server", "document", "servers_object"]

_REF: Final = "#/components/schemas/{name}"
_NOT_A_KEY: Final = re.compile(r"[^A-Za-z0-9._-]+")
_SECURITY: Final = "#/components/securitySchemes/"


class Server(NamedTuple):
    """The address of an edge (`wss://events.example.com/ws`) or a NATS server."""

    protocol: str
    host: str
    path: str = ""


DEFAULT_SERVERS: Final[Mapping[str, Server]] = {
    "edge": Server("ws", "localhost:8080", "/ws"),
    "api": Server("http", "localhost:8080", "/api/broadcast/events"),
    "nats": Server("nats", "localhost:4222"),
}


def document(
    contracts: Iterable[Contract],
    *,
    title: str = "Events",
    version: str = "1.0.0",
    description: str = "",
    servers: Mapping[str, Server] = DEFAULT_SERVERS,
    namespace: str = "eb",
) -> Schema:
    """The document for all events on channels. Raises EventDefinitionError.

    `version` is the version of the application, and `namespace` that of its NATS subjects. Events
    whose type does not declare channels have a message and a schema, but no operation.
    """
    events = channel_contracts(contracts)
    data, components = schemas_of([each.data for each in events], ref_template=_REF)
    messages = _keys(each.name for each in events)
    channels = _keys(_plain(text) for text in _texts(events))
    ids = dict(zip(_texts(events), channels, strict=True))
    info = {"title": title, "version": version}
    if description:
        info["description"] = description
    return {
        "asyncapi": "3.0.0",
        "info": info,
        "defaultContentType": "application/json",
        "servers": servers_object(servers),
        "channels": {
            channel: _channel(
                text, {m: e for m, e in zip(messages, events, strict=True) if text in e.channels},
                servers, namespace,
            )
            for text, channel in ids.items()
        },
        "operations": _operations(events, messages, ids),
        "components": {
            "messages": {
                key: _message(each, draft7(schema))
                for key, each, schema in zip(messages, events, data, strict=True)
            },
            "schemas": {name: draft7(schema) for name, schema in components.items()},
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "bearerFormat": "JWT",
                    "description": "A client's token: in the header Authorization, in the "
                    "subprotocol eventbus.bearer.<token>, or with the action auth.",
                },
                "apiKey": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "BROADCAST_API_KEY, or a token with the role or permission "
                    "admin. For publishing over HTTP.",
                },
            },
        },
    }  # fmt: skip


def servers_object(servers: Mapping[str, Server]) -> Schema:
    """The Servers Object of a document."""
    return {name: _server(server) for name, server in sorted(servers.items())}


def _server(server: Server) -> Schema:
    server_object: Schema = {"host": server.host, "protocol": server.protocol}
    if server.path:
        server_object["pathname"] = server.path
    match server.protocol:
        case "ws" | "wss":
            server_object["description"] = "An edge, for clients (subprotocol eventbus.v1)."
            server_object["security"] = [{"$ref": f"{_SECURITY}token"}]
        case "http" | "https":
            server_object["description"] = "The HTTP API of an edge: publish with POST."
            server_object["security"] = [{"$ref": f"{_SECURITY}apiKey"}]
        case _:
            server_object["description"] = "The bus between services."
    return server_object


def _channel(
    text: str, messages: Mapping[str, Contract], servers: Mapping[str, Server], namespace: str
) -> Schema:
    pattern = Pattern(text)
    address, parameters = _address(text)
    channel_object: Schema = {
        "address": address,
        "messages": {key: {"$ref": f"#/components/messages/{key}"} for key in messages},
    }
    if parameters:
        channel_object["parameters"] = parameters
    channel_object["description"] = (
        f"On NATS: publish to `{namespace}.event.{pattern.filter}`, "
        f"subscribe to `{namespace}.live.{pattern.filter}`."
    )
    if any(server.protocol in ("ws", "wss") for server in servers.values()):
        query = {"channel": {"type": "string"}, "auth_token": {"type": "string"}}
        binding = {"method": "GET", "query": {"type": "object", "properties": query}}
        channel_object["bindings"] = {"ws": {**binding, "bindingVersion": "0.1.0"}}
    return channel_object


def _address(text: str) -> tuple[str, dict[str, Schema]]:
    """A pattern with named wildcards, and its parameters."""
    tokens, parameters = text.split("."), {}
    for position, token in enumerate(tokens):
        if token == ">":
            name, description = "rest", "One or more tokens."
        elif token == "*":
            name, description = f"token{position + 1}", "One token."
        elif token.startswith("{"):
            name, description = token[1:-1], "One token of letters, digits and _ = @ , ; -"
            description += "; other characters are escaped as ~hh, for each byte of UTF-8."
        else:
            continue
        tokens[position] = f"{{{name}}}"
        parameters[name] = {"description": description}
    return ".".join(tokens), parameters


def _operations(
    events: Sequence[Contract], messages: Sequence[str], ids: Mapping[str, str]
) -> Schema:
    operations: Schema = {}
    for key, event in zip(messages, events, strict=True):
        action = "receive" if event.kind is Kind.CLIENT else "send"
        for text in event.channels:
            channel = ids[text]
            made: Schema = {
                "action": action,
                "channel": {"$ref": f"#/channels/{channel}"},
                "messages": [{"$ref": f"#/channels/{channel}/messages/{key}"}],
            }
            if action == "receive":
                made["summary"] = "Clients send it with the action whisper, without `client-`."
            suffix = f".{channel}" if len(event.channels) > 1 else ""
            operations[f"{action}.{key}{suffix}"] = made
    return operations


def _message(contract: Contract, data: Schema) -> Schema:
    summary, _, description = contract.doc.partition("\n")
    headers = {
        "Nats-Msg-Id": {"type": "string", "description": "The message's id, for deduplication."},
        "Eb-Version": {
            "type": "string",
            "pattern": "^[0-9]+$",
            "default": "1",
            "description": f"The version of the type; currently {contract.version}.",
        },
    }
    message_object: Schema = {
        "name": contract.name,
        "title": contract.cls.__name__,
        "summary": summary,
        "description": description.strip(),
        "contentType": "application/json",
        "headers": {"type": "object", "properties": headers},
        "payload": envelope(contract, data),
        "x-version": contract.version,
        "x-durable": not contract.volatile,
    }
    if contract.kind is Kind.CLIENT:
        del message_object["headers"]  # the edge sets them
    return {key: value for key, value in message_object.items() if value != ""}


def draft7(value: Any) -> Any:
    """Convert a 2020-12 schema of msgspec to draft-07, where a tuple's items are in `items`."""
    if isinstance(value, list):
        return [draft7(each) for each in value]
    if not isinstance(value, dict):
        return value
    converted = {}
    for key, each in value.items():
        match key:
            case "default" | "enum" | "const":
                converted[key] = each
            case "properties":
                converted[key] = {name: draft7(of_field) for name, of_field in each.items()}
            case "prefixItems":
                converted["items"] = draft7(each)
            case "items" if "prefixItems" in value:
                converted["additionalItems"] = draft7(each)
            case _:
                converted[key] = draft7(each)
    return converted


def _texts(events: Iterable[Contract]) -> list[str]:
    return sorted({text for event in events for text in event.channels})


def _plain(text: str) -> str:
    """A pattern as a key that needs no escaping in a reference."""
    return _address(text)[0].replace("{", "").replace("}", "")


def _keys(names: Iterable[str]) -> list[str]:
    """A unique key for each name, of the characters that AsyncAPI allows."""
    keys: list[str] = []
    for name in names:
        key = base = _NOT_A_KEY.sub("_", name)
        number = 2
        while key in keys:
            key, number = f"{base}_{number}", number + 1
        keys.append(key)
    return keys
