"""What others can rely on of an application's events, made from their types. Pure.

`catalogue` finds what leaves a process; `jsonschema`, `asyncapi` and `typescript` write it down for
people and programs, and `lock` and `compatibility` tell whether a change breaks anybody. All output
is the same, byte for byte, in every process.
"""
