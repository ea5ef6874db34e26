"""The position of one subscription: where it resumes, and which messages are new. Pure.

The edge answers a resume with exactly the missed messages, or says that it cannot (docs/
wire-protocol.md, "offset in eb:subscribed"). The client knows its position, delivers no message
twice, and reports gaps.
"""

import enum
from typing import Any, Final

__all__ = ["Cursor", "Phase"]

_MAX_OFFSET: Final = 2**63 - 1


class Phase(enum.Enum):
    """The state of a subscription at the edge."""

    WAITING = enum.auto()
    """It is joined as soon as there is a connection."""
    ASKED = enum.auto()
    ACTIVE = enum.auto()
    BEHIND = enum.auto()
    """Its consumer is too slow: messages stay in the stream until there is room again."""
    ENDED = enum.auto()


class Cursor:
    """The position in a channel, or in the channels of a pattern, across connections."""

    def __init__(self, *, history: int = 0, is_pattern: bool = False) -> None:
        """`history` earlier messages are requested at the first join."""
        self.phase = Phase.WAITING
        self.offset: int | None = None
        self.epoch: str | None = None
        self.mark: str | None = None
        """The edge's identifier of the message at this offset."""
        self.recovered: bool | None = None
        """Whether the last join left no gap; None after the first one."""
        self.gaps = 0
        """How many times messages were lost for good."""
        self._history = history
        self._is_pattern = is_pattern
        self._is_ordered = True
        """Whether offsets can be compared: not those of a pattern whose channels have no common
        order."""
        self._began: tuple[int, str] | None = None
        """Everything after it, up to the position, has arrived."""
        self._joined = False
        self._has_gap = False

    def ask(self) -> dict[str, Any] | None:
        """The data of a join, which is then in flight."""
        self.phase = Phase.ASKED
        if self.offset is not None:
            position = {"offset": self.offset, "epoch": self.epoch}
            return position if self.mark is None else {**position, "mark": self.mark}
        return {"history": self._history} if self._history else None

    def subscribed(
        self,
        offset: int | None,
        epoch: str | None,
        *,
        recovered: bool | None,
        mark: str | None = None,
    ) -> None:
        """Take the edge's answer to the join."""
        self.phase = Phase.ACTIVE
        if self._joined:
            # If there was no position to resume from, messages in between are lost.
            self.recovered = recovered if recovered is not None else False
            if not self.recovered:
                self._gap()
        self._joined = True
        self._is_ordered = not self._is_pattern or offset is not None
        self._move_to(offset, epoch, mark)
        if offset is None or epoch is None:
            self._began = None
        elif self.recovered and self._began is not None:
            self._began = (self._began[0], epoch)
        else:
            self._began = (offset, epoch)

    def _move_to(self, offset: int | None, epoch: str | None, mark: str | None) -> None:
        if offset is None or epoch is None:
            offset = epoch = mark = None
        self.offset, self.epoch, self.mark = offset, epoch, mark

    def take(self, offset: int | None, epoch: str | None, mark: str | None = None) -> bool:
        """Whether a message is new; if so, the position moves to it."""
        if self.phase is not Phase.ACTIVE:
            return False
        if offset is None or epoch is None or not self._is_ordered:
            return True
        if epoch == self.epoch:
            if self.offset is not None and offset <= self.offset:
                return False
        elif self.epoch is not None:
            self._gap()  # another stream, whose offsets start over
        self.offset, self.epoch, self.mark = min(offset, _MAX_OFFSET), epoch, mark
        return True

    def missed(
        self, offset: int | None = None, epoch: str | None = None, mark: str | None = None
    ) -> None:
        """The edge reports lost messages, and the position after which it continues."""
        self.recovered = False
        self._gap()
        if offset is not None and epoch is not None:
            self._move_to(offset, epoch, mark)
            self._began = (offset, epoch)

    def compares(self, offset: int | None) -> bool:
        """Whether the place of a message is known: then it will come again after a resume."""
        return offset is not None and self._is_ordered

    def covers(self, offset: int, epoch: str | None) -> bool:
        """Whether a message follows where the subscription began, or its last gap."""
        if self._began is None:
            return False
        return epoch != self._began[1] or offset > self._began[0]

    def has(self, offset: int, epoch: str | None) -> bool:
        """Whether the position has reached a message."""
        return self.offset is not None and epoch == self.epoch and offset <= self.offset

    def take_gap(self) -> bool:
        """Whether there is a gap that was not reported yet; it counts as reported now."""
        has_gap, self._has_gap = self._has_gap, False
        return has_gap

    def fall_behind(self) -> None:
        """There is no room for a message: it and later ones are requested again when there is."""
        self.phase = Phase.BEHIND

    def wait(self) -> None:
        """Join again."""
        if self.phase is not Phase.ENDED:
            self.phase = Phase.WAITING

    def lost(self) -> None:
        """The connection was lost; a cursor that is behind stays so."""
        if self.phase in (Phase.ASKED, Phase.ACTIVE):
            self.phase = Phase.WAITING

    def end(self) -> None:
        """The subscription has ended, for good."""
        self.phase = Phase.ENDED

    def forget(self) -> None:
        """Join without a position, and without earlier messages."""
        self.offset = self.epoch = self.mark = None
        self._history = 0

    def _gap(self) -> None:
        self.gaps += 1
        self._has_gap = True
