"""The base class of faults."""

import random
from collections.abc import Collection
from typing import ClassVar

from scripts.chaos_lab.site import Site

__all__ = ["CLUSTER", "SINGLE", "Fault"]

SINGLE = "single"
CLUSTER = "cluster"


class Fault:
    """Something that goes wrong for a while: `begin`, then `heal`."""

    name: ClassVar[str]
    summary: ClassVar[str]
    """One line for people."""
    hold_s: ClassVar[float] = 3.0
    """How long it lasts, before it is scaled."""
    takes_s: ClassVar[float] = 8.0
    """About how long it takes to begin, heal and recover, in addition to `hold_s`."""
    needs: ClassVar[frozenset[str]] = frozenset()
    """What the machine must provide; see machine.py."""
    topology: ClassVar[str] = SINGLE
    """The brokers that it needs: one, or a cluster of three."""
    loses_history: ClassVar[bool] = False
    """Whether stored messages are lost on purpose, so that gaps are reported."""
    publish_limit_s: ClassVar[float | None] = None
    """How long a publisher may wait, if that is promised."""
    unlimited: ClassVar[Collection[str]] = ()
    """Publishers to which that promise does not apply."""

    def __init__(self, site: Site, choose: random.Random) -> None:
        """`choose` makes its random choices."""
        self.site = site
        self.choose = choose
        self.broken: list[str] = []
        """Broken promises that the fault noticed itself, other than those about messages."""
        self.outcome = ""
        """What it did, for people, if that is known only at its end."""

    async def begin(self) -> str:
        """Start the fault. Returns what was chosen, for people."""
        raise NotImplementedError

    async def heal(self) -> None:
        """Undo it."""
