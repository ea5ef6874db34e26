"""Short connections to other servers, and the end of nats-py's clients."""

import asyncio
import logging
from typing import (
    Any,
    Final,
)

from nats import errors as nats_errors
from nats.aio.client import Client

from eventbus.drivers.nats.auth import (
    Login,
    Servers,
)
from eventbus.drivers.nats.client import (
    FastClient,
    KnownServer,
)
from eventbus.drivers.nats.connection.replies import Reply

__all__ = ["Visit", "close", "end"]

_log = logging.getLogger(__package__)

_CLOSE_S: Final = 2.0
_CANCEL_S: Final = 0.1


class Visit:
    """A connection to another server, for requests only; it is not replaced when it is lost."""

    def __init__(self, server: KnownServer, servers: Servers, login: Login) -> None:
        """`servers` have the credentials, with `login`."""
        self.server = server
        self._login = login
        self._credentials = servers.credentials()
        self._client = FastClient(login, servers)

    @property
    def server_id(self) -> str:
        """The server's id; empty before `open`."""
        return self._client.server_id

    async def open(self, seconds: float) -> str:
        """Connect. Returns why that failed; empty if it did not."""
        connecting = asyncio.create_task(self._connect(), name="visiting a NATS server")
        try:
            await asyncio.wait((connecting,), timeout=seconds)
            if not connecting.done():
                return f"no connection within {seconds:g} s"
            error = connecting.exception()
            return "" if error is None else str(error) or type(error).__name__
        finally:
            await end(connecting)

    async def request(self, subject: str, seconds: float) -> Reply | None:
        """Send an empty request once; None without a reply."""
        try:
            message = await self._client.request(subject, timeout=seconds)
        except nats_errors.NoRespondersError:
            return Reply(b"", "503")
        except (nats_errors.Error, TimeoutError, OSError) as exc:
            _log.debug("a request at %s: %s", self.server.netloc, exc)
            return None
        return Reply(message.data, "")

    async def aclose(self) -> None:
        """Close, within bounded time."""
        self._client.close_transport()
        await close(self._client)

    async def _connect(self) -> None:
        if self.server.tls_name is not None:
            options: dict[str, Any] = {"tls_hostname": self.server.tls_name}
        else:
            options = {}
        await self._client.connect(
            [self.server.url],
            name="eventbus, comparing servers",
            error_cb=_note,
            allow_reconnect=False,
            max_reconnect_attempts=1,
            **options,
            **self._credentials,
            **self._login.options,
        )


async def _note(exc: Exception) -> None:
    _log.debug("visiting a NATS server: %s", exc)


async def end(task: "asyncio.Task[Any]") -> None:
    """Cancel a task, wait for its end, and retrieve its exception."""
    while not task.done():  # `wait_for` of Python 3.11 may lose a cancellation
        task.cancel()
        await asyncio.wait((task,), timeout=_CANCEL_S)
    await asyncio.gather(task, return_exceptions=True)


async def close(client: Client) -> None:
    """Close a client whatever its state is, within bounded time."""
    try:
        async with asyncio.timeout(_CLOSE_S):
            await client.close()
    except Exception as exc:  # noqa: BLE001 - it is let go whatever its state was
        _log.warning("closing a NATS client: %s", str(exc) or type(exc).__name__)
