"""Compares the current contracts with those in the lock file."""

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
    """The result of `compare`."""

    changes: tuple["Change", ...]

    @property
    def is_breaking(self) -> bool:
        """Whether a change is breaking without a raised version."""
        return any(change.is_breaking for change in self.changes)


class Change(NamedTuple):
    """One change of an event."""

    event: str
    place: str
    """The field, as a path such as `lines[].price`; empty for the event itself."""
    what: str
    breaks: Views
    """What it breaks: readers, writers, both or nothing. See eventbus.contracts.difference."""
    version_raised: bool = False
    """Whether the event's version was raised, which allows breaking changes."""

    @property
    def is_breaking(self) -> bool:
        """Whether it breaks readers or writers without a raised version."""
        return bool(self.breaks) and not self.version_raised


def compare(locked: Mapping[str, Locked], present: Mapping[str, Locked]) -> Verdict:
    """The changes from the locked contracts to the present ones, by event and place."""
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
    """Removed events, mapped to the only added event with the same contract."""
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
        words = "now volatile: no history, no resume, no durable subscriptions"
        yield Difference("", words, READERS)
    elif old.volatile and not new.volatile:
        yield Difference("", "now durable, was volatile", NOBODY)
    if old.queue != new.queue:
        words = f"queue changed from {old.queue or 'none'} to {new.queue or 'none'}"
        yield Difference("", f"{words}: let workers drain the old one", NOBODY)
    yield from _of_channels(old, new)


def _of_channels(old: Locked, new: Locked) -> Iterator[Difference]:
    old_by_filter = {Pattern(text).filter: text for text in old.channels}
    new_by_filter = {Pattern(text).filter: text for text in new.channels}
    gone = [old_by_filter[each] for each in sorted(old_by_filter.keys() - new_by_filter.keys())]
    added = [new_by_filter[each] for each in sorted(new_by_filter.keys() - old_by_filter.keys())]
    if len(gone) == len(added) == 1:
        yield Difference("", f"channel changed from {gone[0]} to {added[0]}", BOTH)
    else:
        for text in gone:
            yield Difference("", f"channel {text} removed", BOTH)
        for text in added:
            yield Difference("", f"channel {text} added", NOBODY)
    for each in sorted(old_by_filter.keys() & new_by_filter.keys()):
        if old_by_filter[each] != new_by_filter[each]:
            words = f"channel {old_by_filter[each]} renamed to {new_by_filter[each]}: same channels"
            yield Difference("", words, NOBODY)


def _of_job(old: Locked, new: Locked) -> Iterator[Difference]:
    """Compare the jobs in queues, if their schema is not that of the broadcast data."""
    if old.job is not None and new.job is not None:
        for place, what, breaks in differences(old.job, new.job):
            yield Difference(f"job.{place}" if place else "job", what, breaks)
