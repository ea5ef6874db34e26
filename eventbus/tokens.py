"""Signs the tokens that clients present to an edge (docs/wire-protocol.md, "Token").

from eventbus import issue_token

issue_token("7", secret=SECRET, lifetime=3600, roles=["admin"], channels=["orders.*"])
TokenIssuer.from_env().issue(TokenUser(user_id="7", name="Ada"))
"""

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

import jwt
import msgspec

from eventbus.channels import Pattern
from eventbus.environment import Positive, SettingsStruct, Var, load
from eventbus.errors import ConfigError, EncodingError
from eventbus.messages import new_id

__all__ = ["TokenIssuer", "TokenUser", "issue_token"]

Algorithm = Literal[
    "HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "ES256", "ES384", "ES512", "EdDSA"
]
SECRET_BYTES: Final = {"HS256": 32, "HS384": 48, "HS512": 64}  # RFC 7518, 3.2
MAX_TOKEN_BYTES: Final = 8 * 1024  # edges refuse longer ones
MAX_USER_ID: Final = 255  # OpenID Connect Core, 2
MAX_WATCHED: Final = 100  # edges close connections with more
_DEV_SECRET: Final = Path(".eventbus") / "dev-secret"


class TokenUser(msgspec.Struct, frozen=True, kw_only=True):
    """A user, and what the user's token grants."""

    user_id: str
    name: str | None = None
    roles: Sequence[str] = ()
    permissions: Sequence[str] = ()
    channels: Sequence[str] = ()
    """Names and patterns of channels, in addition to what the edge's rules allow."""
    info: Mapping[str, Any] = {}
    """What other members of a presence channel see."""
    watchlist: Sequence[str] = ()
    """Up to 100 users; the user's clients are notified when these come online or go offline."""


class TokenIssuer(SettingsStruct, frozen=True, kw_only=True):
    """Signs tokens with one key. `eventbus dev` and its edges read the same variables."""

    secret: Annotated[
        str,
        Var(
            "JWT_SECRET",
            "the secret to sign tokens with; if empty, that of `eventbus dev` in this folder",
            "32 bytes or more for HS256, 48 for HS384, 64 for HS512",
            secret=True,
        ),
    ] = ""
    private_key: Annotated[
        str,
        Var(
            "JWT_PRIVATE_KEY",
            "the private key to sign tokens with, in place of a secret",
            "the text of a PEM file",
            secret=True,
        ),
    ] = ""
    algorithm: Annotated[
        Algorithm,
        Var(
            "JWT_ALGORITHM",
            "the algorithm to sign tokens with; edges must allow it in JWT_ALGORITHMS",
            "HS256, HS384, HS512, RS256, RS384, RS512, ES256, ES384, ES512 or EdDSA",
        ),
    ] = "HS256"
    audience: Annotated[
        str, Var("JWT_AUDIENCE", "the audience of the tokens: their aud", "a string")
    ] = "websocket"
    issuer: Annotated[str, Var("JWT_ISSUER", "the iss of the tokens; empty: none", "a string")] = ""
    lifetime: Annotated[
        Positive, Var("JWT_LIFETIME", "how long a token is valid", "above 0, at most a year")
    ] = 3600.0

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Self:
        """An issuer with the settings of `environ`, the process's environment when None.

        Without JWT_SECRET and JWT_PRIVATE_KEY, it signs with the secret that `eventbus dev` made in
        the working folder, which edges in production refuse. Raises ConfigError.
        """
        issuer = load(cls, environ)
        if issuer.secret or issuer.private_key:
            return issuer
        try:
            secret = _DEV_SECRET.read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            raise ConfigError(
                "JWT_SECRET is not set: set it to the secret of your edges, or run `eventbus dev` "
                "in this folder, which creates one for development",
                variable="JWT_SECRET",
            ) from None
        except (OSError, UnicodeDecodeError) as exc:
            raise ConfigError(f"{_DEV_SECRET} cannot be read: {exc}") from None
        return msgspec.structs.replace(issuer, secret=secret)

    def __post_init__(self) -> None:
        """Raises ConfigError for a secret that is too short, and for two keys."""
        if self.secret and self.private_key:
            raise ConfigError("JWT_SECRET and JWT_PRIVATE_KEY are both set; set only one")
        needed = SECRET_BYTES.get(self.algorithm)
        if self.private_key and needed is not None:
            raise ConfigError(
                f"JWT_ALGORITHM={self.algorithm} signs with a secret, not with JWT_PRIVATE_KEY; "
                "allowed with it: RS256, ES256, EdDSA and others",
                variable="JWT_ALGORITHM",
            )
        if self.secret and needed is None:
            raise ConfigError(
                f"JWT_ALGORITHM={self.algorithm} signs with JWT_PRIVATE_KEY, not with a secret; "
                "allowed with a secret: HS256, HS384, HS512",
                variable="JWT_ALGORITHM",
            )
        if self.secret and len(self.secret.encode()) < (needed or 0):
            raise ConfigError(
                f"JWT_SECRET is too short: {self.algorithm} needs at least {needed} bytes "
                "(RFC 7518, 3.2)",
                variable="JWT_SECRET",
            )

    def issue(self, user: TokenUser | str, *, lifetime: float | None = None) -> str:
        """A signed token for a user, or for a user id without grants.

        `lifetime` is in seconds, that of the issuer by default. Raises InvalidPattern for a bad
        channel, ValueError for a bad user id, lifetime or watch list, EncodingError for info that
        is not JSON or too large, and ConfigError for a key that cannot sign.
        """
        if not self.secret and not self.private_key:
            raise ConfigError("there is no key to sign with: set JWT_SECRET or JWT_PRIVATE_KEY")
        if isinstance(user, str):
            user = TokenUser(user_id=user)
        if not 0 < len(user.user_id) <= MAX_USER_ID:
            raise ValueError(f"a user id has 1 to {MAX_USER_ID} characters")
        seconds = self.lifetime if lifetime is None else lifetime
        if not 0 < seconds <= 31_536_000:
            raise ValueError("a token's lifetime is above 0 s and at most a year")
        if len(user.watchlist) > MAX_WATCHED:
            raise ValueError(f"a watch list has at most {MAX_WATCHED} users")
        for channel in user.channels:
            Pattern(channel)
        now = int(time.time())
        claims: dict[str, Any] = {
            "sub": user.user_id, "aud": self.audience, "iat": now, "exp": now + math.ceil(seconds),
            "jti": new_id(),
        }  # fmt: skip
        given = {
            "iss": self.issuer, "name": user.name, "info": user.info,
            **{
                key: list(getattr(user, key))
                for key in ("roles", "permissions", "channels", "watchlist")
            },
        }  # fmt: skip
        claims |= {claim: value for claim, value in given.items() if value}
        try:
            plain = msgspec.json.decode(msgspec.json.encode(claims))
        except (TypeError, ValueError, RecursionError) as exc:
            raise EncodingError(f"the user's info cannot be encoded as JSON: {exc}") from None
        try:
            token = jwt.encode(plain, self.private_key or self.secret, algorithm=self.algorithm)
        except (jwt.PyJWTError, TypeError, ValueError):  # their texts may quote the key
            raise ConfigError(
                f"the key cannot sign with {self.algorithm}: check JWT_SECRET, JWT_PRIVATE_KEY and "
                "JWT_ALGORITHM"
            ) from None
        if len(token) > MAX_TOKEN_BYTES:
            raise EncodingError(
                f"the token has {len(token)} bytes; edges accept at most {MAX_TOKEN_BYTES}: grant "
                "patterns in place of many channels, or shorten the info"
            )
        return token


def issue_token(
    user_id: str,
    *,
    secret: str,
    lifetime: float = 3600.0,
    name: str | None = None,
    roles: Sequence[str] = (),
    permissions: Sequence[str] = (),
    channels: Sequence[str] = (),
    info: Mapping[str, Any] | None = None,
    watchlist: Sequence[str] = (),
    audience: str = "websocket",
    issuer: str = "",
    algorithm: Algorithm = "HS256",
) -> str:
    """A token signed with a secret; see `TokenIssuer.issue`. `lifetime` is in seconds."""
    user = TokenUser(
        user_id=user_id, name=name, roles=roles, permissions=permissions, channels=channels,
        info=info or {}, watchlist=watchlist,
    )  # fmt: skip
    signer = TokenIssuer(secret=secret, algorithm=algorithm, audience=audience, issuer=issuer)
    return signer.issue(user, lifetime=lifetime)
