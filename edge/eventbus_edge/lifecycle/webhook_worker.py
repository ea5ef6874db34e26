"""Posts webhooks from a separate worker process, in addition to the nodes:

    eventbus queue work --app eventbus_edge.lifecycle.webhook_worker --queue webhooks

It reads the same settings as the nodes, from the environment.
"""

from eventbus.errors import ConfigError
from eventbus.events import listen
from eventbus_edge.config import EdgeSettings
from eventbus_edge.lifecycle.receivers import NativeReceiver
from eventbus_edge.lifecycle.webhooks import (
    Poster,
    WebhookBatch,
    webhook_outage,
)
from eventbus_edge.metrics import Metrics

__all__ = ["post"]


_settings = EdgeSettings.from_env()
_outage = webhook_outage()
_settings.check_webhook()
if not _settings.webhook_url:
    raise ConfigError(
        "BROADCAST_WEBHOOK_URL is not set, so there is nowhere to post to; allowed: an http:// or "
        "https:// address",
        variable="BROADCAST_WEBHOOK_URL",
    )


@listen(WebhookBatch)
async def post(event: WebhookBatch) -> None:
    """Post one batch; see Poster.process."""
    poster = Poster(NativeReceiver(_settings), _settings, Metrics(), _outage)
    try:
        await poster.process(event)
    finally:
        await poster.aclose()
