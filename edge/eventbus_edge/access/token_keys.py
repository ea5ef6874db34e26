"""The keys to check tokens with, and whether they fit the allowed algorithms."""

import hashlib
from pathlib import Path
from typing import (
    Any,
    Final,
    NoReturn,
)

import jwt
import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import (
    ec,
    ed25519,
    rsa,
)
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from eventbus.errors import ConfigError

__all__ = [
    "MIN_RSA_BITS",
    "TokenPolicy",
    "check_fetched_keys",
    "fitting_algorithms",
    "key_of",
    "read_public_key",
]


MIN_RSA_BITS: Final = 2048  # RFC 7518 §3.3
_HMAC: Final = {"HS256": hashlib.sha256, "HS384": hashlib.sha384, "HS512": hashlib.sha512}
_CURVES: Final = {"secp256r1": ("ES256",), "secp384r1": ("ES384",), "secp521r1": ("ES512",)}


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
        """Without the secret, because settings end up in logs and tracebacks."""
        return f"TokenPolicy(algorithms={self.algorithms!r}, audience={self.audience!r})"


def read_public_key(path: str) -> str:
    """The text of a PEM file. Raises ConfigError when it cannot be read."""
    try:
        return Path(path).read_text(encoding="ascii")
    except (OSError, ValueError) as exc:
        raise ConfigError(
            f"JWT_PUBLIC_KEY={path!r}: {exc}; allowed: the path of a PEM file",
            variable="JWT_PUBLIC_KEY",
        ) from None


def fitting_algorithms(key: object) -> tuple[str, ...]:
    """The algorithms that a public key may be used with; none for a weak or unknown key."""
    if isinstance(key, rsa.RSAPublicKey) and key.key_size >= MIN_RSA_BITS:
        return ("RS256", "RS384", "RS512")
    if isinstance(key, ec.EllipticCurvePublicKey):
        return _CURVES.get(key.curve.name, ())
    if isinstance(key, ed25519.Ed25519PublicKey):
        return ("EdDSA",)
    return ()


def check_fetched_keys(policy: TokenPolicy) -> None:
    """Check that a policy fits fetched keys. Raises ConfigError."""
    if policy.secret or policy.public_key:
        _misconfigured(
            "JWT_JWKS_URL",
            "is set as well as JWT_SECRET or JWT_PUBLIC_KEY; a node takes its keys from one source",
        )
    if not policy.algorithms:
        _misconfigured("JWT_ALGORITHMS", "is empty")
    for algorithm in policy.algorithms:
        if algorithm in _HMAC:
            _misconfigured(
                "JWT_ALGORITHMS",
                f"has {algorithm!r}, but JWT_JWKS_URL is set, whose keys are public; "
                "allowed: RS256, RS384, RS512, ES256, ES384, ES512, EdDSA",
            )


def key_of(policy: TokenPolicy) -> Any:
    """The policy's key, as a PyJWT key. Raises ConfigError."""
    if not policy.algorithms:
        _misconfigured("JWT_ALGORITHMS", "is empty")
    if policy.secret and policy.public_key:
        _misconfigured(
            "JWT_PUBLIC_KEY", "is set as well as JWT_SECRET; a node has keys of one family"
        )
    if not policy.secret and not policy.public_key:
        _misconfigured("JWT_SECRET", "and JWT_PUBLIC_KEY are empty: one of them is needed")
    return _check_secret(policy) if policy.secret else _check_public_key(policy)


def _check_secret(policy: TokenPolicy) -> bytes:
    for algorithm in policy.algorithms:
        if algorithm not in _HMAC:
            _misconfigured(
                "JWT_ALGORITHMS",
                f"has {algorithm!r}, but JWT_SECRET is set; allowed with a secret: "
                f"{', '.join(_HMAC)}; other algorithms need JWT_PUBLIC_KEY",
            )
    secret = policy.secret.encode()
    # A public key is not secret: used as an HMAC secret, it would let anybody sign tokens.
    is_key = "-----BEGIN" in policy.secret
    try:
        jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256).prepare_key(secret)
    except jwt.InvalidKeyError:
        is_key = True
    if is_key:
        _misconfigured(
            "JWT_SECRET", "holds a key of another family, which belongs in JWT_PUBLIC_KEY"
        )
    for algorithm in policy.algorithms:
        needed = _HMAC[algorithm]().digest_size
        if len(secret) < needed:  # RFC 7518 §3.2
            _misconfigured(
                "JWT_SECRET",
                f"has {len(secret)} bytes; {algorithm} needs at least {needed} random ones",
            )
    return secret


def _check_public_key(policy: TokenPolicy) -> Any:
    if "PRIVATE KEY" in policy.public_key:
        _misconfigured("JWT_PUBLIC_KEY", "is a private key; a node needs only the public key")
    try:
        key = load_pem_public_key(policy.public_key.encode())
    except (ValueError, UnsupportedAlgorithm):
        _misconfigured("JWT_PUBLIC_KEY", "is not a public key in PEM (-----BEGIN PUBLIC KEY-)")
    if isinstance(key, rsa.RSAPublicKey) and key.key_size < MIN_RSA_BITS:
        _misconfigured(
            "JWT_PUBLIC_KEY", f"has {key.key_size} bits; RSA needs at least {MIN_RSA_BITS}"
        )
    fitting = fitting_algorithms(key)
    if not fitting:
        _misconfigured(
            "JWT_PUBLIC_KEY", "is a key of an unknown kind; allowed: RSA, P-256 to P-521, Ed25519"
        )
    for algorithm in policy.algorithms:
        if algorithm not in fitting:
            _misconfigured(
                "JWT_ALGORITHMS",
                f"has {algorithm!r}; allowed with the key in JWT_PUBLIC_KEY: {', '.join(fitting)}",
            )
    return key


def _misconfigured(variable: str, problem: str) -> NoReturn:
    raise ConfigError(f"{variable} {problem}", variable=variable) from None
