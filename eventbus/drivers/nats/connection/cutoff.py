"""Leaving a nats-server that is cut off from the others of its cluster, but not from its clients.

Such a server answers pings, so its clients stay connected: their publishes fail, and subscribers
hear nothing new, until the network heals. Nor does it always know: a leader that is cut off
considers itself the leader for 20 s (nats-server 2.15.1).
"""

import asyncio
import logging
import random
from collections.abc import Sequence
from typing import (
    Final,
    NamedTuple,
)

import msgspec

from eventbus.attempts import Backoff
from eventbus.drivers.nats.client import KnownServer
from eventbus.drivers.nats.connection.connection import (
    ATTEMPT_S,
    NatsConnection,
)
from eventbus.drivers.nats.connection.replies import Reply
from eventbus.drivers.nats.connection.visit import Visit
from eventbus.drivers.nats.errors import (
    ApiError,
    is_denied,
    is_temporary,
)
from eventbus.errors import DriverError
from eventbus.messages import json_decoder

__all__ = ["CutOffWatch", "fault_of"]

_log = logging.getLogger(__name__)

_EVERY: Final = Backoff(2.5, 2.5, jitter=0.4)
"""The pauses between two checks."""
_SILENT_S: Final = 4.0
"""How long JetStream must have been unreachable before its server is left."""
UNHEARD_S: Final = 4.0
"""A leader that has not heard from its followers for that long may have a successor: the shortest
time after which they elect one. They answer its heartbeats, one per second (nats-server's raft.go).
"""
_NANO: Final = 1_000_000_000
_ASK_S: Final = 1.0
_AGAIN_S: Final = 0.2
_COMPARE_S: Final = 20.0
"""How long servers are compared, which is longer than the election of a leader takes."""
_MAX_VISITS: Final = 3
_FIRST_QUIET_S: Final = 30.0
_MAX_QUIET_S: Final = 300.0
_DENIED_S: Final = 300.0


class _Replica(msgspec.Struct):
    active: int = 0
    """Nanoseconds since the leader heard from it; 0 if it never did."""


class _Cluster(msgspec.Struct):
    leader: str = ""
    replicas: list[_Replica] = []


class _Info(msgspec.Struct):
    """The answer to STREAM.INFO; `cluster` is missing where there is no cluster."""

    cluster: _Cluster | None = None
    error: ApiError | None = None


_decode: Final = json_decoder(_Info)


def fault_of(reply: Reply | None, unheard_s: float = UNHEARD_S) -> str:
    """Why a reply to STREAM.INFO does not show that the stream can be used; empty if it does.

    A leader must have heard from a majority within the last `unheard_s` seconds.
    """
    if reply is None:
        return "no answer"
    if reply.status:
        return f"no JetStream (status {reply.status})"
    try:
        info = _decode(reply.payload)
    except msgspec.DecodeError as exc:
        return f"an answer that cannot be read: {exc}"
    if info.error is not None:  # others, such as a missing stream, come from one that works
        return str(info.error) if is_temporary(info.error) else ""
    if info.cluster is None:
        return ""
    if not info.cluster.leader:
        return "the stream has no leader"
    unheard = sum(each.active > unheard_s * _NANO for each in info.cluster.replicas)
    members = len(info.cluster.replicas) + 1
    if members - unheard <= members // 2:
        return f"the stream's leader does not hear from {unheard} of {members - 1} followers"
    return ""


class _Other(NamedTuple):
    """What another server answered."""

    server: KnownServer
    fault: str
    is_reached: bool = True
    """Whether it could be asked at all."""


def _better(others: Sequence[_Other]) -> KnownServer | None:
    """A server that reaches JetStream, if the own one does not; None if that is doubtful.

    A leader that hears the others' requests for votes, and whom they do not hear, believes that all
    is well. So as many must say that it is as say that it is not, the own server included.
    """
    fine = [each.server for each in others if not each.fault]
    failing = sum(1 for each in others if each.fault and each.is_reached)
    return fine[0] if len(fine) > failing else None


class CutOffWatch:
    """Moves the connection to another server if that one reaches JetStream, and its own does not.

    Both are asked at the same time, so a stalled process, an election or a cluster that has lost
    JetStream altogether makes no client move.
    """

    def __init__(self, connection: NatsConnection, stream: str) -> None:
        """`stream` is the name of the stream that must be reached."""
        self._connection = connection
        self._question = f"$JS.API.STREAM.INFO.{stream}"
        self._reached_at = 0.0
        """When JetStream was last reached."""

    async def run(self) -> None:
        """Check every few seconds, until cancelled. Nothing is asked of a single server."""
        loop, connection = asyncio.get_running_loop(), self._connection
        quiet, quiet_until = Backoff(_FIRST_QUIET_S, _MAX_QUIET_S), 0.0
        self._reached_at = loop.time()
        while True:
            pause = _EVERY.next()
            await asyncio.sleep(pause)
            # A process that stood still for longer has not asked in vain meanwhile.
            self._reached_at = max(self._reached_at, loop.time() - pause)
            if not connection.is_connected or not connection.client.other_servers:
                continue
            asked_at = loop.time()
            try:
                fault = await self._ask(ATTEMPT_S)
            except DriverError as exc:
                if is_denied(exc):
                    _log.info("cannot check whether NATS reaches JetStream: %s", exc)
                    await asyncio.sleep(_DENIED_S)
                continue
            if fault == "":
                quiet.reset()
                quiet_until = 0.0
            elif fault is None or loop.time() < quiet_until:
                continue
            elif await self._compare(fault, asked_at):
                quiet_until = loop.time() + quiet.next()

    async def _ask(self, seconds: float) -> str | None:
        """Why the own server does not reach JetStream; empty if it does, None if that is unknown.

        Raises PublishFailed and ConnectionFailed.
        """
        connection = self._connection
        fault = fault_of(await connection.request(self._question, seconds=seconds))
        if not fault:
            self._reached_at = asyncio.get_running_loop().time()
            return ""
        # Without this answer, the connection itself is lost or slow: pings take care of that.
        return fault if await connection.echo(seconds) else None

    async def _ask_again(self) -> str | None:
        try:
            return await self._ask(_ASK_S)
        except DriverError as exc:  # the connection was lost meanwhile
            _log.debug("%s", exc)
            return None

    async def _compare(self, fault: str, since: float) -> bool:
        """Ask the own server and others until one reaches JetStream; whether none does.

        `since` is when the own server was asked in vain. A leader that has not heard from its
        followers since then may be the one that is cut off.
        """
        loop, connection = asyncio.get_running_loop(), self._connection
        others = connection.client.other_servers
        random.shuffle(others)
        # Another connection to a name may reach another server than the one that was asked.
        others.sort(key=lambda server: not server.is_announced)
        visits = [connection.visit(server) for server in others[:_MAX_VISITS]]
        answers: list[_Other] = []
        deadline = loop.time() + _COMPARE_S
        try:
            refusals = await asyncio.gather(*map(self._open, visits))
            while loop.time() < deadline and connection.is_connected:
                unheard_s = min(UNHEARD_S, loop.time() - since)
                own, answers = await asyncio.gather(
                    self._ask_again(), self._ask_others(visits, refusals, unheard_s)
                )
                if own == "":
                    return False
                fault = own or fault
                better = _better(answers)
                is_long = loop.time() - self._reached_at >= _SILENT_S
                if own is not None and better is not None and is_long:
                    await self._move(fault, better)
                    return False
                await asyncio.sleep(_AGAIN_S)
        finally:
            await asyncio.gather(*(visit.aclose() for visit in visits))
        if not connection.is_connected:
            return False
        _log.warning(
            "%s does not reach JetStream (%s), nor do others (%s): staying there",
            self._server, fault,
            "; ".join(f"{each.server.netloc}: {each.fault or 'it does'}" for each in answers),
        )  # fmt: skip
        return True

    async def _open(self, visit: Visit) -> str:
        """Connect to another server. Returns why it is of no use; empty if it may be."""
        if why := await visit.open(ATTEMPT_S):
            return why
        is_same = visit.server_id == self._connection.client.server_id
        return "the same server, by another address" if is_same else ""

    async def _ask_others(
        self, visits: Sequence[Visit], refusals: Sequence[str], unheard_s: float
    ) -> list[_Other]:
        async def ask(visit: Visit, refusal: str) -> _Other:
            reply = None if refusal else await visit.request(self._question, _ASK_S)
            return _Other(visit.server, refusal or fault_of(reply, unheard_s), not refusal)

        return await asyncio.gather(*map(ask, visits, refusals))

    async def _move(self, fault: str, server: KnownServer) -> None:
        _log.warning(
            "%s does not reach JetStream (%s), but %s does: connecting to it",
            self._server, fault, server.netloc,
        )  # fmt: skip
        await self._connection.move(server)

    @property
    def _server(self) -> str:
        url = self._connection.client.connected_url
        return "the nats-server" if url is None else f"the nats-server at {url.netloc}"
