"""The settings of lifecycle events and of webhooks. Times are in seconds."""

from typing import Annotated, Final, Literal

import msgspec

from eventbus.environment import SettingsStruct, Var
from eventbus.errors import ConfigError
from eventbus.urls import is_web_address, mask_url
from eventbus.webhooks import LIFECYCLE_EVENTS, LifecycleName

__all__ = ["LifecycleSettings"]

MIN_SECRET: Final = 16


class LifecycleSettings(SettingsStruct, frozen=True, kw_only=True):
    """What stands in EdgeSettings too."""

    lifecycle: Annotated[
        Literal["auto", "on", "off"],
        Var(
            "BROADCAST_LIFECYCLE",
            "whether the nodes tell when channels are occupied and vacated, and members come and "
            "go; auto: when BROADCAST_WEBHOOK_URL is set",
            "auto, on or off",
        ),
    ] = "auto"
    lifecycle_linger: Annotated[
        Annotated[float, msgspec.Meta(ge=0, le=3600)],
        Var(
            "BROADCAST_LIFECYCLE_LINGER",
            "how long a channel that nobody hears any more on a node still counts as occupied",
            "0 to 3600",
        ),
    ] = 15.0
    webhook_url: Annotated[
        str,
        Var(
            "BROADCAST_WEBHOOK_URL",
            "where lifecycle events are posted; empty posts none",
            "an http:// or https:// address",
            secret=True,
        ),
    ] = ""
    webhook_secret: Annotated[
        str,
        Var(
            "BROADCAST_WEBHOOK_SECRET",
            "what webhooks are signed with; needed with a URL",
            "16 characters or more",
            secret=True,
        ),
    ] = ""
    webhook_events: Annotated[
        tuple[LifecycleName, ...],
        Var(
            "BROADCAST_WEBHOOK_EVENTS",
            "which events are posted",
            "channel_occupied, channel_vacated, member_joined or member_left, separated by commas",
        ),
    ] = LIFECYCLE_EVENTS
    webhook_timeout: Annotated[
        Annotated[float, msgspec.Meta(gt=0, le=300)],
        Var("BROADCAST_WEBHOOK_TIMEOUT", "how long one post may take", "above 0, at most 300"),
    ] = 10.0
    webhook_batch: Annotated[
        Annotated[int, msgspec.Meta(ge=1, le=1000)],
        Var("BROADCAST_WEBHOOK_BATCH", "the most events of one post", "1 to 1000"),
    ] = 100
    webhook_wait: Annotated[
        Annotated[float, msgspec.Meta(ge=0, le=60)],
        Var(
            "BROADCAST_WEBHOOK_WAIT",
            "how long an event may wait for others to be posted with",
            "0 to 60",
        ),
    ] = 0.2
    webhook_concurrency: Annotated[
        Annotated[int, msgspec.Meta(ge=1, le=100)],
        Var("BROADCAST_WEBHOOK_CONCURRENCY", "posts of this node at once", "1 to 100"),
    ] = 4
    webhook_tries: Annotated[
        Annotated[int, msgspec.Meta(ge=1, le=1000)],
        Var(
            "BROADCAST_WEBHOOK_TRIES",
            "how often a post is tried before it is kept among the failed jobs",
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
            "the pauses after each try; the last one repeats",
            "0 to 86400, separated by commas",
        ),
    ] = (1.0, 5.0, 30.0, 120.0, 600.0)
    webhook_queue_connection: Annotated[
        str,
        Var(
            "BROADCAST_WEBHOOK_QUEUE_CONNECTION",
            "the driver whose queue the posts wait in, where the bus's own has none",
            "empty for the bus's own, or the name of a driver with queues, such as nats",
        ),
    ] = ""

    @property
    def lifecycle_events(self) -> tuple[LifecycleName, ...]:
        """Which events are told at all."""
        if self.lifecycle == "on":
            return LIFECYCLE_EVENTS
        if self.lifecycle == "off" or not self.webhook_url:
            return ()
        return self.webhook_events

    def check_webhook(self) -> None:
        """Raises ConfigError for a URL that cannot be posted to, or without its secret."""
        if not self.webhook_url:
            return
        shown = f"BROADCAST_WEBHOOK_URL={mask_url(self.webhook_url)!r}"
        if self.lifecycle == "off":
            raise ConfigError(
                f"{shown} beside BROADCAST_LIFECYCLE=off: nothing would be posted; set it to auto",
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
                f"characters; allowed: {MIN_SECRET} or more, such as `openssl rand -hex 32` gives",
                variable="BROADCAST_WEBHOOK_SECRET",
            )
