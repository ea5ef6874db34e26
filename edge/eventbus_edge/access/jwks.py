"""Public keys from a JWKS URL (RFC 7517): cached, and kept when a fetch fails.

An unknown key id causes a new fetch, because the key may be new. But at least `cooldown_s` passes
between fetches: anybody can invent tokens with unknown key ids.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import (
    Any,
    Final,
    NamedTuple,
)

import aiohttp
import jwt
import msgspec

from eventbus.attempts import OutageLog
from eventbus.errors import ConfigError
from eventbus.messages import decode_json, json_decoder
from eventbus.urls import (
    fault_text,
    is_web_address,
    mask_url,
    proxy_for,
)
from eventbus_edge.access.token_keys import fitting_algorithms
from eventbus_edge.access.tokens import TokenRejected

__all__ = ["MAX_BYTES", "MAX_KEYS", "BadKeySet", "Jwks", "Key", "read_key_set"]


_log = logging.getLogger(__name__)

MAX_BYTES: Final = 256 * 1024
MAX_KEYS: Final = 100
_ASYMMETRIC: Final = ("RSA", "EC", "OKP")


class BadKeySet(Exception):
    """The response is not a usable JWK set."""


class Key(NamedTuple):
    """A public key, and the algorithms that it may be used with."""

    kid: str | None
    algorithms: frozenset[str]
    key: Any


class _Jwk(msgspec.Struct):
    kty: str
    kid: str | None = None
    use: str | None = None
    alg: str | None = None
    key_ops: list[str] | None = None


class _KeySet(msgspec.Struct):
    keys: list[msgspec.Raw]


_decode_key: Final = json_decoder(_Jwk)
_decode_set: Final = json_decoder(_KeySet)


def read_key_set(payload: bytes, algorithms: frozenset[str]) -> list[Key]:
    """The keys of a JWK set that fit one of `algorithms`; other keys are ignored (§5).

    Symmetric keys are ignored too, because a key at a URL is not a secret. Raises BadKeySet if the
    payload is not a JWK set, or none of its keys fits.
    """
    try:
        entries = _decode_set(payload).keys
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise BadKeySet(f"it is not a JWK set: {exc}") from None
    if len(entries) > MAX_KEYS:
        raise BadKeySet(f"it has {len(entries)} keys; at most {MAX_KEYS} are allowed")
    keys = [key for entry in entries if (key := _read_key(bytes(entry), algorithms)) is not None]
    if not keys:
        raise BadKeySet(f"none of its {len(entries)} keys fits {', '.join(sorted(algorithms))}")
    return keys


def _read_key(entry: bytes, algorithms: frozenset[str]) -> Key | None:
    try:
        about = _decode_key(entry)
        if about.kty not in _ASYMMETRIC or about.use not in (None, "sig"):
            return None
        if about.key_ops is not None and "verify" not in about.key_ops:
            return None
        public = {k: v for k, v in decode_json(entry).items() if k not in ("d", "alg")}
        algorithm = {"RSA": "RS256", "OKP": "EdDSA"}.get(about.kty)
        key = jwt.PyJWK(public, algorithm).key
    except (msgspec.DecodeError, UnicodeDecodeError, jwt.PyJWTError, ValueError):
        return None
    fitting = algorithms.intersection(fitting_algorithms(key))
    if about.alg is not None:
        fitting &= {about.alg}
    return Key(about.kid, fitting, key) if fitting else None


class Jwks:
    """The keys at one URL. Open it before use, in the event loop."""

    def __init__(
        self,
        url: str,
        algorithms: frozenset[str],
        *,
        max_age_s: float = 300.0,
        cooldown_s: float = 10.0,
        timeout_s: float = 5.0,
    ) -> None:
        """Keys older than `max_age_s` are fetched again when one is needed. Raises ConfigError."""
        if not is_web_address(url):
            raise ConfigError(
                f"JWT_JWKS_URL={mask_url(url)!r}: allowed: an https:// or http:// address with "
                "a host",
                variable="JWT_JWKS_URL",
            )
        self._url = url
        self._proxy = proxy_for(url)
        self._shown = mask_url(url)
        self._outage = OutageLog(_log, "the keys of %s can be read again", self._shown)
        self._algorithms = algorithms
        self._max_age_s = max_age_s
        self._cooldown_s = cooldown_s
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._session: aiohttp.ClientSession | None = None
        self._on_fetch: Callable[[str], None] = lambda _: None
        self._keys: list[Key] = []
        self._read_at = self._tried_at = float("-inf")
        self._fetching: asyncio.Task[None] | None = None

    async def open(self, on_fetch: Callable[[str], None]) -> None:
        """Fetch the keys. A failure is logged, and the next token causes another fetch.

        `on_fetch` is called after every fetch, with `ok` or `failed`.
        """
        self._on_fetch = on_fetch
        self._session = aiohttp.ClientSession(timeout=self._timeout)
        await self._refresh()

    @property
    def algorithms(self) -> tuple[str, ...]:
        """The algorithms of the keys that are known."""
        return tuple(sorted({name for key in self._keys for name in key.algorithms}))

    async def aclose(self) -> None:
        """Close the HTTP session; can be called twice."""
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.wait({self._fetching})
        if self._session is not None:
            await self._session.close()

    async def find(self, kid: str | None, algorithm: str) -> Any:
        """See KeySource.find."""
        found = self._find(kid, algorithm)
        if not found or time.monotonic() - self._read_at >= self._max_age_s:
            await self._refresh()
            found = self._find(kid, algorithm)
        if not self._keys:
            message = "the keys to check tokens with are not available at present"
            raise TokenRejected("unavailable", message, "keys_unavailable")
        if len(found) == 1:
            return found[0].key
        if found:
            message = "the token has no kid, and several keys would fit"
            raise TokenRejected("unauthorized", message, "unknown_key")
        message = "the token's key is not known"
        raise TokenRejected("unauthorized", message, "unknown_key")

    def _find(self, kid: str | None, algorithm: str) -> list[Key]:
        return [
            key
            for key in self._keys
            if algorithm in key.algorithms and (kid is None or kid == key.kid)
        ]

    async def _refresh(self) -> None:
        """Wait for a fetch, unless the last one was within the cooldown. Never raises."""
        if self._fetching is None:
            if time.monotonic() - self._tried_at < self._cooldown_s:
                return
            self._fetching = asyncio.create_task(self._fetch(), name="fetching the JWKS")
        # Others wait for the same fetch: a client that leaves must not cancel it.
        await asyncio.shield(self._fetching)

    async def _fetch(self) -> None:
        try:
            keys = read_key_set(await self._read(), self._algorithms)
        except Exception as exc:  # noqa: BLE001 - whatever the response is, keep the known keys
            kept = len(self._keys)
            why = str(exc) if isinstance(exc, BadKeySet) else fault_text(exc)
            self._outage.failed("no keys from %s, keeping the %d known: %s", self._shown, kept, why)
            self._on_fetch("failed")
        else:
            self._keys, self._read_at = keys, time.monotonic()
            self._outage.ended()
            self._on_fetch("ok")
        finally:
            self._tried_at, self._fetching = time.monotonic(), None

    async def _read(self) -> bytes:
        assert self._session is not None, "call open() before use"
        async with self._session.get(
            self._url, allow_redirects=False, proxy=self._proxy
        ) as response:
            if response.status != 200:
                raise BadKeySet(f"it answered {response.status}")
            payload = bytearray()
            async for chunk in response.content.iter_any():
                payload += chunk
                if len(payload) > MAX_BYTES:
                    raise BadKeySet(f"it has more than {MAX_BYTES} bytes")
            return bytes(payload)
