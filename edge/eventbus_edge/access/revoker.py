"""Revocations in a cluster: sent to every node at once, and stored for nodes that start later."""

import asyncio
import logging
import time
from collections.abc import (
    Awaitable,
    Callable,
)
from typing import (
    Final,
    cast,
)

from eventbus.channels import (
    Pattern,
    Subjects,
)
from eventbus.cluster import (
    REVOCATIONS,
    Bearer,
    Revocation,
    announce_revocation,
    encode_revocation,
    read_revocation,
    revocation_store,
    store_revocation,
)
from eventbus.drivers import Delivery, Driver, StateDriver, StateStore, Subscription
from eventbus.errors import (
    EventBusError,
)
from eventbus.pacing import paced
from eventbus.tasks import Tasks
from eventbus_edge.access.revocation import MAX_REVOCATIONS, Revocations
from eventbus_edge.access.tokens import Claims
from eventbus_edge.state import Resync

__all__ = ["Revoker"]


_log = logging.getLogger(__name__)
_RESYNC_S: Final = 30.0
_AGAIN_S: Final = 5.0


class Revoker:
    """One node's part: receives revocations, knows those that hold, and has them carried out."""

    def __init__(
        self,
        driver: Driver,
        subjects: Subjects,
        carry_out: Callable[[Revocation], Awaitable[None]],
        *,
        leeway_s: float = 0.0,
        lifetime_s: float = 0.0,
    ) -> None:
        """`carry_out` ends what a new revocation concerns on this node.

        The clocks of issuers, of nodes and of callers may differ by `leeway_s`. `revoke` refuses
        for `lifetime_s`, the longest lifetime of tokens.
        """
        self.known = Revocations(leeway_s=leeway_s)
        self._driver = driver
        self._subjects = subjects
        self._carry_out = carry_out
        self._lifetime_s = lifetime_s
        self._store: StateStore | None = None
        self._subscription: Subscription | None = None
        self._forgotten = 0
        self._invalidations = 0
        self._read_as_of = (-1, -1)
        """The losses of the store and the invalidations up to which everything has been read."""
        self._confirming: asyncio.Task[None] | None = None
        self._arrived: dict[str, Revocation] = {}
        """Those to be carried out: at most one of each key."""
        self._carrying_out: asyncio.Task[None] | None = None
        self._tasks = Tasks()

    async def start(self) -> None:
        """Subscribe, then read earlier revocations. Raises an EventBusError."""
        self._store = revocation_store(self._driver)
        subject = self._subjects.control("revoke")
        self._subscription = await self._driver.subscribe(subject, self._on_delivery)
        if self._store is None:
            return
        await self._take_over(cast(StateDriver, self._driver).state)
        as_of = self._current_version()
        await self.resync()
        # The subscription may come back later than the first read after a loss.
        resync = Resync(
            self._current_version,
            as_of,
            self._synchronize,
            settle_s=_AGAIN_S,
            every_s=_RESYNC_S,
            what="revocations",
        )
        self._tasks.keep(resync.run, "reading the revocations")

    async def _take_over(self, state: StateStore) -> None:
        """Read what nodes of version 0.1 stored in the state that is lost with the broker.

        `resync` moves it to the durable store. While a cluster is upgraded node by node, later
        revocations of old nodes arrive as all others do.
        """
        if state is not self._store:
            for payload in (await state.entries(f"{REVOCATIONS}.*")).values():
                await self._take(read_revocation(payload))

    async def aclose(self) -> None:
        """Unsubscribe."""
        await self._tasks.aclose()
        if self._confirming is not None:
            self._confirming.cancel()
            await asyncio.gather(self._confirming, return_exceptions=True)
        if self._subscription is not None:
            await self._subscription.aclose()

    async def revoke(
        self,
        *,
        user_id: str | None = None,
        jti: str | None = None,
        connection_id: str | None = None,
        channel: str | None = None,
        issued_before: float | None = None,
    ) -> None:
        """Revoke access, on every node, until the affected tokens would have expired.

        Pass a user, a token id, a connection or a channel. A channel together with a user or a
        token revokes only their access to that channel. The revocation applies to tokens issued up
        to JWT_LEEWAY seconds from now, since clocks differ. With `issued_before`, it applies to
        exactly those whose `iat` is lower, in seconds since 1970 by the clock of their issuer.

        Raises ValueError, and an EventBusError when not all nodes could be notified; on this node
        the revocation holds anyway.
        """
        now = time.time()
        await self.spread(
            Revocation(
                at=now,
                until=now + self._lifetime_s,
                user_id=user_id,
                jti=jti,
                connection_id=connection_id,
                channel=channel,
                issued_before=issued_before,
            )
        )

    async def lift(
        self, *, user_id: str | None = None, jti: str | None = None, channel: str | None = None
    ) -> bool:
        """Undo `revoke` with the same arguments, on every node; False if nothing was revoked.

        Raises as `revoke` does.
        """
        like = Revocation(at=0, until=0, user_id=user_id, jti=jti, channel=channel)
        now = time.time()
        if (held := self.known.find(like, now)) is None:
            return False
        await self.spread(held.lift(now))
        return True

    async def spread(self, revocation: Revocation) -> None:
        """Carry a revocation out on this node, then on all others; see `announce_revocation`."""
        revocation = revocation.after(self.known.get(revocation))
        await self._take(revocation)
        await announce_revocation(self._driver, self._subjects, revocation)

    def forbids_token(self, claims: Claims) -> bool:
        """Whether a token has been revoked."""
        return self.known.forbids_token(claims, time.time())

    def forbids(self, channel: str, claims: Bearer | None) -> bool:
        """Whether the bearer of `claims` is revoked, or a channel for them."""
        if claims is None:
            return False
        now = time.time()
        return self.known.forbids_token(claims, now) or self.known.forbids(channel, claims, now)

    def forbids_any(self, pattern: Pattern, claims: Claims) -> bool:
        """Whether a channel of the pattern is revoked for the bearer of `claims`."""
        return self.known.forbids_any(pattern, claims, time.time())

    def invalidate(self) -> None:
        """Read all revocations again: some may be missing, even if the bus reports no loss."""
        self._invalidations += 1

    @property
    def is_current(self) -> bool:
        """Whether all revocations are read, as far as known."""
        return self._store is None or self._read_as_of == self._current_version()

    def _current_version(self) -> tuple[int, int]:
        """What a read that begins now is current with."""
        return (0 if self._store is None else self._store.losses), self._invalidations

    async def confirm(self) -> None:
        """Wait until possibly missed revocations are read. Raises an EventBusError.

        Concurrent callers share one read.
        """
        while not self.is_current:
            if self._confirming is None or self._confirming.done():
                self._confirming = asyncio.create_task(self.resync(), name="reading revocations")
                self._confirming.add_done_callback(_retrieve)
            try:
                await asyncio.shield(self._confirming)
            except EventBusError:
                if not self.is_current:  # else only writing back failed, which is retried
                    raise

    async def _synchronize(self, _keep_missing: bool) -> None:
        await self.resync()

    async def resync(self) -> None:
        """Read the store, and write back what the broker has lost. Raises an EventBusError."""
        if self._store is None:
            return
        as_of = self._current_version()
        stored = await self._store.entries(f"{REVOCATIONS}.*")
        async for payload in paced(stored.values()):
            await self._take(read_revocation(payload))
        self._read_as_of = as_of
        while self.known.sweep(time.time()):  # noqa: ASYNC110 - it waits for nothing
            await asyncio.sleep(0)
        if self.known.forgotten != self._forgotten:
            self._forgotten = self.known.forgotten
            _log.warning(
                "more than %d revocations are in force: those that would end first are not kept "
                "in memory, and their tokens are good again on this node (%d so far)",
                MAX_REVOCATIONS,
                self._forgotten,
            )
        async for revocation in paced(self.known.all()):
            # The stored one may also be older: its writer did not know the newer one.
            if stored.get(f"{REVOCATIONS}.{revocation.key}") != encode_revocation(revocation):
                await store_revocation(self._store, revocation)

    def _on_delivery(self, delivery: Delivery) -> None:
        revocation = read_revocation(delivery.payload)
        if revocation is None or not self._is_news(revocation):
            return
        self._arrived[revocation.connection_id or revocation.key] = revocation
        if self._carrying_out is None or self._carrying_out.done():
            self._carrying_out = self._tasks.start(
                self._carry_out_arrived(), "carrying out revocations"
            )

    async def _carry_out_arrived(self) -> None:
        while self._arrived:
            key = next(iter(self._arrived))
            await self._carry_out(self._arrived.pop(key))

    async def _take(self, revocation: Revocation | None) -> None:
        if revocation is not None and self._is_news(revocation):
            await self._carry_out(revocation)

    def _is_news(self, revocation: Revocation) -> bool:
        """Note a revocation; returns whether it must be carried out."""
        is_news = self.known.add(revocation, time.time()) or not revocation.is_kept
        if is_news and revocation.lifted:
            _log.info("a revocation was lifted")
        return is_news and not revocation.lifted


def _retrieve(task: "asyncio.Task[None]") -> None:
    """Mark the exception as retrieved: all waiters may be cancelled, and asyncio would log it."""
    if not task.cancelled():
        task.exception()
