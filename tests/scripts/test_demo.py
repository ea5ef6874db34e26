"""The demo as a process: what it prints, how it ends, and what it leaves behind."""

import asyncio
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

ROOT = Path(__file__).parents[2]
EVENT = re.compile(r"^ *(\d+\.\d\d) ms  (\w+) +(\S+)$", re.MULTILINE)

Process = asyncio.subprocess.Process


async def start(*options: str) -> Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "scripts.demo", *options),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def run(*options: str) -> tuple[int, str, str]:
    """Exit code, output and errors of a demo that ends by itself."""
    process = await start(*options)
    try:
        async with asyncio.timeout(40):
            out, err = await process.communicate()
    finally:
        await end(process)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def end(process: Process) -> None:
    if process.returncode is None:
        process.kill()
        await process.communicate()


@pytest_asyncio.fixture
async def running() -> AsyncIterator[tuple[Process, str, list[psutil.Process]]]:
    """A demo that serves: the process, what it said, and its descendants."""
    process = await start("--port", "0")
    output = ""
    try:
        async with asyncio.timeout(40):
            while "Ctrl-C" not in output:
                line = await process.stdout.readline()
                assert line, (await process.stderr.read()).decode()
                output += line.decode()
    except BaseException:
        await end(process)
        raise
    children = psutil.Process(process.pid).children(recursive=True)
    yield process, output, children
    await end(process)


def left(children: list[psutil.Process]) -> list[psutil.Process]:
    return psutil.wait_procs(children, timeout=40)[1]


async def test_once_receives_typed_events_and_prints_their_latency():
    code, out, err = await run("--once")
    assert (code, err) == (0, "")
    events = EVENT.findall(out)
    assert len(events) >= 10
    assert {(event, channel) for _, event, channel in events} == {
        ("DashboardMetrics", "public"),
        ("ChatMessage", "chat.lobby"),
    }
    assert all(0 <= float(latency) < 60_000 for latency, *_ in events)
    summary = out.splitlines()[-1]
    assert summary.startswith(f"{len(events)} events of 2 types (ChatMessage ")
    assert re.search(r"latency: median \d+\.\d\d ms, highest \d+\.\d\d ms$", summary)


async def test_once_says_what_is_missing_and_fails():
    code, out, err = await run("--once", "--interval", "60", "--timeout", "4")
    assert (code, out) == (1, "")
    assert err == (
        "error: after 4 s, 0 events of 0 types arrived; expected: at least 10 events of 2 types\n"
    )


async def test_once_names_the_types_that_came():
    code, out, err = await run("--once", "--interval", "4", "--timeout", "11.5")
    came = len(EVENT.findall(out))
    assert (code, 1 <= came <= 2) == (1, True)
    assert err == (
        f"error: after 11.5 s, {came} event{'s' * (came != 1)} of 1 type arrived "
        "(DashboardMetrics); "
        "expected: at least 10 events of 2 types\n"
    )


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--interval", "0"), "'0' is not a time; allowed: above 0, at most 3600 s"),
        (("--interval", "nan"), "'nan' is not a time"),
        (("--timeout", "soon"), "'soon' is not a time"),
        (("--port", "65536"), "'65536' is not a port; allowed: 0 (a free one) to 65535"),
        (("--port", "-1"), "'-1' is not a port"),
        (("--twice",), "unrecognized arguments: --twice"),
    ],
)
async def test_invalid_option_is_refused_before_anything_starts(options, complaint):
    code, out, err = await run(*options)
    assert (code, out) == (2, "")
    assert complaint in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_signal_ends_it_with_0_and_nothing_is_left(running, number):
    process, _, children = running
    assert "nats-server" in {child.name() for child in children}
    process.send_signal(number)
    async with asyncio.timeout(40):
        _, err = await process.communicate()
    assert (process.returncode, err.decode()) == (0, "")
    assert left(children) == []


async def test_kill_leaves_no_nats_server_behind(running):
    process, _, children = running
    process.kill()
    await process.wait()
    assert left(children) == []


async def test_death_of_the_nats_server_ends_it_with_an_error(running):
    process, _, children = running
    next(child for child in children if child.name() == "nats-server").kill()
    async with asyncio.timeout(30):
        _, err = await process.communicate()
    assert process.returncode == 1
    assert re.search(r"^error: nats-server \d+ exited unexpectedly", err.decode(), re.MULTILINE)
    assert left(children) == []


async def test_port_that_is_taken_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, out, err = await run("--port", str(port))
    assert (code, out) == (1, "")
    assert err.startswith(f"error: BROADCAST_WEBSOCKET_PORT={port}: cannot listen on 127.0.0.1")


async def test_two_demos_run_beside_each_other(running):
    _, output, _ = running
    other = await start()
    try:
        line = b""
        async with asyncio.timeout(40):
            while b"http://" not in line:
                line = await other.stdout.readline()
                assert line, (await other.stderr.read()).decode()
        assert line.decode().split()[-1] not in output
    finally:
        other.terminate()
        await other.communicate()
    assert other.returncode == 0
