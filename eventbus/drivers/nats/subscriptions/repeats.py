"""Volatile messages that arrive again after a change of the nats-server.

A server that is cut off from its cluster, or slow, still serves its own clients. What it could not
pass on reaches the others when the network heals. A subscriber that has moved to one of them
meanwhile would get those messages again. Stored messages have offsets that show this; volatile ones
have only their ids.
"""

import asyncio
import collections
from typing import Final

import msgspec

from eventbus.messages import json_decoder

__all__ = ["Repeats", "id_of"]

_MESSAGES: Final = 4096
_BYTES: Final = 1024**2
_FOR_S: Final = 300.0
"""How long after a loss messages are compared. A server closes a silent route much earlier: it
sends pings at least once a minute, and waits for two of them (nats-server's route.go)."""


class _Identified(msgspec.Struct):
    id: str = ""


_decode: Final = json_decoder(_Identified)


def id_of(payload: bytes) -> str:
    """The id of a message; empty if it has none, as when other programs publish it."""
    try:
        return _decode(payload).id
    except msgspec.DecodeError:
        return ""


class Repeats:
    """Recognizes volatile messages that arrived before the connection was lost.

    The last 4,096 are kept, 1 MiB at most. A message without an id is never taken for a repeat.
    """

    __slots__ = ("_bytes", "_known", "_recent", "_until")

    def __init__(self) -> None:
        self._recent: collections.deque[tuple[int, str, bytes]] = collections.deque()
        self._bytes = 0
        self._known: set[tuple[int, str, str]] = set()
        self._until = 0.0

    def on_lost(self) -> None:
        """The connection was lost: compare what arrives from now on with what has arrived."""
        self._known = {
            (subscription, subject, message)
            for subscription, subject, payload in self._recent
            if (message := id_of(payload))
        }
        self._until = asyncio.get_running_loop().time() + _FOR_S

    def add(self, subscription: int, subject: str, payload: bytes) -> bool:
        """Keep a message. Returns whether the subscription already got it before the loss.

        `subscription` is its `id`, so that one that was closed is not kept.
        """
        if self._known and self._is_known(subscription, subject, payload):
            return True
        recent = self._recent
        recent.append((subscription, subject, payload))
        self._bytes += len(payload)
        while self._bytes > _BYTES or len(recent) > _MESSAGES:
            self._bytes -= len(recent.popleft()[2])
        return False

    def _is_known(self, subscription: int, subject: str, payload: bytes) -> bool:
        if asyncio.get_running_loop().time() > self._until:
            self._known.clear()
        return (subscription, subject, id_of(payload)) in self._known
