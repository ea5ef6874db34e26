"""A receiver that uses the project's own client."""

import asyncio
import time
from typing import Any, Final

from eventbus.cli.chaos import EVENT, Message, Receiver
from eventbus.client import ClientOptions, connect

__all__ = ["ClientReceiver"]

_LAST_DELAY_S: Final = 2.0


class ClientReceiver(Receiver):
    """`eventbus.client`, which stays with one edge and reconnects by itself."""

    kind = "client"

    async def run(self) -> None:
        """Receive until cancelled."""
        url = self._access.urls[self._turn % len(self._access.urls)]
        options = ClientOptions(last_delay=_LAST_DELAY_S)
        async with connect(url, token=self._access.token, options=options) as client:
            await client.subscribe(
                self.log.channel, {EVENT: self._take, "eb:subscribed": self._notice}
            )
            self.joined.set()
            await asyncio.Event().wait()

    def _take(self, data: dict[str, Any]) -> None:
        self.log.received(Message(data["by"], data["n"]), time.monotonic())

    def _notice(self, data: dict[str, Any]) -> None:
        if data.get("recovered") is False:
            self.log.gap(time.monotonic())
