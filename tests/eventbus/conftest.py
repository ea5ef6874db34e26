"""A real PostgreSQL for the tests that need a database."""

import os
import pwd
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

_END = """
read -r
server=$(head -n 1 data/postmaster.pid) && kill -QUIT "$server"
while kill -0 "$server"; do sleep 0.1; done
rm -rf "$PWD"
"""
"""Stops the server at the end of the standard input, which comes when this process has ended."""
BIN = max(Path("/usr/lib/postgresql").glob("*/bin"), default=Path("/usr/bin"))


class Postgres:
    """A PostgreSQL server of one test process, which listens on a socket in its own folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.is_root = os.geteuid() == 0  # PostgreSQL refuses to run as root
        if self.is_root:
            user = pwd.getpwnam("postgres")
            os.chown(folder, user.pw_uid, user.pw_gid)

    def _run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, user="postgres" if self.is_root else None, cwd=self.folder,
            capture_output=True, text=True, check=True, timeout=150,
        )  # fmt: skip

    def start(self) -> None:
        data = str(self.folder / "data")
        if not Path(data).exists():
            self._run(str(BIN / "initdb"), "-D", data, "-U", "test", "-A", "trust", "-N")
        options = f"-k {self.folder} -c listen_addresses='' -c fsync=off"
        log = str(self.folder / "log")
        self._run(str(BIN / "pg_ctl"), "-D", data, "-o", options, "-l", log, "-w", "start")

    def stop(self, mode: str = "fast") -> None:
        self._run(str(BIN / "pg_ctl"), "-D", str(self.folder / "data"), "-m", mode, "-w", "stop")

    def create(self, name: str) -> None:
        self._run(str(BIN / "createdb"), "-h", str(self.folder), "-U", "test", name)

    def url(self, name: str, driver: str) -> str:
        return f"postgresql+{driver}://test@/{name}?host={self.folder}"


@pytest.fixture(scope="session")
def postgres():
    folder = Path(tempfile.mkdtemp(prefix="eb-pg-", dir="/tmp"))  # a socket's path is short
    server = Postgres(folder)
    # In a session of its own: a signal that ends a whole test run must not end it too.
    ending = subprocess.Popen(
        ["bash", "-c", _END],
        cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    server.start()
    yield server
    ending.communicate()


@pytest.fixture
def new_database(request, tmp_path):
    """Makes a database of a kind: the URL for that driver."""

    def create(kind: str) -> str:
        if kind == "aiosqlite":
            return f"sqlite+aiosqlite:///{tmp_path}/app.db"
        name = f"t{time.monotonic_ns()}"
        server = request.getfixturevalue("postgres")
        server.create(name)
        return server.url(name, kind)

    return create
