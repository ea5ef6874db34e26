"""Chat rooms."""

from typing import Annotated

import msgspec

from eventbus.events import Event, ShouldBroadcast

__all__ = ["ChatMessage"]


class ChatMessage(Event, ShouldBroadcast, channel="chat.{room_id}", kw_only=True):
    """A message in a chat room."""

    room_id: str
    user_id: str
    name: str
    """The sender's name, as others see it."""
    text: Annotated[str, msgspec.Meta(min_length=1, max_length=4000)]
