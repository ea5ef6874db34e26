"""A process as a NATS micro service, listed by `nats micro ls` (NATS ADR-32).

Responses and subjects are those of nats.micro. Its `Service` class is not used: it is bound to one
nats-py client, which the connection may replace, and its stop waits for the server.
"""

import contextlib
import datetime
import logging
from collections.abc import Mapping
from typing import (
    Any,
    Final,
)

import msgspec
from nats import errors as nats_errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.micro.service import (
    ServiceInfo,
    ServicePing,
    ServiceStats,
    ServiceVerb,
    control_subject,
)

from eventbus.drivers.nats.connection import NatsConnection
from eventbus.tasks import (
    Shutdown,
    Tasks,
)

__all__ = ["NatsService"]


_log = logging.getLogger(__name__)

_encode: Final = msgspec.json.Encoder().encode


class NatsService:
    """Answers `$SRV.PING`, `$SRV.INFO` and `$SRV.STATS` for one instance of a service."""

    def __init__(
        self,
        connection: NatsConnection,
        *,
        name: str,
        id: str,  # noqa: A002 - what the protocol calls it
        version: str,
        description: str,
        metadata: Mapping[str, str],
    ) -> None:
        """`name` and `id` consist of A-Z a-z 0-9 _ and -; `version` is a semantic version."""
        self._connection = connection
        self._name = name
        self._id = id
        same: dict[str, Any] = {
            "name": name, "id": id, "version": version, "metadata": dict(metadata),
        }  # fmt: skip
        started = datetime.datetime.now(datetime.UTC).replace(tzinfo=None)  # as nats.micro has it
        self._answers: dict[ServiceVerb, bytes] = {
            ServiceVerb.PING: _encode(ServicePing(**same).to_dict()),
            ServiceVerb.INFO: _encode(
                ServiceInfo(**same, description=description, endpoints=[]).to_dict()
            ),
            ServiceVerb.STATS: _encode(
                ServiceStats(**same, endpoints=[], started=started).to_dict()
            ),
        }
        self._client: Client | None = None
        self._subscriptions: list[Subscription] = []
        self._tasks = Tasks()
        self._shutdown = Shutdown()

    async def open(self) -> None:
        """Subscribe to the service subjects. Raises ConnectionFailed, and errors of nats-py."""
        client = self._client = self._connection.client
        for verb, answer in self._answers.items():
            for name, instance in ((None, None), (self._name, None), (self._name, self._id)):

                async def respond(message: Msg, answer: bytes = answer) -> None:
                    try:
                        if message.reply:
                            await message.respond(answer)
                    except Exception as exc:  # noqa: BLE001 - nats-py would take it for its own
                        _log.warning(
                            "cannot answer a request to the service %s: %r", self._name, exc
                        )

                subject = control_subject(verb, name, instance)
                self._subscriptions.append(await client.subscribe(subject, cb=respond))

    def on_reconnected(self) -> None:
        """Subscribe again when the connection has a new client."""
        if self._client is not None and self._client is not self._connection.client:
            self._subscriptions.clear()
            self._tasks.start(self._move(), f"moving the service {self._name}")

    async def _move(self) -> None:
        try:
            await self.open()
        except (nats_errors.Error, OSError) as exc:  # the next reconnect tries again
            _log.warning("cannot subscribe for the service %s: %r", self._name, exc)

    async def aclose(self) -> None:
        """Unsubscribe. Closing twice is harmless."""
        await self._shutdown.run(self._aclose)

    async def _aclose(self) -> None:
        self._client = None
        await self._tasks.aclose()
        subscriptions, self._subscriptions = self._subscriptions, []
        for subscription in subscriptions:
            # A lost connection has taken its subscriptions along.
            with contextlib.suppress(nats_errors.Error):
                await subscription.unsubscribe()
