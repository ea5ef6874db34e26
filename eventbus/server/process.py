"""The process that guards a nats-server: its start, and its end."""

import asyncio
import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Final

from eventbus.server import guard

__all__ = ["GuardProcess"]

_POSIX: Final = sys.platform != "win32"
_MAX_LINE: Final = 64


class GuardProcess:
    """A guard, see `eventbus.server.guard`, and its nats-server.

    It is no child process of asyncio's: those are killed when their event loop closes, which Ctrl-C
    does before `stop` is called (https://github.com/python/cpython/issues/114177). The guard could
    not end its server then.
    """

    def __init__(
        self, command: Sequence[str], *, hold: IO[str], log: IO[bytes], remove: Path | None
    ) -> None:
        """Start it. Call it in the event loop that waits for it.

        hold: a file that guard and server keep open, and locked, on POSIX.
        log: takes what the command writes.
        remove: a folder to remove after the command has ended.
        """
        options = ["--parent", str(os.getpid())]
        if _POSIX:
            options += ["--hold", str(hold.fileno())]
        if remove is not None:
            options += ["--remove", str(remove)]
        read_end, write_end = os.pipe()
        self._pipe = os.fdopen(write_end, "wb", buffering=0)
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own script
                [sys.executable, "-I", "-S", guard.__file__, *options, "--", *command],
                stdin=read_end,
                stdout=subprocess.PIPE,
                stderr=log,
                pass_fds=(hold.fileno(),) if _POSIX else (),
                start_new_session=True,  # Ctrl-C must not reach the server: `stop` ends it
            )
        except BaseException:
            self._pipe.close()
            raise
        finally:
            os.close(read_end)
        loop = asyncio.get_running_loop()
        self.pid = self._process.pid
        self.server_pid: asyncio.Future[int] = loop.create_future()
        """The process id of the server; 0 if the guard failed to start it."""
        self.exited: asyncio.Future[int] = loop.create_future()
        """The exit status of the guard; negative if a signal has ended it."""
        threading.Thread(
            target=_watch,
            args=(self._process, loop, self.server_pid, self.exited),
            name="the guard of a nats-server",
            daemon=True,
        ).start()

    def stop(self) -> None:
        """Let the guard end the server, and itself. Calling it twice is harmless."""
        with contextlib.suppress(OSError, ValueError):  # it has ended, or was stopped before
            self._pipe.write(b"\n")  # processes forked from this one hold the pipe open
        self._pipe.close()

    def kill(self) -> None:
        """Kill the guard."""
        self._process.kill()


def _watch(
    process: "subprocess.Popen[bytes]",
    loop: asyncio.AbstractEventLoop,
    server_pid: "asyncio.Future[int]",
    exited: "asyncio.Future[int]",
) -> None:
    """Report the server's process id, and the end of the guard, to the event loop."""
    assert process.stdout is not None
    with process.stdout as output:
        line = output.readline(_MAX_LINE).strip()
        _report(loop, server_pid, int(line) if line.isdigit() else 0)
        _report(loop, exited, process.wait())


def _report(loop: asyncio.AbstractEventLoop, future: "asyncio.Future[int]", value: int) -> None:
    def set_result() -> None:
        if not future.done():
            future.set_result(value)

    with contextlib.suppress(RuntimeError):  # the loop has closed; nobody waits
        loop.call_soon_threadsafe(set_result)
