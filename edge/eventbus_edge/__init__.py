"""The WebSocket node: bridges subjects to clients.

An application's own module (EDGE_APP) takes from here what it needs to say who may join what:

    from eventbus_edge import Claims, channels

    @channels.authorize("team.{team_id}")
    async def in_team(user: Claims, team_id: str) -> bool:
        return await teams.has_member(team_id, user.user_id)
"""

from eventbus_edge.access.rules import (
    ANYONE,
    AUTHENTICATED,
    NOBODY,
    ChannelRules,
    Rule,
    Who,
    channels,
)
from eventbus_edge.access.tokens import Claims

__all__ = ["ANYONE", "AUTHENTICATED", "NOBODY", "ChannelRules", "Claims", "Rule", "Who", "channels"]
