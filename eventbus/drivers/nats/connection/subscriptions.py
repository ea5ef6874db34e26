"""Subscriptions at the server, on each client that a connection has, and those it refuses."""

import asyncio
import contextlib
import logging
from collections.abc import (
    Awaitable,
    Callable,
)
from typing import Final

from nats import errors as nats_errors

from eventbus.drivers.nats.client import (
    FastClient,
    Receiver,
)
from eventbus.drivers.nats.errors import (
    DRIVER,
    is_over_limit,
    mapped,
    refused_subject,
)
from eventbus.errors import (
    ConnectionFailed,
    SubscribeDenied,
)

__all__ = ["ServerSubscription", "ServerSubscriptions"]

_log = logging.getLogger(__package__)

_MAX_DENIED: Final = 1000
_RETRY_REFUSED_S: Final = 5.0


class ServerSubscription:
    """A subscription at the server; it outlives the client that made it."""

    def __init__(
        self, subject: str, receiver: Receiver, group: str, on_again: Callable[[], None]
    ) -> None:
        self.subject = subject
        self.is_refused = False
        """Whether the server ended it, or refused it after a reconnect; it is retried."""
        self.report_again = on_again
        self._receiver = receiver
        self._group = group
        self._client: FastClient | None = None
        self._key = 0
        self._refusals = 0

    async def send(self, client: FastClient, refusals: int) -> None:
        """Subscribe at a client's server, in place of an earlier subscription.

        `refusals` is how many subscriptions the server has refused so far.
        """
        await self.withdraw()
        self._refusals = refusals
        if not client.is_closed:
            self._client, self._key = (
                client,
                await client.listen(self.subject, self._receiver, self._group),
            )

    async def withdraw(self) -> None:
        """Unsubscribe where it is subscribed; doing it twice is harmless."""
        client, self._client = self._client, None
        if client is not None and not client.is_closed:
            # nats-py fails when it lost the subscription together with the connection.
            with contextlib.suppress(nats_errors.Error):
                await client.unlisten(self._key)

    def is_accepted(self, refusals: int) -> bool:
        """Whether the server has refused no subscription since this one was sent."""
        return self._refusals == refusals

    def refuse(self) -> None:
        """The server has ended it, or refused it after a reconnect."""
        self.is_refused = True

    def confirm(self, refusals: int) -> None:
        """The server has accepted it."""
        self.is_refused = False
        self._refusals = refusals


class ServerSubscriptions:
    """The subscriptions of a connection, on each client that it has; some may be refused.

    An error for one subscription too many does not say which. So when there was one, those that
    were sent meanwhile are sent again one by one. An error for a missing permission names the
    subject; the server ends a subscription that way, too, when the permission is taken back. The
    server keeps the connection.
    """

    def __init__(
        self, client: Callable[[], FastClient], echo: Callable[[], Awaitable[bool]]
    ) -> None:
        """`client` returns the current one; `echo` waits until the server has handled all."""
        self.refusals = 0
        """How many the server has refused because of its limit."""
        self._client = client
        self._echo = echo
        self._all: dict[int, ServerSubscription] = {}
        self._denied: dict[str, None] = {}
        self._unmarked = False
        """Whether permissions are missing for subscriptions that are not marked yet."""
        self._alone = asyncio.Lock()
        self._retry_at = 0.0
        self._reported = 0

    async def add(
        self, subject: str, receiver: Receiver, group: str, on_again: Callable[[], None]
    ) -> ServerSubscription:
        """Subscribe; the server need not have handled it on return."""
        client = self._client()
        subscription = ServerSubscription(subject, receiver, group, on_again)
        self._all[id(subscription)] = subscription
        self._denied.pop(subject.lower(), None)
        try:
            with mapped(f"subscribing to {subject}"):
                if self._alone.locked():
                    async with self._alone:
                        await subscription.send(client, self.refusals)
                else:
                    await subscription.send(client, self.refusals)
        except BaseException:
            await self.remove(subscription)
            raise
        return subscription

    async def remove(self, subscription: ServerSubscription) -> None:
        """Unsubscribe; doing it twice is harmless."""
        if self._all.pop(id(subscription), None) is not None:
            await subscription.withdraw()

    def clear(self) -> None:
        """Forget all; the connection is closing."""
        self._all.clear()

    async def move(self, client: FastClient) -> None:
        """Subscribe at a client that replaces another. Raises ConnectionFailed."""
        with mapped("subscribing again"):
            for key, subscription in list(self._all.items()):
                if key in self._all:
                    await subscription.send(client, self.refusals)

    def note(self, exc: BaseException) -> None:
        """Handle an error of the server."""
        kind, subject = refused_subject(exc)
        if kind == "subscription":
            self._denied[subject] = None
            while len(self._denied) > _MAX_DENIED:
                del self._denied[next(iter(self._denied))]
            self._unmarked = True
        elif is_over_limit(exc):
            self.refusals += 1

    def on_lost(self) -> None:
        """Forget missing permissions: the next connection may have others."""
        self._denied.clear()

    def __len__(self) -> int:
        return len(self._all)

    @property
    def refused(self) -> int:
        """How many subscriptions the server refuses, which it had accepted before."""
        if self._unmarked:  # not for each error, since it goes through all subscriptions
            self._unmarked = False
            for subscription in self._all.values():
                if self._is_denied(subscription):
                    subscription.refuse()
        return sum(subscription.is_refused for subscription in self._all.values())

    async def require(self, subscription: ServerSubscription) -> bool:
        """Check a subscription that the server has handled.

        Returns whether it had to be sent again, so that messages may have been missed. Raises
        SubscribeDenied, and ConnectionFailed when that cannot be found out.
        """
        if self._is_denied(subscription):
            raise self.denied(subscription.subject)
        if subscription.is_accepted(self.refusals):
            return False
        if await self._try(subscription):
            return True
        is_denied = self._is_denied(subscription)
        raise (self.denied if is_denied else self.too_many)(subscription.subject)

    @staticmethod
    def denied(subject: str) -> SubscribeDenied:
        """The error for a subscription that the user has no permission for."""
        return SubscribeDenied(
            f"no permission to subscribe to {subject}: the NATS user must be granted it",
            driver=DRIVER,
        )

    @staticmethod
    def too_many(subject: str) -> SubscribeDenied:
        """The error for a subscription beyond the server's limit."""
        return SubscribeDenied(
            f"the NATS server refuses the subscription to {subject}: it allows no more on one "
            "connection (max_subscriptions, or the limit of the account or user)",
            driver=DRIVER,
        )

    async def verify(self, refusals: int) -> None:
        """After a reconnect: find those that the server now refuses, if it refuses any.

        `refusals` is how many it had refused before. Raises ConnectionFailed, and PublishFailed
        when it refuses the subscription to replies.
        """
        if not await self._echo():
            return  # the connection is lost again
        if self.refusals == refusals:
            for subscription in self._all.values():
                if not self._is_denied(subscription):
                    subscription.confirm(refusals)
        else:
            for key, subscription in list(self._all.items()):
                if key in self._all:
                    await self._try_again(subscription)
        self._report()

    @property
    def is_retry_due(self) -> bool:
        """Whether subscriptions are refused, and it is time to retry them."""
        return self.refused > 0 and asyncio.get_running_loop().time() >= self._retry_at

    async def retry(self) -> None:
        """Try refused subscriptions again. Raises as `verify` does."""
        self._retry_at = asyncio.get_running_loop().time() + _RETRY_REFUSED_S
        self._report()
        refused = [one for one in self._all.values() if one.is_refused]
        denied = [one for one in refused if self._is_denied(one)]
        if denied:
            await self._try_denied(denied)
        for subscription in refused:
            is_limited = subscription.is_refused and not self._is_denied(subscription)
            if is_limited and not await self._try_again(subscription):
                break  # the others would be refused, too
        self._report()

    def _is_denied(self, subscription: ServerSubscription) -> bool:
        """Whether the last error for the subject was a missing permission."""
        return subscription.subject.lower() in self._denied

    def _report(self) -> None:
        """Log the number of refused subscriptions, if it has changed."""
        count = self.refused
        if count > self._reported:
            _log.error(
                "%d subscriptions are refused, and tried again: see max_subscriptions and the "
                "permissions of the NATS user",
                count,
            )
        elif self._reported and not count:
            _log.warning("all subscriptions are accepted again")
        self._reported = count

    async def _try_denied(self, denied: list[ServerSubscription]) -> None:
        """Send together all subscriptions that lacked a permission."""
        async with self._alone:
            refusals = self.refusals
            for subscription in denied:
                await self._send(subscription, refusals)
            if not await self._echo() or self.refusals != refusals:
                return
        for subscription in denied:
            if not self._is_denied(subscription):
                subscription.confirm(refusals)
                subscription.report_again()

    async def _try_again(self, subscription: ServerSubscription) -> bool:
        accepted = await self._try(subscription)
        if accepted:
            subscription.report_again()
        else:
            subscription.refuse()
        return accepted

    async def _try(self, subscription: ServerSubscription) -> bool:
        """Send a subscription alone; whether the server accepts it."""
        async with self._alone:
            refusals = self.refusals
            await self._send(subscription, refusals)
            if not await self._echo():
                raise ConnectionFailed(
                    f"subscribing to {subscription.subject}: no answer", driver=DRIVER
                )
            if self.refusals != refusals or self._is_denied(subscription):
                return False
            subscription.confirm(refusals)
            return True

    async def _send(self, subscription: ServerSubscription, refusals: int) -> None:
        """Send a subscription again, unless it has been removed."""
        self._denied.pop(subscription.subject.lower(), None)
        if id(subscription) in self._all:
            with mapped(f"subscribing to {subscription.subject}"):
                await subscription.send(self._client(), refusals)
            if id(subscription) not in self._all:  # removed meanwhile
                await subscription.withdraw()
