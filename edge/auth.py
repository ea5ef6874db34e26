"""Tokens to claims: a JWT's signature, its claims' types, its audience and its times.

The token chooses nothing: neither the algorithm nor the key. RFC 8725 is the list of attacks that
this module is written against.
"""

import functools
import hashlib
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NoReturn

import jwt
import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from eventbus.channels import Pattern
from eventbus.errors import ConfigError

__all__ = [
    "MAX_TOKEN_BYTES",
    "Claims",
    "TokenPolicy",
    "TokenRejected",
    "TokenVerifier",
    "read_public_key",
]

MAX_TOKEN_BYTES: Final = 8 * 1024
_MAX_INFO_DEPTH: Final = 16
_MIN_RSA_BITS: Final = 2048  # RFC 7518 §3.3
_COMPACT: Final = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+", re.ASCII)
_NO_SIGNATURE: Final = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*\.", re.ASCII)
_HMAC: Final = {"HS256": hashlib.sha256, "HS384": hashlib.sha384, "HS512": hashlib.sha512}
_CURVES: Final = {"secp256r1": ("ES256",), "secp384r1": ("ES384",), "secp521r1": ("ES512",)}

Rejection = Literal["unauthorized", "token_expired"]
# RFC 7519 §2: seconds since 1970; bounded by the year 9999, the last that RFC 3339 can tell.
Seconds = Annotated[float, msgspec.Meta(le=253_402_300_799)]


class TokenRejected(Exception):
    """A token that is not accepted. The message says why, and never contains the token."""

    def __init__(self, code: Rejection, message: str) -> None:
        super().__init__(message)
        self.code: Rejection = code


class Claims(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """What a verified token says about its bearer; wire-protocol.md, "Token".

    `exp` and `nbf` are in seconds since 1970. `channels` are names and patterns that the bearer
    is granted beyond the channel rules.
    """

    # OpenID Connect Core §2 bounds a subject to 255 characters.
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

    @property
    def user_id(self) -> str:
        """The subject: who bears the token."""
        return self.sub

    @property
    def is_admin(self) -> bool:
        """Whether the bearer may see and steer the node: role or permission `admin`."""
        return "admin" in self.roles or "admin" in self.permissions

    def has_role(self, role: str) -> bool:
        return role in self.roles

    def has_permission(self, permission: str) -> bool:
        return permission in self.permissions

    @functools.cached_property
    def grants(self) -> tuple[Pattern, ...]:
        """`channels`, parsed. Raises InvalidPattern; never for claims that a verifier gave."""
        return tuple(Pattern(text) for text in self.channels)

    def is_granted(self, channel: str) -> bool:
        """Whether a grant covers `channel`, which must be a valid channel name."""
        return any(grant.match(channel) is not None for grant in self.grants)

    def says_the_same_as(self, other: "Claims") -> bool:
        """Whether the two differ in nothing but their times and their id: one is a refresh."""
        times = {"exp": 0.0, "iat": None, "nbf": None, "jti": None}
        return msgspec.structs.replace(self, **times) == msgspec.structs.replace(other, **times)

    def presence_info(self) -> dict[str, Any]:
        """What the members of a presence channel see: `info`, with `name` when it has none."""
        if self.name is None or "name" in self.info:
            return dict(self.info)
        return {**self.info, "name": self.name}


class TokenPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """Which tokens are accepted. Give a secret or a public key (the text of a PEM), not both."""

    algorithms: tuple[str, ...] = ("HS256",)
    secret: str = ""
    public_key: str = ""
    audience: str = "websocket"
    issuer: str = ""
    """What `iss` must be; empty accepts any."""
    leeway_s: float = 5.0

    def __repr__(self) -> str:
        """Without the secret: settings end in logs and tracebacks."""
        return f"TokenPolicy(algorithms={self.algorithms!r}, audience={self.audience!r})"


class TokenVerifier:
    """Checks tokens against one policy."""

    def __init__(self, policy: TokenPolicy, *, clock: Callable[[], float] = time.time) -> None:
        """Raises ConfigError for keys and algorithms that do not fit, or are too weak."""
        self._policy = policy
        self._algorithms = list(policy.algorithms)
        self._key = _key_of(policy)
        self._clock = clock
        self._signatures = jwt.PyJWS()

    async def verify(self, token: str) -> Claims:
        """The claims of a token. Raises TokenRejected for any that is not accepted.

        The signature is checked before anything of the payload is read.
        """
        _check_shape(token)
        claims = _read_claims(self._check_signature(token))
        self._check_claims(claims)
        return claims

    def _check_signature(self, token: str) -> bytes:
        try:
            decoded = self._signatures.decode_complete(
                token, key=self._key, algorithms=self._algorithms
            )
        except jwt.InvalidAlgorithmError:
            allowed = ", ".join(self._algorithms)
            _reject(f"the token's algorithm is not allowed; allowed: {allowed}")
        except jwt.InvalidSignatureError:
            _reject("the token's signature does not verify")
        except (jwt.PyJWTError, ValueError, RecursionError):
            # PyJWT's own texts may quote the header, which is a part of the token.
            _reject("the token is not a JWT: its header or encoding cannot be used")
        payload: bytes = decoded["payload"]
        return payload

    def _check_claims(self, claims: Claims) -> None:
        policy, now = self._policy, self._clock()
        audiences = (claims.aud,) if isinstance(claims.aud, str) else claims.aud
        if policy.audience not in audiences:
            _reject(f"the token is not meant for us: its aud must contain {policy.audience!r}")
        if policy.issuer and claims.iss != policy.issuer:
            _reject(f"the token is of another issuer: its iss must be {policy.issuer!r}")
        if claims.nbf is not None and claims.nbf > now + policy.leeway_s:
            _reject("the token is not valid yet: its nbf lies in the future")
        if claims.exp <= now - policy.leeway_s:
            raise TokenRejected("token_expired", "the token has expired")


def read_public_key(path: str) -> str:
    """The text of a PEM file. Raises ConfigError when it cannot be read."""
    try:
        return Path(path).read_text(encoding="ascii")
    except (OSError, ValueError) as exc:
        raise ConfigError(
            f"JWT_PUBLIC_KEY={path!r}: {exc}; allowed: the path of a PEM file",
            variable="JWT_PUBLIC_KEY",
        ) from None


def _reject(message: str) -> NoReturn:
    raise TokenRejected("unauthorized", message) from None


def _check_shape(token: str) -> None:
    if not token:
        _reject("the token is empty")
    if len(token) > MAX_TOKEN_BYTES:
        _reject(f"the token is longer than {MAX_TOKEN_BYTES} bytes")
    if _NO_SIGNATURE.fullmatch(token):
        _reject("the token is not signed")
    if not _COMPACT.fullmatch(token):
        _reject("the token is not a JWT: that is three parts of base64url, joined by dots")


_decode_claims: Final = msgspec.json.Decoder(Claims).decode


def _read_claims(payload: bytes) -> Claims:
    try:
        claims = _decode_claims(payload)
        claims.grants  # noqa: B018 - parsed once, here, where a bad one can still be refused
    except RecursionError:
        _reject("the token's claims are nested too deeply")
    except (msgspec.DecodeError, ValueError) as exc:
        # InvalidPattern and UnicodeDecodeError are ValueErrors.
        _reject(f"the token's claims cannot be used: {exc}")
    if _is_deeper(claims.info, _MAX_INFO_DEPTH):
        _reject(f"the token's info is nested more than {_MAX_INFO_DEPTH} levels deep")
    return claims


def _is_deeper(value: object, levels: int) -> bool:
    if isinstance(value, Mapping):
        value = list(value.values())
    if not isinstance(value, list):
        return False
    return levels == 0 or any(_is_deeper(item, levels - 1) for item in value)


def _key_of(policy: TokenPolicy) -> Any:
    """The one key that a policy's tokens are checked with, in PyJWT's form."""
    if not policy.algorithms:
        _misconfigured("JWT_ALGORITHMS", "names no algorithm")
    if policy.secret and policy.public_key:
        _misconfigured("JWT_PUBLIC_KEY", "is set beside JWT_SECRET; a node has keys of one family")
    if not policy.secret and not policy.public_key:
        _misconfigured("JWT_SECRET", "is empty, and so is JWT_PUBLIC_KEY: one of them is needed")
    return _check_secret(policy) if policy.secret else _check_public_key(policy)


def _check_secret(policy: TokenPolicy) -> bytes:
    for algorithm in policy.algorithms:
        if algorithm not in _HMAC:
            _misconfigured(
                "JWT_ALGORITHMS",
                f"has {algorithm!r}, but JWT_SECRET is set; with a secret allowed are "
                f"{', '.join(_HMAC)}, anything else needs JWT_PUBLIC_KEY",
            )
    secret = policy.secret.encode()
    # A public key is known to everybody: taken for a secret, it would sign anyone's tokens.
    is_key = "-----BEGIN" in policy.secret
    try:
        jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256).prepare_key(secret)
    except jwt.InvalidKeyError:
        is_key = True
    if is_key:
        _misconfigured("JWT_SECRET", "holds a key of another family; such belong in JWT_PUBLIC_KEY")
    for algorithm in policy.algorithms:
        needed = _HMAC[algorithm]().digest_size
        if len(secret) < needed:  # RFC 7518 §3.2
            _misconfigured(
                "JWT_SECRET",
                f"has {len(secret)} bytes; {algorithm} needs at least {needed}, taken at random",
            )
    return secret


def _check_public_key(policy: TokenPolicy) -> Any:
    if "PRIVATE KEY" in policy.public_key:
        _misconfigured("JWT_PUBLIC_KEY", "is a private key; a node needs the public one only")
    try:
        key = load_pem_public_key(policy.public_key.encode())
    except (ValueError, UnsupportedAlgorithm):
        _misconfigured("JWT_PUBLIC_KEY", "is not the PEM of a public key (-----BEGIN PUBLIC KEY-)")
    fitting: tuple[str, ...] = ()
    if isinstance(key, rsa.RSAPublicKey):
        fitting = ("RS256", "RS384", "RS512")
        if key.key_size < _MIN_RSA_BITS:
            _misconfigured(
                "JWT_PUBLIC_KEY", f"has {key.key_size} bits; RSA needs at least {_MIN_RSA_BITS}"
            )
    elif isinstance(key, ec.EllipticCurvePublicKey):
        fitting = _CURVES.get(key.curve.name, ())
    elif isinstance(key, ed25519.Ed25519PublicKey):
        fitting = ("EdDSA",)
    if not fitting:
        _misconfigured(
            "JWT_PUBLIC_KEY", "is of a kind that is not known; allowed: RSA, P-256 to 521, Ed25519"
        )
    for algorithm in policy.algorithms:
        if algorithm not in fitting:
            _misconfigured(
                "JWT_ALGORITHMS",
                f"has {algorithm!r}; with the key in JWT_PUBLIC_KEY allowed: {', '.join(fitting)}",
            )
    return key


def _misconfigured(variable: str, problem: str) -> NoReturn:
    raise ConfigError(f"{variable} {problem}", variable=variable) from None
