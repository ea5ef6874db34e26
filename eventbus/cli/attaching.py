"""Which bus a command speaks to: the cluster's, never one that the command itself has started."""

from pathlib import Path

import msgspec

from eventbus.config import Settings
from eventbus.drivers.registry import canonical_name
from eventbus.errors import ConfigError, ConnectionFailed
from eventbus.server_lock import running_server

__all__ = ["attached"]


def attached(settings: Settings) -> Settings:
    """The settings with the address of the embedded server that another process runs.

    Raises ConnectionFailed where there is none, and ConfigError for the driver `memory`.
    """
    driver = canonical_name(settings.driver)
    if driver == "memory":
        raise ConfigError(
            "BROADCAST_DRIVER='memory': its messages do not leave a process, so that a command "
            "would see only itself; allowed here: nats, redis, or another that reaches the cluster",
            variable="BROADCAST_DRIVER",
        )
    names = settings.stack if driver == "stack" else (driver,)
    if settings.nats_url or "nats" not in map(canonical_name, names):
        return settings
    folder = Path(settings.nats_data).absolute()
    if not (url := running_server(folder)):
        raise ConnectionFailed(
            f"NATS_URL is empty, and no embedded nats-server runs with its data in {folder}: start "
            "one by `eventbus dev` or `eventbus edge run`, and call this in the same folder (or "
            "with the same BROADCAST_NATS_DATA); or set NATS_URL to the address of a server",
            driver="nats",
        )
    return msgspec.structs.replace(settings, nats_url=url)
