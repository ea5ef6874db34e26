"""Chat rooms."""

from typing import Annotated

import msgspec

from eventbus.events import Event, ShouldBroadcast

__all__ = ["ChatMessage"]


class ChatMessage(Event, ShouldBroadcast, channel="chat.{room_id}", kw_only=True):
    """What someone said in a room."""

    room_id: str
    user_id: str
    name: str
    """What the others see as the sender."""
    text: Annotated[str, msgspec.Meta(min_length=1, max_length=4000)]
