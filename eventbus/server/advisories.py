"""Known vulnerabilities of nats-server, by version."""

from pathlib import Path
from typing import Final

import msgspec

__all__ = ["Advisory", "Version", "advisories_of"]

_FILE: Final = Path(__file__).with_name("advisories.toml")

Version = tuple[int, int, int]


class Advisory(msgspec.Struct, frozen=True):
    """Vulnerabilities in some versions."""

    affected: str
    """Conditions such as `>=2.13.0,<2.14.3`, of which a version meets all."""
    ids: tuple[str, ...]
    about: str
    source: str


class _File(msgspec.Struct):
    advisory: list[Advisory]


def advisories_of(version: Version) -> list[Advisory]:
    """The known vulnerabilities of a version of nats-server."""
    known = msgspec.toml.decode(_FILE.read_bytes(), type=_File).advisory
    return [
        each
        for each in known
        if all(_is_met(condition, version) for condition in each.affected.split(","))
    ]


def _is_met(condition: str, version: Version) -> bool:
    if condition.startswith(">="):
        return version >= _parsed(condition[2:])
    return version < _parsed(condition.removeprefix("<"))


def _parsed(version: str) -> Version:
    major, minor, patch = map(int, version.split("."))
    return major, minor, patch
