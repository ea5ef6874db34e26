"""The processes of a run, which can be started, killed, suspended, resumed and ended."""

import asyncio
import contextlib
import itertools
import os
import random
import signal
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

__all__ = ["HOST", "ROOT", "Child", "free_port"]

HOST: Final = "127.0.0.1"
ROOT: Final = Path(__file__).parents[2]

_PORTS: Final = range(10_000, 14_000)
_start: Final = random.SystemRandom().randrange(len(_PORTS))
_ports: Final[Iterator[int]] = itertools.cycle([*_PORTS[_start:], *_PORTS[:_start]])
START_S: Final = 120.0
END_S: Final = 120.0
_LOOK_S: Final = 0.05
_TAIL: Final = 2000


def free_port(host: str = HOST) -> int:
    """A port that nothing listens on now, and that is not given again soon.

    It is below the ports that the system gives to outgoing connections (Linux: from 32768 on), so
    that none of these takes it before a program listens there.
    """
    return next(port for port in _ports if _is_free(host, port))


def _is_free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


class Child:
    """A process that can be restarted with the same command."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environ: Mapping[str, str],
        log: Path,
        listens: tuple[str, int] | None = None,
        *,
        folder: Path | None = None,
    ) -> None:
        """listens: it is ready when it accepts connections there. folder: its working directory."""
        self.name = name
        self.command = list(command)
        self.environ = dict(environ)
        self.log = log
        self._listens = listens
        self.folder = folder
        self._process: asyncio.subprocess.Process | None = None
        self._is_stopped = False

    @property
    def is_running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.returncode is None

    @property
    def pid(self) -> int:
        """The process id."""
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        """Start it, and wait until it listens. Raises RuntimeError with the end of its log."""
        if self.is_running:
            raise RuntimeError(f"{self.name} is already running")
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self.command,
                env={"PATH": os.environ["PATH"], **self.environ},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                start_new_session=True,
            )
        self._is_stopped = False
        if self._listens is not None:
            await self._ready(*self._listens)

    async def _ready(self, host: str, port: int) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(START_S):
                while self.is_running:
                    try:
                        _, writer = await asyncio.open_connection(host, port)
                    except OSError:
                        await asyncio.sleep(_LOOK_S)
                        continue
                    writer.close()
                    return
        tail = self.log.read_text(errors="replace")[-_TAIL:]
        raise RuntimeError(f"{self.name} did not start:\n{tail}")

    async def kill(self) -> None:
        """Kill it and its descendants (-9), and wait until it has ended."""
        if self._process is not None and self._process.returncode is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            await self._process.wait()

    def stop(self) -> None:
        """Suspend it (SIGSTOP)."""
        self._signal(signal.SIGSTOP)
        self._is_stopped = True

    def proceed(self) -> None:
        """Resume it (SIGCONT)."""
        if self._is_stopped:
            self._signal(signal.SIGCONT)
            self._is_stopped = False

    async def end(self, patience_s: float = END_S) -> bool:
        """Ask it to end (SIGTERM). Returns False if it had to be killed."""
        if not self.is_running:
            return True
        self.proceed()
        self._signal(signal.SIGTERM)
        assert self._process is not None
        try:
            async with asyncio.timeout(patience_s):
                await self._process.wait()
        except TimeoutError:
            await self.kill()
            return False
        return True

    def _signal(self, number: signal.Signals) -> None:
        if self.is_running:
            os.killpg(self.pid, number)
