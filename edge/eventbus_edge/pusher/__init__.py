"""What clients and servers of the Pusher protocol need besides its WebSockets.

The protocol itself is `eventbus_edge.protocols.pusher`; https://pusher.com/docs/channels describes
the HTTP API and the endpoints that authorize subscriptions.
"""

from collections.abc import Sequence
from typing import Final

from aiohttp import web

from eventbus.channels import ChannelKind, Pattern
from eventbus_edge.access import NOBODY, ChannelRules, Rule
from eventbus_edge.config import EdgeSettings
from eventbus_edge.node import Extension, Tenant
from eventbus_edge.protocols import INBOX_CHANNELS, Pusher, UnknownApp, is_inbox
from eventbus_edge.pusher.api import add_api
from eventbus_edge.pusher.apps import App, read_app, read_apps
from eventbus_edge.pusher.auth import add_auth
from eventbus_edge.pusher.webhooks import receivers

__all__ = ["add_pusher", "read_app", "read_apps"]


INBOXES: Final = Rule(Pattern(f"{INBOX_CHANNELS}*"), ChannelKind.PRIVATE, NOBODY, NOBODY)
"""What only a signed-in user hears is not for others, whatever a broad rule allows."""


def add_pusher(
    app: web.Application, settings: EdgeSettings, rules: ChannelRules
) -> tuple[Extension, Sequence[Tenant]]:
    """Add the routes of the apps in the settings, if there are any.

    Returns what the node needs for the app from the environment, and the other apps, each of which
    needs a node of its own. Raises ConfigError.
    """
    credentials = read_app(settings)
    own = [] if credentials is None else [App(credentials, settings)]
    others = read_apps(settings)
    if not (own or others):
        return Extension(), ()
    for each in own:
        add_auth(app, each, "/broadcasting")
    for each in (*own, *others):
        add_auth(app, each, f"/broadcasting/{each.id}")
    add_api(app, [each.credentials for each in (*own, *others)])
    extension = _extension(own[0], rules) if own else Extension()
    unknown = {**extension.websockets, "/app/{key:.*}": UnknownApp()}
    return extension._replace(websockets=unknown), [_tenant(each, rules) for each in others]


def _tenant(app: App, rules: ChannelRules) -> Tenant:
    key = app.credentials.key
    paths = (f"/app/{key}", f"/apps/{app.id}", f"/broadcasting/{app.id}")
    return Tenant(app.id, app.settings, _extension(app, rules), paths)


def _extension(app: App, rules: ChannelRules) -> Extension:
    settings = app.settings

    def kind_of(channel: str) -> ChannelKind:
        return rules.find(channel).kind

    counts = settings.pusher_subscription_counts
    counts_all = counts or (
        bool(settings.pusher_webhook_url) and "subscription_count" in settings.pusher_webhook_events
    )

    def is_counted(channel: str) -> bool:
        """Watch lists need those of inboxes."""
        return is_inbox(channel) or (counts_all and kind_of(channel) is not ChannelKind.PRESENCE)

    protocol = Pusher(app.credentials, kind_of, counts=counts)
    return Extension(
        {f"/app/{app.credentials.key}": protocol},
        receivers(app.credentials, settings, kind_of),
        is_counted,
        (INBOXES,),
    )
