"""The systems that scripts/bench compares, each set up as its documentation advises for speed."""

from collections.abc import Sequence
from typing import Final

from scripts.benchmark.peers.asgi import ChannelsPeer, PythonSocketIoPeer, StarlettePeer
from scripts.benchmark.peers.base import Peer
from scripts.benchmark.peers.binaries import (
    AnyCableNatsPeer,
    AnyCablePeer,
    CentrifugoNatsPeer,
    CentrifugoPeer,
    CentrifugoRedisPeer,
)
from scripts.benchmark.peers.eventbus import EventBusEchoPeer, EventBusPeer
from scripts.benchmark.peers.limit import LimitPeer
from scripts.benchmark.peers.node import BunPeer, SocketIoPeer, SocketIoRedisPeer, WsPeer

__all__ = ["PEERS"]

PEERS: Final[Sequence[Peer]] = (
    LimitPeer(), EventBusPeer(), EventBusEchoPeer(), CentrifugoPeer(), CentrifugoNatsPeer(),
    CentrifugoRedisPeer(), AnyCablePeer(), AnyCableNatsPeer(), BunPeer(), WsPeer(), SocketIoPeer(),
    SocketIoRedisPeer(), StarlettePeer(), PythonSocketIoPeer(), ChannelsPeer(),
)  # fmt: skip
"""In the order of the tables, and in which each run measures them."""
