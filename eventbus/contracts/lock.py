"""The lock file: a snapshot of the contracts, committed with the code to detect changes."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from eventbus.contracts.catalogue import Contract, Kind
from eventbus.contracts.jsonschema import Schema, schemas_of
from eventbus.contracts.strict_json import refuse_duplicate_keys
from eventbus.errors import EventBusError
from eventbus.messages import json_decoder

__all__ = ["InvalidLock", "Locked", "encode_lock", "lock_of", "read_lock"]

_FORMAT: Final = 1
_ANNOTATIONS: Final = frozenset({"title", "description", "examples"})
_NAMES: Final = ("properties", "$defs")
"""Keywords whose value maps arbitrary names to schemas."""


class InvalidLock(EventBusError, ValueError):
    """A lock file cannot be read, or is invalid."""


class Locked(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The contract of one event, without its descriptions."""

    version: int
    kind: Kind
    channels: tuple[str, ...]
    volatile: bool
    queue: str | None = None
    data: Schema
    """The schema of the envelope's `data`, with all references in its `$defs`."""
    job: Schema | None = None
    """The schema of queued jobs, if it is not the same."""


class _LockFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: Literal[1]
    events: dict[str, Locked]


_decode_file: Final = json_decoder(_LockFile)


def lock_of(contracts: Iterable[Contract]) -> dict[str, Locked]:
    """The contracts to lock, by event name: all except those of local events.

    Raises EventDefinitionError for a type without a schema.
    """
    return {each.name: _locked(each) for each in contracts if each.kind is not Kind.LOCAL}


def encode_lock(events: dict[str, Locked]) -> bytes:
    """Encode the lock file: sorted, with one value per line for readable diffs."""
    encoded = msgspec.json.encode(_LockFile(_FORMAT, events), order="deterministic")
    return msgspec.json.format(encoded, indent=2) + b"\n"


def read_lock(path: Path) -> dict[str, Locked]:
    """The events of a lock file. Raises InvalidLock."""
    try:
        text = path.read_bytes()
        events = _decode_file(text).events
        refuse_duplicate_keys(text)
        return events
    except FileNotFoundError:
        raise InvalidLock(
            f"{path} does not exist: create the lock file with `eventbus schema lock`"
        ) from None
    except OSError as exc:
        raise InvalidLock(f"{path}: {exc.strerror or exc}") from None
    except ValueError as exc:
        raise InvalidLock(
            f"{path} is not a lock file: {exc}. Recreate it with `eventbus schema lock --force`"
        ) from None


def _locked(contract: Contract) -> Locked:
    has_job = contract.queued and contract.data is not contract.cls
    return Locked(
        version=contract.version,
        kind=contract.kind,
        channels=contract.channels,
        volatile=contract.volatile,
        queue=contract.queue,
        data=_complete(contract.data),
        job=_complete(contract.cls) if has_job else None,
    )


def _complete(type_: Any) -> Schema:
    [schema], components = schemas_of([type_])
    complete: Schema = _bare(schema)
    if components:
        complete["$defs"] = {name: _bare(each) for name, each in components.items()}
    return complete


def _bare(value: Any) -> Any:
    if isinstance(value, list):
        return [_bare(each) for each in value]
    if not isinstance(value, dict):
        return value
    bare = {}
    for key, each in value.items():
        if key in _NAMES:
            bare[key] = {name: _bare(schema) for name, schema in each.items()}
        elif key in ("default", "enum", "const"):
            bare[key] = each
        elif key not in _ANNOTATIONS:
            bare[key] = _bare(each)
    return bare
