"""The cluster as a service sees it, which is not a node: it joins when it first asks something."""

import secrets

from eventbus.attempts import SharedAttempt
from eventbus.channels import Subjects
from eventbus.cluster.cluster import Cluster
from eventbus.cluster.inquiry import Inquiry
from eventbus.drivers import Driver

__all__ = ["ClusterService"]


class ClusterService:
    """One process's way to ask the nodes, opened at the first use."""

    def __init__(self, driver: Driver, subjects: Subjects) -> None:
        self._driver = driver
        self._subjects = subjects
        self._opening = SharedAttempt()
        self._cluster: Cluster | None = None

    async def opened(self) -> Inquiry:
        """Subscribe, unless that is done. Raises a DriverError, after which it can be retried."""
        async with self._opening.turn():
            if self._cluster is None:
                name = f"service-{secrets.token_hex(6)}"
                cluster = Cluster(self._driver, self._subjects, name, _ignore, is_node=False)
                try:
                    await cluster.open()
                except BaseException:
                    await cluster.aclose()
                    raise
                self._cluster = cluster
        return Inquiry(self._cluster)

    async def aclose(self) -> None:
        """Unsubscribe."""
        if self._cluster is not None:
            await self._cluster.aclose()


def _ignore(_fault: str) -> None:
    """Services have no metrics of this. The result of a question lists nodes that did not reply."""
