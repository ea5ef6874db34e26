"""A file of NATS credentials (`.creds`): a user's JWT, and the seed of the nkey that it names.

Read anew for each login, so that a file that is renewed counts from the next one on. nats-py 2.16
would read it too, but loops for ever over a file without a JWT, and ends its reconnecting for good
over one that has changed to something else.
"""

import base64
import datetime
import re
import time
from pathlib import Path
from typing import Any, Final

import msgspec
import nkeys  # type: ignore[import-untyped]
from nats import errors as nats_errors

__all__ = ["Credentials", "CredentialsError", "check_seed"]

_MAX_BYTES: Final = 64 * 1024
# https://docs.nats.io/using-nats/developer/connecting/creds: each block between two lines of dashes
_BLOCK: Final = r"-{3,}[ \t]*BEGIN %s[ \t]*-{3,}\s+(\S+)\s+-{3,}[ \t]*END %s[ \t]*-{3,}"
_JWT: Final = re.compile(_BLOCK.replace("%s", "NATS USER JWT"))
_SEED: Final = re.compile(_BLOCK.replace("%s", "USER NKEY SEED"))


class CredentialsError(nats_errors.Error):
    """A file that nobody can log in with; nats-py takes it for a login that failed."""


class _Nats(msgspec.Struct):
    type: str = ""


class _Claims(msgspec.Struct):
    """What a user's JWT says: `exp` in seconds since 1970, 0 for never."""

    sub: str = ""
    name: str = ""
    exp: int = 0
    nats: _Nats = msgspec.field(default_factory=_Nats)


class Credentials:
    """The file that NATS_CREDS names; of what it holds, messages tell the user's name alone."""

    def __init__(self, path: str) -> None:
        """Nothing is read yet."""
        self._path = path
        self._jwt = b""
        self._key: Any = None
        self._claims = _Claims()

    def load(self) -> None:
        """Read the file for the next login. Raises CredentialsError, naming what is wrong."""
        text = _read("NATS_CREDS", self._path)
        found, seed = _JWT.search(text), _SEED.search(text)
        if found is None or seed is None:
            missing = "JWT" if found is None else "seed"
            raise self._error(
                f"holds no user's {missing}; it has to be a .creds file, as nsc makes"
            )
        claims = self._read_claims(found[1])
        try:
            key = nkeys.from_seed(bytearray(seed[1].encode()))
            public_key = key.public_key.decode()
        except (nkeys.NkeysError, ValueError) as exc:
            raise self._error("has a seed that is none") from exc
        if claims.sub != public_key:
            raise self._error("has the seed of another user than its JWT is for")
        self._jwt, self._key, self._claims = found[1].encode(), key, claims

    def sign(self, nonce: str) -> bytes:
        """The server's nonce, signed by the user's key: what nats-py asks for first."""
        signature: bytes = self._key.sign(nonce.encode())
        return base64.b64encode(signature)

    def jwt(self) -> bytes:
        """The user's JWT."""
        return self._jwt

    def explain(self) -> str:
        """What may be the reason for which a server refuses these credentials."""
        claims = self._claims
        user = f"user {claims.name!r}" if claims.name else "its user"
        if 0 < claims.exp <= time.time():
            moment = datetime.datetime.fromtimestamp(claims.exp, datetime.UTC)
            why = f"{user} expired at {moment:%Y-%m-%dT%H:%M:%SZ}; put a new file in its place"
        else:
            why = (
                f"{user} or the account has been revoked or has expired, or is not of this "
                "server's operator"
            )
        return f"the server refuses the credentials of NATS_CREDS={self._path!r}: {why}"

    def _read_claims(self, token: str) -> _Claims:
        try:
            _, body, _ = token.split(".")  # header, claims, signature: RFC 7519 §3
            decoded = base64.b64decode(body + "=" * (-len(body) % 4), b"-_", validate=True)
            claims = msgspec.json.decode(decoded, type=_Claims)
        except (ValueError, msgspec.DecodeError) as exc:
            raise self._error("has a JWT that cannot be read") from exc
        if claims.nats.type != "user":
            raise self._error(f"has a JWT of type {claims.nats.type[:20]!r}, not of a user")
        return claims

    def _error(self, what: str) -> CredentialsError:
        return CredentialsError(f"NATS_CREDS={self._path!r} {what}")


def check_seed(path: str) -> None:
    """Raises CredentialsError where the file that NATS_NKEY names does not hold a seed."""
    try:
        nkeys.from_seed(bytearray(_read("NATS_NKEY", path).strip().encode())).wipe()
    except (nkeys.NkeysError, ValueError) as exc:
        raise CredentialsError(f"NATS_NKEY={path!r} does not hold the seed of an nkey") from exc


def _read(variable: str, path: str) -> str:
    try:
        with Path(path).open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as exc:
        raise CredentialsError(
            f"{variable}={path!r} is not a file that can be read: {exc.strerror}"
        ) from exc
    if len(content) > _MAX_BYTES:
        raise CredentialsError(f"{variable}={path!r} is larger than {_MAX_BYTES:,} bytes")
    return content.decode("utf-8", "replace")
