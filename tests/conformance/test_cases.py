"""RFC 6455: the cases of the Autobahn test suite, by number.

Every case runs in eight variants: over plain sockets and TLS, with and without compression, in the
native protocol and in Pusher's.
"""

import asyncio
import collections
import itertools

import pytest

from tests.conformance.cases import SECTIONS, Case, beyond, make
from tests.conformance.wire import NATIVE, PUSHER, connect

DIALECTS = (NATIVE, PUSHER)


def by_number(cases: dict[str, list[Case]]) -> list[object]:
    """The rows of each number, for every protocol: one test per number."""
    rows = collections.defaultdict(list)
    for dialect in DIALECTS:
        for case in cases[dialect.name]:
            rows[case.number].append((dialect, case))
    return [pytest.param(number, found, id=number) for number, found in rows.items()]


AUTOBAHN = {dialect.name: make(dialect) for dialect in DIALECTS}
BEYOND = {dialect.name: beyond(dialect) for dialect in DIALECTS}


async def run(edges, dialect, case, *, tls, deflates):
    """Run a case. Returns what is wrong, if anything."""
    edge = edges[deflates]
    # A client may offer compression to a node that does not agree.
    peer = await connect(edge.port(tls), dialect, tls=edge.context(tls), offer="permessage-deflate")
    try:
        assert ("permessage-deflate" in peer.head) == deflates
        sending = asyncio.create_task(peer.send(case.sent, case.chop))
        answers = await sending if any(map(_is_awaited, case.sent)) else []
        answers += await peer.answers()
        await _stop(sending)
        if answers == list(case.answers) and case.answers[-1] in (1000, None):
            assert await peer.ended() == b""  # a close that both have sent is no reset
    except Exception as exc:  # noqa: BLE001 - any error is reported with the variant
        answers = [repr(exc)]
    finally:
        peer.leave()
    if answers == list(case.answers):
        return None
    variant = f"{dialect.name}, {'TLS' if tls else 'plain'}, {'deflate' if deflates else 'as is'}"
    return f"{case.number} {case.about} ({variant}): {_short(answers)} != {_short(case.answers)}"


def _is_awaited(part):
    return type(part) is not bytes


async def _stop(sending):
    """A node that has failed a connection may read no more of it."""
    if not sending.done():
        sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)


def _short(answers):
    return [each[:40] if isinstance(each, str | bytes) else each for each in answers]


def in_variants(rows):
    return [
        (dialect, case, tls, deflates)
        for dialect, case in rows
        for tls, deflates in itertools.product((False, True), repeat=2)
        if case.only is None or case.only == deflates
    ]


async def run_all(edges, variants):
    runs = [run(edges, *who, tls=tls, deflates=deflates) for *who, tls, deflates in variants]
    faults = [fault for fault in await asyncio.gather(*runs) if fault is not None]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(("number", "rows"), by_number(AUTOBAHN))
async def test_case_of_autobahn(edges, summarize, number, rows):
    section, variants = int(number.split(".")[0]), in_variants(rows)
    summarize(f"{section} {SECTIONS[section]}", len(variants))
    await run_all(edges, variants)


@pytest.mark.parametrize(("number", "rows"), by_number(BEYOND))
async def test_section_of_rfc_6455_that_autobahn_has_no_case_for(edges, summarize, number, rows):
    variants = in_variants(rows)
    summarize("RFC 6455, beyond Autobahn", len(variants))
    await run_all(edges, variants)


def test_every_number_of_autobahn_is_there():
    """The numbers are those of Autobahn's specification, without the compression cases."""
    counts = {1: 16, 2: 11, 3: 7, 4: 10, 5: 20, 6: 145, 7: 37, 9: 54, 10: 1}
    for cases in AUTOBAHN.values():
        numbers = {case.number for case in cases}
        found = collections.Counter(int(number.split(".")[0]) for number in numbers)
        assert found == counts
