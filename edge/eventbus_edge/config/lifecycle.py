"""The settings of lifecycle events and webhooks."""

from typing import (
    Annotated,
    Final,
    Literal,
)

import msgspec

from eventbus.environment import (
    SettingsStruct,
    Var,
)
from eventbus.errors import ConfigError
from eventbus.urls import (
    is_web_address,
    mask_url,
)
from eventbus.webhooks import (
    LIFECYCLE_EVENTS,
    LifecycleName,
)

__all__ = ["MIN_SECRET", "LifecycleSettings"]


MIN_SECRET: Final = 16


class LifecycleSettings(SettingsStruct, frozen=True, kw_only=True):
    """The settings of lifecycle events and webhooks, a part of EdgeSettings."""

    lifecycle: Annotated[
        Literal["auto", "on", "off"],
        Var(
            "BROADCAST_LIFECYCLE",
            "whether nodes announce when channels are occupied and vacated, and members join and "
            "leave; auto: if there is a URL for webhooks",
            "auto, on or off",
        ),
    ] = "auto"
    lifecycle_linger: Annotated[
        Annotated[float, msgspec.Meta(ge=0, le=3600)],
        Var(
            "BROADCAST_LIFECYCLE_LINGER",
            "how long a channel counts as occupied after its last subscriber on a node has left",
            "0 to 3600",
        ),
    ] = 15.0
    webhook_url: Annotated[
        str,
        Var(
            "BROADCAST_WEBHOOK_URL",
            "the URL that lifecycle events are posted to; empty: none are posted",
            "an http:// or https:// address",
            secret=True,
        ),
    ] = ""
    webhook_secret: Annotated[
        str,
        Var(
            "BROADCAST_WEBHOOK_SECRET",
            "the secret that signs webhooks; required with a URL",
            "16 characters or more",
            secret=True,
        ),
    ] = ""
    webhook_events: Annotated[
        tuple[LifecycleName, ...],
        Var(
            "BROADCAST_WEBHOOK_EVENTS",
            "the events that are posted",
            "channel_occupied, channel_vacated, member_joined or member_left, separated by commas",
        ),
    ] = LIFECYCLE_EVENTS
    webhook_networks: Annotated[
        tuple[str, ...],
        Var(
            "BROADCAST_WEBHOOK_NETWORKS",
            "the networks that webhooks may be posted to, whatever their host names resolve to; "
            "public: all public addresses; empty: all but link-local and multicast addresses",
            "networks and addresses such as 10.20.0.0/16, or public, separated by commas",
        ),
    ] = ()
    webhook_timeout: Annotated[
        Annotated[float, msgspec.Meta(gt=0, le=300)],
        Var("BROADCAST_WEBHOOK_TIMEOUT", "the timeout of one post", "above 0, at most 300"),
    ] = 10.0
    webhook_batch: Annotated[
        Annotated[int, msgspec.Meta(ge=1, le=1000)],
        Var("BROADCAST_WEBHOOK_BATCH", "the maximum number of events per post", "1 to 1000"),
    ] = 100
    webhook_wait: Annotated[
        Annotated[float, msgspec.Meta(ge=0, le=60)],
        Var(
            "BROADCAST_WEBHOOK_WAIT",
            "how long an event may wait for others, to be posted together",
            "0 to 60",
        ),
    ] = 0.2
    webhook_concurrency: Annotated[
        Annotated[int, msgspec.Meta(ge=1, le=100)],
        Var(
            "BROADCAST_WEBHOOK_CONCURRENCY",
            "the maximum number of concurrent posts of this node",
            "1 to 100",
        ),
    ] = 4
    webhook_tries: Annotated[
        Annotated[int, msgspec.Meta(ge=1, le=1000)],
        Var(
            "BROADCAST_WEBHOOK_TRIES",
            "attempts to post before a post is moved to the failed jobs",
            "1 to 1000",
        ),
    ] = 10
    webhook_backoff: Annotated[
        Annotated[
            tuple[Annotated[float, msgspec.Meta(ge=0, le=86_400)], ...],
            msgspec.Meta(min_length=1, max_length=100),
        ],
        Var(
            "BROADCAST_WEBHOOK_BACKOFF",
            "the pauses after each attempt; the last one repeats",
            "0 to 86400, separated by commas",
        ),
    ] = (1.0, 5.0, 30.0, 120.0, 600.0)
    webhook_queue_connection: Annotated[
        str,
        Var(
            "BROADCAST_WEBHOOK_QUEUE_CONNECTION",
            "the driver whose queue holds the posts, if the bus's own driver has no queues",
            "empty for the bus's own, or the name of a driver with queues, such as nats",
        ),
    ] = ""

    @property
    def lifecycle_events(self) -> tuple[LifecycleName, ...]:
        """The events that are announced."""
        if self.lifecycle == "on":
            return LIFECYCLE_EVENTS
        if self.lifecycle == "off" or not self.webhook_url:
            return ()
        return self.webhook_events

    def check_webhook(self) -> None:
        """Check the webhook settings. Raises ConfigError for an invalid URL or a missing secret."""
        if not self.webhook_url:
            return
        shown = f"BROADCAST_WEBHOOK_URL={mask_url(self.webhook_url)!r}"
        if self.lifecycle == "off":
            raise ConfigError(
                f"{shown} with BROADCAST_LIFECYCLE=off would post nothing; set it to auto",
                variable="BROADCAST_LIFECYCLE",
            )
        if not is_web_address(self.webhook_url):
            raise ConfigError(
                f"{shown}: allowed: an http:// or https:// address with a host",
                variable="BROADCAST_WEBHOOK_URL",
            )
        if len(self.webhook_secret) < MIN_SECRET:
            raise ConfigError(
                f"{shown} needs BROADCAST_WEBHOOK_SECRET, which has {len(self.webhook_secret)} "
                f"characters; allowed: {MIN_SECRET} or more, such as from `openssl rand -hex 32`",
                variable="BROADCAST_WEBHOOK_SECRET",
            )
