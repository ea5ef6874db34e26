"""Calls of drivers, which may be third-party code: their faults become ordinary errors."""

import asyncio
import logging

from eventbus.drivers.base import Driver, Headers, Published
from eventbus.errors import PublishFailed
from eventbus.user_code import ends_task, guarded

__all__ = ["close", "publish"]

_log = logging.getLogger(__name__)


async def publish(
    driver: Driver, subject: str, payload: bytes, headers: Headers
) -> Published | None:
    """Publish; a driver that raises CancelledError without being cancelled has failed.

    The same as within `guarded()`, which would cost more for each message.
    """
    task = asyncio.current_task()
    cancels = 0 if task is None else task.cancelling()
    try:
        return await driver.publish(subject, payload, headers)
    except Exception:
        raise
    except BaseException as exc:
        if ends_task(exc, task, cancels):
            raise
        raise PublishFailed("the driver gave up on the message", driver=driver.name) from exc


async def close(name: str, driver: Driver) -> None:
    """Close a driver; its errors are logged, so that the others are closed anyway."""
    try:
        with guarded():
            await driver.aclose()
    except Exception:  # noqa: BLE001 - a driver may raise anything
        _log.exception("the driver %s could not be closed", name)
