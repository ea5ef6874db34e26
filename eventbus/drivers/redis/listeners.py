"""All subscriptions of a driver: subscribed at the right servers, and up to date after a loss."""

import asyncio
import itertools
import logging
from collections.abc import Callable, Iterable
from typing import Final

from eventbus.drivers.base import Delivery, Page
from eventbus.drivers.redis.errors import DRIVER, Denied, mapped
from eventbus.drivers.redis.foreign import Foreign
from eventbus.drivers.redis.node import Node
from eventbus.drivers.redis.nodes import Nodes
from eventbus.drivers.redis.store import Store
from eventbus.drivers.redis.subscription import Cursor, RedisSubscription
from eventbus.drivers.redis.wire import REPEATED_PREFIX, decode
from eventbus.errors import ConnectionFailed, SubscribeDenied

__all__ = ["RETRY_REFUSED_S", "Listeners"]


_log = logging.getLogger(__name__)

FILL_PAGE: Final = 500
"""Messages per read of a stream."""
FILLS_AT_ONCE: Final = 64
RETRY_REFUSED_S: Final = 5.0
"""How often to retry subscriptions and reads that the user has no permission for any more."""


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
        self._unreadable: dict[Cursor, str] = {}
        """Cursors whose stream the user has no permission to read, and why."""
        self._retry_at = 0.0
        self._reported = 0

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
        self._unreadable.clear()

    @property
    def fault(self) -> str:
        """How many subscriptions are refused that were accepted before; empty if none is."""
        if not (refused := self._refused()):
            return ""
        plural = "" if len(refused) == 1 else "s"
        return (
            f"Redis refuses {len(refused)} subscription{plural} (grant its user the channels and "
            f"keys): {refused[0]}"
        )

    def _refused(self) -> list[str]:
        """Why subscriptions receive nothing, or cannot read what they have missed."""
        unreadable = (why for cursor, why in self._unreadable.items() if not cursor.is_closed)
        return [*self._refused_keys().values(), *unreadable]

    def _refused_keys(self) -> dict[tuple[str, bytes], str]:
        """Subscriptions that a server refuses, and why."""
        return {
            key: why
            for node in self._nodes.all
            for key, why in node.messages.refused.items()
            # A slot may have moved to a node that does not refuse it.
            if key[0] == "PSUBSCRIBE" or self._nodes.speaks_for(node, key[1], b"")
        }

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

        Raises ConnectionFailed, SubscribeDenied if the user has no permission for it.
        """
        if failures := await self._place([subscription.key]):
            denied = (one for one in failures if isinstance(one, SubscribeDenied))
            raise next(denied, failures[0])
        if (cursor := subscription.cursor) is None:
            return
        try:
            with mapped(f"reading {subscription.subject} from Redis"):
                position = await self._store.begin(subscription.subject)
        except Denied as exc:
            raise SubscribeDenied(
                f"no permission to read {subscription.subject}, which a subscription needs: {exc}",
                driver=DRIVER,
            ) from exc
        subscription.begin_at(position)
        if cursor in self._stale:  # it was subscribed again meanwhile: read its stream first
            self._on_stale()
        else:
            cursor.release(position.offset)

    async def settle(self) -> list[ConnectionFailed]:
        """Bring all subscriptions up to date; returns the failures.

        What the user has no permission for is no failure: it is retried, every RETRY_REFUSED_S.
        """
        now = asyncio.get_running_loop().time()
        if is_due := now >= self._retry_at:
            self._retry_at = now + RETRY_REFUSED_S
        failures = [
            failure
            for failure in await self._place(
                list(self._listeners), is_again=True, skip_refused=not is_due
            )
            if not isinstance(failure, SubscribeDenied)
        ]
        if not failures:
            self._report_filters()
        for cursor in [cursor for cursor in self._stale if cursor.is_closed]:
            del self._stale[cursor]
            self._unreadable.pop(cursor, None)
        cursors = [
            cursor
            for cursor in self._stale
            if cursor.epoch and (is_due or cursor not in self._unreadable)
        ]
        for start in range(0, len(cursors), FILLS_AT_ONCE):
            some = cursors[start : start + FILLS_AT_ONCE]
            results = await asyncio.gather(*map(self._fill, some), return_exceptions=True)
            for cursor, result in zip(some, results, strict=True):
                self._unreadable.pop(cursor, None)
                if isinstance(result, Denied):
                    self._unreadable[cursor] = str(result)
                elif isinstance(result, ConnectionFailed):
                    failures.append(result)
                elif isinstance(result, Exception):  # of one channel; the others continue
                    _log.error("reading a stream failed", exc_info=result)
                    failures.append(ConnectionFailed(f"reading a stream: {result}", driver=DRIVER))
                elif result is not None:
                    raise result
        if not failures:
            self._report_refused()
        return failures

    async def read(self, subject: str, after: int | None, limit: int) -> Page:
        """Read a stream once. Raises ConnectionFailed."""
        with mapped(f"reading {subject} from Redis"):
            return await self._store.read(subject, after, limit)

    async def _place(
        self,
        keys: Iterable[tuple[str, bytes]],
        *,
        is_again: bool = False,
        skip_refused: bool = False,
    ) -> list[ConnectionFailed]:
        """Subscribe where that is not done yet; returns the failures.

        With `is_again`, a subscription that is new at a node holds messages until it has read the
        missed ones. With `skip_refused`, one that the node has refused is not tried.
        """
        confirmations: list[asyncio.Future[None]] = []
        failures: list[ConnectionFailed] = []
        for key in keys:
            command, name = key
            try:
                nodes = self._nodes.all if command == "PSUBSCRIBE" else [self._nodes.of(name)]
                for node in nodes:
                    link = node.messages
                    was_refused = key in link.refused
                    if was_refused and skip_refused:
                        continue
                    if (is_again or was_refused) and not link.listens(command, name):
                        self._hold(key)
                    confirmations.append(link.listen(command, name))
            except ConnectionFailed as exc:
                failures.append(exc)
            else:
                if command == "PSUBSCRIBE" and not self._nodes.is_connected:
                    failures.append(
                        ConnectionFailed(
                            "a filter needs every node, and not all are connected", driver=DRIVER
                        )
                    )
        if confirmations:
            await asyncio.wait(confirmations)
        errors = (confirmation.exception() for confirmation in confirmations)
        failures.extend(error for error in errors if isinstance(error, ConnectionFailed))
        return failures

    def _hold(self, key: tuple[str, bytes]) -> None:
        """Hold the messages of subscriptions that may have missed some."""
        for subscription in self._listeners.get(key, ()):
            subscription.hold()
            if not subscription.pattern.is_exact:
                self._unreported[subscription] = None

    def _report_filters(self) -> None:
        """Report a gap to filters that are subscribed again, unless a node refuses them.

        They may have missed messages of channels unknown to them. A subscriber that reads the
        current state after the report misses nothing more.
        """
        refused = self._refused_keys()
        unreported, self._unreported = self._unreported, {}
        for subscription in unreported:
            if subscription.key in refused:
                self._unreported[subscription] = None
            else:
                subscription.report_gap()

    def _report_refused(self) -> None:
        """Log how many subscriptions are refused, if it has changed."""
        count = len(self._refused())
        if count > self._reported:
            _log.error("%s; trying again", self.fault)
        elif self._reported and not count:
            _log.warning("Redis refuses no subscription any more")
        self._reported = count

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
