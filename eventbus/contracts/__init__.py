"""Contracts of an application's events, derived from their types.

`catalogue` collects the events that leave a process. `jsonschema`, `asyncapi` and `typescript`
export them. `lock` and `compatibility` detect breaking changes. All output is deterministic: every
process produces the same bytes.
"""

from eventbus.contracts import asyncapi, jsonschema, typescript
from eventbus.contracts.catalogue import Contract, catalogue, channel_contracts
from eventbus.contracts.compatibility import Change, Verdict, compare
from eventbus.contracts.lock import InvalidLock, Locked, encode_lock, lock_of, read_lock
from eventbus.contracts.portability import warnings_of
from eventbus.contracts.strict_json import refuse_duplicate_keys
from eventbus.contracts.words import constraints_of, type_in_words

__all__ = [
    "Change",
    "Contract",
    "InvalidLock",
    "Locked",
    "Verdict",
    "asyncapi",
    "catalogue",
    "channel_contracts",
    "compare",
    "constraints_of",
    "encode_lock",
    "jsonschema",
    "lock_of",
    "read_lock",
    "refuse_duplicate_keys",
    "type_in_words",
    "typescript",
    "warnings_of",
]
