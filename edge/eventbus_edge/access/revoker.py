"""Revocations in a cluster: sent to every node at once, and stored for nodes that start later."""

import asyncio
import logging
import time
from collections.abc import (
    Callable,
    Coroutine,
)
from typing import (
    Any,
    Final,
    cast,
)

import msgspec

from eventbus.channels import (
    Pattern,
    Subjects,
)
from eventbus.drivers.base import (
    Capability,
    Delivery,
    Driver,
    Subscription,
)
from eventbus.drivers.state import (
    StateDriver,
    StateStore,
)
from eventbus.errors import (
    EventBusError,
    NotSupported,
)
from eventbus_edge.access.revocation import (
    MAX_REVOCATIONS,
    Revocation,
    Revocations,
)
from eventbus_edge.access.tokens import Claims

__all__ = ["Revoker", "announce", "read_kept"]


_log = logging.getLogger(__name__)
_KEYS: Final = "revocation"
_LONGER_S: Final = 600.0
"""Stored revocations outlive their end by this: nodes apply them for twice the leeway longer."""
_RESYNC_S: Final = 30.0
_RETRY_S: Final = 1.0
_AGAIN_S: Final = 5.0
_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(Revocation).decode


def _store(driver: Driver) -> StateStore | None:
    """The store of revocations, which outlives a restart of all nodes and of the broker."""
    can = Capability.PRESENCE in driver.capabilities
    return cast(StateDriver, driver).durable_state if can else None


async def announce(driver: Driver, subjects: Subjects, revocation: Revocation) -> None:
    """Send a revocation to every node, and store it for nodes that start before it ends.

    Nodes carry it out when it arrives. A driver that keeps no state reaches the running nodes only.
    Raises an EventBusError if one of the two failed; the other may have succeeded.
    """
    store = _store(driver) if revocation.is_kept else None
    results: list[object] = []
    if store is not None:
        try:
            revocation = revocation.after(await _kept(store, revocation))
        except EventBusError as exc:
            results.append(exc)
    payload = _encode(revocation)
    works: list[Coroutine[Any, Any, object]] = [driver.publish(subjects.control("revoke"), payload)]
    if store is not None:
        works.append(_keep(store, revocation))
    results += await asyncio.gather(*works, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result


async def _kept(store: StateStore, like: Revocation) -> Revocation | None:
    """The stored revocation of the same user, token or channel."""
    key = f"{_KEYS}.{like.key}"
    payload = (await store.entries(key)).get(key)
    return None if payload is None else _read(payload)


async def _keep(store: StateStore, revocation: Revocation) -> None:
    left = revocation.until + _LONGER_S - time.time()
    if left > 0:
        key = f"{_KEYS}.{revocation.key}"
        await store.put(key, _encode(revocation), ttl_s=max(left, 1.0))


async def read_kept(driver: Driver) -> dict[str, Revocation]:
    """The revocations that hold in the whole cluster, by their keys.

    Raises NotSupported for a driver that keeps no state, and ConnectionFailed.
    """
    if (store := _store(driver)) is None:
        raise NotSupported(
            f"the driver {driver.name} keeps no state: only running nodes know what is revoked",
            driver=driver.name,
        )
    now = time.time()
    found: dict[str, Revocation] = {}
    for payload in (await store.entries(f"{_KEYS}.*")).values():
        revocation = _read(payload)
        if revocation is not None and revocation.holds(now):
            found[revocation.key] = revocation
    return found


def _read(payload: bytes) -> Revocation | None:
    """Decode a revocation; None for anything else, which any client of the bus may publish."""
    try:
        return _decode(payload)
    except (msgspec.DecodeError, ValueError, RecursionError) as exc:
        _log.warning("a revocation that cannot be read was left out: %s", exc)
        return None


class Revoker:
    """One node's part: receives revocations, knows those that hold, and has them carried out."""

    def __init__(
        self,
        driver: Driver,
        subjects: Subjects,
        carry_out: Callable[[Revocation], None],
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
        self._losses = self._forgotten = 0
        self._has_lost = False
        self._next = 0.0
        self._is_reading = False
        self._doubts = 0
        self._read_at = (-1, -1)
        """The losses of the store and the doubts up to which everything has been read."""
        self._confirming: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Subscribe, then read earlier revocations. Raises an EventBusError."""
        self._store = _store(self._driver)
        subject = self._subjects.control("revoke")
        self._subscription = await self._driver.subscribe(subject, self._on_delivery)
        if self._store is not None:
            await self._take_over(cast(StateDriver, self._driver).state)
        await self.resync()

    async def _take_over(self, state: StateStore) -> None:
        """Read what nodes of version 0.1 stored in the state that is lost with the broker.

        `resync` moves it to the durable store. While a cluster is upgraded node by node, later
        revocations of old nodes arrive as all others do.
        """
        if state is not self._store:
            for payload in (await state.entries(f"{_KEYS}.*")).values():
                self._take(_read(payload))

    async def aclose(self) -> None:
        """Unsubscribe."""
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
        """Refuse what is named, on every node, until the tokens would have expired.

        Give one of user, token id and connection, or a channel; a channel beside a user or a token
        takes only that channel away from them. Tokens that were issued until now are concerned, and
        those of JWT_LEEWAY seconds more, since clocks differ. With `issued_before`, it is exactly
        those whose `iat` is less, in seconds since 1970 by the clock of their issuer.

        Raises ValueError, and an EventBusError when not all nodes could be notified; on this node
        the revocation holds all the same.
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
        """Undo, on every node, what `revoke` did for the same names; False where it did nothing.

        Raises as `revoke` does.
        """
        like = Revocation(at=0, until=0, user_id=user_id, jti=jti, channel=channel)
        now = time.time()
        if (held := self.known.find(like, now)) is None:
            return False
        await self.spread(held.lift(now))
        return True

    async def spread(self, revocation: Revocation) -> None:
        """Carry a revocation out on this node, then on all others; see `announce`."""
        revocation = revocation.after(self.known.held(revocation))
        self._take(revocation)
        await announce(self._driver, self._subjects, revocation)

    def forbids_token(self, claims: Claims) -> bool:
        """Whether a token has been revoked."""
        return self.known.forbids_token(claims, time.time())

    def forbids(self, channel: str, claims: Claims | None) -> bool:
        """Whether a channel is revoked for the bearer of `claims`."""
        return self.known.forbids(channel, claims, time.time())

    def forbids_any(self, pattern: Pattern, claims: Claims) -> bool:
        """Whether a channel of the pattern is revoked for the bearer of `claims`."""
        return self.known.forbids_any(pattern, claims, time.time())

    def doubt(self) -> None:
        """Read all revocations again: some may be missing, although the bus reports no loss."""
        self._doubts += 1
        self._next = 0.0

    @property
    def is_current(self) -> bool:
        """Whether all revocations are read, as far as known."""
        return self._store is None or self._read_at == (self._store.losses, self._doubts)

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

    def is_due(self, now: float) -> bool:
        """Whether `keep_up` should be called: once in a while, and soon after a loss."""
        if self._store is None or self._is_reading:
            return False
        return now >= self._next or self._store.losses != self._losses

    async def keep_up(self) -> None:
        """Read all revocations again; after a fault of the bus, `is_due` soon asks for a retry."""
        self._is_reading = True
        try:
            await self.resync()
        except EventBusError as exc:
            self._next = time.monotonic() + _RETRY_S
            _log.warning("revocations of other nodes may be missing for the moment: %s", exc)
        finally:
            self._is_reading = False

    async def resync(self) -> None:
        """Read the store, and write back what the broker has lost. Raises an EventBusError."""
        if self._store is None:
            return
        self._has_lost |= self._store.losses != self._losses
        self._losses = self._store.losses
        as_of = self._losses, self._doubts
        kept = await self._store.entries(f"{_KEYS}.*")
        for payload in kept.values():
            self._take(_read(payload))
        self._read_at = as_of
        self.known.sweep(time.time())
        if self.known.forgotten != self._forgotten:
            self._forgotten = self.known.forgotten
            _log.warning(
                "more than %d revocations hold: those that would end first are not kept in memory, "
                "and their tokens are good again on this node (%d so far)",
                MAX_REVOCATIONS,
                self._forgotten,
            )
        for revocation in self.known.all():
            # The stored one may also be older: its writer did not know the newer one.
            if kept.get(f"{_KEYS}.{revocation.key}") != _encode(revocation):
                await _keep(self._store, revocation)
        # Again soon after a loss: the subscription may come back later than this read.
        self._next = time.monotonic() + (_AGAIN_S if self._has_lost else _RESYNC_S)
        self._has_lost = False

    def _on_delivery(self, delivery: Delivery) -> None:
        self._take(_read(delivery.payload))

    def _take(self, revocation: Revocation | None) -> None:
        if revocation is None:
            return
        is_news = self.known.add(revocation, time.time()) or not revocation.is_kept
        if is_news and revocation.lifted:
            _log.info("a revocation was taken back")
        elif is_news:
            self._carry_out(revocation)


def _retrieve(task: "asyncio.Task[None]") -> None:
    """Mark the exception as retrieved: all waiters may be cancelled, and asyncio would log it."""
    if not task.cancelled():
        task.exception()
