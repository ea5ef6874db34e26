"""Real clients and publishers of the Pusher protocol: pusher-js, Laravel Echo and server SDKs."""

import asyncio
import hashlib
import json
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from eventbus.tokens import issue_token
from tests.edge.conftest import SECRET

HERE = Path(__file__).parent
PLUGIN = HERE.parents[2] / "npm" / "echo" / "resume.js"
APP = {
    "pusher_app_id": "1001",
    "pusher_app_key": "app-key",
    "pusher_app_secret": "app-secret-of-the-tests",
}
PATIENCE_S = 30


@pytest.fixture(scope="session")
def node_folder():
    """A folder with the packages of package.json and the programs, made once for each version."""
    parts = [HERE / "package.json", *sorted(HERE.glob("*.mjs")), PLUGIN]
    name = hashlib.sha256(b"".join(part.read_bytes() for part in parts)).hexdigest()[:16]
    ready = Path(tempfile.gettempdir()) / f"eventbus-echo-{name}"
    if not ready.exists():
        making = Path(tempfile.mkdtemp(prefix="eventbus-echo-"))
        for part in parts:
            shutil.copy(part, making)
        done = subprocess.run(
            ["npm", "install", "--silent", "--no-audit", "--no-fund"],
            cwd=making, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        try:
            making.rename(ready)
        except OSError:  # another process was faster
            shutil.rmtree(making)
    return ready


class Echo:
    """Laravel Echo in Node."""

    def __init__(self, process):
        self._process = process
        self.heard = []
        self._unread = []

    async def run(self, program):
        """Run JavaScript, which sees `echo`, `pusher`, `say` and `state`."""
        self._process.stdin.write(json.dumps(program).encode() + b"\n")
        await self._process.stdin.drain()

    async def next(self, *begin):
        """The next words that begin with these."""
        for words in self._unread:
            if words[: len(begin)] == list(begin):
                self._unread.remove(words)
                return words[len(begin) :]
        async with asyncio.timeout(PATIENCE_S):
            while True:
                line = await self._process.stdout.readline()
                assert line, f"the client has ended after {self.heard[-3:]}"
                words = json.loads(line)
                self.heard.append(words)
                if words[: len(begin)] == list(begin):
                    return words[len(begin) :]
                self._unread.append(words)

    async def aclose(self):
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()


@pytest.fixture
async def start_echo(node_folder):
    """Start a client: `await start_echo(edge, user="7")`; it ends with the test."""
    started = []

    async def start(edge, user=None, **options):
        options = {
            "broadcaster": "reverb",
            "key": APP["pusher_app_key"],
            "wsHost": "127.0.0.1",
            "wsPort": edge.port,
            "forceTLS": False,
            "enabledTransports": ["ws"],
            "authEndpoint": f"{edge.url}/broadcasting/auth",
            "userAuthentication": {
                "endpoint": f"{edge.url}/broadcasting/user-auth",
                "headers": {},
            },
            "bearerToken": user and issue_token(user, secret=SECRET, info={"name": f"User {user}"}),
        } | options
        process = await asyncio.create_subprocess_exec(
            "node", "client.mjs", json.dumps(options),
            cwd=node_folder, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        client = Echo(process)
        started.append(client)
        return client

    yield start
    for client in started:
        await client.aclose()


@pytest.fixture
async def publisher(node_folder):
    """Start the npm package: `call = await publisher(edge)`, then `await call("trigger", …)`."""
    started = []

    async def start(edge, **options):
        options = {
            "appId": APP["pusher_app_id"],
            "key": APP["pusher_app_key"],
            "secret": APP["pusher_app_secret"],
            "host": "127.0.0.1",
            "port": str(edge.port),
            "useTLS": False,
        } | options
        process = await asyncio.create_subprocess_exec(
            "node", "publisher.mjs", json.dumps(options),
            cwd=node_folder, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        started.append(process)

        async def call(*words):
            process.stdin.write(json.dumps(words).encode() + b"\n")
            async with asyncio.timeout(PATIENCE_S):
                return json.loads(await process.stdout.readline())

        return call

    yield start
    for process in started:
        process.kill()
        await process.wait()


@pytest.fixture
async def connected(start_echo):
    """Start a client, and wait until it is connected."""

    async def start(edge, user=None, **options):
        client = await start_echo(edge, user, **options)
        await client.next("state", "connected")
        return client

    return start
