"""Two versions of the edge side by side, as during a rolling upgrade."""

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import aiohttp

from eventbus.testing.errors import Refused
from eventbus.testing.websocket import WebSocketClient
from eventbus.tokens import issue_token
from scripts.chaos_lab.faults.base import Fault
from scripts.chaos_lab.machine import HISTORY
from scripts.chaos_lab.processes import ROOT, Child
from scripts.chaos_lab.site import KEY, SECRET, Site
from scripts.chaos_lab.versions import extract_previous

__all__ = ["EdgesMixed"]

_REVOKED: Final = 4003
_LOOK_S: Final = 0.2
_PATIENCE_S: Final = 90.0


class EdgesMixed(Fault):
    name = "edges-mixed"
    summary = "one edge runs the previous commit, alongside the others"
    needs = frozenset({HISTORY})
    hold_s = 3.0
    takes_s = 20.0

    def __init__(self, site: Site, choose: random.Random) -> None:
        super().__init__(site, choose)
        self._old, self._new = choose.sample(range(len(site.edges)), 2)

    async def begin(self) -> str:
        site, edge = self.site, self.site.edges[self._old]
        folder = site.folder / "previous"
        commit = await asyncio.to_thread(extract_previous, ROOT, folder)
        self._present = edge.environ, edge.folder
        path = f"{folder}:{folder / 'edge'}:{ROOT}"  # the last one for the module of EDGE_APP
        await _restart(edge, {**edge.environ, "PYTHONPATH": path}, folder)
        old, new = site.urls[self._old], site.urls[self._new]
        for check in (self._presence, self._revocation, self._history):
            for one, other in ((old, new), (new, old)):
                await check(one, other)
        return f"{edge.name} at {commit[:12]}"

    async def heal(self) -> None:
        await _restart(self.site.edges[self._old], *self._present)

    async def _presence(self, one: str, other: str) -> None:
        """A member at one edge is also a member at the other edge, until it leaves."""
        channel = f"presence.{self.site.run}.{self.choose.randrange(2**32)}"
        async with _client(one, "ann") as ann:
            await ann.subscribe(channel)
            async with _client(other, "bob") as bob:
                await bob.subscribe(channel)
                for client in (ann, bob):
                    await self._until(
                        "both members are present at both edges", _members(client, channel),
                        {"ann", "bob"},
                    )  # fmt: skip
                await bob.ask("unsubscribe", channel=channel)
                await self._until(
                    "a member that left is gone at the other edge", _members(ann, channel), {"ann"}
                )

    async def _revocation(self, one: str, other: str) -> None:
        """A user who is revoked at one edge is disconnected from the other one, and stays out."""
        user = f"user-{self.choose.randrange(2**32)}"
        token = _token(user)
        async with _client(other, user, token) as client:
            async with aiohttp.ClientSession(headers=_KEY) as http:
                await http.post(f"{one}/api/broadcast/disconnect", json={"user_id": user})
            with contextlib.suppress(ConnectionError, TimeoutError):
                while True:
                    await client.receive(timeout=_PATIENCE_S)
            if client.close_code != _REVOKED:
                self.broken.append(f"a revoked user was closed with {client.close_code}")

        async def can_connect() -> bool:
            with contextlib.suppress(Refused, ConnectionError):
                async with _client(other, user, token):
                    return True
            return False

        await self._until("a revoked token is refused at the other edge", can_connect, False)

    async def _history(self, one: str, other: str) -> None:
        """Both edges read the same messages at the same offsets of the same epoch."""
        channel = self.site.channels[0]
        path = f"/api/broadcast/channels/{channel}/history?limit=20&since=0"
        async with aiohttp.ClientSession(headers=_KEY) as http:
            pages = []
            for url in (one, other):
                async with http.get(url + path) as response:
                    pages.append(await response.json())
        first, second = (
            [(each["id"], each["offset"], each["epoch"]) for each in page["messages"]]
            for page in pages
        )
        if not first or first != second:
            self.broken.append(f"histories differ: {first[:2]} and {second[:2]}")

    async def _until(self, what: str, ask: Callable[[], Awaitable[object]], wanted: object) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while (answer := await ask()) != wanted:
            if time.monotonic() > deadline:
                self.broken.append(f"this should be so: {what}; got {answer!r}")
                return
            await asyncio.sleep(_LOOK_S)


_KEY: Final = {"Authorization": f"Bearer {KEY}"}


def _token(user: str) -> str:
    return issue_token(user, secret=SECRET)


@contextlib.asynccontextmanager
async def _client(url: str, user: str, token: str | None = None) -> Any:
    client = WebSocketClient(f"{url}/ws")
    try:
        await client.open(token or _token(user))
        yield client
    finally:
        await client.aclose()


def _members(client: WebSocketClient, channel: str) -> Callable[[], Awaitable[set[str]]]:
    async def ask() -> set[str]:
        answer = await client.ask("presence", channel=channel)
        return {each["user_id"] for each in answer["members"]}

    return ask


async def _restart(edge: Child, environ: dict[str, str], folder: Path | None) -> None:
    await edge.end()
    edge.environ, edge.folder = environ, folder
    await edge.start()
