"""All subscriptions of a driver: subscribed at the right servers, and up to date after a loss."""

import asyncio
import itertools
import logging
from collections.abc import Callable, Iterable
from typing import Final

from eventbus.drivers.base import Delivery, Page
from eventbus.drivers.redis.errors import DRIVER, mapped
from eventbus.drivers.redis.foreign import Foreign
from eventbus.drivers.redis.node import Node
from eventbus.drivers.redis.nodes import Nodes
from eventbus.drivers.redis.store import Store
from eventbus.drivers.redis.subscription import Cursor, RedisSubscription
from eventbus.drivers.redis.wire import REPEATED_PREFIX, decode
from eventbus.errors import ConnectionFailed

__all__ = ["Listeners"]


_log = logging.getLogger(__name__)

FILL_PAGE: Final = 500
"""Messages per read of a stream."""
FILLS_AT_ONCE: Final = 64


class Listeners:
    """Subscriptions by their command, and channel or glob, at the server."""

    def __init__(self, live: str, on_stale: Callable[[], None], foreign: Foreign) -> None:
        """`live` is the prefix of the subjects of streams; `on_stale` requests `settle`."""
        self.gaps = 0
        """How often messages were lost."""
        self._live = live
        self._on_stale = on_stale
        self._foreign = foreign
        self._listeners: dict[tuple[str, bytes], list[RedisSubscription]] = {}
        self._stale: dict[Cursor, None] = {}
        self._unreported: dict[RedisSubscription, None] = {}
        """Filters that missed messages of a node, and have not reported it yet."""

    def attach(self, nodes: Nodes, store: Store) -> None:
        """Set the servers to use; call it first."""
        self._nodes = nodes
        self._store = store
        self.exact = "SSUBSCRIBE" if nodes.target.kind == "cluster" else "SUBSCRIBE"

    def add(self, subscription: RedisSubscription) -> None:
        """Add a subscription; `begin` it then."""
        self._listeners.setdefault(subscription.key, []).append(subscription)

    def remove(self, subscription: RedisSubscription) -> None:
        """Remove a subscription, and unsubscribe at the server if it was the last of its kind."""
        listeners = self._listeners.get(subscription.key, [])
        if subscription in listeners:
            listeners.remove(subscription)
            if not listeners:
                del self._listeners[subscription.key]
                for node in self._nodes.all:
                    node.messages.unlisten(*subscription.key)

    def clear(self) -> None:
        """Remove all, without unsubscribing at the server."""
        for subscription in itertools.chain.from_iterable(self._listeners.values()):
            subscription.detach()
        self._listeners.clear()
        self._stale.clear()
        self._unreported.clear()

    def recheck(self, cursor: Cursor) -> None:
        """Request a read of the cursor's stream."""
        self._stale[cursor] = None
        self._on_stale()

    def on_message(self, node: Node, glob: bytes | None, channel: bytes, data: bytes) -> None:
        """Deliver a message to its subscriptions."""
        listeners = self._listeners.get(
            (self.exact, channel) if glob is None else ("PSUBSCRIBE", glob)
        )
        if not listeners:
            return
        if glob is not None and self._nodes.layout.slots is not None:
            run = b""
            if data.startswith(REPEATED_PREFIX):
                run, _, data = data[len(REPEATED_PREFIX) :].partition(b" ")
            if not self._nodes.speaks_for(node, channel, run):
                return
        subject = channel.decode(errors="replace")
        delivery = decode(subject, data)
        if delivery.position is not None and not subject.startswith(self._live):
            delivery = Delivery(subject, delivery.payload, delivery.headers)
        for subscription in tuple(listeners):
            subscription.receive(delivery)

    async def begin(self, subscription: RedisSubscription) -> None:
        """Subscribe at the server; then set the position where it begins.

        Raises ConnectionFailed.
        """
        await self._place([subscription.key])
        if (cursor := subscription.cursor) is None:
            return
        with mapped(f"reading {subscription.subject} from Redis"):
            position = await self._store.begin(subscription.subject)
        subscription.begin_at(position)
        if cursor in self._stale:  # it was subscribed again meanwhile: read its stream first
            self._on_stale()
        else:
            cursor.release(position.offset)

    async def settle(self) -> list[ConnectionFailed]:
        """Bring all subscriptions up to date; returns the failures."""
        failures: list[ConnectionFailed] = []
        try:
            await self._place(list(self._listeners), is_again=True)
        except ConnectionFailed as exc:
            failures.append(exc)
        else:
            self._report_filters()
        cursors = [cursor for cursor in self._stale if cursor.epoch]
        for start in range(0, len(cursors), FILLS_AT_ONCE):
            some = cursors[start : start + FILLS_AT_ONCE]
            for result in await asyncio.gather(*map(self._fill, some), return_exceptions=True):
                if isinstance(result, ConnectionFailed):
                    failures.append(result)
                elif isinstance(result, Exception):  # of one channel; the others continue
                    _log.error("reading a stream failed", exc_info=result)
                    failures.append(ConnectionFailed(f"reading a stream: {result}", driver=DRIVER))
                elif result is not None:
                    raise result
        return failures

    async def read(self, subject: str, after: int | None, limit: int) -> Page:
        """Read a stream once. Raises ConnectionFailed."""
        with mapped(f"reading {subject} from Redis"):
            return await self._store.read(subject, after, limit)

    async def _place(self, keys: Iterable[tuple[str, bytes]], *, is_again: bool = False) -> None:
        """Subscribe where that is not done yet. Raises the first ConnectionFailed.

        With `is_again`, a subscription that is new at a node holds messages until it has read the
        missed ones.
        """
        confirmations: list[asyncio.Future[None]] = []
        failure: ConnectionFailed | None = None
        for command, name in keys:
            try:
                nodes = self._nodes.all if command == "PSUBSCRIBE" else [self._nodes.of(name)]
                for node in nodes:
                    if is_again and not node.messages.listens(command, name):
                        for subscription in self._listeners[command, name]:
                            subscription.hold()
                            if not subscription.pattern.is_exact:
                                self._unreported[subscription] = None
                    confirmations.append(node.messages.listen(command, name))
            except ConnectionFailed as exc:
                failure = failure or exc
            else:
                if command == "PSUBSCRIBE" and not self._nodes.is_connected:
                    failure = failure or ConnectionFailed(
                        "a filter needs every node, and not all are connected", driver=DRIVER
                    )
        if confirmations:
            await asyncio.wait(confirmations)
        for confirmation in confirmations:
            if isinstance(error := confirmation.exception(), ConnectionFailed):
                failure = failure or error
        if failure is not None:
            raise failure

    def _report_filters(self) -> None:
        """Report a gap to filters that are subscribed again.

        They may have missed messages of channels unknown to them. A subscriber that reads the
        current state after the report misses nothing more.
        """
        unreported, self._unreported = self._unreported, {}
        for subscription in unreported:
            subscription.report_gap()

    async def _fill(self, cursor: Cursor) -> None:
        """Deliver the messages that the cursor has missed, then those held meanwhile."""
        volatile: list[Delivery] = []
        while True:
            self._stale.pop(cursor, None)
            held = cursor.take_held()
            try:
                with mapped(f"reading {cursor.subject} from Redis"):
                    page = await self._store.follow(cursor.subject, cursor.position, FILL_PAGE)
            except BaseException:
                cursor.put_back(held)
                self._stale[cursor] = None
                raise
            volatile += self._check(held, page, cursor)
            if page.position.epoch != cursor.epoch:
                continues = cursor.begin_again(page)
                self._count_gap(cursor, "Redis has lost messages, and its history was replaced")
                if not continues:
                    continue
            elif not page.complete:
                self._count_gap(cursor, "some messages were evicted before they could be read")
            cursor.fill(page)
            if len(page.messages) < FILL_PAGE and cursor not in self._stale:
                cursor.release(page.position.offset, volatile)
                return

    def _check(self, held: list[Delivery], page: Page, cursor: Cursor) -> list[Delivery]:
        """The volatile messages among `held`. The page, which was read later, has the others."""
        epochs = {cursor.epoch, page.position.epoch}
        for delivery in held:
            position = delivery.position
            if position is not None and (
                position.epoch not in epochs
                or (position.epoch == page.position.epoch
                    and position.offset > page.position.offset)
            ):  # fmt: skip
                self._foreign.note(
                    "a message of %s has a position that its stream does not have: %d of %s",
                    cursor.subject, position.offset, position.epoch,
                )  # fmt: skip
        return [delivery for delivery in held if delivery.position is None]

    def _count_gap(self, cursor: Cursor, why: str) -> None:
        self.gaps += 1
        _log.warning("messages of %s were lost: %s", cursor.subject, why)
        cursor.report_gap()
