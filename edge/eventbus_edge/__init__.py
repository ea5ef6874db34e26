"""The WebSocket node: bridges subjects to clients.

An application's own module (EDGE_APP) imports from here what it needs to define who may join which
channel:

    from eventbus_edge import Claims, channels

    @channels.authorize("team.{team_id}")
    async def in_team(user: Claims, team_id: str) -> bool:
        return await teams.has_member(team_id, user.user_id)
"""

from eventbus_edge.access import (
    ANYONE,
    AUTHENTICATED,
    NOBODY,
    ChannelRules,
    Claims,
    Rule,
    Who,
    channels,
)

__all__ = ["ANYONE", "AUTHENTICATED", "NOBODY", "ChannelRules", "Claims", "Rule", "Who", "channels"]
