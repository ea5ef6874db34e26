"""Answers to commands that only read: a channel's history, and the cluster's statistics."""

import functools

import msgspec

from eventbus.errors import EventBusError
from eventbus_edge.access.admission import Admission
from eventbus_edge.delivery.traffic import Traffic
from eventbus_edge.protocols.vocabulary import (
    ClusterStats,
    Failed,
    ReadHistory,
    Ref,
    Reply,
    StoredMessages,
)
from eventbus_edge.sessions.effects import (
    Read,
    Survey,
)
from eventbus_edge.sessions.ports import ClusterPort

__all__ = ["Queries"]


class Queries:
    """Reads for the connections of a node."""

    def __init__(self, traffic: Traffic, admission: Admission, cluster: ClusterPort) -> None:
        self._traffic = traffic
        self._admission = admission
        self._cluster = cluster

    async def answer(self, effect: Read | Survey, room: int, address: str) -> Reply:
        """The answer, or the error.

        `room` limits the bytes of messages: a larger answer could exceed the connection's limit of
        unsent bytes and close it. What is read counts for `address`.
        """
        match effect:
            case Read(command):
                return await self._history(command, room, address)
            case Survey(ref):
                return await self._stats(ref)

    async def _history(self, command: ReadHistory, room: int, address: str) -> Reply:
        channel, since, limit, ref = command
        if (debt_s := self._admission.history_debt_s(address)) > 0:
            message = f"too much history is read from this address: wait {debt_s:.1f} s"
            return Failed("rate_limited", message, channel, ref)
        on_read = functools.partial(self._admission.charge_history, address)
        try:
            page = await self._traffic.read_history(
                channel, since, limit, max_bytes=room, on_read=on_read
            )
        except EventBusError as exc:
            return Failed("unavailable", f"the bus cannot be read: {exc}", channel, ref)
        return StoredMessages(channel, page.messages, page.position, ref)

    async def _stats(self, ref: Ref) -> Reply:
        try:
            stats = await self._cluster.stats()
        except EventBusError as exc:
            return Failed("unavailable", f"the cluster cannot be asked: {exc}", None, ref)
        return ClusterStats(msgspec.to_builtins(stats), ref)
