"""Machines whose power can be cut: see disk.py."""

import asyncio
import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eventbus.server import NatsServer
from tests.clusters import cluster_settings

MOUNT_S = 30


class Machine:
    """The disk of one machine: `folder`, on a file system that loses unsynced data."""

    def __init__(self, folder):
        self._top = folder
        folder.mkdir()
        self.folder = folder / "data"
        self.folder.mkdir()
        sync_folder(folder)

    @property
    def unsynced(self):
        """How many bytes a power cut would lose now."""
        return int(os.getxattr(self._top, "user.unsynced"))

    def write_back(self):
        """Write everything to the disk, as the kernel does by itself after some time."""
        os.setxattr(self._top, "user.power", b"write back")

    def power_off(self):
        """Cut the power: from this moment on, nothing more reaches the disk."""
        os.setxattr(self._top, "user.power", b"off")

    def power_on(self, seed=None):
        """Start again with the synced data; with a seed, some unsynced writes are kept too."""
        os.setxattr(self._top, "user.power", b"on" if seed is None else f"on {seed}".encode())


def sync_folder(folder):
    """Sync the entries of a folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


@contextlib.contextmanager
def mounted(folder, model):
    """The file system, mounted at a folder."""
    log = folder.with_suffix(".log")
    folder.mkdir()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("disk.py"), folder, model],
            stdin=subprocess.PIPE, stdout=output, stderr=output,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + MOUNT_S
        while not folder.is_mount():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, "it was not mounted in time"
            time.sleep(0.02)
        yield folder
    finally:
        process.stdin.close()  # it unmounts itself
        process.wait(MOUNT_S)


@pytest.fixture(scope="session")
def new_machine(tmp_path_factory):
    """Make machines: `new_machine()`; the model is one of disk.py."""
    folder, numbers, mounts = tmp_path_factory.mktemp("power"), itertools.count(1), {}
    with contextlib.ExitStack() as stack:

        def make(model="journal"):
            if model not in mounts:
                mounts[model] = stack.enter_context(mounted(folder / model, model))
            return Machine(mounts[model] / f"machine-{next(numbers)}")

        yield make


class Broker:
    """A nats-server on a machine of its own."""

    def __init__(self, machine, **options):
        self.machine = machine
        self.server = NatsServer(machine.folder / "nats", **options)
        self.name = options.get("config", {}).get("server_name", "")

    def power_off(self):
        """Cut the power: the server ends at once, and nothing more reaches the disk.

        The server ends first, so that it never sees a failing disk.
        """
        self.kill()
        self.machine.power_off()

    def kill(self):
        """Kill the server; the machine stays on."""
        os.kill(self.server.pid, signal.SIGKILL)

    async def restart_process(self):
        """Start a killed server again."""
        await self.server.restart()

    async def restart(self, seed=None):
        """Start the machine again, and the server with the data that is left."""
        await self.server.stop()
        self.machine.power_on(seed)
        await self.server.restart()


@pytest.fixture
async def new_broker(new_machine):
    """Start servers: `await new_broker(syncs_always=True)`; see NatsServer."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(model="journal", **options):
            broker = Broker(new_machine(model), **options)
            stack.push_async_callback(broker.server.stop)
            await broker.server.start()
            return broker

        yield start


@pytest.fixture
async def new_cluster(new_broker):
    """Start three servers, of which some sync always: `await new_cluster([True, False, False])`."""

    async def start(syncs_always):
        configs = cluster_settings(len(syncs_always))
        return await asyncio.gather(
            *(
                new_broker(syncs_always=always, config=config)
                for always, config in zip(syncs_always, configs, strict=True)
            )
        )

    return start
