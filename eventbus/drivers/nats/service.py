"""A process as a NATS micro service, which `nats micro ls` lists (NATS ADR-32).

Answers and subjects are those of nats.micro. Its own `Service` is not used: it belongs to one
client of nats-py, which may be replaced by another here, and it stops by waiting for the server.
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
from eventbus.tasks import Tasks

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
        """`name` and `id` are of A-Z a-z 0-9 _ and -; `version` is a semantic one."""
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
        self._moving = Tasks()

    async def open(self) -> None:
        """Answer from now on. Raises ConnectionFailed, and errors of nats-py."""
        client = self._client = self._connection.client
        for verb, answer in self._answers.items():
            for name, instance in ((None, None), (self._name, None), (self._name, self._id)):

                async def respond(message: Msg, answer: bytes = answer) -> None:
                    try:
                        if message.reply:
                            await message.respond(answer)
                    except Exception as exc:  # noqa: BLE001 - nats-py would take it for its own
                        _log.warning("a question to %s is not answered: %r", self._name, exc)

                subject = control_subject(verb, name, instance)
                self._subscriptions.append(await client.subscribe(subject, cb=respond))

    def on_back(self) -> None:
        """There is a connection again: where it is another client's, answer through that."""
        if self._client is not None and self._client is not self._connection.client:
            self._subscriptions.clear()
            self._moving.start(self._move(), f"moving the service {self._name}")

    async def _move(self) -> None:
        try:
            await self.open()
        except (nats_errors.Error, OSError) as exc:  # the next loss brings it here again
            _log.warning("the service %s does not answer on NATS: %r", self._name, exc)

    async def aclose(self) -> None:
        """Answer no more. Closing twice is harmless."""
        self._client = None
        await self._moving.aclose()
        subscriptions, self._subscriptions = self._subscriptions, []
        for subscription in subscriptions:
            # Where the connection has gone, so has the subscription.
            with contextlib.suppress(nats_errors.Error):
                await subscription.unsubscribe()
