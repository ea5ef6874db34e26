"""The keys to check tokens with, and whether they fit the allowed algorithms."""

import hashlib
import re
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
    "PUBLIC_ALGORITHMS",
    "TokenPolicy",
    "algorithms_of",
    "check_fetched_keys",
    "fitting_algorithms",
    "key_of",
    "read_public_key",
]


MIN_RSA_BITS: Final = 2048  # RFC 7518 §3.3
PUBLIC_ALGORITHMS: Final = (
    "RS256", "RS384", "RS512", "ES256", "ES384", "ES512", "EdDSA",
)  # fmt: skip
"""The algorithms of public keys."""
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


def read_public_key(setting: str) -> str:
    r"""The PEM of JWT_PUBLIC_KEY, which is its text or the path of a file. Raises ConfigError.

    A text may have its line breaks as `\n` or spaces, as in many files of settings. No error
    quotes it, since it may be a private key by mistake.
    """
    text = setting
    if not _PEM_BEGIN.search(setting):
        try:
            text = Path(setting).read_text(encoding="utf-8")
        except (OSError, ValueError) as exc:
            why = (exc.strerror if isinstance(exc, OSError) else None) or type(exc).__name__
            shown = f"={setting!r}" if _PATH.fullmatch(setting) else ""
            raise ConfigError(
                f"JWT_PUBLIC_KEY{shown} is neither the text of a PEM nor the path of a file that "
                f"can be read ({why}); allowed: the path of a PEM file, or the text of a PEM "
                "(-----BEGIN PUBLIC KEY-----…)",
                variable="JWT_PUBLIC_KEY",
            ) from None
    return _PEM.sub(_rewrapped, text)


_PEM_BEGIN: Final = re.compile("-----BEGIN ")
_PEM: Final = re.compile(r"-----BEGIN ([A-Z0-9 ]+)-----(.*?)-----END \1-----", re.DOTALL)
_BREAKS: Final = re.compile(r"(?:\\[rn]|\s)+")
_PATH: Final = re.compile(r"(?=.*[./\\])(?![A-Za-z0-9+/=_-]{40,}$)[\w./\\:~ -]{1,200}")
"""A path that can be shown: it is not as long as a key in base64."""


def _rewrapped(block: re.Match[str]) -> str:
    label, body = block.groups()
    return f"-----BEGIN {label}-----\n{_BREAKS.sub(chr(10), body).strip()}\n-----END {label}-----"


def algorithms_of(public_key: str) -> tuple[str, ...]:
    """The algorithms that a public key in PEM fits; none for one that `key_of` refuses."""
    try:
        return fitting_algorithms(load_pem_public_key(public_key.encode()))
    except (ValueError, UnsupportedAlgorithm):
        return ()


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
        _misconfigured(
            "JWT_PUBLIC_KEY",
            "is a private key; a node needs only the public key: openssl pkey -pubout -in …",
        )
    try:
        key = load_pem_public_key(policy.public_key.encode())
    except (ValueError, UnsupportedAlgorithm):
        _misconfigured("JWT_PUBLIC_KEY", _what_it_is(policy.public_key))
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


def _what_it_is(text: str) -> str:
    """Why a text is not a public key in PEM, without quoting it."""
    labels = [label for label, _ in _PEM.findall(text)]
    if any(label.endswith("CERTIFICATE") for label in labels):
        return (
            "is a certificate; a node needs the public key in it: openssl x509 -pubkey -noout -in …"
        )
    if labels:
        return f"is a PEM of the kind {labels[0][:40]!r}, or is damaged; allowed: PUBLIC KEY"
    if text.startswith(("ssh-", "ecdsa-")):
        return "is a key of SSH; allowed: PEM, from ssh-keygen -e -m PKCS8 -f …"
    return "is not a public key in PEM (-----BEGIN PUBLIC KEY-----)"


def _misconfigured(variable: str, problem: str) -> NoReturn:
    raise ConfigError(f"{variable} {problem}", variable=variable) from None
