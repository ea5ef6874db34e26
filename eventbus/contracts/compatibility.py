"""Whether what events promise now keeps what the lock file says was promised."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from eventbus.channels import Pattern
from eventbus.contracts.difference import (
    BOTH,
    NOBODY,
    READERS,
    Difference,
    Views,
    differences,
)
from eventbus.contracts.lock import Locked

__all__ = ["Change", "Verdict", "compare"]


class Verdict(NamedTuple):
    """What `compare` found."""

    changes: tuple["Change", ...]

    @property
    def is_breaking(self) -> bool:
        """Whether a change breaks somebody, and no raised version says so."""
        return any(change.is_breaking for change in self.changes)


class Change(NamedTuple):
    """One change of an event."""

    event: str
    place: str
    """The field, as a path such as `lines[].price`; empty for the event itself."""
    what: str
    breaks: Views
    """Whom it breaks: `readers`, `writers`, both or nobody; see eventbus.contracts.difference."""
    version_raised: bool = False
    """Whether the event's version was raised, which allows what breaks."""

    @property
    def is_breaking(self) -> bool:
        """Whether it breaks somebody without a new version."""
        return bool(self.breaks) and not self.version_raised


def compare(locked: Mapping[str, Locked], present: Mapping[str, Locked]) -> Verdict:
    """The changes from what is locked to what is present, by event and place."""
    changes: list[Change] = []
    renamed = _renamed(locked, present)
    for name in sorted(locked.keys() | present.keys()):
        if name in renamed:
            words = f"event renamed to {renamed[name]}"
            changes.append(Change(name, "", words, BOTH))
        elif name not in present:
            changes.append(Change(name, "", "event removed", BOTH))
        elif name in locked:
            changes += _of_event(name, locked[name], present[name])
        elif name not in renamed.values():
            changes.append(Change(name, "", "event added", NOBODY))
    return Verdict(tuple(changes))


def _renamed(locked: Mapping[str, Locked], present: Mapping[str, Locked]) -> dict[str, str]:
    """Events that are gone, and the one new event that promises the same."""
    added = [name for name in sorted(present) if name not in locked]
    found: dict[str, str] = {}
    for name in sorted(locked):
        if name not in present:
            same = [new for new in added if present[new] == locked[name]]
            if len(same) == 1:
                found[name] = same[0]
                added.remove(same[0])
    return found


def _of_event(name: str, old: Locked, new: Locked) -> Iterator[Change]:
    raised = new.version > old.version
    if raised:
        words = f"version raised from {old.version} to {new.version}"
        yield Change(name, "", words, NOBODY)
    elif new.version < old.version:
        words = f"version lowered from {old.version} to {new.version}"
        yield Change(name, "", words, BOTH)
    for place, what, breaks in (
        *_of_itself(old, new),
        *differences(old.data, new.data),
        *_of_job(old, new),
    ):
        yield Change(name, place, what, breaks, raised)


def _of_itself(old: Locked, new: Locked) -> Iterator[Difference]:
    if old.kind is not new.kind:
        yield Difference("", f"was a {old.kind} event, is a {new.kind} event", BOTH)
    if new.volatile and not old.volatile:
        words = "volatile now: no history, no resuming, no durable subscriptions"
        yield Difference("", words, READERS)
    elif old.volatile and not new.volatile:
        yield Difference("", "durable now, was volatile", NOBODY)
    if old.queue != new.queue:
        words = f"queue changed from {old.queue or 'none'} to {new.queue or 'none'}"
        yield Difference("", f"{words}: let workers empty the old one", NOBODY)
    yield from _of_channels(old, new)


def _of_channels(old: Locked, new: Locked) -> Iterator[Difference]:
    olds = {Pattern(text).filter: text for text in old.channels}
    news = {Pattern(text).filter: text for text in new.channels}
    gone = [olds[each] for each in sorted(olds.keys() - news.keys())]
    added = [news[each] for each in sorted(news.keys() - olds.keys())]
    if len(gone) == len(added) == 1:
        yield Difference("", f"channel changed from {gone[0]} to {added[0]}", BOTH)
    else:
        for text in gone:
            yield Difference("", f"channel {text} removed", BOTH)
        for text in added:
            yield Difference("", f"channel {text} added", NOBODY)
    for each in sorted(olds.keys() & news.keys()):
        if olds[each] != news[each]:
            words = f"channel {olds[each]} is called {news[each]}: the same channels"
            yield Difference("", words, NOBODY)


def _of_job(old: Locked, new: Locked) -> Iterator[Difference]:
    """What stands in a queue, where that is not the data that are broadcast."""
    if old.job is not None and new.job is not None:
        for place, what, breaks in differences(old.job, new.job):
            yield Difference(f"job.{place}" if place else "job", what, breaks)
