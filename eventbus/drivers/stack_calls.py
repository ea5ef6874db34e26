"""One call to each of several drivers: made, waited for, and told when it failed."""

import asyncio
import logging
from collections.abc import Iterable, Mapping
from typing import NoReturn

from eventbus.drivers.base import Driver, Headers, Published
from eventbus.errors import CallbackFailed, EncodingError, PublishFailed
from eventbus.user_code import guarded, text_of

__all__ = ["close", "fault_of", "first_success", "give", "raise_failures", "succeeded"]

_log = logging.getLogger(__name__)


async def give(driver: Driver, subject: str, payload: bytes, headers: Headers) -> Published | None:
    """Publish; where the driver itself cancels the message, it has failed."""
    try:
        with guarded():
            return await driver.publish(subject, payload, headers)
    except CallbackFailed as exc:
        raise PublishFailed("the driver has given the message up", driver=driver.name) from exc


async def first_success(tasks: Iterable[asyncio.Task[Published | None]]) -> None:
    """Wait until one of `tasks` has succeeded, or none is left."""
    pending = set(tasks)
    while pending:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        if any(map(succeeded, done)):
            return


def succeeded(task: asyncio.Task[Published | None]) -> bool:
    """Whether a task has ended, and without an error."""
    return task.done() and fault_of(task) is None


def fault_of(task: asyncio.Task[Published | None]) -> BaseException | None:
    """Why a task that has ended failed; None where it has not."""
    if task.cancelled():
        return PublishFailed("the stack was closed meanwhile", driver="stack")
    return task.exception()


def raise_failures(subject: str, failures: Mapping[str, BaseException]) -> NoReturn:
    """Raise what names the drivers, by `failures`, that have not taken a message."""
    told = "; ".join(f"{name}: {text_of(failure)}" for name, failure in failures.items())
    message = f"a message on {subject} was not taken by {told}"
    cause = next(iter(failures.values()))
    if any(isinstance(failure, EncodingError) for failure in failures.values()):
        raise EncodingError(message) from cause
    raise PublishFailed(message, driver=",".join(failures)) from cause


async def close(name: str, driver: Driver) -> None:
    """Close a driver; what it raises is logged."""
    try:
        with guarded():
            await driver.aclose()
    except Exception:  # noqa: BLE001 - the others are to be closed all the same
        _log.exception("the stack's driver %s could not be closed", name)
