"""Publishers that record what they sent and what was acknowledged."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import aiohttp

from eventbus.bus import EventBus
from eventbus.cli.chaos.ledger import Ledger, Message, Publication
from eventbus.cli.chaos.receivers import EVENT
from eventbus.errors import EventBusError

__all__ = ["HttpSender", "NotAcknowledged", "Publisher", "Send", "body_of", "library_sender"]

_RETRY_S: Final = 0.2
_HTTP_PATIENCE_S: Final = 30.0
_REQUEST_S: Final = 20.0

Send = Callable[[Publication], Awaitable[object]]
"""Sends a message; returns when it is acknowledged. Raises NotAcknowledged, or an EventBusError."""


class NotAcknowledged(EventBusError):
    """The message was not acknowledged; it may have been stored anyway."""


def body_of(message: Message) -> dict[str, Any]:
    """The data of a message, from which receivers identify it."""
    return {"by": message.publisher, "n": message.number}


class Publisher:
    """Sends messages at a fixed rate, one after another, to its channels in turn."""

    def __init__(
        self, ledger: Ledger, name: str, channels: Sequence[str], send: Send, *, per_s: float
    ) -> None:
        self.name = name
        self.faults: Counter[str] = Counter()
        """Why messages were not acknowledged."""
        self.last_sent_at = float("-inf")
        """When the newest of the acknowledged messages was sent."""
        self._ledger = ledger
        self._channels = channels
        self._send = send
        self._pause_s = 1 / per_s
        self._next = 0
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Send until `stop` is called."""
        while not self._stopping.is_set():
            await self.send_one()
            try:
                async with asyncio.timeout(self._pause_s):
                    await self._stopping.wait()
            except TimeoutError:
                continue

    async def send_one(self) -> None:
        """Send one message, and record whether it was acknowledged."""
        number, self._next = self._next, self._next + 1
        channel = self._channels[number % len(self._channels)]
        sent_at = time.monotonic()
        publication = self._ledger.sent(Message(self.name, number), channel, sent_at)
        try:
            await self._send(publication)
        except EventBusError as exc:
            self.faults[type(exc).__name__] += 1
        else:
            publication.acknowledge(time.monotonic())
            self.last_sent_at = sent_at

    async def send_to_all(self) -> None:
        """Send one message to each channel."""
        for _ in self._channels:
            await self.send_one()

    def stop(self) -> None:
        """End after the current message."""
        self._stopping.set()


def library_sender(bus: EventBus, *, volatile: bool = False) -> Send:
    """Publishes through a bus."""

    async def send(publication: Publication) -> None:
        body = body_of(publication.message)
        await bus.publish(publication.channel, EVENT, body, volatile=volatile)

    return send


class HttpSender:
    """Publishes through the HTTP API of each edge in turn; retries with the same key."""

    def __init__(self, urls: Sequence[str], api_key: str) -> None:
        self._urls = urls
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http: aiohttp.ClientSession | None = None
        self._turn = 0

    async def send(self, publication: Publication) -> None:
        """See `Send`."""
        if self._http is None:
            self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_REQUEST_S))
        body = {
            "channel": publication.channel,
            "event": EVENT,
            "data": body_of(publication.message),
        }
        key = f"{publication.channel}/{publication.message}"
        deadline = time.monotonic() + _HTTP_PATIENCE_S
        fault = ""
        while time.monotonic() < deadline:
            self._turn += 1
            url = self._urls[self._turn % len(self._urls)].rstrip("/")
            try:
                async with self._http.post(
                    f"{url}/api/broadcast/events",
                    json=body,
                    headers={**self._headers, "Idempotency-Key": key},
                ) as response:
                    if response.status == 200:
                        return
                    fault = f"{url} answers {response.status}: {(await response.text())[:200]}"
                    if response.status < 500 and response.status != 429:
                        break
            except (aiohttp.ClientError, OSError, TimeoutError) as exc:
                fault = f"{url}: {exc!r}"
            await asyncio.sleep(_RETRY_S)
        raise NotAcknowledged(f"{publication.message}: {fault}")

    async def aclose(self) -> None:
        """Close its connections."""
        if self._http is not None:
            await self._http.close()
