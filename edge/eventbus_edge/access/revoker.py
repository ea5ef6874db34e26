"""Revocations in a cluster: told to every node at once, and kept for those that come later."""

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

__all__ = ["Revoker", "read_kept", "tell"]


_log = logging.getLogger(__name__)
_KEYS: Final = "revocation"
_LONGER_S: Final = 600.0
"""So much longer revocations are kept: nodes hold to them for twice their leeway longer."""
_RESYNC_S: Final = 30.0
_RETRY_S: Final = 1.0
_AGAIN_S: Final = 5.0
_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(Revocation).decode


def _store(driver: Driver) -> StateStore | None:
    """Where revocations are kept: it outlives a restart of all nodes and of the broker."""
    can = Capability.PRESENCE in driver.capabilities
    return cast(StateDriver, driver).durable_state if can else None


async def tell(driver: Driver, subjects: Subjects, revocation: Revocation) -> None:
    """Make a revocation known to every node, and to those that start before it ends.

    Nodes carry it out when it arrives. Where the driver keeps no state, only the present nodes know
    of it. Raises an EventBusError when a part of it could not be done; the rest may be.
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
    """What is kept about the same."""
    key = f"{_KEYS}.{like.key}"
    payload = (await store.entries(key)).get(key)
    return None if payload is None else _read(payload)


async def _keep(store: StateStore, revocation: Revocation) -> None:
    left = revocation.until + _LONGER_S - time.time()
    if left > 0:
        key = f"{_KEYS}.{revocation.key}"
        await store.put(key, _encode(revocation), ttl_s=max(left, 1.0))


async def read_kept(driver: Driver) -> dict[str, Revocation]:
    """What is refused at present in the whole cluster, by keys.

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
    """None for what is none: whoever may publish to the bus may publish anything."""
    try:
        return _decode(payload)
    except (msgspec.DecodeError, ValueError, RecursionError) as exc:
        _log.warning("a revocation that cannot be read was left out: %s", exc)
        return None


class Revoker:
    """A node's part: hears of revocations, knows those that hold, and has them carried out."""

    def __init__(
        self,
        driver: Driver,
        subjects: Subjects,
        carry_out: Callable[[Revocation], None],
        *,
        leeway_s: float = 0.0,
    ) -> None:
        """`carry_out` ends what a revocation that is new concerns on this node.

        The clocks of issuers, of nodes and of those who revoke may differ by `leeway_s`.
        """
        self.known = Revocations(leeway_s=leeway_s)
        self._driver = driver
        self._subjects = subjects
        self._carry_out = carry_out
        self._store: StateStore | None = None
        self._subscription: Subscription | None = None
        self._losses = self._forgotten = 0
        self._has_lost = False
        self._next = 0.0
        self._is_reading = False
        self._doubts = 0
        self._read_at = (-1, -1)
        """Losses and doubts as of which everything has been read."""
        self._confirming: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen, then read what was revoked before. Raises an EventBusError."""
        self._store = _store(self._driver)
        subject = self._subjects.control("revoke")
        self._subscription = await self._driver.subscribe(subject, self._on_delivery)
        if self._store is not None:
            await self._take_over(cast(StateDriver, self._driver).state)
        await self.resync()

    async def _take_over(self, state: StateStore) -> None:
        """Read what nodes of 0.1 have kept, in the state that is lost with the broker's memory.

        `resync` puts it where it lasts. In a cluster that is upgraded node by node, what such nodes
        revoke later arrives as any revocation does.
        """
        if state is not self._store:
            for payload in (await state.entries(f"{_KEYS}.*")).values():
                self._take(_read(payload))

    async def aclose(self) -> None:
        """Listen no more."""
        if self._confirming is not None:
            self._confirming.cancel()
            await asyncio.gather(self._confirming, return_exceptions=True)
        if self._subscription is not None:
            await self._subscription.aclose()

    async def revoke(self, revocation: Revocation) -> None:
        """Carry a revocation out here and have it carried out everywhere; see `tell`."""
        revocation = revocation.after(self.known.held(revocation))
        self._take(revocation)
        await tell(self._driver, self._subjects, revocation)

    async def lift(self, like: Revocation) -> bool:
        """Give back, here and everywhere, what is revoked of what `like` is about; see `tell`.

        False where nothing of that is revoked.
        """
        now = time.time()
        if (held := self.known.find(like, now)) is None:
            return False
        await self.revoke(held.lift(now))
        return True

    def forbids_token(self, claims: Claims) -> bool:
        """Whether a token has been revoked."""
        return self.known.forbids_token(claims, time.time())

    def forbids(self, channel: str, claims: Claims | None) -> bool:
        """Whether a channel has been taken away from the bearer of `claims`."""
        return self.known.forbids(channel, claims, time.time())

    def forbids_any(self, pattern: Pattern, claims: Claims) -> bool:
        """Whether one of the channels of a pattern has been taken away from them."""
        return self.known.forbids_any(pattern, claims, time.time())

    def doubt(self) -> None:
        """Revocations may have been missed, whatever the bus says of its losses."""
        self._doubts += 1
        self._next = 0.0

    @property
    def is_current(self) -> bool:
        """Whether no revocation is known to have been missed."""
        return self._store is None or self._read_at == (self._store.losses, self._doubts)

    async def confirm(self) -> None:
        """Wait until what may have been missed is read. Raises an EventBusError.

        All who wait share one reading.
        """
        while not self.is_current:
            if self._confirming is None or self._confirming.done():
                self._confirming = asyncio.create_task(self.resync(), name="reading revocations")
                self._confirming.add_done_callback(_retrieve)
            try:
                await asyncio.shield(self._confirming)
            except EventBusError:
                if not self.is_current:  # else only the writing back has failed, which is due again
                    raise

    def is_due(self, now: float) -> bool:
        """Whether `keep_up` should be called: sometimes, and soon where something was lost."""
        if self._store is None or self._is_reading:
            return False
        return now >= self._next or self._store.losses != self._losses

    async def keep_up(self) -> None:
        """Read again what is kept; a bus that does not answer is asked again until it does."""
        self._is_reading = True
        try:
            await self.resync()
        except EventBusError as exc:
            self._next = time.monotonic() + _RETRY_S
            _log.warning("revocations of other nodes may be missing for the moment: %s", exc)
        finally:
            self._is_reading = False

    async def resync(self) -> None:
        """Read what is kept, and put back what the broker has lost. Raises an EventBusError."""
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
            # What is kept may also be older: written by who did not know the newer one.
            if kept.get(f"{_KEYS}.{revocation.key}") != _encode(revocation):
                await _keep(self._store, revocation)
        # Once more soon: a subscription may come back later than what is read here.
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
    """Mark the exception as seen: those who wait raise it, and there may be none left."""
    if not task.cancelled():
        task.exception()
