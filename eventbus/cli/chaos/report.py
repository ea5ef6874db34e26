"""The result of a run: per fault and in total, as a table of 80 columns and as JSON. Pure."""

import textwrap
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

import msgspec

from eventbus.cli.chaos.ledger import Findings, Ledger, Log, Message, Promise, examine

__all__ = ["Report", "Row", "Window", "make_report", "table"]


class Window(NamedTuple):
    """A fault's time: from its start until the next one starts. Monotonic seconds."""

    fault: str
    detail: str
    began_at: float
    healed_at: float
    ended_at: float
    publish_limit_s: float | None = None
    """How long a publisher may wait, if that is promised."""
    unlimited: Collection[str] = ()
    """Publishers to which that promise does not apply."""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """What happened during one fault, or in the whole run."""

    fault: str
    detail: str
    at_s: float
    held_s: float
    """How long the fault lasted."""
    acknowledged: int
    delivered: int
    duplicates: int
    lost: int
    gaps: int
    """Gaps that were reported to receivers."""
    publish_gap_s: float
    """The longest time that a publisher went without an acknowledgement."""
    publisher: str
    """The publisher that waited longest."""
    delivery_gap_s: float
    """The longest time that a receiver went without a message."""
    receiver: str
    """The receiver that waited longest."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """A whole run."""

    where: str
    """What it ran on, for people."""
    seed: int
    seconds: float
    plan: list[str]
    """The faults in their order."""
    rows: list[Row]
    total: Row
    receivers: dict[str, int]
    """Number of receivers by kind."""
    unacknowledged_delivered: int
    """Deliveries of messages without an acknowledgement, which are allowed."""
    excused: int
    """Acknowledged messages that did not arrive, but a gap was reported or the store was erased."""
    allowed_duplicates: int
    """Duplicates at receivers that are promised each message at least once."""
    broken: list[str]
    """Each broken promise, with the receiver."""
    notes: list[str]
    """What was skipped, and why."""


def make_report(
    *,
    where: str,
    seed: int,
    plan: Sequence[str],
    ledger: Ledger,
    logs: Sequence[Log],
    windows: Sequence[Window],
    began_at: float,
    stopped_at: float,
    ended_at: float,
    erased_at: Sequence[float] = (),
    gaps_allowed_from: float = float("inf"),
    broken: Iterable[str] = (),
    notes: Iterable[str] = (),
) -> Report:
    """Examine all logs.

    stopped_at: when publishing stopped. erased_at: when the store was erased. gaps_allowed_from:
    when messages were first lost on purpose. A gap that is reported before breaks a promise.
    """
    orders = _orders(logs)
    findings = [examine(ledger, log, orders.get(log.channel, ()), erased_at) for log in logs]
    problems = list(broken)
    for each in findings:
        problems += each.broken
        early = [time for time in each.gaps if time < gaps_allowed_from]
        if early and each.log.promise is Promise.EACH_ONCE:
            when = ", ".join(f"{time - began_at:.1f} s" for time in early[:5])
            problems.append(
                f"{each.log.name}: a gap was reported although nothing was lost, at {when}"
            )
    acknowledgements = _acknowledgements(ledger)
    rows = []
    for window in windows:
        row = _row(window, acknowledgements, findings, began_at, stopped_at)
        rows.append(row)
        limit = window.publish_limit_s
        promised = {
            each: times for each, times in acknowledgements.items() if each not in window.unlimited
        }
        publisher, waited = _longest_wait(promised, window, stopped_at)
        if limit is not None and waited > limit:
            problems.append(
                f"{window.fault}: {publisher} waited {waited:.1f} s for an acknowledgement; the "
                f"limit is {limit:g} s"
            )
    whole = Window("total", "", began_at, ended_at, ended_at)
    kinds: dict[str, int] = defaultdict(int)
    for log in logs:
        kinds[log.name.split(" ")[0]] += 1
    lax = [each for each in findings if each.log.promise is Promise.AT_LEAST_ONCE]
    total = _row(whole, acknowledgements, findings, began_at, stopped_at)
    return Report(
        where=where,
        seed=seed,
        seconds=round(ended_at - began_at, 1),
        plan=list(plan),
        rows=rows,
        total=total,
        receivers=dict(kinds),
        unacknowledged_delivered=sum(each.unacknowledged for each in findings),
        excused=sum(len(each.excused) for each in findings),
        allowed_duplicates=sum(len(each.duplicates) for each in lax),
        broken=problems,
        notes=list(notes),
    )


def _acknowledgements(ledger: Ledger) -> Mapping[str, Sequence[float]]:
    """The times of acknowledgements by publisher, in order."""
    by_publisher: dict[str, list[float]] = defaultdict(list)
    for each in ledger:
        if each.acknowledged_at is not None:
            by_publisher[each.message.publisher].append(each.acknowledged_at)
    return {publisher: sorted(times) for publisher, times in by_publisher.items()}


def _orders(logs: Sequence[Log]) -> Mapping[str, Sequence[Message]]:
    """The order in which the first receiver of each channel got its messages."""
    orders: dict[str, list[Message]] = {}
    for log in logs:
        if log.promise is Promise.EACH_ONCE and log.channel not in orders:
            orders[log.channel] = [message for message, _ in log.entries() if message is not None]
    return orders


def _row(
    window: Window,
    acknowledgements: Mapping[str, Sequence[float]],
    findings: Sequence[Findings],
    began_at: float,
    stopped_at: float,
) -> Row:
    """`acknowledgements`: their times by publisher, in order."""
    start, end = window.began_at, window.ended_at
    quiet = max(start, min(end, stopped_at))
    delivered = duplicates = lost = gaps = 0
    silences = {"": 0.0}
    for each in findings:
        reported = sum(start <= time < end for time in each.gaps)
        copies = sum(start <= time < end for _, time in each.duplicates)
        delivered += _count(each.log.times, start, end) - reported - copies
        gaps += reported
        if each.log.promise is not Promise.AT_LEAST_ONCE:
            duplicates += copies
        if each.log.promise is not Promise.AT_MOST_ONCE:
            lost += sum(start <= (pub.acknowledged_at or 0.0) < end for pub in each.lost)
        if each.log.promise is Promise.EACH_ONCE:
            silences[each.log.name] = _longest(each.log.times, start, quiet)
    publisher, waited = _longest_wait(acknowledgements, window, stopped_at)
    receiver = max(silences, key=silences.__getitem__)
    return Row(
        fault=window.fault,
        detail=window.detail,
        at_s=round(start - began_at, 1),
        held_s=round(window.healed_at - start, 1),
        acknowledged=sum(_count(times, start, end) for times in acknowledgements.values()),
        delivered=delivered,
        duplicates=duplicates,
        lost=lost,
        gaps=gaps,
        publish_gap_s=round(waited, 1),
        publisher=publisher,
        delivery_gap_s=round(silences[receiver], 1),
        receiver=receiver,
    )


def _longest_wait(
    acknowledgements: Mapping[str, Sequence[float]], window: Window, stopped_at: float
) -> tuple[str, float]:
    """The publisher that waited longest, and how long."""
    quiet = max(window.began_at, min(window.ended_at, stopped_at))
    waits = {
        publisher: _longest(times, window.began_at, quiet)
        for publisher, times in acknowledgements.items()
    }
    publisher = max(waits, key=waits.__getitem__, default="")
    return publisher, waits.get(publisher, 0.0)


def _count(times: Sequence[float], start: float, end: float) -> int:
    return bisect_left(times, end) - bisect_left(times, start)


def _longest(times: Sequence[float], start: float, end: float) -> float:
    """The longest time without an entry, of those that end within the window or at its end."""
    first, last = bisect_left(times, start), bisect_left(times, end)
    before = times[first - 1] if first else start
    return max(b - a for a, b in pairwise([before, *times[first:last], end]))


WIDTH: Final = 80
_LEGEND: Final = (
    "dup: duplicates; pub: the longest time that a publisher waited for an acknowledgement; recv: "
    "the longest time that a client went without a message; held, pub and recv in seconds."
)
_HEAD: Final = ("fault", "at", "held", "acked", "delivered", "dup", "lost", "gaps", "pub", "recv")
_WIDTHS: Final = (18, 6, 5, 7, 10, 4, 4, 4, 6, 6)


def table(report: Report) -> str:
    """The report for people, at most 80 columns wide."""
    lines = [
        f"{report.where}, seed {report.seed}, {report.seconds:.0f} s",
        ", ".join(f"{count} {kind}" for kind, count in sorted(report.receivers.items())),
        "",
        _line(_HEAD),
        _line(["-" * width for width in _WIDTHS]),
    ]
    for row in (*report.rows, report.total):
        if row is report.total:
            lines.append(_line(["-" * width for width in _WIDTHS]))
        lines.append(
            _line(
                (
                    row.fault, f"{row.at_s:.0f} s", f"{row.held_s:.1f}", f"{row.acknowledged:,}",
                    f"{row.delivered:,}", str(row.duplicates), str(row.lost), str(row.gaps),
                    f"{row.publish_gap_s:.1f}", f"{row.delivery_gap_s:.1f}",
                )
            )
        )  # fmt: skip
    allowed = (
        f"Allowed: {report.unacknowledged_delivered:,} deliveries of messages without an "
        f"acknowledgement, {report.allowed_duplicates:,} duplicates where the promise is at least "
        f"once, and {report.excused:,} messages in reported gaps or erased with the store."
    )
    for note in (_LEGEND, allowed, *(f"Note: {each}" for each in report.notes)):
        lines += ["", *textwrap.wrap(note, WIDTH)]
    if report.broken:
        lines += ["", f"BROKEN: {len(report.broken)}"]
        for each in report.broken:
            lines += textwrap.wrap(each, WIDTH, initial_indent="  ", subsequent_indent="    ")
    else:
        lines += ["", "All promises were kept."]
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    first, *others = cells
    rest = "".join(f" {cell:>{width}}" for cell, width in zip(others, _WIDTHS[1:], strict=True))
    return f"{first[: _WIDTHS[0]]:<{_WIDTHS[0]}}{rest}".rstrip()
