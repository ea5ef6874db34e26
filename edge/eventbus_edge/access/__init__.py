"""Which clients may connect, and which channels they may join."""

from eventbus_edge.access.admission import (
    PRICE_OF_A_CHANNEL,
    Admission,
    ConnectionLimitReached,
    Slot,
    TokenBucket,
)
from eventbus_edge.access.authenticator import Authenticator
from eventbus_edge.access.authorizers import Authorizers
from eventbus_edge.access.hosts import Hosts, Origins, is_loopback_host
from eventbus_edge.access.jwks import Jwks
from eventbus_edge.access.origins import AllowedOrigins, instead_of, is_allowed_entry
from eventbus_edge.access.revocation import ProvenUser, Revocations
from eventbus_edge.access.revoker import Revoker
from eventbus_edge.access.rules import (
    ANYONE,
    AUTHENTICATED,
    NOBODY,
    Allowed,
    Ask,
    ChannelRules,
    Denied,
    Rule,
    Who,
    channels,
    who_may_join,
    who_may_whisper,
)
from eventbus_edge.access.rules_file import read_rules
from eventbus_edge.access.tickets import Tickets
from eventbus_edge.access.tokens import (
    MAX_INFO_DEPTH,
    Claims,
    TokenRejected,
    TokenVerifier,
    bearer_token,
    is_deeper,
)
from eventbus_edge.access.verifiers import fetched_keys, make_verifier

__all__ = [
    "ANYONE",
    "AUTHENTICATED",
    "MAX_INFO_DEPTH",
    "NOBODY",
    "PRICE_OF_A_CHANNEL",
    "Admission",
    "Allowed",
    "AllowedOrigins",
    "Ask",
    "Authenticator",
    "Authorizers",
    "ChannelRules",
    "Claims",
    "ConnectionLimitReached",
    "Denied",
    "Hosts",
    "Jwks",
    "Origins",
    "ProvenUser",
    "Revocations",
    "Revoker",
    "Rule",
    "Slot",
    "Tickets",
    "TokenBucket",
    "TokenRejected",
    "TokenVerifier",
    "Who",
    "bearer_token",
    "channels",
    "fetched_keys",
    "instead_of",
    "is_allowed_entry",
    "is_deeper",
    "is_loopback_host",
    "make_verifier",
    "read_rules",
    "who_may_join",
    "who_may_whisper",
]
