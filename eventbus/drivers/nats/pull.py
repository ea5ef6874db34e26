"""The pull protocol of JetStream consumers: requests, their messages, and how they end.

A message that a consumer delivers has the subject that it is stored on, not the reply subject of
the request, so each `Pull` has an inbox of its own. The reply subject of each request in that inbox
is different, so that a late status of an earlier request is recognized.
"""

import asyncio
import contextlib
import secrets
from collections.abc import Callable
from typing import (
    Any,
    Final,
)

import msgspec
from nats import errors as nats_errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from eventbus.drivers.nats.connection import NatsConnection
from eventbus.drivers.nats.errors import mapped
from eventbus.drivers.nats.jetstream import NANO

__all__ = ["LOST", "SILENT", "Pull", "is_normal_end"]

LOST: Final = "lost"
"""The status of a request whose connection was lost."""
SILENT: Final = "silent"
"""The status of a request about which nothing was heard, not even a heartbeat."""
_HEARTBEAT: Final = "100"
_NORMAL_ENDS: Final = ("", "404", "408")
"""All messages came; there are none; the request has expired."""
_NO_WAIT_SILENCE_S: Final = 2.0
_ACK_PREFIX: Final = "$JS.ACK."
_CLOSE_S: Final = 2.0


def is_normal_end(status: str) -> bool:
    """Whether a request ended as expected; otherwise the consumer may be gone or have moved."""
    return status in _NORMAL_ENDS


class Pull:
    """The requests of one member of a consumer, and the inbox where their messages arrive."""

    def __init__(
        self,
        connection: NatsConnection,
        stream: str,
        consumer: str,
        on_message: Callable[[Msg], None],
    ) -> None:
        """`on_message` is called for each message, also for late ones of an ended request."""
        self.status = ""
        """How the last request ended: a status of the server's, LOST, SILENT, or empty."""
        self._connection = connection
        self._name = f"consumer {consumer} of stream {stream}"
        self._next = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        self._on_message = on_message
        self._inbox = f"{connection.inbox_prefix}.{secrets.token_hex(11)}"
        self._client: Client | None = None
        self._subscription: Subscription | None = None
        self._requests = 0
        self._outstanding = 0
        self._heard_at = 0.0
        self._silence_s = 0.0
        self._changed = asyncio.Event()

    @property
    def is_open(self) -> bool:
        """Whether the last request may still bring messages."""
        return self._outstanding > 0

    async def request(
        self, batch: int, *, expires_s: float = 0.0, heartbeat_s: float = 0.0
    ) -> None:
        """Request up to `batch` messages, in place of an earlier request.

        With `expires_s`, the server waits that long for messages, and sends heartbeats; without, it
        answers at once. Raises ConnectionFailed.
        """
        question: dict[str, Any] = {"batch": batch, "no_wait": True}
        self._silence_s = _NO_WAIT_SILENCE_S
        if expires_s:
            question = {
                "batch": batch,
                "expires": int(expires_s * NANO),
                "idle_heartbeat": int(heartbeat_s * NANO),
            }
            self._silence_s = 2 * heartbeat_s + 1
        client = await self._subscribe()
        self._requests += 1
        self._outstanding, self.status = batch, ""
        self._heard_at = asyncio.get_running_loop().time()
        try:
            with mapped(f"pulling from {self._name}"):
                await client.publish(
                    self._next,
                    msgspec.json.encode(question),
                    reply=f"{self._inbox}.{self._requests}",
                )
        except BaseException:
            self.end("")
            raise

    async def wait(self) -> None:
        """Wait until a message arrives or the open request ends; may return early."""
        self._changed.clear()
        silent_at = self._heard_at + self._silence_s
        try:
            async with asyncio.timeout_at(silent_at):
                await self._changed.wait()
        except TimeoutError:
            if self.is_open and self._heard_at + self._silence_s <= silent_at:
                self.end(SILENT)

    def end(self, status: str) -> None:
        """End the open request, if there is one; the server may still send its messages."""
        if self.is_open:
            self._outstanding, self.status = 0, status
        self._changed.set()

    async def aclose(self) -> None:
        """Unsubscribe; `on_message` gets what has already been sent. Closing twice is harmless."""
        self.end("")
        self.status = ""
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            # A client that has lost its connection has forgotten the subscription.
            with contextlib.suppress(nats_errors.Error, TimeoutError):
                async with asyncio.timeout(_CLOSE_S):
                    await subscription.drain()  # type: ignore[no-untyped-call]

    async def _subscribe(self) -> Client:
        """The current client, with the inbox; a replaced client took its subscriptions along."""
        client = self._connection.client
        if client is not self._client:
            refusals = self._connection.subscriptions.refusals
            with mapped(f"subscribing for {self._name}"):
                subscription = await client.subscribe(f"{self._inbox}.*", cb=self._receive)
                try:
                    await self._require_accepted(refusals)
                except BaseException:
                    # A client that is closed has forgotten the subscription.
                    with contextlib.suppress(nats_errors.Error):
                        await subscription.unsubscribe()
                    raise
            self._client, self._subscription = client, subscription
        return client

    async def _require_accepted(self, refusals: int) -> None:
        """Raise SubscribeDenied when the server has refused a subscription since `refusals`."""
        subscriptions = self._connection.subscriptions
        if await self._connection.echo() and subscriptions.refusals != refusals:
            raise subscriptions.too_many(self._name)

    async def _receive(self, message: Msg) -> None:
        self._heard_at = asyncio.get_running_loop().time()
        is_status = message.subject.startswith(f"{self._inbox}.")
        if is_status or not message.reply.startswith(_ACK_PREFIX):
            status = (message.headers or {}).get("Status", "")
            is_current = message.subject == f"{self._inbox}.{self._requests}"
            if is_current and status != _HEARTBEAT:
                self.end(status)
            return
        self._outstanding = max(0, self._outstanding - 1)
        self._on_message(message)
        self._changed.set()
