"""More ways to publish than the library and the HTTP API: sync, raw NATS, queue, outbox."""

import asyncio
import time
from typing import Final

import msgspec
import nats
import nats.errors
import nats.js.errors
import sqlalchemy as sa
from nats.aio.client import Client
from sqlalchemy.orm import Session

from eventbus import EventBus
from eventbus.cli.chaos import EVENT, NotAcknowledged, Publication, Send, body_of
from eventbus.integrations.sqlalchemy import Outbox
from eventbus.sync import EventBus as SyncBus
from scripts.chaos_lab.events import Job, Recorded

__all__ = ["OutboxSender", "RawSender", "queue_sender", "sync_sender"]

_PATIENCE_S: Final = 30.0
_TRY_S: Final = 5.0
_PAUSE_S: Final = 0.2


def sync_sender(bus: SyncBus) -> Send:
    """Publishes through a blocking bus, in a thread."""

    async def send(publication: Publication) -> None:
        body = body_of(publication.message)
        await asyncio.to_thread(bus.publish, publication.channel, EVENT, body)

    return send


def queue_sender(bus: EventBus) -> Send:
    """Dispatches jobs."""

    async def send(publication: Publication) -> None:
        publisher, number = publication.message
        await bus.dispatch(Job(by=publisher, n=number))

    return send


class RawSender:
    """Publishes with nats-py alone, as any other program would; retries with the same id."""

    def __init__(self, url: str, namespace: str) -> None:
        self._url = url
        self._namespace = namespace
        self._client = Client()

    async def open(self) -> None:
        """Connect."""

        async def ignore(_: Exception) -> None:
            """Errors are expected during a run."""

        await self._client.connect(
            self._url.split(","),
            max_reconnect_attempts=-1,
            reconnect_time_wait=1,
            ping_interval=2,
            max_outstanding_pings=1,
            error_cb=ignore,
        )

    async def send(self, publication: Publication) -> None:
        """See `Send`."""
        stream = self._client.jetstream()
        subject = f"{self._namespace}.event.{publication.channel}"
        payload = msgspec.json.encode({"event": EVENT, "data": body_of(publication.message)})
        headers = {"Nats-Msg-Id": f"{publication.channel}/{publication.message}"}
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                await stream.publish(subject, payload, timeout=_TRY_S, headers=headers)
                return
            except (nats.errors.Error, nats.js.errors.Error) as exc:
                if time.monotonic() > deadline:
                    raise NotAcknowledged(f"{publication.message}: {exc!r}") from exc
            await asyncio.sleep(_PAUSE_S)

    async def leader(self, stream: str) -> str:
        """The name of the server that leads a stream."""
        info = await self._client.jetstream().stream_info(stream)
        assert info.cluster is not None
        return info.cluster.leader or ""

    async def aclose(self) -> None:
        """Disconnect."""
        await self._client.close()


class OutboxSender:
    """Commits events to an outbox: a committed event counts as acknowledged."""

    def __init__(self, database_url: str) -> None:
        metadata = sa.MetaData()
        self._outbox = Outbox(metadata)
        self._metadata = metadata
        self._engine = sa.create_engine(database_url)

    async def open(self) -> None:
        """Create the table."""
        await asyncio.to_thread(self._metadata.create_all, self._engine)

    async def send(self, publication: Publication) -> None:
        """See `Send`."""
        await asyncio.to_thread(self._commit, publication)

    def _commit(self, publication: Publication) -> None:
        publisher, number = publication.message
        _, run, topic = publication.channel.split(".")
        event = Recorded(by=publisher, n=number, run=run, topic=int(topic))
        try:
            with Session(self._engine) as session, session.begin():
                self._outbox.add(session, event)
        except sa.exc.SQLAlchemyError as exc:
            raise NotAcknowledged(f"{publication.message}: {exc!r}") from exc

    async def aclose(self) -> None:
        """Close the database."""
        await asyncio.to_thread(self._engine.dispose)
