"""The HTTP server: API, pages, metrics and health."""

from eventbus_edge.http.api import add_api, bus_errors
from eventbus_edge.http.body import read_body, read_form_or_json, read_json_text
from eventbus_edge.http.contract import ContractDocument, checked_events
from eventbus_edge.http.endpoints import add_endpoints
from eventbus_edge.http.front import OPENERS, Detached, Front, Head, Opener
from eventbus_edge.http.middleware import REFUND, REFUSERS, add_middleware, counted
from eventbus_edge.http.pages import STATIC, add_pages
from eventbus_edge.http.revocations import active_revocation
from eventbus_edge.http.server import Runner, detach, give_input
from eventbus_edge.http.tls import client_certificates, tls_context
from eventbus_edge.http.traces import route_of

__all__ = [
    "OPENERS",
    "REFUND",
    "REFUSERS",
    "STATIC",
    "ContractDocument",
    "Detached",
    "Front",
    "Head",
    "Opener",
    "Runner",
    "active_revocation",
    "add_api",
    "add_endpoints",
    "add_middleware",
    "add_pages",
    "bus_errors",
    "checked_events",
    "client_certificates",
    "counted",
    "detach",
    "give_input",
    "read_body",
    "read_form_or_json",
    "read_json_text",
    "route_of",
    "tls_context",
]
