"""Makes the token verifier from the settings: for nodes, and for commands that inspect tokens."""

from eventbus_edge.access.jwks import Jwks
from eventbus_edge.access.token_keys import (
    PUBLIC_ALGORITHMS,
    TokenPolicy,
    algorithms_of,
    read_public_key,
)
from eventbus_edge.access.tokens import TokenVerifier
from eventbus_edge.config import EdgeSettings

__all__ = ["fetched_keys", "make_verifier"]


def fetched_keys(settings: EdgeSettings) -> Jwks | None:
    """The keys of JWT_JWKS_URL, not opened yet; None without a URL. Raises ConfigError."""
    if not settings.jwt_jwks_url:
        return None
    return Jwks(
        settings.jwt_jwks_url,
        frozenset(settings.jwt_algorithms or PUBLIC_ALGORITHMS),
        max_age_s=settings.jwt_jwks_max_age,
        cooldown_s=settings.jwt_jwks_cooldown,
        timeout_s=settings.jwt_jwks_timeout,
    )


def make_verifier(settings: EdgeSettings, keys: Jwks | None) -> TokenVerifier | None:
    """The verifier; None if no key is configured. Raises ConfigError."""
    if keys is None and not (settings.jwt_secret or settings.jwt_public_key):
        return None
    public_key = read_public_key(settings.jwt_public_key) if settings.jwt_public_key else ""
    fitting = algorithms_of(public_key) if public_key else ()
    default = (fitting or ("HS256",)) if keys is None else PUBLIC_ALGORITHMS
    return TokenVerifier(
        TokenPolicy(
            algorithms=settings.jwt_algorithms or default,
            secret=settings.jwt_secret,
            public_key=public_key,
            audience=settings.jwt_audience,
            issuer=settings.jwt_issuer,
            leeway_s=settings.jwt_leeway,
        ),
        keys=keys,
    )
