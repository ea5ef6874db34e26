"""The contract that a node serves and checks client events against."""

from pathlib import Path
from typing import Any, Final

from eventbus.application import application_version
from eventbus.contracts import asyncapi, catalogue, channel_contracts, refuse_duplicate_keys
from eventbus.errors import ConfigError
from eventbus.messages import json_decoder
from eventbus_edge.config import EdgeSettings
from eventbus_edge.sessions import ClientEvents

__all__ = ["ContractDocument", "checked_events"]

_decode_document: Final = json_decoder(dict[str, Any])


_UNKNOWN_VERSION: Final = "1.0.0"
"""As in documents of `eventbus schema export` without --api-version."""


class ContractDocument:
    """An AsyncAPI document: from BROADCAST_CONTRACT, or generated from imported event types."""

    def __init__(self, settings: EdgeSettings, namespace: str) -> None:
        """Raises ConfigError if the file cannot be read."""
        self._namespace = namespace
        self._app = settings.app
        self._is_own = not settings.contract
        self._document = _read(settings.contract) if settings.contract else None

    def document(self) -> dict[str, Any] | None:
        """The document; None if there is no file and no event. Raises EventDefinitionError."""
        if self._document is None:
            events = channel_contracts(catalogue())
            if events:
                module = self._app or events[0].cls.__module__
                version = application_version(module) or _UNKNOWN_VERSION
                self._document = asyncapi.document(
                    events, version=version, servers=_servers("ws", "localhost:8080"),
                    namespace=self._namespace,
                )  # fmt: skip
        return self._document

    def document_for(self, scheme: str, host: str) -> dict[str, Any] | None:
        """The document for a client of `host`; a generated one names that host as the server."""
        document = self.document()
        if document is None or not self._is_own:
            return document
        servers = _servers("wss" if scheme == "https" else "ws", host)
        return {**document, "servers": asyncapi.servers_object(servers)}


def checked_events(settings: EdgeSettings, contract: ContractDocument) -> ClientEvents | None:
    """The checks for client events; None if BROADCAST_CLIENT_EVENTS is `unchecked`.

    Raises ConfigError, and EventDefinitionError for an event type without a schema.
    """
    if settings.client_events == "unchecked":
        return None
    document = contract.document()
    if document is None:
        raise ConfigError(
            f"BROADCAST_CLIENT_EVENTS={settings.client_events}: there is no contract to check "
            "against; set BROADCAST_CONTRACT, or define event types in EDGE_APP",
            variable="BROADCAST_CLIENT_EVENTS",
        )
    return ClientEvents(document, strict=settings.client_events == "strict")


def _read(path: str) -> dict[str, Any]:
    wanted = "a file of `eventbus schema export --format asyncapi`"
    try:
        text = Path(path).read_bytes()
        document = _decode_document(text)
        refuse_duplicate_keys(text)
    except OSError as exc:
        fault = exc.strerror or str(exc)
    except ValueError as exc:
        fault = str(exc)
    else:
        if str(document.get("asyncapi", "")).startswith("3."):
            return document
        fault = "it is not an AsyncAPI 3 document"
    raise ConfigError(
        f"BROADCAST_CONTRACT={path!r}: {fault}; allowed: {wanted}", variable="BROADCAST_CONTRACT"
    )


def _servers(protocol: str, host: str) -> dict[str, asyncapi.Server]:
    return {
        "edge": asyncapi.Server(protocol, host, "/ws"),
        "api": asyncapi.Server(
            protocol.replace("ws", "http"), host, "/api/broadcast/events"
        ),
    }  # fmt: skip
