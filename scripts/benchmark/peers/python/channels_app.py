"""Django Channels: a consumer that joins groups, with channels_redis as the layer."""

import os
import urllib.parse

import django
from django.conf import settings

settings.configure(
    INSTALLED_APPS=["channels"],
    CHANNEL_LAYERS={
        "default": {
            "BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer",
            "CONFIG": {"hosts": [os.environ["REDIS_URL"]]},
        }
    },
)
django.setup()

from channels.generic.websocket import AsyncWebsocketConsumer  # noqa: E402 - needs the settings
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from django.urls import path  # noqa: E402


class Subscriber(AsyncWebsocketConsumer):
    """A client: its groups are the channels of its address."""

    async def connect(self) -> None:
        """Join the groups, then accept: a client that is connected misses nothing."""
        query = urllib.parse.parse_qs(self.scope["query_string"].decode())
        self.names = query.get("channel", [])
        for name in self.names:
            await self.channel_layer.group_add(name, self.channel_name)
        await self.accept()

    async def disconnect(self, _code: int) -> None:
        """Leave the groups."""
        for name in self.names:
            await self.channel_layer.group_discard(name, self.channel_name)

    async def tick(self, event: dict) -> None:
        """A message of a group."""
        await self.send(text_data=event["text"])


app = ProtocolTypeRouter({"websocket": URLRouter([path("ws", Subscriber.as_asgi())])})
