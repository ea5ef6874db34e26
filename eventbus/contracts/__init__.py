"""Contracts of an application's events, derived from their types.

`catalogue` collects the events that leave a process. `jsonschema`, `asyncapi` and `typescript`
export them. `lock` and `compatibility` detect breaking changes. All output is deterministic: every
process produces the same bytes.
"""
