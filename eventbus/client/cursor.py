"""Where one subscription stands: what it asks for when it joins, and which messages are new. Pure.

The edge answers a resume with exactly what was missed, or says that it cannot (docs/
wire-protocol.md, "offset in eb:subscribed"). The client's part is to know its place, to hand no
message on twice, and to tell of gaps.
"""

import enum
from typing import Any, Final

__all__ = ["Cursor", "Phase"]

_MAX_OFFSET: Final = 2**63 - 1


class Phase(enum.Enum):
    """How a subscription stands with the edge."""

    WAITING = enum.auto()
    """To be joined, as soon as there is a connection."""
    ASKED = enum.auto()
    ACTIVE = enum.auto()
    BEHIND = enum.auto()
    """Its consumer is too slow: what comes is left in the stream until there is room again."""
    ENDED = enum.auto()


class Cursor:
    """The place of one subscription in its channel, over all connections."""

    def __init__(self, *, history: int = 0, resumable: bool = True) -> None:
        """`history` earlier messages are asked for at the first join.

        Not `resumable` is a pattern: the edge keeps no place for one.
        """
        self.phase = Phase.WAITING
        self.offset: int | None = None
        self.epoch: str | None = None
        self.mark: str | None = None
        """Which message it is that stands there, in the edge's words."""
        self.recovered: bool | None = None
        """Whether the last join left no gap; None for the first one."""
        self.gaps = 0
        """How many times messages were missed that could not be had again."""
        self._history = history
        self._resumable = resumable
        self._joined = False
        self._tell_gap = False

    def ask(self) -> dict[str, Any] | None:
        """What a join says of the place, as the action's data; it is then under way."""
        self.phase = Phase.ASKED
        if not self._resumable:
            return None
        if self.offset is not None:
            place = {"offset": self.offset, "epoch": self.epoch}
            return place if self.mark is None else {**place, "mark": self.mark}
        return {"history": self._history} if self._history else None

    def subscribed(
        self,
        offset: int | None,
        epoch: str | None,
        *,
        recovered: bool | None,
        mark: str | None = None,
    ) -> None:
        """The edge has answered the join."""
        self.phase = Phase.ACTIVE
        if self._joined:
            # Where nothing could be asked for, whatever passed meanwhile is missed.
            self.recovered = recovered if recovered is not None else False
            if not self.recovered:
                self._gap()
        self._joined = True
        self._go_to(offset, epoch, mark)

    def _go_to(self, offset: int | None, epoch: str | None, mark: str | None) -> None:
        if offset is None or epoch is None:
            offset = epoch = mark = None
        self.offset, self.epoch, self.mark = offset, epoch, mark

    def take(self, offset: int | None, epoch: str | None, mark: str | None = None) -> bool:
        """Whether a message is new, in which case the place is behind it."""
        if self.phase is not Phase.ACTIVE:
            return False
        if offset is None or epoch is None or not self._resumable:
            return True
        if epoch == self.epoch:
            if self.offset is not None and offset <= self.offset:
                return False
        elif self.epoch is not None:
            self._gap()  # the stream is another one, and its offsets begin again, or go back
        self.offset, self.epoch, self.mark = min(offset, _MAX_OFFSET), epoch, mark
        return True

    def missed(
        self, offset: int | None = None, epoch: str | None = None, mark: str | None = None
    ) -> None:
        """The edge says that messages are lost, and after which place it goes on."""
        self.recovered = False
        self._gap()
        if self._resumable and offset is not None:
            self._go_to(offset, epoch, mark)

    def take_gap(self) -> bool:
        """Whether there is a gap that nobody has been told of; it is told now."""
        told, self._tell_gap = self._tell_gap, False
        return told

    def fall_behind(self) -> None:
        """There is no room for a message: it, and what follows, is asked for again later."""
        self.phase = Phase.BEHIND

    def wait(self) -> None:
        """The join is to be asked (again)."""
        if self.phase is not Phase.ENDED:
            self.phase = Phase.WAITING

    def lost(self) -> None:
        """The connection has ended; who is behind stays so."""
        if self.phase in (Phase.ASKED, Phase.ACTIVE):
            self.phase = Phase.WAITING

    def _gap(self) -> None:
        self.gaps += 1
        self._tell_gap = True
