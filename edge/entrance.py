"""What a request for a stream of messages must pass, whatever transport it asks for."""

from typing import NamedTuple

from aiohttp import web

from edge.auth import Claims, TokenRejected
from edge.handshake import read_handshake
from edge.limits import Place
from edge.node import Node
from edge.problem import Problem, bad_token
from edge.protocols.vocabulary import Subscribe
from edge.rules import Allowed, Ask, Denied
from edge.traces import handshake

__all__ = ["Admitted", "admit"]


class Admitted(NamedTuple):
    """Who asks, and the channels of the URL with what allows each."""

    claims: Claims | None
    channels: list[tuple[Subscribe, Allowed]]


async def admit(
    node: Node, request: web.Request, place: Place, raw_path_channel: str | None
) -> Admitted:
    """Check origin, token and channels of a request, and count it as its user's. Raises Problem.

    `raw_path_channel` is the path's channel as it came, percent-encoded; None where it has none.
    """
    with handshake(request):
        return await _admit(node, request, place, raw_path_channel)


async def _admit(
    node: Node, request: web.Request, place: Place, raw_path_channel: str | None
) -> Admitted:
    node.origins.require(request.headers.get("Origin"), request.host)
    asked = read_handshake(
        raw_path_channel=raw_path_channel,
        query=list(request.query.items()),
        headers=request.headers,
        max_channels=node.settings.max_channels_per_connection,
    )
    node.admission.charge_channels(place.address, len(asked.channels))
    claims = None
    if asked.token is not None:
        claims = await _verify(node, asked.token)
        node.admission.claim_early(place, claims.user_id)
    channels = []
    for channel in asked.channels:
        decision = await _decide(node, channel, claims)
        if isinstance(decision, Denied):
            raise Problem(decision.code, decision.message)
        channels.append((Subscribe(channel, None, 0, None), decision))
    node.require_ready()  # it may have begun to drain while others were asked
    return Admitted(claims, channels)


async def _verify(node: Node, token: str) -> Claims:
    try:
        return await node.verify(token)
    except TokenRejected as exc:
        raise bad_token(exc.code, str(exc)) from None


async def _decide(node: Node, channel: str, claims: Claims | None) -> Allowed | Denied:
    decision = node.rules.decide(channel, claims)
    if isinstance(decision, Ask):
        assert claims is not None, "an authorizer is asked about a user"
        return await node.consult(decision, claims)
    return decision
