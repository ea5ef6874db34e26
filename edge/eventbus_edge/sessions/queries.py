"""Answers to commands that only read: a channel's history or members, the cluster's statistics."""

import functools

import msgspec

from eventbus.errors import (
    DriverError,
    EventBusError,
)
from eventbus_edge.access import Admission
from eventbus_edge.delivery import Traffic, fault_for_client
from eventbus_edge.protocols import (
    ClusterStats,
    Failed,
    Presence,
    PresenceMembers,
    ReadHistory,
    Ref,
    Reply,
    StoredMessages,
)
from eventbus_edge.sessions.effects import (
    AnswerStats,
    Read,
)
from eventbus_edge.sessions.ports import ClusterPort, PresencePort

__all__ = ["Queries"]


class Queries:
    """Reads for the connections of a node."""

    def __init__(
        self,
        traffic: Traffic,
        admission: Admission,
        cluster: ClusterPort,
        presence: PresencePort,
    ) -> None:
        self._traffic = traffic
        self._presence = presence
        self._admission = admission
        self._cluster = cluster

    async def answer(self, effect: Read | AnswerStats, room: int, address: str) -> Reply:
        """The answer, or the error.

        `room` limits the bytes of messages: a larger answer could exceed the connection's limit of
        unsent bytes and close it. What is read counts for `address`.
        """
        match effect:
            case Read(command):
                if isinstance(command, Presence):
                    return await self._members(command, address)
                return await self._history(command, room, address)
            case AnswerStats(ref):
                return await self._stats(ref)

    async def _history(self, command: ReadHistory, room: int, address: str) -> Reply:
        channel, since, limit, ref = command
        if (debt_s := self._admission.history_debt_s(address)) > 0:
            message = (
                f"too much history is being read from this address: wait {debt_s:.1f} s; the limit "
                "is BROADCAST_MAX_HISTORY_PER_ADDRESS of the node"
            )
            return Failed("rate_limited", message, channel, ref)
        on_read = functools.partial(self._admission.charge_history, address)
        try:
            page = await self._traffic.read_history(
                channel, since, limit, max_bytes=room, on_read=on_read
            )
        except EventBusError as exc:
            message = fault_for_client("the history could not be read", exc)
            return Failed("unavailable", message, channel, ref)
        return StoredMessages(channel, page.messages, page.position, ref)

    async def _members(self, command: Presence, address: str) -> Reply:
        channel, _, ref = command
        if (debt_s := self._admission.history_debt_s(address)) > 0:
            message = f"too much is read from this address: wait {debt_s:.1f} s"
            return Failed("rate_limited", message, channel, ref)
        try:
            members = await self._presence.fetch(channel)
        except EventBusError as exc:
            message = fault_for_client("the members could not be read", exc)
            return Failed("unavailable", message, channel, ref)
        # Reading an entry costs the bus as much as a stored message.
        self._admission.charge_history(address, len(members))
        return PresenceMembers(channel, members, ref)

    async def _stats(self, ref: Ref) -> Reply:
        try:
            stats = await self._cluster.stats()
        except DriverError as exc:
            message = fault_for_client("the nodes could not be queried", exc)
            return Failed("unavailable", message, None, ref)
        except EventBusError as exc:  # too many questions
            return Failed("unavailable", str(exc), None, ref)
        return ClusterStats(msgspec.to_builtins(stats), ref)
