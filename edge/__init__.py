"""The WebSocket node: bridges subjects to clients.

An application's own module (EDGE_APP) takes from here what it needs to say who may join what:

    from edge import Claims, channels

    @channels.authorize("team.{team_id}")
    async def in_team(user: Claims, team_id: str) -> bool:
        return await teams.has_member(team_id, user.user_id)
"""

from edge.auth import Claims
from edge.rules import ANYONE, AUTHENTICATED, NOBODY, ChannelRules, Rule, Who, channels

__all__ = [
    "ANYONE",
    "AUTHENTICATED",
    "NOBODY",
    "ChannelRules",
    "Claims",
    "Rule",
    "Who",
    "channels",
]
