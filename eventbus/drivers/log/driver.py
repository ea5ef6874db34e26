"""The driver that writes each message as one line, and delivers it within the process."""

import asyncio
import datetime
import logging
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from eventbus.channels import Subjects
from eventbus.config import Settings
from eventbus.drivers.base import (
    NO_HEADERS,
    Capability,
    Delivery,
    Handler,
    Headers,
    Published,
)
from eventbus.drivers.local import (
    Listener,
    Listeners,
)
from eventbus.drivers.log.lines import (
    LEVELS,
    Entry,
    LineFormat,
    level_of,
)
from eventbus.drivers.log.mask import normal
from eventbus.drivers.log.output import (
    Console,
    File,
    Output,
)
from eventbus.errors import (
    ConfigError,
    ConnectionFailed,
    PublishFailed,
)
from eventbus.tasks import Shutdown

__all__ = ["LogDriver"]


_log = logging.getLogger(__name__)

MAX_PENDING_BYTES: Final = 16 * 1024**2
"""Payloads that may wait for the disk; further messages are refused."""


class LogDriver:
    """Writes messages to the console or to a file, then delivers them to its own listeners.

    `publish` returns when the operating system has the line. A thread writes: a slow disk makes
    publishers wait, but not the event loop. There is no history. Listeners get what the drivers
    that share `listeners` publish.
    """

    name = "log"
    capabilities: frozenset[Capability] = frozenset()

    def __init__(
        self,
        settings: Settings,
        *,
        listeners: Listeners | None = None,
        console: Console | None = None,
    ) -> None:
        """The settings `log_…` choose the output, the level and the masks. Raises ConfigError."""
        for name in settings.log_mask:
            if not normal(name):
                raise ConfigError(
                    f"BROADCAST_LOG_MASK: {name!r} has no letter or digit; allowed: the names of "
                    "keys, separated by commas",
                    variable="BROADCAST_LOG_MASK",
                )
        self.subjects = Subjects(settings.namespace)
        self.is_connected = False
        self._settings = settings
        self._listeners = Listeners() if listeners is None else listeners
        self._own: weakref.WeakSet[Listener] = weakref.WeakSet()
        self._format = LineFormat(self.subjects, settings.log_mask)
        self._least = LEVELS.index(settings.log_level)
        self._console = console
        self._readable = False
        self._colour = False
        self._pending = 0
        self._output: Output | None = None
        self._shutdown = Shutdown()
        self._thread: ThreadPoolExecutor | None = None

    async def open(self) -> None:
        """Open the file. Raises ConfigError if it cannot be written."""
        if self._thread is not None or self._shutdown.has_begun:
            raise ConnectionFailed("the log driver can be opened only once", driver=self.name)
        settings = self._settings
        if settings.log_path:
            self._output = File(
                settings.log_path, max_bytes=settings.log_max_bytes, backups=settings.log_backups
            )
        else:
            self._output = console = self._console or Console()
            self._readable = console.is_terminal
            self._colour = self._readable and not settings.no_color
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="eventbus-log")
        self.is_connected = True

    async def publish(
        self, subject: str, payload: bytes, headers: Headers = NO_HEADERS
    ) -> Published | None:
        """Log one message, if its level is enabled, and deliver it.

        Raises PublishFailed if it is not written within `publish_timeout` (it may be written
        later), or if too many bytes wait to be written; the message is not delivered then.
        """
        self._require_open()
        live = self.subjects.live_of(subject)
        if LEVELS.index(level_of(self.subjects, subject)) >= self._least:
            now = datetime.datetime.now(datetime.UTC)
            await self._write(Entry(now, subject, payload, headers))
        self._listeners.deliver(Delivery(live or subject, payload, headers))
        return None

    async def subscribe(self, subject: str, handler: Handler) -> Listener:
        """Listen to messages of this driver from now on. Raises InvalidPattern."""
        self._require_open()
        listener = self._listeners.add(subject, handler)
        self._own.add(listener)
        return listener

    async def aclose(self) -> None:
        """Write waiting messages, for at most `publish_timeout` seconds, and close the file.

        Closing twice is harmless; all callers wait for the same close.
        """
        await self._shutdown.run(self._close)

    async def _close(self) -> None:
        was_open, self.is_connected = self.is_connected, False
        for listener in list(self._own):
            await listener.aclose()
        if not was_open:
            return
        assert self._thread is not None
        assert self._output is not None
        try:
            async with asyncio.timeout(self._settings.publish_timeout):
                await asyncio.get_running_loop().run_in_executor(self._thread, self._output.close)
        except TimeoutError:
            _log.warning("%s could not be closed in time: a write to it hangs", self._where)
        except OSError as exc:
            _log.warning("%s could not be closed: %s", self._where, exc)
        finally:
            self._thread.shutdown(wait=False, cancel_futures=True)

    async def _write(self, entry: Entry) -> None:
        if self._pending + len(entry.payload) > MAX_PENDING_BYTES:
            raise PublishFailed(
                f"a message on {entry.subject} is not logged: {self._pending} bytes wait to be "
                f"written to {self._where}",
                driver=self.name,
            )
        assert self._thread is not None
        self._pending += len(entry.payload)
        writing = asyncio.get_running_loop().run_in_executor(self._thread, self._emit, entry)
        writing.add_done_callback(lambda _done: self._settle(len(entry.payload)))
        try:
            async with asyncio.timeout(self._settings.publish_timeout):
                # After a timeout the thread may still write the line; its bytes count until then.
                await asyncio.shield(writing)
        except TimeoutError:
            problem = f"not within {self._settings.publish_timeout:g} s"
            raise self._failed(entry, problem) from None
        except (OSError, ValueError) as exc:  # ValueError: the console's stream was closed
            raise self._failed(entry, str(exc)) from exc

    def _emit(self, entry: Entry) -> None:
        """Write an entry; runs in the thread."""
        assert self._output is not None
        self._output.write(
            self._format.readable(entry, colour=self._colour)
            if self._readable
            else self._format.json(entry)
        )

    def _settle(self, size: int) -> None:
        self._pending -= size

    def _failed(self, entry: Entry, problem: str) -> PublishFailed:
        return PublishFailed(
            f"a message on {entry.subject} could not be written to {self._where}: {problem}",
            driver=self.name,
        )

    @property
    def _where(self) -> str:
        return self._settings.log_path or "the console"

    def _require_open(self) -> None:
        if not self.is_connected:
            raise ConnectionFailed("the log driver is not open", driver=self.name)
