"""Verifies tokens: a JWT's signature, the types of its claims, its audience and its times.

A token never chooses its algorithm or key. RFC 8725 lists the attacks that this module resists.
"""

import base64
import copy
import functools
import re
import time
from collections.abc import (
    Callable,
    Mapping,
)
from typing import (
    Annotated,
    Any,
    Final,
    Literal,
    NoReturn,
    Protocol,
)

import jwt
import msgspec
from jwt.utils import base64url_decode

from eventbus.channels import Pattern
from eventbus.messages import TooDeep, check_depth, json_decoder
from eventbus_edge.access.token_keys import (
    TokenPolicy,
    check_fetched_keys,
    key_of,
)

__all__ = [
    "MAX_CACHED",
    "MAX_CACHED_BYTES",
    "MAX_HEADERS",
    "MAX_INFO_DEPTH",
    "MAX_TOKEN_BYTES",
    "Claims",
    "KeySource",
    "TokenRejected",
    "TokenVerifier",
    "bearer_token",
    "check_times",
    "is_deeper",
]


MAX_TOKEN_BYTES: Final = 8 * 1024
MAX_CACHED: Final = 4096
"""Tokens whose signatures need no second check. Their times and revocations are always checked."""
MAX_CACHED_BYTES: Final = 2 * 1024
MAX_INFO_DEPTH: Final = 16
"""Levels of objects and arrays in a user's info, from a token or from the action `presence`."""
MAX_HEADERS: Final = 16
"""Different headers of accepted tokens that are known: an issuer mostly sends one."""
_BEARER: Final = re.compile(r"Bearer +(\S+) *", re.ASCII | re.IGNORECASE)
_COMPACT: Final = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+", re.ASCII)
_NO_SIGNATURE: Final = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*\.", re.ASCII)

_WRONG_SIGNATURE: Final = "the token's signature does not verify"
_NOT_A_JWT: Final = "the token is not a JWT: its header or encoding is invalid"

Rejection = Literal["unauthorized", "token_expired", "unavailable"]
Reason = Literal[
    "malformed",
    "unsigned",
    "algorithm",
    "signature",
    "unknown_key",
    "claims",
    "audience",
    "issuer",
    "not_yet_valid",
    "expired",
    "revoked",
    "keys_unavailable",
    "revocations_unavailable",
    "no_key",
]
MAX_TIME: Final = 253_402_300_799
"""The end of the year 9999, the last that RFC 3339 can express, in seconds since 1970."""
Seconds = Annotated[float, msgspec.Meta(le=MAX_TIME)]  # RFC 7519 §2


def bearer_token(header: str) -> str | None:
    """The token of a header Authorization (RFC 6750 §2.1); None if it has another form."""
    match = _BEARER.fullmatch(header)
    return match[1] if match else None


class TokenRejected(Exception):
    """A token that is not accepted. The message says why, and never contains the token.

    With the code `unavailable` the token may be good, but there are no keys to check it with.
    Clients get the code and the message; `reason` is for metrics.
    """

    def __init__(self, code: Rejection, message: str, reason: Reason) -> None:
        super().__init__(message)
        self.code: Rejection = code
        self.reason: Reason = reason


class Claims(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """What a verified token says about its bearer; wire-protocol.md, "Token".

    `exp`, `iat` and `nbf` are in seconds since 1970. `channels` has names and patterns that the
    bearer may join in addition to what the channel rules allow; `watchlist` has the users whose
    online status the bearer may see.
    """

    # OpenID Connect Core §2 limits a subject to 255 characters.
    sub: Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
    exp: Seconds
    aud: str | tuple[str, ...] = ()
    iss: str | None = None
    iat: Seconds | None = None
    nbf: Seconds | None = None
    jti: str | None = None
    roles: frozenset[str] = frozenset()
    permissions: frozenset[str] = frozenset()
    name: str | None = None
    info: dict[str, Any] = {}
    channels: tuple[str, ...] = ()
    watchlist: tuple[str, ...] = ()

    @property
    def user_id(self) -> str:
        """The subject: the bearer of the token."""
        return self.sub

    @property
    def is_admin(self) -> bool:
        """Whether the bearer may inspect and control the node: role or permission `admin`."""
        return "admin" in self.roles or "admin" in self.permissions

    def has_role(self, role: str) -> bool:
        """Whether the bearer has a role."""
        return role in self.roles

    def has_permission(self, permission: str) -> bool:
        """Whether the bearer has a permission."""
        return permission in self.permissions

    @functools.cached_property
    def grants(self) -> tuple[Pattern, ...]:
        """`channels`, parsed. Raises InvalidPattern, but never for claims from a verifier."""
        return tuple(_pattern(text) for text in self.channels)

    def copy(self) -> "Claims":
        """Claims that equal these; changing what can be changed in one leaves the other alone."""
        return msgspec.structs.replace(self, info=copy.deepcopy(self.info) if self.info else {})

    def is_granted(self, channel: str) -> bool:
        """Whether a grant covers `channel`, which must be a valid channel name."""
        for grant in self.grants:  # noqa: SIM110 - a generator would take longer than the match
            if grant.match(channel) is not None:
                return True
        return False

    def is_granted_all(self, pattern: Pattern) -> bool:
        """Whether one grant covers every channel that `pattern` matches."""
        return any(grant.contains(pattern) for grant in self.grants)

    def is_refresh_of(self, other: "Claims") -> bool:
        """Whether the two differ only in times and id, as a refreshed token does."""
        times = {"exp": 0.0, "iat": None, "nbf": None, "jti": None}
        return msgspec.structs.replace(self, **times) == msgspec.structs.replace(other, **times)

    def presence_info(self) -> dict[str, Any]:
        """The info shown to members of a presence channel: `info`, plus `name` if missing."""
        if self.name is None or "name" in self.info:
            return dict(self.info)
        return {**self.info, "name": self.name}

    def presence_changes(self, before: "Claims") -> dict[str, Any]:
        """The fields that differ from the previous token's info; None for removed fields."""
        old, new = before.presence_info(), self.presence_info()
        gone = dict.fromkeys(old.keys() - new.keys())
        return gone | {
            key: value for key, value in new.items() if key not in old or old[key] != value
        }


@functools.lru_cache(maxsize=MAX_CACHED)  # many users have the same grants
def _pattern(text: str) -> Pattern:
    return Pattern(text)


class KeySource(Protocol):
    """Finds public keys by their ids."""

    async def find(self, kid: str | None, algorithm: str) -> Any:
        """The key with an id, as a PyJWT key, if it may be used with the algorithm.

        Without an id, the only key that fits the algorithm. Raises TokenRejected.
        """


class _ById:
    """A key that equals only itself; keys of `cryptography` cannot be hashed."""

    __slots__ = ("key",)

    def __init__(self, key: Any) -> None:
        self.key = key

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ById) and self.key is other.key

    def __hash__(self) -> int:
        return id(self.key)


class TokenVerifier:
    """Checks tokens against one policy."""

    def __init__(
        self,
        policy: TokenPolicy,
        *,
        keys: KeySource | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """With `keys`, the policy must have no key of its own.

        Raises ConfigError for weak keys, and for keys and algorithms that do not fit each other.
        """
        self._policy = policy
        self._algorithms = list(policy.algorithms)
        self._keys = keys
        if keys is not None:
            check_fetched_keys(policy)
        self._key = key_of(policy) if keys is None else None
        self._clock = clock
        self._signatures = jwt.PyJWS()
        self._algorithms_of: dict[str, jwt.algorithms.Algorithm] = {}
        """The algorithms of tokens that were accepted with `_key`, by their encoded headers."""
        self._cached_claims = functools.lru_cache(maxsize=MAX_CACHED)(self._signed_claims)

    @property
    def algorithms(self) -> tuple[str, ...]:
        """The algorithms that tokens may be signed with."""
        return tuple(self._algorithms)

    async def verify(self, token: str) -> Claims:
        """The claims of a token. Raises TokenRejected.

        The signature is checked before the payload is parsed.
        """
        key = self._key if self._keys is None else await self._find_key(self._keys, token)
        read = self._cached_claims if len(token) <= MAX_CACHED_BYTES else self._signed_claims
        claims = read(token, _ById(key)).copy()
        self._check_claims(claims)
        return claims

    def _signed_claims(self, token: str, key: "_ById") -> Claims:
        """The claims of a token whose signature is right; whether they apply is not checked."""
        _check_shape(token)
        return _read_claims(self._payload(token, key))

    async def _find_key(self, keys: KeySource, token: str) -> Any:
        """The key that a token names, out of the known keys."""
        _check_shape(token)
        try:
            header = self._signatures.get_unverified_header(token)
        except (jwt.PyJWTError, ValueError, RecursionError):
            _reject(_NOT_A_JWT)
        algorithm, kid = header.get("alg"), header.get("kid")
        if algorithm not in self._algorithms:
            self._reject_algorithm()
        if kid is not None and not (isinstance(kid, str) and kid):
            _reject("the token's kid is not a non-empty string", "unknown_key")
        return await keys.find(kid, algorithm)

    def _reject_algorithm(self) -> NoReturn:
        allowed = ", ".join(self._algorithms)
        _reject(f"the token's algorithm is not allowed; allowed: {allowed}", "algorithm")

    def _payload(self, token: str, key: "_ById") -> bytes:
        """The payload of a token whose signature is right."""
        algorithm = self._algorithms_of.get(token.partition(".")[0])
        if algorithm is not None and key.key is self._key:
            return self._verified(token, algorithm)
        try:
            decoded = self._signatures.decode_complete(
                token, key=key.key, algorithms=self._algorithms
            )
        except jwt.InvalidAlgorithmError:
            self._reject_algorithm()
        except jwt.InvalidSignatureError:
            _reject(_WRONG_SIGNATURE, "signature")
        except (jwt.PyJWTError, ValueError, RecursionError):
            # PyJWT's messages may quote the header, which is part of the token.
            _reject(_NOT_A_JWT)
        if key.key is self._key and len(self._algorithms_of) < MAX_HEADERS:
            header, algorithm = token.partition(".")[0], decoded["header"]["alg"]
            self._algorithms_of[header] = self._signatures.get_algorithm_by_name(algorithm)
        payload: bytes = decoded["payload"]
        return payload

    def _verified(self, token: str, algorithm: jwt.algorithms.Algorithm) -> bytes:
        """The payload of a token with the header of an accepted one, by its algorithm.

        PyJWT prepares the same key and reads the same header again for each token, which takes most
        of its time.
        """
        signed, _, signature = token.rpartition(".")
        try:
            payload = base64url_decode(signed.partition(".")[2])
            is_right = algorithm.verify(signed.encode(), self._key, base64url_decode(signature))
        except ValueError:
            _reject(_NOT_A_JWT)
        if not is_right:
            _reject(_WRONG_SIGNATURE, "signature")
        return payload

    def _check_claims(self, claims: Claims) -> None:
        policy, now = self._policy, self._clock()
        audiences = (claims.aud,) if isinstance(claims.aud, str) else claims.aud
        if policy.audience not in audiences:
            message = f"the token has another audience: its aud must contain {policy.audience!r}"
            _reject(message, "audience")
        if policy.issuer and claims.iss != policy.issuer:
            message = f"the token has another issuer: its iss must be {policy.issuer!r}"
            _reject(message, "issuer")
        check_times(claims, now, policy.leeway_s)


def check_times(claims: Claims, now: float, leeway_s: float) -> None:
    """Raise TokenRejected for a token that is not valid at `now`.

    The issuer's clock may differ from this one by `leeway_s`. A token issued further in the future
    is refused (RFC 7519 §4.1.6 leaves that to us): a revocation of its user, which compares `iat`,
    would not apply to it.
    """
    if claims.nbf is not None and claims.nbf > now + leeway_s:
        _reject("the token is not valid yet: its nbf is in the future", "not_yet_valid")
    if claims.iat is not None and claims.iat > now + leeway_s:
        _reject(
            "the token's iat is in the future: check the clocks of its issuer and of this node",
            "not_yet_valid",
        )
    if claims.exp <= now - leeway_s:
        raise TokenRejected("token_expired", "the token has expired", "expired")


def _reject(message: str, reason: Reason = "malformed") -> NoReturn:
    raise TokenRejected("unauthorized", message, reason) from None


def _check_shape(token: str) -> None:
    if not token:
        _reject("the token is empty")
    if len(token) > MAX_TOKEN_BYTES:
        _reject(f"the token is longer than {MAX_TOKEN_BYTES} bytes")
    if _NO_SIGNATURE.fullmatch(token):
        _reject("the token is not signed", "unsigned")
    if not _COMPACT.fullmatch(token):
        _reject(
            "the token is not a JWT, which has three parts in base64url, joined by dots, and "
            "nothing around them: no quotes, no line break, no 'Bearer'"
        )
    header = token.partition(".")[0]
    try:  # PyJWT decodes the header up to the recursion limit of the interpreter
        check_depth(base64.urlsafe_b64decode(header + "=" * (-len(header) % 4)))
    except ValueError:
        _reject(_NOT_A_JWT)


_decode_object: Final = json_decoder(dict[str, Any])


def _read_claims(payload: bytes) -> Claims:
    try:
        # Many issuers write null for what they have no value for: it counts as absent.
        given = {
            name: value for name, value in _decode_object(payload).items() if value is not None
        }
        _require_seconds(given)
        claims = msgspec.convert(given, Claims)
        claims.grants  # noqa: B018 - parsed and cached here, where a bad one can still be refused
    except TooDeep as exc:
        _reject(f"the token's claims: {exc}", "claims")
    except (msgspec.DecodeError, ValueError) as exc:
        # InvalidPattern and UnicodeDecodeError are ValueErrors.
        _reject(f"the token's claims are not valid: {exc}", "claims")
    if is_deeper(claims.info, MAX_INFO_DEPTH):
        message = f"the token's info is nested more than {MAX_INFO_DEPTH} levels deep"
        _reject(message, "claims")
    return claims


def _require_seconds(claims: Mapping[str, Any]) -> None:
    """Name the mistake of JavaScript's Date.now(), which is in milliseconds."""
    for name in ("exp", "iat", "nbf"):
        value = claims.get(name)
        if isinstance(value, int | float) and MAX_TIME < value <= 1000 * MAX_TIME:
            _reject(
                f"the token's {name} is in milliseconds; it must be in seconds since 1970 "
                "(RFC 7519, section 2)",
                "claims",
            )


def is_deeper(value: object, levels: int) -> bool:
    """Whether objects and arrays are nested more than `levels` deep."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if not isinstance(value, list):
        return False
    return levels == 0 or any(is_deeper(item, levels - 1) for item in value)
