"""What the machine allows: Linux namespaces for networks, mounts and processes, and libfaketime."""

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Final

from scripts.chaos_lab.processes import HOST, ROOT
from scripts.chaos_lab.versions import NoPrevious, previous_commit

__all__ = [
    "BRIDGE", "CLOCK", "HISTORY", "NAMESPACES", "Place", "enter_namespaces", "fake_time",
    "has_namespaces", "missing", "mount_disk", "places", "raise_limit_of_files",
]  # fmt: skip

NAMESPACES: Final = "namespaces"
"""The need of faults that mount a disk or cut off a node."""
HISTORY: Final = "git history"
"""The need of faults that run the previous version."""
CLOCK: Final = "libfaketime"
"""The need of faults that set the clock of a process."""
ISOLATED: Final = "CHAOS_ISOLATED"
"""The environment variable that is set in a process with namespaces of its own."""
_UNSHARE: Final = ("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
_MAPPED: Final = ("--user", "--map-root-user")
BRIDGE: Final = "10.77.0.1"
"""The address of this process in the network of a cluster."""
_BROADCAST: Final = "br0"


def enter_namespaces(arguments: Sequence[str]) -> str:
    """Run this program again, in namespaces of its own. Returns why that is impossible.

    Nothing outlives the namespaces: processes end, networks and mounts vanish.
    """
    if ISOLATED in os.environ:
        _ip("link set lo up")
        return ""
    if sys.platform != "linux" or not shutil.which("unshare") or not shutil.which("ip"):
        return "unshare and ip are not on PATH (on Debian: util-linux and iproute2)"
    options = [*_UNSHARE] if os.geteuid() == 0 else [*_UNSHARE, *_MAPPED]
    probe = [*options, "true"]
    done = subprocess.run(probe, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        return f"the system does not allow namespaces: {done.stderr.strip()}"
    command = [*options, sys.executable, "-m", "scripts.chaos_lab", *arguments]
    os.execvpe(command[0], command, {**os.environ, ISOLATED: "1"})  # noqa: S606
    raise AssertionError  # it does not return


def has_namespaces() -> bool:
    """Whether this process has namespaces of its own."""
    return ISOLATED in os.environ


def missing(needs: frozenset[str]) -> str:
    """Why a fault with these needs cannot run here; empty if it can."""
    if NAMESPACES in needs and not has_namespaces():
        return "it needs namespaces (root, or user namespaces)"
    if CLOCK in needs and fake_time() is None:
        return "libfaketime is not installed (on Debian: faketime)"
    if HISTORY in needs:
        try:
            previous_commit(ROOT)
        except NoPrevious as exc:
            return f"there is no previous version: {exc}"
    return ""


def raise_limit_of_files() -> None:
    """Let this process, and those that it starts, open as many files as the system allows."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def fake_time() -> Path | None:
    """The library that sets the clock of a process, if it is installed."""
    return next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), None)


def mount_disk(folder: Path, size: int) -> None:
    """Mount a disk of `size` bytes, which only this run sees."""
    folder.mkdir(parents=True, exist_ok=True)
    _run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)])


class Place:
    """Where a node of a cluster runs: an address, and a network of its own if there are any."""

    def __init__(self, host: str, namespace: str = "", link: str = "") -> None:
        self.host = host
        self._namespace = namespace
        self._link = link

    @property
    def prefix(self) -> list[str]:
        """The command prefix that runs a command there."""
        return ["nsenter", f"--net=/run/netns/{self._namespace}"] if self._namespace else []

    def cut_off(self) -> None:
        """Let no packet in or out."""
        _ip(f"link set {self._link} down")

    def silence(self) -> None:
        """Let packets in, but none out."""
        _ip(f"-n {self._namespace} route replace blackhole 10.77.0.0/25")
        _ip(f"-n {self._namespace} route replace blackhole 10.77.0.128/25")

    def reconnect(self) -> None:
        """Let all packets in and out."""
        _ip(f"link set {self._link} up")
        for each in ("10.77.0.0/25", "10.77.0.128/25"):
            _ip(f"-n {self._namespace} route del blackhole {each}", is_required=False)


@cache
def places(count: int) -> Sequence[Place]:
    """Places for the nodes of a cluster, in networks of their own if namespaces are allowed."""
    if not has_namespaces():
        return [Place(HOST)] * count
    _run(["mount", "-t", "tmpfs", "tmpfs", "/run"])  # where `ip netns` keeps names; ours alone
    _ip(f"link add {_BROADCAST} type bridge")
    _ip(f"addr add {BRIDGE}/24 dev {_BROADCAST}")
    _ip(f"link set {_BROADCAST} up")
    nodes = []
    for number in range(count):
        name, link, host = f"n{number}", f"v{number}", f"10.77.0.{number + 11}"
        _ip(f"netns add {name}")
        _ip(f"link add {link} type veth peer name eth0 netns {name}")
        _ip(f"link set {link} master {_BROADCAST} up")
        _ip(f"-n {name} addr add {host}/24 dev eth0")
        _ip(f"-n {name} link set eth0 up")
        _ip(f"-n {name} link set lo up")
        nodes.append(Place(host, name, link))
    return nodes


def _ip(arguments: str, *, is_required: bool = True) -> None:
    _run(["ip", *arguments.split()], is_required=is_required)


def _run(command: Sequence[str], *, is_required: bool = True) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode and is_required:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip()}")
