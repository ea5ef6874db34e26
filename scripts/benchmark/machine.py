"""The machine: its cores and their owners, and processes with the CPU time that they use."""

import contextlib
import os
import platform
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import psutil

__all__ = [
    "HOST", "Cores", "Process", "describe", "free_port", "program_version", "start_process",
    "version_of",
]  # fmt: skip

HOST: Final = "127.0.0.1"
START_S: Final = 60.0
END_S: Final = 10.0
_LOG_TAIL: Final = 2000


class Cores(NamedTuple):
    """Which core each side is pinned to. With two cores, the broker shares the loader's."""

    server: int
    broker: int
    loader: int

    @classmethod
    def of_this_machine(cls) -> "Cores":
        """The first core for the server, the last one for the loader."""
        allowed = sorted(os.sched_getaffinity(0))
        if len(allowed) < 2:
            raise RuntimeError("a server and its load must not share a core; this machine has one")
        return cls(allowed[0], allowed[1], allowed[-1])


class Process:
    """A running program, with its children."""

    def __init__(self, process: subprocess.Popen[Any], log: Path) -> None:
        self.log = log
        self._process = process
        self._measured = psutil.Process(process.pid)

    def cpu_s(self) -> float:
        """CPU time in seconds, including that of the kernel."""
        return sum(_schedule(process)[0] for process in self._all())

    def waited_s(self) -> float:
        """For how long it could have run, but its core was in use."""
        return sum(_schedule(process)[1] for process in self._all())

    def resident(self) -> int:
        """Resident memory in bytes."""
        return sum(process.memory_info().rss for process in self._all())

    def threads(self) -> int:
        """How many threads there are."""
        return sum(process.num_threads() for process in self._all())

    def check(self) -> None:
        """Raise RuntimeError if it has exited."""
        if self._process.poll() is not None:
            text = self.log.read_text(encoding="utf-8", errors="replace")[-_LOG_TAIL:]
            raise RuntimeError(f"{self.log.stem} exited: {text}")

    def _all(self) -> list[psutil.Process]:
        return [self._measured, *self._measured.children(recursive=True)]


@contextlib.contextmanager
def start_process(
    command: Sequence[object],
    *,
    core: int,
    folder: Path,
    environ: Mapping[str, str] | None = None,
    port: int = 0,
) -> Iterator[Process]:
    """Run a program on one core, and end it. With a port, wait until it accepts connections."""
    words = [str(word) for word in command]
    log = folder / f"{Path(words[0]).name}-{time.monotonic_ns()}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - the programs of this benchmark
            ["taskset", "-c", str(core), *words],  # noqa: S607 - util-linux
            cwd=folder,
            env={"PATH": os.environ["PATH"], "HOME": str(folder), **(environ or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        started = Process(process, log)
        if port:
            _wait_for(port, started)
        yield started
    finally:
        process.terminate()
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(port: int, process: Process) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        process.check()
        with contextlib.suppress(OSError), socket.create_connection((HOST, port), 1):
            return
        time.sleep(0.02)
    raise RuntimeError(f"{process.log.name}: nothing accepts connections after {START_S:g} s")


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.create_server((HOST, 0)) as free:
        port: int = free.getsockname()[1]
        return port


def _schedule(process: psutil.Process) -> tuple[float, float]:
    """CPU time and waiting time of all threads: the accounting in ticks is too coarse."""
    ran = waited = 0
    for path in Path(f"/proc/{process.pid}/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):  # a thread has ended
            on_cpu, in_queue, _ = map(int, path.read_bytes().split())
            ran += on_cpu
            waited += in_queue
    return ran / 1e9, waited / 1e9


def describe() -> dict[str, Any]:
    """The machine, as results name it."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def version_of(command: Sequence[str]) -> str:
    """The first line that a program prints about its version."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)  # noqa: S603
    lines = (done.stdout or done.stderr).strip().splitlines()
    return lines[0].strip() if lines else "unknown"


def program_version(name: str, *arguments: str) -> str | None:
    """The version of a program on PATH, None if it is not there."""
    path = shutil.which(name)
    return None if path is None else version_of([path, *arguments])
