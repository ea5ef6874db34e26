"""The lock of an embedded server's data folder, which records the server that uses the folder.

It is an operating system lock on an open file, so it ends with the processes that hold it.
"""

import asyncio
import contextlib
import json
import os
import socket
import sys
from pathlib import Path
from typing import (
    IO,
    Annotated,
    Final,
)

import msgspec

from eventbus.errors import ServerError

__all__ = ["FolderInUse", "lock_folder", "running_server", "write_holder"]


if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_NAME: Final = "lock"
_POLL_S: Final = 0.02
_CONNECT_S: Final = 2.0


class _Holder(msgspec.Struct):
    pid: Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
    url: str


class FolderInUse(ServerError):
    """Another process runs a server on the data folder, or is starting or stopping one."""


async def lock_folder(folder: Path, *, wait: float) -> IO[str]:
    """Open and lock the folder's lock file.

    The server of a killed process ends a moment later. Waits for that, for at most `wait` seconds.
    Raises FolderInUse with the process that holds the lock, and ServerError if the folder is not
    writable.
    """
    try:
        file = (folder / _NAME).open("a+", encoding="utf-8")
    except OSError as exc:
        raise ServerError(
            f"BROADCAST_NATS_DATA={str(folder)!r}: the folder is not writable: {exc}",
            driver="nats",
        ) from exc
    try:
        await _take(file, folder, wait)
    except BaseException:
        file.close()
        raise
    write_holder(file, "")
    return file


def running_server(folder: Path, name: str = _NAME) -> str:
    """The address of the server that runs on a data folder; empty if there is none.

    The address is that in the lock file, if the process that wrote it is alive and the server
    accepts connections. Does not take the lock, which a starting server may need. `name` is another
    file in the folder, of another server.
    """
    pid, url = _holder(folder / name)
    if not url or not _is_alive(pid):
        return ""
    host, _, port = url.rpartition("/")[2].rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
    except (OSError, ValueError, OverflowError):  # also if that is no address
        return ""
    return url


async def _take(file: IO[str], folder: Path, wait: float) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + wait
    while not _lock(file):
        pid, url = _holder(folder / _NAME)
        if _is_alive(pid) or loop.time() > deadline:
            raise _in_use_error(folder, pid, url)
        await asyncio.sleep(_POLL_S)


def _lock(file: IO[str]) -> bool:
    try:
        if sys.platform == "win32":
            file.seek(1 << 30)  # beyond the text, which must stay readable
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _is_alive(pid: int) -> bool:
    """Whether the process is running. On Windows, only a running process can hold the lock."""
    if pid and sys.platform != "win32":
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True  # a process of another user
    return True


def _holder(path: Path) -> tuple[int, str]:
    """The process that holds the lock, and its server's address; 0 and "" if not yet known."""
    with contextlib.suppress(OSError, ValueError):  # msgspec's are ValueErrors
        holder = msgspec.json.decode(path.read_bytes(), type=_Holder)
        return holder.pid, holder.url
    return 0, ""


def write_holder(file: IO[str], url: str) -> None:
    """Write this process and its server's address into the locked file."""
    file.seek(0)
    file.truncate()
    json.dump({"pid": os.getpid(), "url": url}, file)
    file.flush()


def _in_use_error(folder: Path, pid: int, url: str) -> FolderInUse:
    what = f"{str(folder)!r} is in use by the nats-server of process {pid or '(starting)'}"
    if url:
        return FolderInUse(f"{what} at {url}: set NATS_URL={url} to use that one", driver="nats")
    return FolderInUse(
        f"{what}, which is starting or stopping: try again, "
        "or set BROADCAST_NATS_DATA to another folder",
        driver="nats",
    )
