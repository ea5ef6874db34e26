"""Answers that a node has to look up for a connection: stored messages, and the whole cluster."""

import functools
from typing import TYPE_CHECKING

import msgspec

from edge.api_types import ListQuery
from edge.effects import Read, Survey
from edge.protocols.vocabulary import ClusterStats, Failed, ReadHistory, Ref, Reply, StoredMessages
from eventbus.errors import EventBusError

if TYPE_CHECKING:
    from edge.node import Node

__all__ = ["look_up"]


async def look_up(node: "Node", effect: Read | Survey, room: int, address: str) -> Reply:
    """The answer, or the error, to a command that changes nothing.

    `room` bounds the bytes of messages: an answer larger than what may be unsent to its connection
    would end that as too slow. What is read is counted for `address`.
    """
    match effect:
        case Read(command):
            return await _history(node, command, room, address)
        case Survey(ref):
            return await _stats(node, ref)


async def _history(node: "Node", command: ReadHistory, room: int, address: str) -> Reply:
    channel, since, limit, ref = command
    if (debt_s := node.admission.history_debt_s(address)) > 0:
        message = f"too much history is read from this address: wait {debt_s:.1f} s"
        return Failed("rate_limited", message, channel, ref)
    on_read = functools.partial(node.admission.charge_history, address)
    try:
        page = await node.traffic.read_history(
            channel, since, limit, max_bytes=room, on_read=on_read
        )
    except EventBusError as exc:
        return Failed("unavailable", f"the bus cannot be read: {exc}", channel, ref)
    return StoredMessages(channel, page.messages, page.position, ref)


async def _stats(node: "Node", ref: Ref) -> Reply:
    try:
        stats = await node.census.stats(ListQuery())
    except EventBusError as exc:
        return Failed("unavailable", f"the cluster cannot be asked: {exc}", None, ref)
    return ClusterStats(msgspec.to_builtins(stats), ref)
